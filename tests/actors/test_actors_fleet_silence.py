"""Rollout workers that say nothing, those that leave, and versions that are withdrawn."""

from __future__ import annotations

import pytest

from actors.fleet import Action, FleetExhausted, State
from fleet_cases import SILENCE, START, Clock, bring, give, lost, made, serving, start, state, told


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- silence --------------------------------------------------------------------------------------------------------


def test_a_worker_that_holds_requests_is_suspect_after_half_its_limit_and_dead_after_all_of_it(clock) -> None:
    fleet = serving(clock, workers=1)
    clock.now += 10 * SILENCE  # it owed nothing till now
    give(fleet, "a", "b")
    clock.now += SILENCE / 2 - 1
    assert lost(fleet) == set() and state(fleet, "w0") is State.SERVING
    clock.now += 1
    assert lost(fleet) == set() and state(fleet, "w0") is State.SUSPECT
    clock.now += SILENCE / 2 - 1
    assert lost(fleet) == set() and state(fleet, "w0") is State.SUSPECT
    clock.now += 1
    assert lost(fleet) == {"a", "b"} and lost(fleet) == set()
    assert fleet.plan() == [Action("end", "w0", "no progress for 40 s while suspect"), Action("start", "w1")]


def test_a_second_request_does_not_start_the_silence_anew(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    clock.now += SILENCE / 2 - 1
    give(fleet, "b")
    clock.now += 1
    fleet.check()
    assert state(fleet, "w0") is State.SUSPECT


@pytest.mark.parametrize("sign", ["heard", "answered"])
def test_progress_makes_a_silent_worker_serve_again(clock, sign) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    clock.now += SILENCE - 1
    fleet.check()
    assert state(fleet, "w0") is State.SUSPECT and fleet.choose() is None
    if sign == "heard":
        fleet.heard("w0", 17)
        assert fleet.choose() is None  # it is full
    assert fleet.answered("w0", "a")
    assert fleet.choose() == "w0"
    clock.now += SILENCE / 2 - 1
    fleet.check()
    assert fleet.choose() == "w0"


def test_saying_the_same_again_is_no_progress(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    fleet.heard("w0", 17)
    clock.now += SILENCE
    fleet.heard("w0", 17)
    assert lost(fleet) == {"a"}


@pytest.mark.parametrize("version", [None, 1])
def test_who_owes_nothing_is_not_timed(clock, version) -> None:
    fleet = serving(clock, workers=1) if version else made(clock, workers=1)
    if not version:
        start(fleet)
    clock.now += 1e6
    assert lost(fleet) == set() and fleet.states() == {"serving" if version else "stale": 1}


def test_a_start_has_its_own_limit_and_ends_the_silence(clock) -> None:
    fleet = made(clock, workers=2)
    fleet.publish(1)
    for action in fleet.plan():
        fleet.placed(action.worker)
    clock.now += START - 1
    assert lost(fleet) == set() and fleet.states() == {"joining": 2}
    fleet.started("w0")
    assert told(fleet) == ["update w0"]
    clock.now += 1
    fleet.check()
    assert told(fleet) == ["end w1", "start w2"] and state(fleet, "w0") is State.STALE


def test_a_start_is_timed_from_when_the_cluster_had_room_for_it(clock) -> None:
    fleet = serving(clock, workers=1, deaths=0)
    fleet.scale(2)
    assert told(fleet) == ["start w1"]
    clock.now += 100 * START
    assert lost(fleet) == set() and state(fleet, "w1") is State.JOINING  # it waits for room, beside one that is there
    fleet.placed("w1")
    clock.now += START - 1
    assert lost(fleet) == set()
    clock.now += 1
    with pytest.raises(FleetExhausted, match="w1: no progress for 100 s while joining"):
        fleet.check()


def test_a_cluster_that_has_room_for_nobody_ends_the_run(clock) -> None:
    fleet = made(clock, workers=2)
    fleet.plan()
    clock.now += START - 1
    assert lost(fleet) == set()
    clock.now += 1
    with pytest.raises(FleetExhausted, match="the cluster has had no room for a rollout worker for 100 s"):
        fleet.check()


def test_room_for_one_is_enough(clock) -> None:
    fleet = made(clock, workers=2)
    fleet.plan()
    fleet.placed("w1"), fleet.placed("w9")
    fleet.started("w1")
    clock.now += 10 * START
    assert lost(fleet) == set() and fleet.states() == {"joining": 1, "stale": 1}


def test_who_replaces_the_last_worker_has_its_own_time_to_find_room(clock) -> None:
    fleet = serving(clock, workers=1)
    clock.now += 10 * START
    fleet.failed("w0", "its node is gone")
    fleet.plan()
    clock.now += START - 1
    assert lost(fleet) == set()
    clock.now += 1
    with pytest.raises(FleetExhausted, match="no room"):
        fleet.check()


def test_a_version_that_is_not_proved_in_time_is_a_death(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    clock.now += SILENCE / 2 - 1
    fleet.publish(2)
    fleet.plan()
    clock.now += SILENCE - 1
    assert lost(fleet) == set() and state(fleet, "w0") is State.STALE
    clock.now += 1
    assert lost(fleet) == {"a"} and told(fleet) == ["end w0", "start w1"]


def test_a_suspect_that_never_proves_itself_anew_dies(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    fleet.failed("w0", "once", "a")
    fleet.plan()
    clock.now += SILENCE
    assert lost(fleet) == set() and told(fleet) == ["end w0", "start w1"]


def test_who_leaves_silently_is_dead_too(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b")
    fleet.scale(1)
    fleet.plan()
    clock.now += SILENCE
    fleet.heard("w0", 1)
    assert lost(fleet) == {"b"} and told(fleet) == ["end w1"]


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, -1])
def test_a_fleet_of_nobody_is_refused(clock, target) -> None:
    fleet = serving(clock)
    with pytest.raises(ValueError, match=f"at least one worker, not {target}"):
        fleet.scale(target)
    assert fleet.target == 2 and fleet.plan() == []


def test_those_leave_first_who_are_farthest_from_serving_then_who_hold_least_then_the_youngest(clock) -> None:
    fleet = serving(clock, workers=6, outstanding=1)
    give(fleet, *"abcdef")
    fleet.failed("w0", "once", "a")  # suspect
    fleet.answered("w3", "d")
    fleet.scale(8)
    assert told(fleet) == ["start w6", "start w7", "update w0"]
    fleet.started("w6")
    left = []
    for target in range(7, 0, -1):
        before = {worker.name for worker in fleet.workers if worker.state is not State.DRAINING}
        fleet.scale(target)
        fleet.plan()
        left += before - {worker.name for worker in fleet.workers if worker.state is not State.DRAINING}
    # joining; suspect; stale; serving without work, the youngest first; serving with work, the youngest first
    assert left == ["w7", "w0", "w6", "w3", "w5", "w4", "w2"] and state(fleet, "w1") is State.SERVING


def test_who_leaves_gets_nothing_more_and_is_ended_after_its_last_answer(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b", "c")
    fleet.scale(1)
    assert fleet.plan() == [] and fleet.states() == {"serving": 1, "draining": 1}  # w1, which holds less
    assert give(fleet) == [] and fleet.choose() is None
    fleet.publish(2)
    assert told(fleet) == ["update w0"]  # the one that leaves is not brought another version
    assert fleet.answered("w1", "b")
    assert fleet.plan() == [Action("end", "w1", "the fleet is smaller now")]
    assert [worker.name for worker in fleet.workers] == ["w0"]


def test_who_leaves_is_ended_also_when_its_last_request_fails(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b", "c")
    fleet.scale(1)
    assert fleet.plan() == fleet.plan() == []
    assert fleet.failed("w1", "once", "b") == {"b"}
    assert told(fleet) == ["end w1"]


@pytest.mark.parametrize("when", ["joining", "stale", "brought", "suspect"])
def test_who_leaves_before_it_served_is_ended_at_once(clock, when) -> None:
    fleet = serving(clock, workers=1)
    fleet.scale(2)
    fleet.plan()
    if when != "joining":
        fleet.started("w1")
    if when in ("brought", "suspect"):
        fleet.plan()
    if when == "suspect":
        fleet.proved("w1", 1)
        give(fleet, "a", "b")
        fleet.failed("w1", "once", "b")
    fleet.scale(1)
    assert told(fleet) == ["end w1"] and fleet.states() == {"serving": 1}
    fleet.started("w1"), fleet.proved("w1", 1)
    assert told(fleet) == [] and fleet.states() == {"serving": 1}


def test_a_fleet_that_grows_again_starts_a_new_worker_beside_the_one_that_leaves(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b", "c")
    fleet.scale(1)
    fleet.plan()
    fleet.scale(2)
    assert told(fleet) == ["start w2"] and fleet.states() == {"serving": 1, "draining": 1, "joining": 1}


def test_a_fleet_that_shrinks_and_grows_before_anybody_planned_stays_as_it_is(clock) -> None:
    fleet = serving(clock)
    fleet.scale(1)
    fleet.scale(2)
    assert fleet.plan() == [] and fleet.states() == {"serving": 2}


# --- withdrawn ------------------------------------------------------------------------------------------------------


def test_what_is_withdrawn_is_held_by_nobody_and_nobody_serves_before_the_next_version(clock) -> None:
    fleet = serving(clock, workers=3)
    give(fleet, "a", "b", "c")
    fleet.failed("w1", "once", "b")
    fleet.scale(2)
    fleet.plan()  # w1, suspect, leaves
    fleet.publish(2)
    fleet.plan()
    fleet.proved("w0", 2)
    fleet.withdraw()
    assert fleet.states() == {"stale": 2} and fleet.choose() is None and fleet.plan() == []
    assert not fleet.answered("w2", "c") and fleet.failed("w0", "late", "a") == set()
    clock.now += 1e6
    assert lost(fleet) == set()  # nobody owes anything
    fleet.publish(3)
    bring(fleet)
    assert fleet.states() == {"serving": 2} and fleet.choose() == "w0"


@pytest.mark.parametrize("why", ["failed", "silent"])
def test_a_suspect_starts_again_from_the_next_version_when_its_own_is_withdrawn(clock, why) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    clock.now += SILENCE / 2
    fleet.check() if why == "silent" else fleet.failed("w0", "once", "a")
    fleet.withdraw()
    fleet.heard("w0", "moves")
    assert fleet.states() == {"stale": 1} and fleet.plan() == []
    fleet.publish(2)
    bring(fleet)
    assert fleet.choose() == "w0" and fleet.workers[0].holds == set()


def test_who_leaves_and_who_starts_go_on_while_a_version_is_withdrawn(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b", "c")
    fleet.scale(1)
    fleet.publish(2)
    assert told(fleet) == ["update w0"] and fleet.plan() == []
    fleet.withdraw()
    assert told(fleet) == ["end w1"]
    fleet.scale(2)
    start(fleet)
    assert fleet.plan() == [] and fleet.states() == {"stale": 2}


def test_a_late_proof_of_what_was_withdrawn_admits_nobody(clock) -> None:
    fleet = made(clock, workers=1)
    fleet.publish(1)
    start(fleet)
    fleet.plan()
    fleet.withdraw()
    assert fleet.proved("w0", 1) is False
    fleet.heard("w0", "moves")
    assert fleet.choose() is None and fleet.plan() == []
    fleet.publish(2)
    bring(fleet)
    assert fleet.choose() == "w0"
