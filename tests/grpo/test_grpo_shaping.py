"""DAPO's soft overlong punishment, by hand."""

import pytest

from grpo.shaping import overlong_penalty


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(1, 0.0), (80, 0.0), (81, -0.05), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (200, -1.0)],
)
def test_penalty_grows_linearly_in_the_buffer(length, penalty):
    assert overlong_penalty(length, limit=100, buffer=20) == pytest.approx(penalty)


def test_a_buffer_as_long_as_the_limit_costs_from_the_first_token():
    assert [overlong_penalty(length, limit=4, buffer=4) for length in range(6)] == [0, -0.25, -0.5, -0.75, -1, -1]


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_buffer_that_fits_no_limit_is_refused(buffer):
    with pytest.raises(ValueError, match="0 < buffer <= limit"):
        overlong_penalty(5, 100, buffer)
