"""Sizes that are asked for while a run goes on, and what the run tells of its actors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.autoscaler import Autoscaler
from actors.fleet import Fleet, FleetLimits
from actors.fleet_status import FleetStatus
from actors.identities import Identities
from actors.oversight import Oversight, SizeRequest
from fleet_cases import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def asked(folder: Path, text: str) -> None:
    (folder / "scale.json").write_text(text)


def test_a_size_is_taken_once_and_a_fifth_of_a_second_later_at_most(tmp_path, clock) -> None:
    said: list[str] = []
    request = SizeRequest(tmp_path, said.append, clock)
    assert request.look() is None
    asked(tmp_path, '{"workers": 3}')
    clock.now += 0.15
    assert request.look() is None
    clock.now += 0.06
    assert request.look() == 3
    clock.now += 5
    assert request.look() is None and not said
    asked(tmp_path, '{"workers": 1}')
    clock.now += 1
    assert request.look() == 1


@pytest.mark.parametrize("text", ["", "{", "3", '{"workers": 0}', '{"workers": true}', '{"workers": "3"}', '{"worker": 3}'])
def test_a_request_that_says_nothing_usable_is_told_about_once_and_changes_nothing(tmp_path, clock, text) -> None:
    said: list[str] = []
    request = SizeRequest(tmp_path, said.append, clock)
    asked(tmp_path, text)
    for _ in range(3):
        assert request.look() is None
        clock.now += 2
    assert len(said) == 1 and "scale.json is ignored: it must say" in said[0]


def test_a_run_shows_its_fleet_and_takes_a_size_that_is_asked_for(tmp_path, clock) -> None:
    identities, said = Identities(), []
    status = FleetStatus(tmp_path, 40, 77, identities, clock, clock)
    fleet = Fleet(FleetLimits(100, 40, 2, 3), clock, status.worker)
    fleet.scale(2)
    turn = Oversight(fleet, 1, lambda: {"r0": 4}, identities, status, SizeRequest(tmp_path, said.append, clock), said.append)
    for action in fleet.plan():
        fleet.placed(action.worker)
        fleet.started(action.worker)
    fleet.publish(5)
    fleet.plan()
    fleet.proved("w0", 5)
    fleet.sent("w0", "s0-p0")
    status.step, status.doing = 7, "sampling"
    assert turn() == 0.2  # seconds until it looks again
    now = json.loads((tmp_path / "fleet.json").read_text())
    nobody = {"actor": "", "pid": None, "node": None}
    assert now == {
        "time": 1000.0, "pid": 77, "step": 7, "steps": 40, "doing": "sampling", "target": 2, "version": 5,
        "workers": [
            {"name": "w0", "state": "serving", "holds": 1, "version": 5, "bringing": None, **nobody},
            {"name": "w1", "state": "stale", "holds": 0, "version": None, "bringing": 5, **nobody},
        ],
        "learners": [{"name": "rank 0", **nobody}], "scorers": [{"name": "r0", "groups": 4, **nobody}],
    }
    asked(tmp_path, '{"workers": 1}')
    clock.now += 1
    turn()
    assert fleet.target == 1 and said == ["grpo: 1 rollout worker(s) are wanted from now on (scale.json), not 2"]
    assert json.loads((tmp_path / "fleet.json").read_text())["target"] == 1
    status.close("stopped")
    last = json.loads((tmp_path / "fleet.json").read_text())
    assert last["doing"] == "stopped" and last["workers"] == [] and last["step"] == 7


def test_the_size_is_what_the_steps_show_until_one_is_asked_for(tmp_path, clock) -> None:
    identities, said = Identities(), []
    status = FleetStatus(tmp_path, 40, 77, identities, clock, clock)
    fleet = Fleet(FleetLimits(100, 40, 2, 3), clock)
    request = SizeRequest(tmp_path, said.append, clock)
    turn = Oversight(fleet, 1, dict, identities, status, request, said.append, Autoscaler(1, 4, 1, 8, True), clock)
    fleet.scale(1)
    fleet.publish(5)

    def step(waited: float) -> None:
        """Ten seconds, in which all workers hold something."""
        for action in fleet.plan():
            if action.kind == "start":
                fleet.started(action.worker)
        fleet.plan()
        for own in fleet.workers:
            fleet.proved(own.name, 5)
        turn.step_begins()
        for own in fleet.workers:
            fleet.sent(own.name, f"{own.name}-{clock.now}")
        clock.now += 10
        for own in fleet.workers:
            fleet.answered(own.name, *own.holds)
        turn.step_ends(waited)

    for _ in range(3):
        step(waited=5.0)
    assert fleet.target == 1 and not said  # the first step tells nothing yet
    step(waited=5.0)
    assert fleet.target == 2 and said == [
        "grpo: 1 worker -> 2: the learner waited 50% of the last 3 steps and workers were busy 100% of the time they could "
        "sample in; 30 busy worker-seconds for 15 s of learning ask for 2.0 workers"
    ]
    asked(tmp_path, '{"workers": 2}')
    turn()
    assert said[1:] == ["grpo: the number of rollout workers is decided by scale.json from now on, not by what the steps show"]
    for _ in range(8):
        step(waited=8.0)
    assert fleet.target == 2 and len(said) == 2


def test_the_lives_of_workers_are_told_but_for_their_way_through_new_versions(tmp_path, clock) -> None:
    status = FleetStatus(tmp_path, 40, 77, Identities(), clock, clock)
    fleet = Fleet(FleetLimits(100, 40, 2, 3), clock, status.worker)
    fleet.scale(1)
    fleet.plan()
    fleet.started("w0")
    for version in (1, 2, 3):
        fleet.publish(version)
        fleet.plan()
        fleet.proved("w0", version)
    fleet.sent("w0", "s0-p0")
    fleet.sent("w0", "s0-p1")
    clock.now, status.step = 1002.5, 3
    fleet.failed("w0", "its process died")
    lines = [json.loads(line) for line in (tmp_path / "fleet.jsonl").read_text().splitlines()]
    assert [(line["before"], line["after"]) for line in lines] == [
        (None, "joining"), ("joining", "stale"), ("stale", "serving"), ("serving", "dead"),
    ]
    assert lines[-1] == {
        "time": 1002.5, "step": 3, "kind": "worker", "name": "w0", "actor": None, "before": "serving", "after": "dead",
        "holds": 2, "bringing": None, "reason": "its process died",
    }


def test_what_has_not_changed_is_written_again_after_a_second_and_what_has_not_before_a_fifth_of_one(tmp_path, clock) -> None:
    status = FleetStatus(tmp_path, 40, 77, Identities(), clock, clock)
    fleet = Fleet(FleetLimits(100, 40, 2, 3), clock)

    def written(after: float) -> float:
        clock.now += after
        status.write(fleet, 1, {})
        return json.loads((tmp_path / "fleet.json").read_text())["time"]

    assert written(0.0) == 1000.0
    status.step = 1
    assert written(0.1) == 1000.0
    assert written(0.15) == 1000.25
    assert written(0.5) == 1000.25
    assert written(0.5) == 1001.25
