"""The evaluation engines really serve the model that was asked for, one after another, on the same engine."""


import pytest

from configs.schema import RolloutConfig, RunConfig, SamplingConfig
from launch.evaluators import Evaluators
from models.tiny import build_tiny


@pytest.mark.engine
def test_one_engine_serves_one_model_after_another(tmp_path):
    import ray

    from actors.rollout import RolloutRequest

    folders = [build_tiny(tmp_path / f"model{seed}", seed=seed, init_std=0.15) for seed in (1, 2)]
    request = RolloutRequest("r", (5, 6, 7), (), False, 1, 0, SamplingConfig(max_new_tokens=8), greedy=True)
    config = RunConfig(stages=("sft1",), rollout=RolloutConfig(max_model_len=64, kv_cache_bytes=16 << 20, max_num_seqs=4))
    ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    said = []
    evaluators = Evaluators(config, tmp_path / "run", said.append)
    answers = {}
    evaluators.prepare(folders[0])  # returns at once
    try:
        for folder in (folders[0], folders[1], folders[0]):
            with evaluators.serving(folder) as workers:
                generation = ray.get(workers[0].generate_many.remote([request]))[0]
                answers.setdefault(folder, []).append(generation.completions[0])
        assert len(said) == 1, "the engine started once"
        assert answers[folders[0]][0].token_ids == answers[folders[0]][1].token_ids != answers[folders[1]][0].token_ids
        with pytest.raises(RuntimeError, match="lost"):
            with evaluators.serving(folders[0]):
                raise RuntimeError("lost")
        assert not evaluators._workers, "an error ends the engines"
    finally:
        evaluators.close()
        ray.shutdown()
