"""The life of rollout workers: starting, work, versions, failures, refusals and deaths."""

from __future__ import annotations

import pytest

from actors.fleet import FAILURE, FATAL, REFUSALS, Action, Fleet, FleetExhausted, FleetLimits, State
from fleet_cases import SILENCE, START, WINDOW, Clock, bring, give, lost, made, serving, start, state, told


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- starting -------------------------------------------------------------------------------------------------------


def test_a_worker_serves_after_its_start_and_a_proof_and_not_before(clock) -> None:
    fleet = made(clock, workers=2)
    assert told(fleet) == ["start w0", "start w1"] and fleet.choose() is None
    fleet.started("w0")
    assert told(fleet) == [] and fleet.states() == {"stale": 1, "joining": 1}  # there is no version to bring yet
    fleet.publish(1)
    assert told(fleet) == ["update w0"] and fleet.choose() is None
    fleet.proved("w0", 1)
    assert fleet.choose() == "w0" and fleet.count(State.SERVING) == 1 and fleet.count(State.SERVING, State.JOINING) == 2
    fleet.started("w1")
    assert told(fleet) == ["update w1"] and told(fleet) == []
    fleet.started("w0")
    assert fleet.choose() == "w0" and told(fleet) == []


def test_what_is_planned_is_named_once(clock) -> None:
    fleet = made(clock)
    fleet.publish(1)
    assert len(fleet.plan()) == 2
    fleet.scale(2)
    assert fleet.plan() == []
    fleet.started("w0")
    fleet.started("w0")
    assert told(fleet) == ["update w0"]
    fleet.heard("w0", 1)
    fleet.scale(2)
    assert fleet.plan() == []


@pytest.mark.parametrize(
    "wrong",
    [{"start_silence": 0}, {"silence": 0}, {"silence": -1}, {"window": 0}, {"outstanding": 0}, {"deaths": -1}],
)
def test_limits_with_which_nobody_could_live_are_refused(wrong) -> None:
    right = {"start_silence": START, "silence": SILENCE, "outstanding": 1, "deaths": 0, "window": WINDOW}
    FleetLimits(**right)
    with pytest.raises(ValueError, match="must be positive, deaths not negative"):
        FleetLimits(**(right | wrong))


def test_a_fleet_that_nobody_has_scaled_starts_nobody(clock) -> None:
    fleet = Fleet(FleetLimits(START, SILENCE, 2, 3), clock)
    fleet.publish(1)
    assert fleet.plan() == [] and fleet.choose() is None


# --- work -----------------------------------------------------------------------------------------------------------


def test_work_goes_to_who_holds_least_and_the_oldest_of_equals_until_nobody_has_room(clock) -> None:
    fleet = serving(clock, workers=3)
    assert give(fleet, "a", "b", "c", "d") == ["w0", "w1", "w2", "w0"]
    assert fleet.answered("w2", "c")
    assert give(fleet, "e", "f", "g") == ["w2", "w1", "w2"]
    assert fleet.choose() is None
    assert fleet.answered("w1", "b")
    assert fleet.choose() == "w1"


def test_the_oldest_is_by_number_not_by_spelling(clock) -> None:
    fleet = serving(clock, workers=11, outstanding=1)
    assert give(fleet, *"abcdefghijk") == [f"w{own}" for own in range(11)]


