"""The figures of the comparison with and without overlap, and its reward."""

from __future__ import annotations

from benchmarks.asynchrony import with_efficiency
from benchmarks.digit_reward import sevens
from rewards.rows import RewardRow

ROW = RewardRow("train/single/0", "", "object count", None, None)


def test_efficiency_compares_with_the_longer_part_of_the_run_without_overlap() -> None:
    alone = {"staleness": 0, "step": 6.0, "generate": 2.5, "reward": 0.5, "learn": 2.0}
    ahead = {"staleness": 1, "step": 3.75, "generate": 0.5, "reward": 0.0, "learn": 2.75}
    assert [own["overlap_efficiency"] for own in with_efficiency([ahead, alone])] == [0.8, 0.5]
    assert with_efficiency([ahead]) == [ahead]


def test_the_reward_is_the_share_of_sevens() -> None:
    assert [sevens(text, ROW) for text in ("7 1 7 2", "77", "1", "", "seven")] == [0.5, 1.0, 0.0, 0.0, 0.0]
