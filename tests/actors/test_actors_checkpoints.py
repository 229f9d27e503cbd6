"""A checkpoint is loaded when it is whole; else the one before it is, and it says so."""

from pathlib import Path

import pytest

from actors.checkpoints import Checkpoints, stamps


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    """Committed after 2, 4 and 10 steps, each with two files."""
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4, 10):
        folder = checkpoints.begin(step)
        (folder / "engine").mkdir()
        (folder / "engine" / "weights.pt").write_bytes(bytes(range(256)) * step)
        (folder / "latest").write_text("engine")
        checkpoints.commit(step, {"step": step}, stamps(folder))
    return checkpoints


def test_the_last_two_stay_and_the_newest_is_found_by_number(three: Checkpoints) -> None:
    assert sorted(path.name for path in three.folder.iterdir()) == ["step-10", "step-4"]
    found = three.newest()
    assert (found.folder, found.state, found.problems) == (three.folder / "step-10", {"step": 10}, ())


def cut(folder: Path) -> None:
    weights = folder / "engine" / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-1])


def flip(folder: Path) -> None:
    weights = folder / "engine" / "weights.pt"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)


@pytest.mark.parametrize(
    "harm, told",
    [
        (cut, "engine/weights.pt is not what was written"),
        (flip, "engine/weights.pt is not what was written"),
        (lambda folder: (folder / "latest").unlink(), "latest is missing"),
        (lambda folder: (folder / "state.json").unlink(), "it was not finished"),
        (lambda folder: (folder / "state.json").write_text('{"state": {"st'), "Unterminated string"),
        (lambda folder: (folder / "state.json").write_text("[]"), "list"),
    ],
)
def test_one_that_is_not_whole_is_passed_over(three: Checkpoints, harm, told: str) -> None:
    harm(three.folder / "step-10")
    found = three.newest()
    assert (found.folder, found.state) == (three.folder / "step-4", {"step": 4})
    (problem,) = found.problems
    assert found.broken == (() if "not finished" in told else (three.folder / "step-10",))
    assert problem.startswith("checkpoint step-10 is not whole: ") and told in problem


def test_without_a_whole_one_there_is_none(three: Checkpoints) -> None:
    for folder in three.folder.iterdir():
        flip(folder)
    found = three.newest()
    assert found.folder is None and len(found.problems) == 2
    assert Checkpoints(three.folder / "none").newest().folder is None


def test_what_is_only_begun_costs_no_whole_one(three: Checkpoints) -> None:
    (three.begin(12) / "half").write_text("x")
    assert three.newest().folder == three.folder / "step-10"
    three.begin(14)
    three.commit(14, {"step": 14}, {})
    assert sorted(path.name for path in three.folder.iterdir()) == ["step-10", "step-14"]


def test_what_is_done_again_replaces_what_was_there(three: Checkpoints) -> None:
    folder = three.begin(10)
    (folder / "other").write_text("y")
    three.commit(10, {"step": 10, "again": True}, stamps(folder))
    assert three.newest().state == {"step": 10, "again": True}
    assert sorted(path.name for path in (three.folder / "step-10").iterdir()) == ["other", "state.json"]


def test_what_is_set_aside_is_never_taken_for_a_checkpoint_again(three: Checkpoints) -> None:
    flip(three.folder / "step-10")
    (broken,) = three.newest().broken
    three.set_aside(broken)
    flip(three.folder / "broken-step-10")  # whole again
    found = three.newest()
    assert (found.folder, found.problems) == (three.folder / "step-4", ())


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(three: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path, *_, **__):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "open", unreadable)
    with pytest.raises(OSError, match="Stale file handle"):
        three.newest()
