"""A real run of stage 3 (vLLM, DeepSpeed, Ray) in which one actor of every kind is killed: it goes on, and loses nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from actors.trainer import train_policy
from configs.schema import (
    GRPOConfig,
    LearnerConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
)
from grpo_cases import processes, row

STEPS, PROMPTS, STALENESS = 10, 3, 1


def actors(kind: str) -> list[int]:
    """Process ids of the run's actors of a kind, the oldest first."""
    own = psutil.process_iter(["pid", "cmdline", "create_time"])  # cmdline is None for one that has just ended
    mine = [process.info for process in own if " ".join(process.info["cmdline"] or ()).startswith(f"ray::{kind}")]
    return [info["pid"] for info in sorted(mine, key=lambda info: info["create_time"])]


class Killer:
    """Collects the lines; after the step of that number it kills the first actor of a kind, once for each."""

    def __init__(self, victims: dict[int, str]) -> None:
        self.lines, self.victims, self.killed, self.others = [], victims, {}, processes()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        for step, kind in list(self.victims.items()):
            if line.startswith(f"grpo: step {step}/"):
                self.killed[kind] = actors(self.victims.pop(step))[0]
                os.kill(self.killed[kind], signal.SIGKILL)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def run(tmp_path: Path, writer: tuple[Path, str]) -> Callable[[Killer], Path]:
    """Runs stage 3 on two workers, one step ahead; returns the stage's folder."""
    import ray

    base, picture = writer
    rows = [row(index, (picture,)) for index in range(7)]
    config = RunConfig(
        seed=3,
        grpo=GRPOConfig(
            steps=STEPS, prompts_per_step=PROMPTS, group_size=3, checkpoint_steps=3, staleness=STALENESS,
            localization_share=0, sampling=SamplingConfig(max_new_tokens=16),
        ),
        learner=LearnerConfig(threads=1, num_cpus=0.5, optimizer=OptimizerConfig(lr=1e-4)),
        rollout=RolloutConfig(workers=2, num_cpus=0.5, kv_cache_bytes=64 << 20, max_model_len=512),
        reward=RewardConfig(),
    )

    def go(killer: Killer) -> Path:
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        try:
            train_policy(config, rows, base, tmp_path / "grpo", killer)
        finally:
            ray.shutdown()
        return tmp_path / "grpo"

    return go


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_run_survives_the_death_of_every_kind_of_actor_and_trains_every_prompt_once(run) -> None:
    killer = Killer({2: "RolloutWorker", 4: "RewardActor", 5: "Learner"})
    folder = run(killer)
    assert not killer.victims and len(killer.killed) == 3
    assert killer.said("rollout worker w0 ended: its process died") or killer.said("rollout worker w1 ended: its process died")
    assert killer.said("a reward actor was lost") and killer.said("all ranks start again at step 3")
    metrics = lines(folder / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(STEPS))
    assert max(record["staleness_max"] for record in metrics) == STALENESS
    assert all(record["error_fraction"] == record["timeout_fraction"] == 0 for record in metrics)
    for record in metrics:
        fresh, *older = record["tokens_by_age"]
        assert fresh + sum(older) == record["trained_tokens"] and len(older) <= STALENESS
        assert (record["is_ratio_stale_max"] is None) == (not older)
        assert record["logprob_gap_max"] < 1e-3 if fresh else record["logprob_gap_max"] is None
    ledger = lines(folder / "ledger.jsonl")
    assert [line["step"] for line in ledger] == list(range(STEPS)) and not any(line["dropped"] for line in ledger)
    positions = [place for line in ledger for first, count in line["positions"] for place in range(first, first + count)]
    assert positions == list(range(STEPS * PROMPTS))
    traces = lines(folder / "traces" / "groups.jsonl")
    assert [trace["step"] for trace in traces] == [step for step in range(STEPS) for _ in range(PROMPTS)]
    assert {trace["worker"] for trace in traces} <= {"w0", "w1", "w2"}
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in processes() - killer.others], timeout=10)
    assert not [own for own in alive if own.status() != psutil.STATUS_ZOMBIE]
