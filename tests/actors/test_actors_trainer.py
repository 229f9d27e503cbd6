"""The GRPO loop: its pure parts, and a real run (vLLM, DeepSpeed, Ray) that loses an actor and resumes."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from actors.checkpoints import stamps
from actors.ray_port import canary_gap, largest_gap
from actors.record import Accepted, CheckpointMismatch, Progress, StageRecord, Work
from actors.sampling import FailedShare, GrpoFailed, Sampled
from actors.step_batch import StepBatch
from actors.step_metrics import FleetFigures, gap_alarm, step_metrics
from actors.trainer import resumed, train_policy, work_of
from actors.types import Completion, Generation, Group, PromptTask, RolloutRequest, Sync
from benchmarks.digit_writer import digit_writer
from actors.weights import shared_memory_folder
from configs.schema import (
    FailureConfig,
    GRPOConfig,
    LearnerConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    WorkerRange,
)
from data.types import Prompt
from grpo.advantages import group_advantages
from grpo_cases import left, processes, row
from models.loading import load_policy
from rewards.outcome import Score

#: Everything a line of metrics.jsonl promises of a step.
KEYS = {
    "step",
    "version",
    "reward",
    "valid_fraction",
    "zero_variance_fraction",
    "kl",
    "clip_fraction",
    "is_ratio_mean",
    "is_ratio_max",
    "logprob_gap_mean",
    "logprob_gap_max",
    "staleness_max",
    "tokens_by_age",
    "completion_tokens",
    "samples_per_s",
    "seconds_generate",
    "seconds_reward",
    "seconds_learn",
    "seconds_sync",
    "seconds_wait",
    "wire_bytes",
    "image_passes_per_prompt",
    "workers",
}
#: Rewards high digits: the policy of the test writes a few random ones.
HIGH = """
def high(text, example):
    digits = [int(word) for word in text.split() if word.isdecimal()]
    return min(9, sum(digits) / len(digits)) / 9 if digits else 0.0
