"""The RewardActor on real child processes: a reward that hangs, crashes or exits costs its own completion only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.reward import RewardActor, component_weights, longest_silence, reward_row, reward_versions
from actors.step_batch import advantages_of
from actors.types import Completion, Generation
from configs.schema import GRPOConfig, RewardConfig
from data.types import Box, Example, Prompt
from rewards.errors import RewardContractError
from rewards.process_tree import descendants

HOSTILE = """
import ctypes, subprocess, time

def hostile(text, example):
    if "hang" in text:
        time.sleep(3600)
    if "crash" in text:
        ctypes.string_at(0)
    if "raise" in text:
        raise KeyError("no such thing")
    if "leave" in text:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    print("noise on standard output")
    return {"length": float(len(text)), "options": float(len(example.options))}
"""
ROW = Example(
    id="train/spatial/1",
    question_id=1,
    data_type="single_image",
    question="Which is nearest?",
    question_type="relative distance",
    media=("a.png",),
    options=("A. chair", "B. table"),
    answer="B",
)


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(HOSTILE)
    return f"{tmp_path / 'mine.py'}:hostile"


def generation(*texts: str, finish_reason: str = "stop") -> Generation:
    completions = tuple(Completion((1, 2), (-0.5, -0.5), text, finish_reason) for text in texts)
    return Generation("r", (1,), completions, 0, "w0", 0.1)


def started(config: RewardConfig) -> RewardActor:
    actor = RewardActor(config)
    assert len(actor.start()) == config.processes
    return actor


def row():
    return reward_row(Prompt(ROW, "think", ()), (100, 80), (56, 84))


def gone(pid: int) -> bool:
    """Whether a process has ended; a moment is allowed for the kernel."""
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


def test_built_in_rewards_score_a_group_in_its_order() -> None:
    actor = started(RewardConfig())
    good, wrong, untagged = ("<think>it is near</think><answer>B</answer>", "<think>hm</think><answer>A</answer>", "B")
    scores = actor.score(row(), generation(good, wrong, untagged))
    assert [score.total for score in scores] == [2.0, 1.0, 0.0]
    assert scores[0].components == {"format": 1.0, "answer": 1.0}
    (cut,) = actor.score(row(), generation(good, finish_reason="length"))
    assert (cut.outcome, cut.total) == ("truncated", None)
    (kept,) = actor.score(row(), generation(good, finish_reason="abort"))
    assert kept.outcome == "error"
    pids = actor.pids()
    actor.close()
    assert all(gone(pid) for pid in pids)


def test_a_hostile_reward_costs_its_own_completion_and_leaves_no_process(hostile: str) -> None:
    actor = started(RewardConfig(custom=(hostile,), timeout_seconds=2.0))
    first = actor.pids()
    scores = actor.score(row(), generation("ok", "hang", "ok", "crash", "raise", "ok"))
    assert [score.outcome for score in scores] == ["ok", "timeout", "ok", "error", "error", "ok"]
    assert scores[0].components["hostile/length"] == 2.0 and scores[0].components["hostile/options"] == 2.0
    assert scores[0] == scores[2] == scores[5]
    assert all("train/spatial/1" in score.detail for score in scores if score.outcome != "ok")
    last = actor.pids()
    actor.close()
    assert last != first and all(gone(pid) for pid in first + last)


def test_the_statistics_of_a_group_are_those_without_its_failed_completions(hostile: str) -> None:
    actor = started(RewardConfig(custom=(hostile,), timeout_seconds=1.0))
    texts = ("a", "bb", "dddd")
    mixed = actor.score(row(), generation("a", "hang", "bb", "crash", "dddd", "raise"))
    clean = actor.score(row(), generation(*texts))
    actor.close()
    advantages = [advantages_of(tuple(score.total for score in scores), GRPOConfig()) for scores in (mixed, clean)]
    assert advantages[0].advantages_G[[0, 2, 4]].tolist() == advantages[1].advantages_G.tolist()
    assert advantages[0].advantages_G[[1, 3, 5]].tolist() == [0.0] * 3
    assert advantages[0].std == advantages[1].std > 0


def test_groups_are_scored_side_by_side_by_several_processes(hostile: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    actor = started(RewardConfig(custom=(hostile,), timeout_seconds=2.0, processes=2))
    assert len(set(actor.pids())) == 2
    with ThreadPoolExecutor(4) as callers:
        answers = list(
            callers.map(lambda text: actor.score(row(), generation(text, "ok")), ["hang", "ok", "x", "crash"])
        )
    assert [[score.outcome for score in scores] for scores in answers] == [
        ["timeout", "ok"],
        ["ok", "ok"],
        ["ok", "ok"],
        ["error", "ok"],
    ]
    assert answers[2][0].components["hostile/length"] == 1.0
    actor.close()


def test_what_a_reward_has_started_ends_with_the_actor(hostile: str) -> None:
    actor = started(RewardConfig(custom=(hostile,)))
    actor.score(row(), generation("leave", "leave"))
    below = descendants(*actor.pids())
    assert len(below) == 3  # the server and two sleepers
    actor.close()
    assert all(gone(pid) for pid in below)


def test_rewards_that_cannot_be_loaded_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def other(text, example): return 0.0")
    with pytest.raises(RewardContractError, match="no 'hostile' in the file"):
        started(RewardConfig(custom=(f"{tmp_path / 'mine.py'}:hostile",), processes=2))


def test_children_and_what_they_started_die_with_a_killed_actor(hostile: str) -> None:
    code = f"""
