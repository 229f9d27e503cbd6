"""A real run of stage 3 of which every process is killed three times; it ends as the undisturbed run does, to the last bits.

The moments are chosen here: while everything starts, in the midst of a step, and while a checkpoint is written.
`benchmarks.random_kills` draws twenty.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.digit_run import prepare
from benchmarks.processes import Family
from benchmarks.random_kills import Moment, compared, config, disturbed, undisturbed
from benchmarks.whole_runs import largest_difference

STEPS = 8
MOMENTS = (Moment("starting", seconds=4.0), Moment("running", steps=1, seconds=0.5), Moment("saving", steps=1))


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_again_and_again_ends_like_the_undisturbed_one(
    tmp_path: Path, writer: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name in ("undisturbed", "disturbed"):
        prepare(tmp_path / name, config(STEPS), writer[0])
    with Family() as family:
        try:
            one = undisturbed(tmp_path / "undisturbed", family)
            other, fell = disturbed(tmp_path / "disturbed", MOMENTS, family)
        finally:
            family.kill()
    result = compared(one, other, STEPS)
    assert result["disturbed"]["dropped"] == result["disturbed"]["sent_again"] == 0
    assert fell[0].step is None and fell[1].step is not None and fell[2].unfinished
    assert largest_difference(writer[0], one / "hf") > 1e-4, "nothing was learned"