"""


#: What a stage is to do: of its settings one that may change, and one that may not.
MINE = Work("mine", {"seed": 0, "grpo.steps": 4}, {})
MORE = replace(MINE, settings={"seed": 0, "grpo.steps": 6})


def group(*scores: Score) -> Group:
    completions = tuple(Completion((index, 2), (-1.0, -0.5), "text", "stop") for index in range(len(scores)))
    return Group(Prompt(row(0), "think", ()), Generation("r", (7, 8), completions, 0, "w0", 0.1), scores)


def ok(total: float) -> Score:
    return Score("ok", {"format": total}, total)


def test_too_many_failed_rewards_stop_the_run_and_truncated_ones_do_not() -> None:
    failed = Score("timeout", detail="row 7: no score within 10 s")
    FailedShare(0.25, asked=4).add([ok(1.0), ok(0.0), ok(0.0), failed])
    FailedShare(0.0, asked=4).add([Score("truncated")] * 4)
    with pytest.raises(GrpoFailed, match="2 of the 4 completions.*25%.*row 7: no score within 10 s"):
        FailedShare(0.25, asked=4).add([ok(1.0), ok(0.0), failed, failed])


def test_the_run_stops_at_the_first_group_that_makes_it_too_many() -> None:
    share = FailedShare(0.25, asked=8)
    share.add([ok(1.0), Score("error", detail="a")])
    share.add([ok(1.0), Score("error", detail="b")])
    with pytest.raises(GrpoFailed, match="3 of the 8 completions.*: c"):
        share.add([Score("error", detail="c"), ok(1.0)])


def test_a_record_resumes_at_the_commit_and_refuses_other_work(tmp_path: Path) -> None:
    record = StageRecord(tmp_path, MINE)
    assert record.resume().step == 0
    for step in range(3):
        record.append({"step": step, "kl": float("nan")}, [group(ok(1.0), ok(0.0))], [(0.9, None)], [[1.0, -1.0]])
        record.append_ledger({"step": step})
        record.begin_checkpoint(step + 1)
        if step < 2:
            record.commit(Progress(step + 1, step + 1, {"next": 8 * (step + 1), "steps": {}}), {})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "to')
    position = StageRecord(tmp_path, MINE).resume()
    half = ("checkpoint step-3 is not whole: it was not finished",)
    assert position == Progress(2, 2, {"next": 16, "steps": {}}, tmp_path / "checkpoints" / "step-2", half)
    assert (tmp_path / "ledger.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "kl": null}\n{"step": 1, "kl": null}\n'
    traces = [json.loads(line) for line in (tmp_path / "traces" / "groups.jsonl").read_text().splitlines()]
    assert [trace["step"] for trace in traces] == [0, 1] and traces[0]["completions"][1]["advantage"] == -1.0
    assert [own["reward"] for own in traces[0]["completions"]] == [0.9, None]  # shaped, beside the total
    with pytest.raises(CheckpointMismatch, match="other rows or another model; remove that folder"):
        StageRecord(tmp_path, replace(MINE, fingerprint="other")).resume()


def test_a_resume_sets_a_broken_checkpoint_aside_and_without_a_whole_one_changes_nothing(tmp_path: Path) -> None:
    record = StageRecord(tmp_path, MINE)
    record.resume()
    for step in (1, 2):
        record.append({"step": step - 1}, [], [], [])
        folder = record.begin_checkpoint(step)
        (folder / "weights").write_bytes(b"w" * step)
        record.commit(Progress(step, step, {"next": step, "steps": {}}), stamps(folder))
    (tmp_path / "checkpoints" / "step-2" / "weights").write_bytes(b"x")
    assert StageRecord(tmp_path, MINE).resume().step == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["broken-step-2", "step-1"]
    (tmp_path / "checkpoints" / "step-1" / "weights").unlink()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointMismatch, match="no checkpoint in .* is whole: .*step-1 is not whole: weights is missing"):
        StageRecord(tmp_path, MINE).resume()
    assert (tmp_path / "metrics.jsonl").read_text() == before == '{"step": 0}\n'


def test_half_a_surrogate_pair_in_a_row_is_written_and_read(tmp_path: Path) -> None:
    record = StageRecord(tmp_path, MINE)
    record.resume()
    odd = group(ok(1.0))
    example = replace(odd.prompt.example, metadata={"note": "\ud83d"})
    record.append({"step": 0}, [replace(odd, prompt=replace(odd.prompt, example=example))], [(1.0,)], [[0.0]])
    (trace,) = (json.loads(line) for line in (tmp_path / "traces" / "groups.jsonl").read_text().split("\n")[:-1])
    assert trace["metadata"] == {"note": "\ud83d"} and trace["completions"][0]["answer"] is None


def test_a_changed_reward_is_noticed_and_may_be_accepted(tmp_path: Path) -> None:
    before = replace(MINE, rewards={"brevity": "old", "distance": "same"})
    record = StageRecord(tmp_path, before)
    record.resume()
    record.begin_checkpoint(1)
    record.commit(Progress(1, 1), {})
    after = replace(MINE, rewards={"brevity": "new", "distance": "same"})
    with pytest.raises(CheckpointMismatch, match="reward brevity has changed since step 1.*accept_changed=true"):
        StageRecord(tmp_path, after, Accepted(settings=True)).resume()
    changed = StageRecord(tmp_path, after, Accepted(rewards=True))
    assert changed.resume().step == 1
    assert changed.changed_rewards() == ["brevity"] and record.changed_rewards() == []
    assert record.resume().step == 1
    changed.finish()
    assert json.loads((tmp_path / "trained.json").read_text())["history"] == [
        {"step": 0, "rewards": {"brevity": "old", "distance": "same"}, "changed": []},
        {"step": 1, "rewards": {"brevity": "new", "distance": "same"}, "changed": []},
    ]


def committed(folder: Path, work: Work, *steps: int) -> StageRecord:
    """A record with checkpoints after so many steps."""
    record = StageRecord(folder, work)
    record.resume()
    for step in steps:
        record.append({"step": step - 1}, [], [], [])
        record.begin_checkpoint(step)
        record.commit(Progress(step, step), {})
    return record


def test_changed_settings_are_refused_with_their_differences_and_may_be_accepted(tmp_path: Path) -> None:
    committed(tmp_path, MINE, 1, 2)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointMismatch, match="2 steps of other settings:\n  grpo.steps: 4 -> 6\ngo on .*--accept-ch"):
        StageRecord(tmp_path, MORE).resume()
    both = replace(MINE, settings={"seed": 1, "grpo.steps": 6})
    with pytest.raises(CheckpointMismatch, match="seed: 0 -> 1  .cannot be accepted: .*\n  grpo.steps: 4 -> 6\nput the old"):
        StageRecord(tmp_path, both, Accepted(settings=True)).resume()
    assert (tmp_path / "metrics.jsonl").read_text() == before

    record = StageRecord(tmp_path, MORE, Accepted(settings=True))
    assert [record.resume().step for _ in range(2)] == [2, 2]  # the second time after a learner's death
    assert [str(change) for change in record.changes] == ["grpo.steps: 4 -> 6"]
    record.begin_checkpoint(3)
    record.commit(Progress(3, 3), {})
    later = StageRecord(tmp_path, MORE)  # its own settings now: nothing is left to be accepted
    assert later.resume().step == 3 and later.changes == ()
    later.finish()
    assert json.loads((tmp_path / "trained.json").read_text())["history"] == [
        {"step": 0, "rewards": {}, "changed": []}, {"step": 2, "rewards": {}, "changed": ["grpo.steps: 4 -> 6"]}
    ]


def test_a_trained_model_is_neither_taken_for_that_of_other_settings_nor_replaced(tmp_path: Path) -> None:
    record = committed(tmp_path, MINE, 1)
    (tmp_path / "hf").mkdir()
    record.finish()
    assert StageRecord(tmp_path, MINE).finished
    other = StageRecord(tmp_path, MORE, Accepted(settings=True))
    assert not other.finished
    with pytest.raises(CheckpointMismatch, match="with other settings:\n  grpo.steps: 4 -> 6\n.*remove that folder"):
        other.resume()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'
    of_another_model = StageRecord(tmp_path, replace(MORE, fingerprint="other"))  # the stage before was done again
    assert not of_another_model.finished and of_another_model.resume().step == 0


def test_what_an_earlier_version_wrote_is_refused(tmp_path: Path) -> None:
    record = committed(tmp_path, MINE, 1)
    state = {"step": 1, "version": 1, "ledger": None, "fingerprint": "mine", "rewards": {}, "history": []}
    path = tmp_path / "checkpoints" / "step-1" / "state.json"
    path.write_text(json.dumps({"state": state, "files": {}}))
    for accepted in (Accepted(), Accepted(settings=True)):
        with pytest.raises(CheckpointMismatch, match="checkpoints was written by an earlier version of this .*remove"):
            StageRecord(tmp_path, MINE, accepted).resume()
    record.finish()
    (tmp_path / "hf").mkdir()
    (tmp_path / "trained.json").write_text('{"fingerprint": "mine", "rewards": {}, "history": []}')
    assert not StageRecord(tmp_path, MINE).finished
    with pytest.raises(CheckpointMismatch, match="a model that was trained with settings that an earlier version"):
        StageRecord(tmp_path, MINE).resume()


def test_a_stage_may_end_where_it_is_but_not_before(tmp_path: Path) -> None:
    committed(tmp_path, MINE, 2)
    said: list[str] = []
    fewer = [replace(MINE, settings={"seed": 0, "grpo.steps": steps}) for steps in (1, 2)]
    with pytest.raises(CheckpointMismatch, match="step-2 has 2 steps, the stage would have 1 now: set grpo.steps to 2"):
        resumed(StageRecord(tmp_path, fewer[0], Accepted(settings=True)), 1, said.append)
    assert resumed(StageRecord(tmp_path, fewer[1], Accepted(settings=True)), 2, said.append).step == 2
    assert said == ["grpo: from step 3 on with grpo.steps: 4 -> 2"]


def test_the_work_is_all_that_stage_3_reads_and_rewards_are_named_not_placed(tmp_path: Path) -> None:
    works = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(HIGH)
        reward = RewardConfig(custom=(f"{tmp_path / name / 'mine.py'}:high",), actors=len(works) + 1)
        works.append(work_of(RunConfig(seed=3, reward=reward), [row(0)], tmp_path))
    assert works[0] == works[1]
    settings = works[0].settings
    assert settings["reward.custom"] == [{"component": "high", "weight": 1.0, "params": {}, "batched": False}]
    assert {"seed", "model.dtype", "data.preset", "grpo.steps", "learner.threads", "learner.ranks"} <= set(settings)
    assert not {"name", "model.path", "data.path", "sft1.epochs", "evaluation.rows", "reward.actors"} & set(settings)


def test_the_groups_of_a_step_at_which_a_run_stops_are_there_to_be_read(tmp_path: Path) -> None:
    record = StageRecord(tmp_path, MINE)
    record.resume()
    own = group(ok(1.0), Score("error", detail="row 7: KeyError"))
    path = record.write_failed(4, [(PromptTask(own.prompt, None, None), own)])
    (trace,) = (json.loads(line) for line in path.read_text().splitlines())
    assert (trace["step"], trace["row"]) == (4, own.prompt.example.id)
    assert [(one["text"], one["outcome"], one["detail"]) for one in trace["completions"]] == [
        ("text", "ok", ""), ("text", "error", "row 7: KeyError"),
    ]


def metrics_of(*groups: Group) -> dict:
    sampled = Sampled(
        [PromptTask(own.prompt, RolloutRequest("r", (7,), ("a.png",), False, 2, 0, SamplingConfig()), None) for own in groups],
        list(groups),
    )
    batch = StepBatch(tuple(groups), (group_advantages(torch.zeros(2), torch.ones(2, dtype=torch.bool)),) * len(groups), None)
    seconds = {"generate": 1.0, "reward": 0.0, "learn": 0.0, "sync": 0.0}
    weights = {"format": 1.0, "answer": 1.0, "iou": 0.0, "repetition": 0.0, "near": 0.5, "parts": 2.0}
    return step_metrics(0, sampled, batch, {}, Sync(3, 8, 1e-6), seconds, FleetFigures(1, 1.0, 0.01), weights)


def test_components_that_nothing_was_measured_of_are_in_the_metrics_all_the_same() -> None:
    metrics = metrics_of(group(Score("ok", {"format": 1.0, "parts/a": 0.5}, 2.0), Score("ok", {"format": 0.0, "parts/a": 0.0}, 0.0)))
    named = {key: value for key, value in metrics.items() if key.partition("_")[0] in ("reward", "applies", "weight")}
    assert named == {
        "reward": 1.0, "reward_std": 0.0, "weight_bytes": 0,
        "reward_format": 0.5, "applies_format": 1.0, "weight_format": 1.0,
        "reward_parts/a": 0.25, "applies_parts/a": 1.0, "weight_parts/a": 2.0,
        "reward_answer": None, "applies_answer": 0.0, "weight_answer": 1.0,
        "reward_near": None, "applies_near": 0.0, "weight_near": 0.5,
    }
    metrics = metrics_of(group(Score("truncated"), Score("truncated")))
    assert metrics["reward_near"] is None and metrics["applies_near"] is None and metrics["weight_near"] == 0.5


def test_a_gap_above_the_tolerance_is_told() -> None:
    step = {"step": 3}
    assert gap_alarm({**step, "logprob_gap_max": 1e-4}, 1e-3) is None
    assert gap_alarm({**step, "logprob_gap_max": None}, 1e-3) is None
    assert "step 4: engine and learner differ by 1.9 nats" in str(gap_alarm({**step, "logprob_gap_max": 1.95}, 1e-3))


def test_one_difference_that_is_no_number_makes_the_canary_gap_no_number() -> None:
    assert largest_gap([(-1.0, -1.5), (-2.0, -2.25)]) == 0.5
    assert math.isnan(largest_gap([(-1.0, -1.5), (math.nan, -2.0), (-3.0, -3.0)]))
    assert math.isnan(largest_gap([(-1.0, -math.inf), (-3.0, -3.0)]))


def test_a_canary_is_compared_as_far_as_its_tokens_are_the_learners_and_needs_half_of_them() -> None:
    expected = (((1, 2), (-1.0, -2.0)), ((3, 4), (-3.0, -4.0)))

    def gap(*tokens: tuple[int, ...]) -> float:
        logprobs = ((-1.5, -2.25), (-3.0, -4.125))
        return canary_gap(expected, [Completion(own, logprobs[i], "", "stop") for i, own in enumerate(tokens)])

    assert gap((1, 2), (3, 4)) == 0.5
    assert gap((9, 2), (3, 4)) == 0.125  # rounding has parted one of the two
    assert gap((1, 9), (3, 9)) == 0.5
    assert math.isnan(gap((1, 9), (9, 4))) and math.isnan(gap((9, 9), (9, 9)))


def copies() -> set[Path]:
    """Copies of versions on this machine, of every run: one that was killed whole has left its own."""
    return set(Path("/dev/shm").glob("ladder-*-grpo-copies/v*"))


class Reader:
    """Collects the lines; when step 3 is done it kills a rollout worker, once."""

    def __init__(self, kill: bool) -> None:
        self.lines, self.kill, self.pids, self.copies = [], kill, set(), set()
        self._others_copies = copies()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith("grpo: step"):
            self.pids |= processes()
            self.copies |= {path.name for path in copies() - self._others_copies}
        if self.kill and line.startswith("grpo: step 3/4"):
            self.kill = False
            victims = [pid for pid in self.pids if "ray::RolloutWorker" in " ".join(psutil.Process(pid).cmdline())]
            os.kill(min(victims), signal.SIGKILL)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_run_learns_loses_a_worker_resumes_and_leaves_a_model(tmp_path: Path) -> None:
    import ray
    from ray.util.placement_group import placement_group_table

    rng, pictures = np.random.default_rng(0), [str(tmp_path / f"{index}.png") for index in range(4)]
    for path in pictures:
        Image.fromarray(rng.integers(0, 255, (112, 140, 3), dtype=np.uint8)).save(path)
    (tmp_path / "mine.py").write_text(HIGH)
    rows = [row(index, tuple(pictures[: (1, 2, 4)[index % 3]])) for index in range(9)]
    rows += [row(index, (pictures[index],), located=True) for index in range(3)]
    config = RunConfig(
        seed=3,
        grpo=GRPOConfig(
            steps=4, prompts_per_step=3, group_size=3, checkpoint_steps=2, sampling=SamplingConfig(max_new_tokens=16)
        ),
        learner=LearnerConfig(
            threads=1, num_cpus=0.5, optimizer=OptimizerConfig(lr=1e-3, schedule="constant", warmup_ratio=0)
        ),
        rollout=RolloutConfig(
            workers=2, num_cpus=0.5, kv_cache_bytes=64 << 20, max_model_len=512, transport="objects"
        ),
        reward=RewardConfig(custom=(f"{tmp_path / 'mine.py'}:high",)),
    )
    single = {"workers": WorkerRange(max=1), "transport": "collective"}
    mortal = {"rollout": config.rollout.model_copy(update=single), "failures": FailureConfig(workers=0)}
    alone = config.model_copy(update=mortal)
    faster = config.learner.model_copy(update={"optimizer": config.learner.optimizer.model_copy(update={"lr": 2e-3})})
    config = config.model_copy(update={"learner": faster})
    base, folder = digit_writer(tmp_path / "model", rows), tmp_path / "grpo"

    def records() -> list[dict]:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        first = Reader(kill=True)
        with pytest.raises(GrpoFailed, match="grpo stopped: 1 rollout workers died within 3600 s, 0 may(.|\n)*same command again"):
            train_policy(alone, rows, base, folder, first)
        interrupted = records()
        assert [record["step"] for record in interrupted] == [0, 1, 2] and left(first.pids) == set()
        assert not first.copies and not any("from its file" in line for line in first.lines)
        second = Reader(kill=False)
        with pytest.raises(CheckpointMismatch, match="2 steps of other settings:\n  learner.optimizer.lr: 0.001 -> 0.002\n"):
            train_policy(config, rows, base, folder, second)
        model = train_policy(config, rows, base, folder, second, accept_changes=True)  # with another fleet, too
        assert "grpo: from step 3 on with learner.optimizer.lr: 0.001 -> 0.002" in second.lines
        # Two engines, their workers, the learner, the reward's child: some may be idle processes that Ray re-used.
        assert left(second.pids) == set() and len(second.pids) >= 4
        rooms = sorted((room["name"], room["state"]) for room in placement_group_table().values())
        # Of both runs, that of the worker that was killed too.
        own = ("learner", "learner", "rollout worker w0", "rollout worker w0", "rollout worker w1")
        assert rooms == [(name, "REMOVED") for name in own]
    finally:
        ray.shutdown()

    done = records()
    assert [record["step"] for record in done] == [0, 1, 2, 3]
    # Step 2 was done again, from the checkpoint; the new rate counts from its update on.
    assert [record["lr"] for record in done] == [1e-3, 1e-3, 2e-3, 2e-3]
    for name in ("reward", "loss", "kl", "grad_norm", "completion_tokens", "version"):
        assert done[2][name] == pytest.approx(interrupted[2][name], rel=1e-4), name
    for record in done:
        assert KEYS <= record.keys() and record["staleness_max"] == 0
        assert record["tokens_by_age"] == [record["trained_tokens"]] and record["is_ratio_stale_max"] is None
        assert record["workers"] == 1 or record["step"] >= 2  # the second run's begins with whichever is ready
        assert record["version"] == record["step"] and record["logprob_gap_max"] < 1e-3 and record["canary_gap"] < 1e-3
        assert record["image_passes_per_prompt"] <= 2 and record["valid_fraction"] > 0.8
        assert record["clip_fraction"] == 0 and record["reward_high"] > 0 and record["reward_format"] == 0
        assert record["weight_high"] == record["weight_format"] == 1 and "weight_repetition" not in record
    assert done[0]["kl"] == pytest.approx(0, abs=1e-9) and done[3]["kl"] > 1e-5
    assert done[0]["is_ratio_mean"] == pytest.approx(1, abs=1e-4)
    traces = [json.loads(line) for line in (folder / "traces" / "groups.jsonl").read_text().splitlines()]
    assert [(trace["step"], trace["version"]) for trace in traces] == [
        (step, step) for step in range(4) for _ in range(3)
    ]
    assert {trace["worker"] for trace in traces[:6]} == {"w0"} and {trace["worker"] for trace in traces[6:]} <= {"w0", "w1"}
    assert all(len(trace["completions"]) == 3 for trace in traces)
    trained, start = load_policy(model).state_dict(), load_policy(base).state_dict()
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    assert len(second.copies) >= 2 and all(name.endswith(".safetensors") for name in second.copies)  # one per version
    own = shared_memory_folder(folder)  # its copies beside it; folders of other runs are theirs
    assert not list(own.parent.glob(f"{own.name}*")) and not (folder / "checkpoints").exists()
    third = Reader(kill=False)
    assert train_policy(config, rows, base, folder, third) == model and third.lines == ["grpo: already trained"]