def test_an_answer_is_accepted_once_and_from_who_holds_the_request(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a")
    assert not fleet.answered("w1", "a") and not fleet.answered("w7", "a") and not fleet.answered("w0", "b")
    assert fleet.answered("w0", "a") and not fleet.answered("w0", "a")


def test_asking_who_is_next_changes_nothing(clock) -> None:
    fleet = serving(clock)
    assert [fleet.choose() for _ in range(3)] == ["w0"] * 3


def test_what_a_worker_holds_is_what_it_has_not_answered(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    held = fleet.holds("w0")
    fleet.answered("w0", "a")
    assert held == {"a", "b"} and fleet.holds("w0") == {"b"}


def test_the_heap_stays_small_however_long_the_run_and_keeps_all_who_have_room(clock) -> None:
    fleet = serving(clock, workers=2, outstanding=8)
    for turn in range(1000):
        for name in give(fleet, "a", "b"):
            fleet.answered(name, {"w0": "a", "w1": "b"}[name])
        assert len(fleet._free) <= 64 + 8 * 2
    assert give(fleet, *"abcdefghijklmnop") == ["w0", "w1"] * 8 and fleet.choose() is None


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_new_version_stops_work_until_each_has_proved_it(clock) -> None:
    fleet = serving(clock)
    fleet.publish(2)
    assert fleet.choose() is None and fleet.states() == {"stale": 2}
    assert told(fleet) == ["update w0", "update w1"]
    fleet.proved("w1", 2)
    assert give(fleet, "a", "b") == ["w1", "w1"] and fleet.choose() is None
    fleet.proved("w0", 2)
    assert fleet.choose() == "w0"


@pytest.mark.parametrize("version", [1, 0])
def test_versions_only_rise(clock, version) -> None:
    fleet = serving(clock)
    with pytest.raises(ValueError, match=f"version {version} after version 1"):
        fleet.publish(version)
    assert fleet.version == 1 and fleet.choose() == "w0"


def test_who_was_brought_an_older_version_is_brought_the_new_one_after_it(clock) -> None:
    fleet = made(clock, workers=1)
    fleet.publish(1)
    start(fleet)
    assert told(fleet) == ["update w0"]
    fleet.publish(2)
    fleet.publish(3)
    assert told(fleet) == []  # one version at a time
    fleet.proved("w0", 1)
    assert state(fleet, "w0") is State.STALE and fleet.choose() is None
    assert told(fleet) == ["update w0"] and told(fleet) == []
    fleet.proved("w0", 3)
    assert fleet.choose() == "w0"


def test_a_proof_says_whether_its_worker_serves_now(clock) -> None:
    fleet = made(clock, workers=3)
    fleet.publish(1)
    start(fleet)
    fleet.plan()
    assert fleet.proved("w0", 1) is True and fleet.proved("w9", 1) is False
    fleet.publish(2)
    assert fleet.proved("w1", 1) is False  # an older version
    assert told(fleet) == ["update w0", "update w1"]
    fleet.failed("w1", "gone")
    assert fleet.proved("w1", 2) is False and fleet.proved("w0", 2) is True


def test_the_proof_of_a_worker_that_leaves_admits_nobody(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b")
    fleet.publish(2)
    fleet.plan()
    fleet.scale(1)
    fleet.plan()
    assert state(fleet, "w1") is State.DRAINING and fleet.proved("w1", 2) is False
    assert state(fleet, "w1") is State.DRAINING and fleet.proved("w0", 2) is True and fleet.choose() == "w0"


def test_what_is_held_stays_held_over_a_new_version(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    fleet.publish(2)
    assert fleet.answered("w0", "a") and state(fleet, "w0") is State.STALE
    bring(fleet)
    assert fleet.choose() == "w0" and fleet.workers[0].holds == {"b"}


def test_a_suspect_is_brought_the_new_version_too(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    clock.now += SILENCE / 2
    assert lost(fleet) == set() and state(fleet, "w0") is State.SUSPECT
    assert told(fleet) == []  # its version is the current one: it only has to move
    fleet.publish(2)
    fleet.heard("w0", "moves")
    assert state(fleet, "w0") is State.SUSPECT  # at an older version, moving is not enough
    assert told(fleet) == ["update w0"]
    fleet.proved("w0", 2)
    assert state(fleet, "w0") is State.SERVING


# --- failures -------------------------------------------------------------------------------------------------------


def test_after_a_failed_request_a_worker_gets_nothing_until_it_has_proved_its_version_anew(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    assert fleet.failed("w0", "cuda", "a") == {"a"}
    assert state(fleet, "w0") is State.SUSPECT and fleet.choose() is None and fleet.workers[0].holds == {"b"}
    fleet.heard("w0", "moves")
    assert state(fleet, "w0") is State.SUSPECT
    assert fleet.answered("w0", "b") and state(fleet, "w0") is State.SUSPECT
    assert told(fleet) == ["update w0"] and told(fleet) == []
    fleet.proved("w0", 1)
    assert fleet.choose() == "w0"


def test_a_worker_that_fails_every_request_and_proves_every_time_dies_at_the_second(clock) -> None:
    fleet = serving(clock, workers=1)
    assert give(fleet, "a", "b") == ["w0", "w0"]
    assert fleet.failed("w0", "cuda", "a") == {"a"}
    bring(fleet)
    give(fleet, "c")
    assert fleet.failed("w0", "cuda again", "c") == {"b", "c"}
    assert fleet.plan() == [Action("end", "w0", "cuda again"), Action("start", "w1")]


@pytest.mark.parametrize(("answers", "survived"), [(0, 1), (1, 2), (2, None), (3, None)])
def test_a_failure_weighs_as_much_as_two_answers(clock, answers, survived) -> None:
    """With two answers to every failure a worker lives for ever; with one it dies at the third failure."""
    assert (FAILURE, FATAL) == (2, 4)
    fleet = serving(clock, workers=1)
    for turn in range(20):
        give(fleet, "bad")
        assert fleet.failed("w0", "once in a while", "bad") == {"bad"}
        if not fleet.workers:
            assert turn == survived
            return
        bring(fleet)
        for _ in range(answers):
            give(fleet, "good")
            assert fleet.answered("w0", "good")
    assert survived is None and state(fleet, "w0") is State.SERVING


def test_answers_before_a_failure_are_no_credit(clock) -> None:
    fleet = serving(clock, workers=1)
    for _ in range(9):
        give(fleet, "good")
        fleet.answered("w0", "good")
    give(fleet, "a", "b")
    assert fleet.failed("w0", "first", "a") == {"a"} and fleet.failed("w0", "second", "b") == {"b"}
    assert fleet.workers == ()


def test_a_second_failure_while_it_proves_itself_is_its_death(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    fleet.failed("w0", "first", "a")
    fleet.plan()
    assert fleet.failed("w0", "second", "b") == {"b"} and fleet.workers == ()


def test_a_request_that_fails_while_a_version_comes_needs_no_second_update(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    fleet.publish(2)
    assert told(fleet) == ["update w0"]
    assert fleet.failed("w0", "stale", "a") == {"a"} and told(fleet) == []
    fleet.proved("w0", 2)
    assert fleet.choose() == "w0"


def test_a_failed_worker_that_was_silent_after_its_proof_serves_again_when_it_moves(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a")
    fleet.failed("w0", "once", "a")
    bring(fleet)
    give(fleet, "b")
    clock.now += SILENCE / 2
    fleet.check()
    assert state(fleet, "w0") is State.SUSPECT
    fleet.heard("w0", "moves")
    assert fleet.choose() == "w0"


def test_the_failure_of_a_request_it_does_not_hold_is_nobodys(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a")
    assert fleet.failed("w1", "late", "a") == set() and fleet.failed("w0", "late", "b") == set()
    assert fleet.states() == {"serving": 2}


def test_what_a_dead_worker_held_comes_back_once_and_a_worker_of_a_new_name_replaces_it(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b", "c")
    assert fleet.failed("w0", "its node is gone") == {"a", "c"}
    assert fleet.failed("w0", "again") == set() and not fleet.answered("w0", "a")
    fleet.started("w0"), fleet.proved("w0", 1), fleet.heard("w0", 5)
    assert fleet.plan() == [Action("end", "w0", "its node is gone"), Action("start", "w2")]
    assert [worker.name for worker in fleet.workers] == ["w1", "w2"] and fleet.plan() == []


@pytest.mark.parametrize("when", ["joining", "stale", "brought", "serving", "suspect", "draining"])
def test_a_worker_may_die_at_any_time_and_is_replaced(clock, when) -> None:
    fleet = made(clock, workers=1) if when in ("joining", "stale", "brought") else serving(clock, workers=1)
    if when in ("joining", "stale", "brought"):
        fleet.plan()
    if when in ("stale", "brought"):
        fleet.started("w0")
    if when == "brought":
        fleet.publish(1)
        fleet.plan()
    if when == "suspect":
        give(fleet, "a")
        fleet.failed("w0", "once", "a")
    if when == "draining":
        fleet.scale(2)
        start(fleet)
        bring(fleet)
        give(fleet, "a", "b")
        fleet.scale(1)
        assert fleet.plan() == [] and state(fleet, "w1") is State.DRAINING
        assert fleet.failed("w1", "gone") == {"b"} and told(fleet) == ["end w1"] and fleet.states() == {"serving": 1}
        return
    assert fleet.failed("w0", "gone") == set()
    assert told(fleet) == ["end w0", "start w1"] and fleet.states() == {"joining": 1}


def test_the_workers_of_a_node_that_is_lost_are_one_loss(clock) -> None:
    fleet = made(clock, workers=6, deaths=1)
    for action, node in zip(fleet.plan(), "aaabbb", strict=True):
        fleet.placed(action.worker, node)
    for name in ("w0", "w1", "w2"):
        fleet.failed(name, "its node died")
        clock.now += 20
    with pytest.raises(FleetExhausted, match="2 rollout workers died"):
        fleet.failed("w3", "its node died")  # another node


def test_workers_of_a_node_that_die_apart_are_losses_of_their_own(clock) -> None:
    fleet = made(clock, workers=2, deaths=1)
    for action in fleet.plan():
        fleet.placed(action.worker, "a")
    fleet.failed("w0", "out of memory")
    clock.now += 61
    with pytest.raises(FleetExhausted):
        fleet.failed("w1", "out of memory")


def test_who_leaves_with_answers_that_wait_for_a_proof_is_brought_the_newer_version_that_came_meanwhile(clock) -> None:
    fleet = serving(clock, workers=2)
    give(fleet, "a", "b")
    fleet.publish(2)
    assert told(fleet) == ["update w0", "update w1"]
    fleet.proved("w0", 2)
    fleet.scale(1)
    assert told(fleet) == [] and state(fleet, "w1") is State.DRAINING
    fleet.publish(3)
    assert told(fleet) == ["update w0"]
    fleet.unproved("w1")  # the version that was on its way to it is not the newest any more
    assert told(fleet) == ["update w1"] and not fleet.proved("w1", 3)
    assert fleet.answered("w1", "b") and told(fleet) == ["end w1"]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_refused_request_comes_back_and_its_worker_serves_on(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    assert fleet.refused("w0", "too long", "a") == {"a"} and fleet.holds("w0") == {"b"}
    assert fleet.plan() == [] and fleet.choose() == "w0"
    assert fleet.refused("w0", "late", "a") == fleet.refused("w9", "late", "a") == set()


def test_who_refuses_three_in_a_row_is_dead_and_others_answer_what_it_held(clock) -> None:
    assert REFUSALS == 3
    fleet = serving(clock, workers=1, outstanding=4)
    give(fleet, *"abcd")
    assert [fleet.refused("w0", "no such file", request) for request in "ab"] == [{"a"}, {"b"}]
    assert fleet.refused("w0", "no such file", "c") == {"c", "d"}
    ended = Action("end", "w0", "3 requests refused in a row, the last: no such file")
    assert fleet.plan() == [ended, Action("start", "w1")]


def test_one_request_however_often_refused_is_one_refusal(clock) -> None:
    fleet = serving(clock, workers=1)
    for _ in range(2 * REFUSALS):
        give(fleet, "a")
        assert fleet.refused("w0", "too long", "a") == {"a"}
    assert fleet.states() == {"serving": 1}


def test_the_least_loaded_of_those_that_hold_no_harm_is_chosen(clock) -> None:
    fleet = serving(clock, workers=3, outstanding=2)
    for name, requests in {"w0": ["bad 1"], "w1": ["a"], "w2": []}.items():
        for request in requests:
            fleet.sent(name, request)
    harmful = lambda request: request.startswith("bad")
    assert fleet.choose_without(harmful) == "w2"
    fleet.sent("w2", "bad 2")
    assert fleet.choose_without(harmful) == "w1"
    fleet.sent("w1", "b")
    assert fleet.choose_without(harmful) is None


def test_an_answer_between_refusals_forgives_them_all(clock) -> None:
    fleet = serving(clock, workers=1)
    for _ in range(4):
        for request in ("a", "b"):
            give(fleet, request)
            assert fleet.refused("w0", "too long", request) == {request}
        give(fleet, "good")
        fleet.answered("w0", "good")
    assert state(fleet, "w0") is State.SERVING


def test_a_refusal_is_progress_and_does_not_clear_a_worker_in_doubt(clock) -> None:
    fleet = serving(clock, workers=1)
    give(fleet, "a", "b")
    clock.now += SILENCE / 2
    fleet.check()
    assert fleet.refused("w0", "too long", "a") == {"a"} and fleet.choose() == "w0"
    give(fleet, "c")
    fleet.failed("w0", "cuda", "b")
    assert fleet.refused("w0", "too long", "c") == {"c"} and state(fleet, "w0") is State.SUSPECT


def test_who_leaves_is_ended_also_when_its_last_request_is_refused(clock) -> None:
    fleet = serving(clock)
    give(fleet, "a", "b", "c")
    fleet.scale(1)
    assert fleet.plan() == fleet.plan() == []
    assert fleet.refused("w1", "too long", "b") == {"b"} and told(fleet) == ["end w1"]


def test_refusals_can_be_one_death_too_many(clock) -> None:
    fleet = serving(clock, workers=1, outstanding=3, deaths=0)
    give(fleet, *"abc")
    fleet.refused("w0", "first", "a"), fleet.refused("w0", "second", "b")
    with pytest.raises(FleetExhausted, match="w0: 3 requests refused in a row, the last: third"):
        fleet.refused("w0", "third", "c")


# --- deaths ---------------------------------------------------------------------------------------------------------


def fresh(fleet: Fleet) -> str:
    return next(worker.name for worker in fleet.workers if worker.state is State.JOINING)


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_one_death_more_than_may_be_ends_the_run_with_the_last_reasons(clock, deaths) -> None:
    fleet = made(clock, workers=1, deaths=deaths)
    for number in range(deaths):
        fleet.plan()
        fleet.failed(fresh(fleet), f"reason {number}")
    fleet.plan()
    with pytest.raises(FleetExhausted) as raised:
        fleet.failed(fresh(fleet), f"reason {deaths}")
    said = str(raised.value)
    assert f"{deaths + 1} rollout workers died within 3600 s, {deaths} may" in said
    assert said.splitlines()[1:] == [f"  w{own}: reason {own}" for own in range(deaths + 1)][-3:]


@pytest.mark.parametrize(("later", "ends"), [(WINDOW, True), (WINDOW + 1, False)])
def test_deaths_are_forgotten_after_the_window(clock, later, ends) -> None:
    fleet = made(clock, workers=1, deaths=1)
    fleet.plan()
    fleet.failed("w0", "first")
    fleet.plan()
    clock.now += later
    if ends:
        with pytest.raises(FleetExhausted):
            fleet.failed("w1", "second")
    else:
        assert fleet.failed("w1", "second") == set() and told(fleet) == ["end w1", "start w2"]


def test_the_silent_count_as_deaths_and_those_who_leave_do_not(clock) -> None:
    fleet = serving(clock, workers=3, deaths=1)
    fleet.scale(1)
    assert told(fleet) == ["end w1", "end w2"]
    give(fleet, "a")
    clock.now += SILENCE
    assert lost(fleet) == {"a"}
    assert told(fleet) == ["end w0", "start w3"]
    fleet.placed("w3")
    clock.now += START
    with pytest.raises(FleetExhausted) as raised:
        fleet.check()
    reasons = ["  w0: no progress for 40 s while serving", "  w3: no progress for 100 s while joining"]
    assert str(raised.value).splitlines()[1:] == reasons


def test_busy_is_the_time_in_which_workers_hold_something_however_much(clock) -> None:
    fleet = serving(clock, workers=2, outstanding=3)
    for request, seconds in (("a", 1), ("b", 2)):
        fleet.sent("w0", request)
        clock.now += seconds
    fleet.sent("w1", "c")
    clock.now += 4
    assert fleet.busy_seconds == 7 + 4
    fleet.answered("w0", "a")
    fleet.refused("w1", "too long", "c")
    clock.now += 8
    assert fleet.busy_seconds == 15 + 4
    fleet.failed("w0", "odd", "b")
    clock.now += 16
    assert fleet.busy_seconds == 15 + 4
    fleet.sent("w1", "d")
    clock.now += 32
    fleet.failed("w1", "its process died")
    clock.now += 64
    assert fleet.busy_seconds == 15 + 4 + 32


def test_what_is_withdrawn_keeps_nobody_busy(clock) -> None:
    fleet = serving(clock, workers=1)
    fleet.sent("w0", "a")
    clock.now += 3
    fleet.withdraw()
    clock.now += 5
    assert fleet.busy_seconds == 3
