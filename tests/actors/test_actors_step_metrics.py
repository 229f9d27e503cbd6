"""What the log says of a step: how long the others will take."""

from __future__ import annotations

import pytest

from actors.step_metrics import progress_line, seconds_left

METRICS = {
    "step": 9, "reward": 0.5, "loss": 0.1, "logprob_gap_max": 1e-6, "completion_tokens": 40.0, "seconds": 100.0,
}


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([3.0], 30.0),
        ([9.0, 2.0, 2.0], 20.0),
        ([2.0] * 5 + [3.0] * 2 + [100.0], 20.0),
        ([50.0] * 20 + [2.0] * 8, 20.0),  # long ago
        ([50.0] * 20 + [2.0] * 3 + [4.0] * 5, 40.0),
    ],
)
def test_the_time_left_is_by_the_median_of_the_last_eight_steps(recent: list[float], expected: float) -> None:
    assert seconds_left(recent, 10) == expected


def test_one_slow_step_does_not_change_the_time_that_is_left() -> None:
    line = progress_line(METRICS, 12, [2.0, 2.0, 2.0, 100.0])
    assert line.startswith("grpo: step 10/12  reward 0.500") and line.endswith("100.0 s  4 s left")
