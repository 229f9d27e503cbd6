"""The completions of an earlier run, scored again: exact numbers, and what they do not say."""

import json

import pytest

from actors.reward import reward_row
from data.types import Box, Prompt
from launch.reward_findings import RewardRefused
from launch.reward_replay import read_traces, recorded, replay, replay_findings, replay_report, trace_file
from reward_stand_ins import InProcess, example, group, line
from rewards.settings import RewardSpec


def test_a_replay_names_failures_and_what_traces_do_not_hold(tmp_path):
    file = tmp_path / "groups.jsonl"
    old = json.loads(line(group(example("object count", "3"), 0, ("x" * 200, 1.0), ("bad", 1.0), ("x", 0.0))))
    for key in ("question", "options", "metadata", "target_boxes", "processed_size"):
        del old[key]
    both = group(example("object count", "3"), 0, ("xx", 1.0), ("split", 1.0))
    file.write_text(json.dumps(old) + "\n" + line(both))

    def lengths(text, row):
        if text == "bad":
            raise ValueError("bad text")
        return {"a": 1.0} if text == "split" else len(text) / 10

    spec = RewardSpec("mine.py:mine", weight=-0.5)
    seen = replay(InProcess(lengths), spec, read_traces(file), pytest.fail)
    assert (seen.groups, seen.asked, seen.failed, seen.without_spread) == (2, 5, 3, 0)
    assert [score for score, _, _ in seen.scores] == [-10.0, -0.05] and seen.correlation() == pytest.approx(-1.0)
    failed, lacking = replay_findings(seen)
    assert (failed.status, lacking.status) == ("FAIL", "NOTE") and "ValueError: bad text" in failed.what
    assert "do not hold metadata, options, processed_size, question of" in lacking.what
    lowest = next(row for row in replay_report(seen, file).splitlines() if "lowest" in row)
    assert lowest.endswith("  " + "x" * 79 + "…")
    file.write_text(line(both) + '{"step": 1, "row"')
    with pytest.raises(RewardRefused, match=r"groups.jsonl:2: not a group"):
        list(read_traces(file))
    with pytest.raises(RewardRefused, match="no traces there; name a run folder"):
        trace_file(str(tmp_path / "nowhere"))


def test_a_group_of_which_nothing_is_scored_is_no_group_to_which_the_reward_does_not_apply(tmp_path):
    file = tmp_path / "groups.jsonl"
    cut_off, one = group(example("object count", "3"), 2), group(example("object count", "3"), 1, ("x", 1.0))
    file.write_text(line(cut_off) * 3 + line(one))
    seen = replay(InProcess(lambda text, row: -0.0), RewardSpec("mine.py:mine"), read_traces(file), pytest.fail)
    told = replay_report(seen, file)
    assert told.splitlines()[0].endswith(
        "groups.jsonl: 4 groups, 1 completions asked, 7 cut off or aborted and not scored, 3 groups with no completion to "
        "score"
    )
    assert "without spread" not in told and "min 0.0000  max 0.0000" in told and "-0.0" not in told
    assert next(iter(replay_findings(seen))).what == "a score for every completion of 1 group"


def test_groups_that_all_spread_are_said_to_teach(tmp_path):
    file = tmp_path / "groups.jsonl"
    file.write_text(line(group(example("object count", "3"), 0, ("x", 1.0), ("xx", 0.0))))
    seen = replay(InProcess(lambda text, row: len(text)), RewardSpec("mine.py:mine"), read_traces(file), pytest.fail)
    assert "      groups without spread: 0 of 1 (0.0%)\n" in replay_report(seen, file)
    seen = replay(InProcess(lambda text, row: 1.0), RewardSpec("mine.py:mine"), read_traces(file), pytest.fail)
    assert "without spread: 1 of 1 (100.0%); by this reward alone they teach nothing\n" in replay_report(seen, file)


def test_a_trace_with_the_row_gives_it_back_as_rewards_saw_it():
    boxes = (Box("chair", (10.0, 20.0, 50.0, 80.5)),)
    located = example("object localization", None, boxes=boxes, metadata={"scene": "s1", "depth": [1, 2]})
    chosen = example("relative distance", "B", options=("A. chair", "B. lamp"))
    for own in (located, chosen):
        row = reward_row(Prompt(own, "think", ()), (100, 160), (56, 84))
        back = recorded(json.loads(line(group(own, 0, ("x", 1.0)), row)))
        assert back.row == row and not back.lacking and back.completions == (("x", 1.0),)
    alone = recorded(json.loads(line(group(located, 0, ("x", 1.0)))))
    assert alone.lacking == {"processed_size", "target_boxes"} and alone.row.target_boxes == () and alone.row.answer is None
