"""Groups scored by several rewards in a real process: who has a number, and what it is made of."""

import pytest

from rewards.rows import RewardRow
from rewards.scoring import score_group
from rewards.settings import RewardSettings, RewardSpec
from rewards.worker import Limits, RewardProcess

ROW = RewardRow("train/1", "Which is nearest?", "relative distance", ("A. chair", "B. table"), "B")
SOURCE = '''
import os

def brevity(text, example):
    if "crash" in text:
        os._exit(3)
    return 1.0 / len(text)

def parts(text, example):
    if "uneven" in text:
        return {"near": 1.0}
    return {"near": 0.5, "far": 0.25} if example.options else {}

def seen(texts, example):
    return [float(len(texts))] * len(texts)
'''
RIGHT, WRONG = "<think>near</think><answer>B</answer>", "<think>far</think><answer>A</answer>"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores a group with brevity (weight 2), parts (-1) and a batched reward that counts the texts it was given."""
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(SOURCE)
    specs = [RewardSpec(f"{path}:brevity", weight=2.0), RewardSpec(f"{path}:parts", weight=-1.0),
             RewardSpec(f"{path}:seen", "group", weight=0.0, batched=True)]
    process = RewardProcess(RewardSettings(), specs, Limits(5.0))
    yield lambda completions, row=ROW: score_group(process, row, completions, RewardSettings(), specs)
    process.close()


def test_all_rewards_add_up_with_their_weights(scored):
    right, wrong = scored([(RIGHT, "stop"), (WRONG, "stop")])
    assert dict(right.components) == {
        "format": 1.0, "answer": 1.0, "brevity": 1 / len(RIGHT), "parts/near": 0.5, "parts/far": 0.25, "group": 2.0,
    }
    assert right.total == pytest.approx(2 + 2 / len(RIGHT) - 0.75)
    assert wrong.total == pytest.approx(1 + 2 / len(WRONG) - 0.75)


def test_a_completion_that_failed_once_has_no_number_and_is_not_asked_about_again(scored):
    ok, crashed, truncated, aborted = scored([(RIGHT, "stop"), ("crash", "stop"), (RIGHT, "length"), (RIGHT, "abort")])
    assert [score.outcome for score in (ok, crashed, truncated, aborted)] == ["ok", "error", "truncated", "error"]
    assert ok.components["group"] == 1.0  # the reward after it was given one text
    assert crashed.total is None and not crashed.components and "reward 'brevity'" in crashed.detail


def test_components_that_differ_within_a_group_leave_it_without_numbers(scored):
    scores = scored([(RIGHT, "stop"), ("uneven", "stop"), ("crash", "stop")])
    assert [score.outcome for score in scores] == ["error"] * 3
    assert "reports parts/far, parts/near for one completion of the group and parts/near for another" in scores[0].detail
    assert "exited with code 3" in scores[2].detail


def test_a_reward_that_does_not_apply_to_a_row_is_absent(scored):
    (score,) = scored([("<think>x</think><answer>3</answer>", "stop")], RewardRow("r", "q", "object count", None, "3"))
    assert set(score.components) == {"format", "answer", "brevity", "group"}


def test_a_group_of_truncated_completions_asks_nobody(scored):
    assert [score.outcome for score in scored([("crash", "length")] * 2)] == ["truncated"] * 2
