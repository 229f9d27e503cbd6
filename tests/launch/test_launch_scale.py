"""`ladder scale` and what `ladder status` says of a fleet: what is written, what is refused, what is waited for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from launch.cli import main
from launch.fleet_view import FleetView, read_fleet
from launch.run_folder import RunFolder, RunFolderError
from launch.scale import POLL_SECONDS, ScaleRefused, scale

NOW = 1_000_000.0


def worker(name: str, state: str = "serving", holds: int = 0, placed: bool = True) -> dict[str, Any]:
    own = {"name": name, "state": state, "holds": holds, "version": None if state == "joining" else 3, "bringing": None}
    return own | {"since": NOW, "actor": "a" * 32, "pid": 71 if placed else None, "node": None}


class Run:
    """A run folder, and a trainer that writes its fleet as time passes: a moment at every sleep, the last for ever."""

    def __init__(
        self, folder: Path, *moments: Sequence[dict[str, Any]], stages: Sequence[str] = ("grpo",), **said: Any
    ) -> None:
        config = RunConfig.model_validate({"stages": list(stages), "deadlines": {"engine_start": 10}})
        self.folder, self.now, self.said, self.target = RunFolder.open(config, folder / "run"), NOW, [], 1
        self.path, self.moments, self.changes = self.folder.stage("grpo"), list(moments), said
        self.at: dict[int, Callable[[], None]] = {}
        self.slept = 0
        if moments:
            self.write()

    def write(self) -> None:
        workers = self.moments.pop(0) if len(self.moments) > 1 else self.moments[0]
        fleet = {"time": self.now, "pid": 7, "step": 2, "steps": 9, "doing": "sampling", "target": self.target, "version": 3,
                 "workers": list(workers), "learners": [], "scorers": []}
        (self.path / "fleet.json").write_text(json.dumps(fleet | self.changes))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1
        self.target = self.asked()
        self.at.get(self.slept, lambda: None)()
        self.write()

    def asked(self) -> int:
        return json.loads((self.path / "scale.json").read_text())["workers"]

    def scale(self, workers: int, wait: bool = True) -> int:
        return scale(self.folder, workers, self.said.append, wait, lambda: self.now, self.sleep)


def test_a_larger_fleet_is_followed_until_its_newest_worker_serves(tmp_path: Path) -> None:
    pending = [worker("w0"), worker("w1", "joining", placed=False)]
    started = [worker("w0", "stale"), worker("w1", "joining")]
    proving = [worker("w0"), worker("w1", "stale")]
    both = [worker("w0", "stale"), worker("w1")]  # the one that served before is brought the next version
    run = Run(tmp_path, [worker("w0")], pending, pending, started, proving, both)
    assert run.scale(2) == 0
    assert run.said == [
        "   0.0 s  2 wanted: serving w0",
        "   0.2 s  2 wanted: serving w0, joining w1",
        "   0.8 s  2 wanted: serving w0, stale w1",
        "   1.0 s  2 wanted: serving w0 w1",
        "2 rollout worker(s) serve, 1.0 s after they were asked for",
    ]
    assert (run.path / "scale.json").read_text() == '{"workers": 2}\n'
    assert not list(run.path.glob("*.partial"))


def test_a_smaller_fleet_is_followed_until_the_last_answer_of_those_that_leave(tmp_path: Path) -> None:
    three = [worker("w0"), worker("w1"), worker("w2")]
    leaving = [[worker("w0"), worker("w1", "draining", holds=holds), worker("w2", "draining")] for holds in (2, 1)]
    run = Run(tmp_path, three, *leaving, [worker("w0")])
    assert run.scale(1) == 0
    assert run.said == [
        "   0.0 s  1 wanted: serving w0 w1 w2",
        "   0.2 s  1 wanted: serving w0, draining w1 w2",
        "   0.6 s  1 wanted: serving w0",
        "1 rollout worker(s) serve, 0.6 s after they were asked for",
    ]


def test_a_fleet_that_has_the_size_before_the_trainer_has_read_the_request_is_not_taken_for_it(tmp_path: Path) -> None:
    run = Run(tmp_path, [worker("w0")])
    run.target = 3  # it is about to start two more
    run.write()
    assert run.scale(1) == 0 and run.slept == 1


def test_a_worker_without_room_is_named_when_nothing_else_progresses_although_steps_go_on(tmp_path: Path) -> None:
    pending = worker("w1", "joining", placed=False)
    steps = [[worker("w0", state), pending] for state in ("serving", "stale") * 100]
    run = Run(tmp_path, [worker("w0")], *steps)
    assert run.scale(2) == 1 and run.asked() == 2
    assert run.now - NOW == pytest.approx(10.2, abs=2 * POLL_SECONDS)
    assert run.said[-1].splitlines() == [
        "nothing has progressed for 10 s (deadlines.engine_start is 10); the request holds. Waiting for:",
        "  w1: pending: the cluster has had no room for it; see `ray status`",
    ]


def test_answers_of_a_draining_worker_are_progress_and_its_silence_is_named(tmp_path: Path) -> None:
    slow = [[worker("w0"), worker("w1", "draining", holds=5 - index // 30)] for index in range(90)]
    run = Run(tmp_path, [worker("w0"), worker("w1")], *slow)
    assert run.scale(1) == 1
    assert run.now - NOW == pytest.approx(0.2 + 60 * POLL_SECONDS + 10, abs=2 * POLL_SECONDS)
    assert run.said[-1].endswith("\n  w1: draining: it still has 3 prompt(s) to answer")


def test_a_trainer_that_does_not_take_up_the_request_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, [worker("w0")], target=1)
    assert run.scale(2) == 1
    assert run.said[-1].endswith("\n  the trainer has not taken up the request: it still wants 1")


def test_the_wait_ends_when_the_run_stops_finishes_or_is_asked_for_something_else(tmp_path: Path) -> None:
    pending = [worker("w0"), worker("w1", "joining")]
    stopped = Run(tmp_path / "a", pending)
    stopped.at[3] = lambda: stopped.changes.update(doing="stopped")
    assert stopped.scale(2) == 1 and "the size will hold when it is resumed" in stopped.said[-1]
    killed = Run(tmp_path / "b", pending)
    killed.at[1] = lambda: killed.changes.update(time=NOW - 29.5)
    assert killed.scale(2) == 1 and "its trainer wrote last 30 s ago" in killed.said[-1]
    finished = Run(tmp_path / "c", pending)
    finished.at[1] = lambda: finished.changes.update(doing="finished")
    assert finished.scale(2) == 1 and "has finished stage grpo before" in finished.said[-1]
    other = Run(tmp_path / "d", pending)
    other.at[2] = lambda: (other.path / "scale.json").write_text('{"workers": 5}')
    assert other.scale(2) == 1 and "somebody has asked for 5 rollout worker(s) since" in other.said[-1]


@pytest.mark.parametrize("said", [{"doing": "stopped"}, {"time": NOW - 31}])
def test_what_is_asked_of_a_stopped_run_is_kept_for_its_resume(tmp_path: Path, said: dict) -> None:
    run = Run(tmp_path, [worker("w0")], **said)
    assert run.scale(3, wait=False) == 0 and run.asked() == 3
    assert run.scale(4) == 1 and run.asked() == 4
    assert len(run.said) == 2 and all("is not running" in line and "hold when it is resumed" in line for line in run.said)
    assert run.slept == 0


def test_no_wait_only_asks(tmp_path: Path) -> None:
    run = Run(tmp_path, [worker("w0")])
    assert run.scale(3, wait=False) == 0 and run.asked() == 3 and run.slept == 0
    assert run.said == [f"{run.folder.path}: 3 rollout worker(s) are asked for, 1 were"]


def test_refusals_write_nothing(tmp_path: Path) -> None:
    runs = [
        (Run(tmp_path / "a", [worker("w0")]), 0, "at least one rollout worker, not 0"),
        (Run(tmp_path / "b"), 2, "has not begun: .*--set rollout.workers=2"),
        (Run(tmp_path / "c", [], doing="finished", time=NOW - 9999), 2, "stage grpo is finished"),
        (Run(tmp_path / "d", [worker("w0")], stages=["sft1"]), 2, "has no stage grpo"),
    ]
    for run, workers, reason in runs:
        with pytest.raises(ScaleRefused, match=reason):
            run.scale(workers)
        assert not (run.path / "scale.json").exists() and not run.said
    (runs[0][0].path / "fleet.json").write_text("{}")
    with pytest.raises(RunFolderError, match="fleet.json is damaged"):
        runs[0][0].scale(2)


def test_the_command_resolves_names_below_runs_and_has_the_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = Run(tmp_path / "runs", [worker("w0")], doing="stopped")
    monkeypatch.setenv("LADDER_HOME", str(tmp_path))
    assert main(["scale", "run", "2", "--no-wait"]) == 0 and run.asked() == 2
    assert main(["scale", str(run.folder.path), "3"]) == 1 and run.asked() == 3
    assert main(["scale", "run", "0"]) == 2
    assert capsys.readouterr().err.startswith("ladder: a fleet needs at least one")


@pytest.mark.parametrize(("step", "shown"), [(0, "step 1 of 9"), (8, "step 9 of 9"), (9, "step 9 of 9")])
def test_status_counts_steps_from_1_and_what_follows_the_last_as_the_last(step: int, shown: str) -> None:
    assert shown in FleetView(NOW, step, 9, "exporting", 1, 4, ()).told(NOW)


def test_status_shows_the_fleet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    many = [worker(f"w{index}") for index in range(9)]
    run = Run(tmp_path, [*many, worker("w9", "joining"), worker("w10", "draining", holds=1)], target=10)
    assert main(["status", str(run.folder.path)]) == 0
    shown = capsys.readouterr().out
    # It was written long ago: whoever was killed has left workers in it that are no more.
    assert "    step 3 of 9, stopped " in shown and "rollout worker" not in shown
    fleet = read_fleet(run.folder.path)
    assert fleet is not None and fleet.told(NOW + 2) == (
        "    step 3 of 9, sampling; weights of version 3; as of 2 s ago\n"
        "    10 rollout worker(s) wanted: serving 9, joining w9, draining w10"
    )