import time
from actors.reward import RewardActor
from actors.types import Completion, Generation
from configs.schema import RewardConfig
from rewards.rows import RewardRow

actor = RewardActor(RewardConfig(custom=({hostile!r},)))
actor.start()
row = RewardRow("r", "Which?", "relative distance", ("A. chair", "B. table"), "B")
actor.score(row, Generation("r", (1,), (Completion((1,), (-0.5,), "leave", "stop"),), 0, "w0", 0.1))
print(actor.pids()[0], flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        child = int(process.stdout.readline())
        below = descendants(child)
        assert len(below) == 2  # the server and the sleeper
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert all(gone(pid) for pid in (child, *below))


def test_boxes_reach_the_reward_in_the_processed_frame_on_localisation_rows_only() -> None:
    located = Example(
        id="x",
        question_id=2,
        data_type="single_image",
        question="Where?",
        question_type="object localization",
        media=("a.png",),
        boxes=(Box("chair", (10.0, 20.0, 50.0, 40.0)),),
    )
    view = reward_row(Prompt(located, "think", ()), (100, 80), (56, 84))
    assert view.target_boxes == (("chair", pytest.approx((5.6, 21.0, 28.0, 42.0))),)
    assert view.processed_size == (56, 84) and row().target_boxes == ()
    joined = replace(ROW, boxes=located.boxes)
    question = reward_row(Prompt(joined, "locate", ()), (100, 80), (56, 84))
    assert (question.answer, question.question_type) == ("B", "relative distance")
    assert question.target_boxes == view.target_boxes
    assert reward_row(Prompt(joined, "think", ()), (100, 80), (56, 84)).target_boxes == ()  # they were not asked for


def test_a_group_may_be_silent_while_every_call_takes_its_time() -> None:
    config = RewardConfig(custom=("a.py:b", "a.py:c"), timeout_seconds=10.0, retries=1)
    assert longest_silence(config, group_size=8) == (2 + 8 * 2 * 2) * (10.0 + 60.0)


def test_another_source_than_where_the_run_was_started_is_refused(hostile: str) -> None:
    config = RewardConfig(custom=(hostile,))
    versions = reward_versions(config)
    Path(hostile.partition(":")[0]).write_text(HOSTILE + "\n# as it is on this machine\n")
    with pytest.raises(RewardContractError, match="'hostile' has another source on .* than where the run was started"):
        RewardActor(config).start(versions)
    actor = RewardActor(config)
    assert len(actor.start(reward_versions(config))) == 1
    actor.close()


def test_every_component_has_the_weight_of_its_reward() -> None:
    own = {"source": "a.py:near", "name": "far", "weight": -0.5}
    weights = component_weights(RewardConfig(format=0.25, custom=(own, "b.py:mine")))
    assert weights == {"format": 0.25, "answer": 1.0, "iou": 1.0, "repetition": 0.0, "far": -0.5, "mine": 1.0}
