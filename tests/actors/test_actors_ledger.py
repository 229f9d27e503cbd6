"""Where every prompt is: exact cases, then any interleaving with resumes, against a model of what was trained."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.ledger import Ledger, LedgerError, Status


def taken(ledger: Ledger, count: int, worker: str = "w0") -> list[str]:
    """The next `count` prompts, sent to the worker."""
    names = [ledger.take_pending() for _ in range(count)]
    for name in names:
        ledger.sent(name, worker)
    return names


def resumed(ledger: Ledger, attempts: int = 3) -> Ledger:
    return Ledger(attempts, json.loads(json.dumps(ledger.state())))


# --- asking ---------------------------------------------------------------------------------------------------------


def test_positions_are_given_out_in_order_each_to_one_step() -> None:
    ledger = Ledger(3)
    assert [ledger.ask(0, 4), ledger.ask(1, 2), ledger.ask(0, 3)] == [(0, 4), (4, 2), (6, 3)]
    assert ledger.next == 9 and ledger.steps == (0, 1) and ledger.waiting == 9
    assert ledger.asked(0) == [(0, 4), (6, 3)] and ledger.asked(1) == [(4, 2)] and ledger.asked(2) == []


def test_prompts_are_named_by_step_and_place_also_those_asked_for_later() -> None:
    ledger = Ledger(3)
    ledger.ask(7, 2)
    ledger.ask(8, 1)
    ledger.ask(7, 1)
    assert [(own.name, own.step, own.place, own.status) for own in ledger.entries(7)] == [
        (f"s7-p{place}", 7, place, Status.PENDING) for place in range(3)
    ]


def test_what_was_asked_for_cannot_be_changed_from_outside() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 2)
    ledger.asked(0).append((5, 5))
    assert ledger.asked(0) == [(0, 2)]


def test_the_earliest_step_goes_first_and_in_it_the_first_place_by_number() -> None:
    ledger = Ledger(3)
    ledger.ask(10, 1)
    ledger.ask(9, 11)
    assert taken(ledger, 12) == [*(f"s9-p{place}" for place in range(11)), "s10-p0"]
    assert ledger.take_pending() is None and ledger.waiting == 0


def test_only_prompts_up_to_a_step_are_taken_if_one_is_named() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 1)
    ledger.ask(1, 1)
    assert [ledger.take_pending(last) for last in (-1, 0, 0)] == [None, "s0-p0", None] and ledger.waiting == 1
    assert ledger.take_pending(1) == "s1-p0"


# --- the way of a prompt --------------------------------------------------------------------------------------------


def test_a_prompt_goes_from_pending_to_a_worker_to_its_answer() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 1)
    (entry,) = ledger.entries(0)
    assert (entry.status, entry.worker, entry.sent) == (Status.PENDING, "", 0)
    taken(ledger, 1, "w4")
    assert (entry.status, entry.worker, entry.sent) == (Status.IN_FLIGHT, "w4", 1)
    assert ledger.entry("s0-p0") is entry and ledger.entry("s0-p1") is None and not ledger.complete(0)
    ledger.answered("s0-p0")
    assert (entry.status, entry.reason) == (Status.ANSWERED, "") and ledger.complete(0)


def test_what_was_lost_goes_out_first_again_with_its_name() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 3)
    ledger.ask(1, 1)
    taken(ledger, 2)
    assert ledger.lost({"s0-p1", "s0-p0"}, "w0 died") == []
    entry = ledger.entries(0)[0]
    assert (entry.status, entry.worker, entry.sent, entry.losses, entry.reason) == (Status.PENDING, "", 1, 1, "w0 died")
    assert ledger.waiting == 4 and taken(ledger, 4, "w1") == ["s0-p0", "s0-p1", "s0-p2", "s1-p0"]
    assert ledger.entries(0)[0].worker == "w1" and ledger.take_pending() is None


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_prompt_lost_too_often_is_dropped_with_the_last_reason(attempts) -> None:
    ledger = Ledger(attempts)
    ledger.ask(0, 1)
    for attempt in range(1, attempts):
        taken(ledger, 1)
        assert ledger.lost(["s0-p0"], f"reason {attempt}") == []
    taken(ledger, 1)
    assert ledger.lost(["s0-p0"], "the last") == ["s0-p0"]
    assert ledger.waiting == 0 and ledger.complete(0)
    (entry,) = ledger.entries(0)
    assert (entry.status, entry.reason, entry.sent, entry.losses) == (Status.DROPPED, "the last", attempts, attempts)


def test_of_those_lost_together_the_ones_lost_before_are_suspected_alone() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 4)
    taken(ledger, 4)
    assert ledger.lost(["s0-p1"], "w0 died") == []
    assert ledger.entries(0)[1].losses == 1
    taken(ledger, 1, "w1")
    assert ledger.lost(["s0-p0", "s0-p1", "s0-p2"], "w1 died") == []
    assert [(own.sent, own.losses, own.status) for own in ledger.entries(0)] == [
        (1, 0, Status.PENDING), (2, 2, Status.PENDING), (1, 0, Status.PENDING), (1, 0, Status.IN_FLIGHT)
    ]
    taken(ledger, 3, "w2")
    assert ledger.lost(["s0-p2", "s0-p0", "s0-p1"], "w2 died") == ["s0-p1"]
    assert [(own.sent, own.losses, own.status) for own in ledger.entries(0)] == [
        (2, 0, Status.PENDING), (3, 3, Status.DROPPED), (2, 0, Status.PENDING), (1, 0, Status.IN_FLIGHT)
    ]
    assert [own.reason for own in ledger.entries(0)] == ["w2 died"] * 3 + [""] and ledger.waiting == 2


def test_those_suspected_together_are_dropped_together_in_order() -> None:
    ledger = Ledger(2)
    ledger.ask(0, 12)
    assert ledger.lost(taken(ledger, 12)[1:], "w0 died") == []
    assert ledger.lost(taken(ledger, 11), "w1 died") == sorted(f"s0-p{place}" for place in range(1, 12))
    ledger.answered("s0-p0")
    assert ledger.complete(0) and ledger.waiting == 0


def test_nothing_lost_changes_nothing() -> None:
    ledger = Ledger(1)
    ledger.ask(0, 1)
    assert ledger.lost([], "w0 died") == [] and ledger.waiting == 1


def test_of_those_lost_together_none_is_when_one_is_foreign() -> None:
    ledger = Ledger(1)
    ledger.ask(0, 2)
    taken(ledger, 1)
    with pytest.raises(LedgerError, match="s0-p1 is pending, not in flight"):
        ledger.lost(["s0-p0", "s0-p1"], "w0 died")
    assert [(own.status, own.losses) for own in ledger.entries(0)] == [(Status.IN_FLIGHT, 0), (Status.PENDING, 0)]


def test_what_is_held_back_is_pending_in_its_old_place() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 3)
    first = ledger.take_pending()
    taken(ledger, 1)
    assert ledger.waiting == 1
    ledger.hold_back(first)
    assert ledger.waiting == 2 and ledger.entries(0)[0].sent == 0 and taken(ledger, 2) == ["s0-p0", "s0-p2"]


@pytest.mark.parametrize("told", ["answered", "lost", "sent", "hold_back"])
@pytest.mark.parametrize("status", ["unknown", "pending", "in flight", "answered", "dropped", "trained"])
def test_only_what_is_in_flight_ends_and_only_what_is_pending_is_sent(told, status) -> None:
    ledger = Ledger(1)
    name = "s0-p0"
    if status != "unknown":
        ledger.ask(0, 1)
        ledger.take_pending()
    if status in ("in flight", "answered", "dropped", "trained"):
        ledger.sent(name, "w0")
    if status in ("answered", "trained"):
        ledger.answered(name)
    if status == "dropped":
        ledger.lost([name], "")
    if status == "trained":
        ledger.train(0)
    expected = "pending" if told in ("sent", "hold_back") else "in flight"
    arguments = {"answered": (name,), "lost": ([name], "why"), "sent": (name, "w0"), "hold_back": (name,)}[told]
    if status == expected:
        getattr(ledger, told)(*arguments)
        return
    was = status.replace("trained", "unknown")
    before = ledger.entries(0)[0].status if ledger.asked(0) else None
    with pytest.raises(LedgerError, match=f"^{name} is {was}, not {expected}$"):
        getattr(ledger, told)(*arguments)
    assert (ledger.entries(0)[0].status if ledger.asked(0) else None) == before


# --- training -------------------------------------------------------------------------------------------------------


def test_a_step_is_complete_when_all_prompts_asked_for_it_are_answered_or_dropped() -> None:
    ledger = Ledger(1)
    assert not ledger.complete(0)
    ledger.ask(0, 1)
    ledger.ask(1, 1)
    taken(ledger, 2)
    ledger.answered("s0-p0")
    assert ledger.complete(0) and not ledger.complete(1)
    ledger.ask(0, 1)
    assert not ledger.complete(0)
    taken(ledger, 1)
    assert ledger.lost(["s0-p1"], "") == ["s0-p1"] and ledger.complete(0)


def test_the_line_of_a_trained_step_says_what_became_of_its_prompts() -> None:
    ledger = Ledger(2)
    ledger.ask(0, 3)
    ledger.ask(1, 1)
    ledger.ask(0, 2)
    names = taken(ledger, 5)
    assert ledger.lost(["s0-p1"], "too long") == [] and taken(ledger, 1) == ["s0-p1"]
    assert ledger.lost(["s0-p1", "s0-p2"], "too long") == ["s0-p1"]  # s0-p2 is above suspicion
    assert taken(ledger, 1) == ["s0-p2"]
    assert ledger.lost(["s0-p3"], "w0 died") == [] and taken(ledger, 1, "w1") == ["s0-p3"]
    assert ledger.lost(["s0-p3"], "w1 died") == ["s0-p3"]
    for name in ("s0-p0", "s0-p2", "s0-p4"):
        ledger.answered(name)
    assert names == [f"s0-p{place}" for place in range(5)]
    line = ledger.train(0)
    assert json.loads(json.dumps(line)) == {
        "step": 0,
        "positions": [[0, 3], [4, 2]],
        "trained": 3,
        "dropped": {"s0-p1": "too long", "s0-p3": "w1 died"},
        "sent_again": {"s0-p1": 2, "s0-p2": 2, "s0-p3": 2},
    }
    assert ledger.steps == (1,) and ledger.asked(0) == [] and not ledger.complete(0) and ledger.next == 6
    assert ledger.entries(0) == () and ledger.entry("s0-p0") is None


def test_a_step_with_open_prompts_is_not_trained() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 3)
    taken(ledger, 2)
    ledger.answered("s0-p0")
    with pytest.raises(LedgerError, match="step 0 cannot be trained: some of its prompts are open, or it has none"):
        ledger.train(0)
    assert ledger.steps == (0,) and len(ledger.entries(0)) == 3


def test_a_step_is_not_trained_twice_nor_asked_for_again() -> None:
    ledger = Ledger(3)
    ledger.ask(1, 1)
    ledger.answered(*taken(ledger, 1))
    ledger.train(1)
    with pytest.raises(LedgerError, match="step 1 cannot be trained"):
        ledger.train(1)
    for step in (0, 1):
        with pytest.raises(LedgerError, match=f"1 prompts for step {step}; trained up to step 1"):
            ledger.ask(step, 1)
    assert ledger.next == 1 and ledger.steps == () and ledger.ask(2, 1) == (1, 1)


def test_a_step_without_prompts_is_not_trained() -> None:
    ledger = Ledger(3)
    assert ledger.entries(0) == ()
    with pytest.raises(LedgerError, match="step 0 cannot be trained"):
        ledger.train(0)


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_new_ledger_has_nothing() -> None:
    ledger = Ledger(3)
    assert ledger.state() == {"next": 0, "steps": {}}
    assert (ledger.next, ledger.steps, ledger.waiting, ledger.take_pending()) == (0, (), 0, None)


def test_a_resumed_ledger_asks_again_for_all_of_the_steps_that_are_not_trained() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 1)
    ledger.ask(9, 2)
    ledger.ask(10, 2)
    ledger.ask(9, 1)
    names = taken(ledger, 6)
    for name in names[:2]:
        ledger.answered(name)
    for _ in range(2):
        ledger.lost(names[2:4], "w0 died")
        taken(ledger, 2)
    assert ledger.lost(names[2:3], "too long") == names[2:3]
    ledger.lost(names[3:4], "w0 died")
    ledger.train(0)
    assert ledger.state() == {"next": 6, "steps": {"9": [[1, 2], [5, 1]], "10": [[3, 2]]}}
    again = resumed(ledger)
    assert again.state() == ledger.state() and again.next == 6 and again.steps == (9, 10) and again.waiting == 5
    assert again.asked(9) == [(1, 2), (5, 1)] and all(type(own) is tuple for own in again.asked(9))
    assert [(own.name, own.sent, own.losses, own.reason) for own in again.entries(9)] == [
        (f"s9-p{at}", 0, 0, "") for at in range(3)
    ]
    assert taken(again, 5) == ["s9-p0", "s9-p1", "s9-p2", "s10-p0", "s10-p1"]
    assert again.ask(11, 1) == (6, 1)


def test_the_state_is_a_copy() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 1)
    state = ledger.state()
    state["steps"]["0"][0][1] = 9
    ledger.ask(0, 1)
    assert ledger.state() == {"next": 2, "steps": {"0": [[0, 1], [1, 1]]}} and state["next"] == 1


@pytest.mark.parametrize(
    "state",
    [
        {"next": 3, "steps": {"0": [[0, 5]]}},  # beyond what was given out
        {"next": 4, "steps": {"0": [[0, 2]], "1": [[1, 3]]}},  # position 1 twice
        {"next": 4, "steps": {"0": [[0, 2], [1, 1]]}},  # in one step
        {"next": 4, "steps": {"0": [[3, -2]]}},
        {"next": 4, "steps": {"0": [[3, 0]]}},
        {"next": 4, "steps": {"0": [[-1, 2]]}},
        {"next": -1, "steps": {}},
    ],
)
def test_a_state_that_is_no_ledgers_is_refused(state) -> None:
    with pytest.raises(LedgerError, match="no state of a ledger"):
        Ledger(3, state)


def test_a_state_may_have_gaps_where_steps_were_trained() -> None:
    assert Ledger(3, {"next": 9, "steps": {"4": [[7, 1], [3, 2]], "5": [[5, 2]]}}).waiting == 5


@pytest.mark.parametrize("count", [0, -2])
def test_nothing_and_less_cannot_be_asked_for(count) -> None:
    ledger = Ledger(3)
    ledger.ask(0, 3)
    with pytest.raises(LedgerError, match=f"^{count} prompts for step 1"):
        ledger.ask(1, count)
    assert ledger.next == 3 and ledger.steps == (0,)


# --- any order ------------------------------------------------------------------------------------------------------


class Books(RuleBasedStateMachine):
    """What a trainer and a fleet do, in any order, with resumes from the last state that was saved."""

    ATTEMPTS = 2

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self.ATTEMPTS)
        self.lines: list[dict] = []
        self.next_step = self.given = 0
        self.flying: set[str] = set()
        self.sends: dict[str, int] = {}
        self.before: dict[int, int] = {}  # sendings of a position before the last rewinding
        self.losses: dict[str, int] = {}
        self.ends: dict[str, str] = {}  # answered and dropped
        self.places: dict[int, str] = {}  # position to name
        self.save()

    def noted(self, step: int, stretch: tuple[int, int], place: int) -> None:
        first, count = stretch
        assert first == self.given  # nothing is skipped, nothing given twice
        self.given += count
        self.places.update({first + at: f"s{step}-p{place + at}" for at in range(count)})

    def sent(self, position: int) -> int:
        return self.before.get(position, 0) + self.sends.get(self.places.get(position, ""), 0)

    @rule()
    def save(self) -> None:
        state = json.dumps(self.ledger.state())
        self.saved = (state, list(self.lines), self.next_step, self.given, dict(self.places))

    @rule(killed=st.booleans())
    def resume(self, killed) -> None:
        """After the job was killed, or its learner alone."""
        state, lines, self.next_step, self.given, places = self.saved
        self.before = {} if killed else {at: self.sent(at) for at in self.before | self.places}
        self.ledger = Ledger(self.ATTEMPTS, json.loads(state)) if killed else self.ledger.rewound(json.loads(state))
        self.lines, self.places = list(lines), dict(places)
        self.flying, self.sends, self.losses, self.ends = set(), {}, {}, {}
        assert json.dumps(self.ledger.state()) == state
        trained = {line["step"] for line in lines}
        assert self.ledger.waiting == sum(count for step in self.ledger.steps for _, count in self.ledger.asked(step))
        assert not trained & set(self.ledger.steps)

    @rule(count=st.integers(1, 4))
    def ask_for_the_next_step(self, count) -> None:
        self.noted(self.next_step, self.ledger.ask(self.next_step, count), 0)
        self.next_step += 1

    @precondition(lambda self: self.ledger.steps)
    @rule(data=st.data(), count=st.integers(1, 3))
    def ask_for_more(self, data, count) -> None:
        step = data.draw(st.sampled_from(self.ledger.steps))
        place = len(self.ledger.entries(step))
        self.noted(step, self.ledger.ask(step, count), place)

    @rule(count=st.integers(1, 6))
    def send(self, count) -> None:
        for _ in range(count):
            waiting = [
                own.name for step in self.ledger.steps for own in self.ledger.entries(step) if own.status is Status.PENDING
            ]
            name = self.ledger.take_pending()
            assert name == (waiting[0] if waiting else None)
            if name is None:
                return
            self.ledger.sent(name, "w0")
            self.flying.add(name)
            self.sends[name] = self.sends.get(name, 0) + 1

    @rule(data=st.data())
    def hold_back(self, data) -> None:
        """All that waits is looked at, some of it kept."""
        names = [self.ledger.take_pending() for _ in range(self.ledger.waiting)]
        for name in data.draw(st.permutations(names)):
            self.ledger.hold_back(name)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), what=st.sampled_from(["answered", "lost"]), most=st.booleans())
    def end(self, data, what, most) -> None:
        names = sorted(self.flying) if most else [data.draw(st.sampled_from(sorted(self.flying)))]
        self.flying -= set(names)
        if what == "answered":
            for name in names:
                self.ledger.answered(name)
                self.ends[name] = what
            return
        before = [name for name in names if name in self.losses]
        for name in before or names:
            self.losses[name] = self.losses.get(name, 0) + 1
        dropped = [name for name in names if self.losses.get(name) == self.ATTEMPTS]
        assert self.ledger.lost(set(names), "lost") == dropped
        self.ends.update(dict.fromkeys(dropped, what))

    @rule()
    def train(self) -> None:
        for step in self.ledger.steps:
            names = [own.name for own in self.ledger.entries(step)]
            assert self.ledger.complete(step) == all(name in self.ends for name in names)
            if not self.ledger.complete(step):
                with pytest.raises(LedgerError):
                    self.ledger.train(step)
                continue
            line = self.ledger.train(step)
            ends = [self.ends[name] for name in names]
            assert line["trained"] == ends.count("answered")
            assert set(line["dropped"]) == {name for name in names if self.ends[name] != "answered"}
            positions = [at for first, count in line["positions"] for at in range(first, first + count)]
            assert [self.places[at] for at in positions] == names
            sent = {self.places[at]: self.sent(at) for at in positions}
            assert line["sent_again"] == {name: count for name, count in sent.items() if count > 1}
            self.lines.append(line)

    @invariant()
    def every_position_is_of_one_step_that_is_trained_or_not(self) -> None:
        trained = [tuple(own) for line in self.lines for own in line["positions"]]
        stretches = trained + [own for step in self.ledger.steps for own in self.ledger.asked(step)]
        positions = sorted(at for first, count in stretches for at in range(first, first + count))
        assert positions == list(range(self.given)) and self.ledger.next == self.given

    @invariant()
    def every_prompt_has_the_place_it_was_given(self) -> None:
        for step in self.ledger.steps:
            positions = [at for first, count in self.ledger.asked(step) for at in range(first, first + count)]
            assert [self.places[at] for at in positions] == [own.name for own in self.ledger.entries(step)]

    @invariant()
    def what_waits_is_what_nobody_has(self) -> None:
        statuses = [own.status for step in self.ledger.steps for own in self.ledger.entries(step)]
        assert self.ledger.waiting == statuses.count(Status.PENDING)
        assert statuses.count(Status.IN_FLIGHT) == len(self.flying)

    def teardown(self) -> None:
        """When the rest is answered, each position has been trained or dropped, once."""
        self.send(10**6)
        for name in self.flying:
            self.ledger.answered(name)
            self.ends[name] = "answered"
        self.flying.clear()
        self.train()
        assert self.ledger.steps == () and self.ledger.waiting == 0
        self.every_position_is_of_one_step_that_is_trained_or_not()
        assert sum(line["trained"] + len(line["dropped"]) for line in self.lines) == self.given


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=60, stateful_step_count=30, derandomize=True, deadline=None, database=None
)
