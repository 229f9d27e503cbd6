"""A real GRPO run (vLLM, DeepSpeed, Ray) whose reward does the worst a process can do: it goes on with the rest."""

from __future__ import annotations

import json
import os
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
from grpo_cases import left, processes, row

#: Every third call does the next of these; `pids` collects what was started.
ACTS = ("loop", "c_hang", "segfault", "exit", "forks", "memory", "prints", "unpicklable")
HOSTILE = r"""
import ctypes, os, sys, time

ACTS = ("loop", "c_hang", "segfault", "exit", "forks", "memory", "prints", "unpicklable")

class Unpicklable(Exception):
    def __init__(self):
        super().__init__("cannot be pickled")
        self.payload = lambda: 0

def hostile(text, example, *, folder):
    def note(name, line):
        with open(os.path.join(folder, name), "a") as file:
            file.write(f"{line}\n")

    note("pids", os.getpid())
    with open(os.path.join(folder, "calls"), "a+") as file:
        file.write("x")
        call = file.tell()
    if call % 3 == 0 and call // 3 <= len(ACTS):
        act = ACTS[call // 3 - 1]
        note("acts", act)
        if act == "loop":
            while True:
                pass
        if act == "c_hang":
            ctypes.CDLL(None).pause()
        if act == "segfault":
            ctypes.string_at(0)
        if act == "exit":
            os._exit(7)
        if act == "forks":
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    note("pids", os.getpid())
                    time.sleep(600)
            time.sleep(600)
        if act == "memory":
            bytearray(10 << 30)
        if act == "prints":
            for _ in range(10_000):
                sys.stdout.write("x" * 9999 + "\n")
        if act == "unpicklable":
            raise Unpicklable
    digits = [int(word) for word in text.split() if word.isdecimal()]
    return min(9, sum(digits) / len(digits)) / 9 if digits else 0.0
"""


def advantages(rewards: list[float | None]) -> list[float]:
    """Of a group, by hand: failed members are in no statistic and have none."""
    valid = [reward for reward in rewards if reward is not None]
    mean = sum(valid) / len(valid)
    std = (sum((reward - mean) ** 2 for reward in valid) / max(1, len(valid) - 1)) ** 0.5
    return [0.0 if reward is None or std == 0 else (reward - mean) / (std + 1e-4) for reward in rewards]


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_run_goes_on_beside_every_hostile_act_and_leaves_no_process(tmp_path: Path, writer: tuple[Path, str]) -> None:
    import ray

    base, picture = writer
    (tmp_path / "mine.py").write_text(HOSTILE)
    rows = [row(index, (picture,)) for index in range(6)]
    config = RunConfig(
        seed=3,
        grpo=GRPOConfig(steps=3, prompts_per_step=3, group_size=4, localization_share=0, sampling=SamplingConfig(max_new_tokens=16)),
        learner=LearnerConfig(threads=1, num_cpus=0.5, optimizer=OptimizerConfig(lr=1e-4)),
        rollout=RolloutConfig(num_cpus=0.5, kv_cache_bytes=64 << 20, max_model_len=512),
        reward=RewardConfig(
            custom=({"source": f"{tmp_path / 'mine.py'}:hostile", "params": {"folder": str(tmp_path)}},),
            actors=2, timeout_seconds=3.0, memory_mib=2048, max_failed_share=0.5,
        ),
    )
    folder, ours = tmp_path / "grpo", set()

    def say(line: str) -> None:
        print(line)
        ours.update(processes())

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        train_policy(config, rows, base, folder, say)
    finally:
        ray.shutdown()

    assert tuple((tmp_path / "acts").read_text().split()) == ACTS
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2]
    traces = [json.loads(line) for line in (folder / "traces" / "groups.jsonl").read_text().splitlines()]
    completions = [own for trace in traces for own in trace["completions"] if own["outcome"] != "truncated"]
    failed = [own for own in completions if own["outcome"] != "ok"]
    assert sorted(own["outcome"] for own in failed) == ["error"] * 4 + ["timeout"] * 3  # printing costs nothing
    told = " ".join(own["detail"] for own in failed)
    for part in ("no score within 3 s", "SIGSEGV", "exited with code 7", "MemoryError", "Unpicklable: cannot be pickled"):
        assert part in told, part
    for trace in traces:
        rewards = [own["reward"] for own in trace["completions"]]
        assert [own["total"] is None for own in trace["completions"]] == [own["outcome"] != "ok" for own in trace["completions"]]
        assert [own["advantage"] for own in trace["completions"]] == pytest.approx(advantages(rewards), abs=1e-6)
    shares = sum(record["timeout_fraction"] + record["error_fraction"] for record in records)
    assert shares == pytest.approx(7 / 12)  # of twelve completions a step
    started = {int(line) for line in (tmp_path / "pids").read_text().split()}
    assert len(started) >= 9 and not [pid for pid in started if psutil.pid_exists(pid)]
    assert len(ours) >= 5 and left(ours) == set(), "an engine, a worker, a learner and two reward actors at least"
