"""DAPO's soft overlong punishment, by hand."""

import pytest

from grpo.shaping import overlong_penalty


@pytest.mark.parametrize(("length", "penalty"), [(1, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1.0)])
def test_penalty_grows_linearly_in_the_buffer(length, penalty):
    assert overlong_penalty(length, limit=100, buffer=20) == pytest.approx(penalty)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_buffer_that_fits_no_limit_is_refused(buffer):
    with pytest.raises(ValueError, match="0 < buffer <= limit"):
        overlong_penalty(5, 100, buffer)
