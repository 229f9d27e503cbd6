"""A real run of stage 3 (vLLM, DeepSpeed, Ray) in which one actor of every kind is killed: it goes on, and loses nothing.

Victims are chosen by actor id and state from fleet.json; fleet.jsonl says whether the choice was right. The whole matrix,
and what takes more than one actor, is `benchmarks.chaos_matrix`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from actors.trainer import train_policy
from benchmarks.digit_run import small
from benchmarks.digit_writer import questions
from benchmarks.processes import Family
from benchmarks.victims import AIMS, LOOK_SECONDS, Kill, aim_at, fleet, hit, kill, lines, lives, loss_of, recovered
from benchmarks.whole_runs import check

STEPS, PROMPTS, STALENESS = 14, 3, 1
#: In this order; a worker is not waited for, the others are.
VICTIMS = ("worker_generating", "reward_scoring", "learner_learning")


class Killer(threading.Thread):
    """Kills one of each; who was not what it was taken for is noted in `missed`, and another is killed in its place."""

    def __init__(self, stage: Path) -> None:
        super().__init__(daemon=True)
        self.stage, self.killed, self.missed = stage, dict[str, Kill](), list[Kill]()
        self.over = threading.Event()

    def run(self) -> None:
        for aim in VICTIMS:
            while aim not in self.killed and not self.over.is_set():
                seen = fleet(self.stage)
                own = aim_at(aim, seen) if seen is not None and seen["step"] > 0 else None
                if own is None or (killed := kill(aim, seen, own)) is None:
                    time.sleep(LOOK_SECONDS)
                    continue
                self._wait_for(lambda: loss_of(killed, lives(self.stage)))
                if hit(killed, lives(self.stage)):
                    self.killed[aim] = killed
                else:
                    self.missed.append(killed)
                if AIMS[aim].kind != "worker":
                    self._wait_for(lambda: recovered(killed, lives(self.stage)))

    def _wait_for(self, found) -> None:
        while found() is None and not self.over.is_set():
            time.sleep(LOOK_SECONDS)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_run_survives_the_death_of_every_kind_of_actor_and_trains_every_prompt_once(
    tmp_path: Path, writer: tuple[Path, str]
) -> None:
    import ray

    changes = {"steps": STEPS, "staleness": STALENESS, "checkpoint_steps": 3, "inner_epochs": 8}
    config = small({"grpo": changes, "failures": {"workers": 9, "rewards": 9, "learner": 9}}, reward_seconds=0.1)
    said, killer = [], Killer(tmp_path / "grpo")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with Family() as family:
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        killer.start()
        try:
            train_policy(config, questions(tmp_path / "pictures"), writer[0], tmp_path / "grpo", said.append)
        finally:
            killer.over.set()
            killer.join()
            ray.shutdown()
        assert family.left(30) == []
    assert tuple(killer.killed) == VICTIMS, f"missed: {killer.missed}"
    for aim, own in killer.killed.items():
        loss = loss_of(own, lives(killer.stage))
        assert loss["actor"] == own.actor and loss["name"] == own.name and AIMS[aim].confirmed(loss)
    worker = loss_of(killer.killed["worker_generating"], lives(killer.stage))
    assert worker["reason"].startswith("its process died: ")
    assert f"grpo: rollout worker {worker['name']} ended: {worker['reason']}" in said
    losses = [own["step"] for own in lives(killer.stage) if own["kind"] == "learner" and own["after"] == "lost"]
    again = [int(found.group(1)) - 1 for line in said if (found := re.search(r"all ranks start again at step (\d+)", line))]
    assert loss_of(killer.killed["learner_learning"], lives(killer.stage))["step"] in losses and len(again) == len(losses)
    rewound = Counter(step for first, last in zip(again, losses) for step in range(first, last + 1))
    assert rewound, "the learner was killed before the next checkpoint"
    told = {line["step"]: line["sent_again"] for line in lines(killer.stage / "ledger.jsonl")}
    for step, times in rewound.items():  # their prompts had been sent when the learner was lost, each time
        assert all(told[step].get(f"s{step}-p{place}", 1) > times for place in range(PROMPTS)), (step, times, told[step])
    assert check(killer.stage, STEPS, PROMPTS)["dropped"] == 0
    metrics = lines(killer.stage / "metrics.jsonl")
    assert max(record["staleness_max"] for record in metrics) == STALENESS
    for record in metrics:
        fresh, *older = record["tokens_by_age"]
        assert fresh + sum(older) == record["trained_tokens"] and len(older) <= STALENESS
        assert (record["is_ratio_stale_max"] is None) == (not older)
        assert record["logprob_gap_max"] < 1e-3 if fresh else record["logprob_gap_max"] is None
