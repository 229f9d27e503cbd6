"""The life of rollout workers: any order of events against a model that keeps its own books."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.fleet import FAILURE, FATAL, REFUSALS, Fleet, FleetExhausted, FleetLimits, State
from fleet_cases import SILENCE, START, WINDOW, Clock, state


class Life(RuleBasedStateMachine):
    """Events as an honest port tells them: what was called is told once, and late words of the ended may come."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.fleet = Fleet(FleetLimits(START, SILENCE, 2, 10**6, WINDOW), self.clock)
        self.names: set[str] = set()  # that ever were
        self.ended: set[str] = set()
        self.starting: set[str] = set()
        self.unplaced: dict[str, float] = {}  # of those that start: since when
        self.failures: dict[str, int] = {}
        self.refusals: dict[str, set[str]] = {}
        self.bringing: dict[str, int] = {}
        self.proofs: dict[str, int] = {}  # of the current version, and not in doubt
        self.held: dict[str, str] = {}  # request to worker
        self.made = self.published = 0
        self.withdrawn = False

    def alive(self) -> list[str]:
        return sorted(self.names - self.ended)

    def carry_out(self) -> None:
        for action in self.fleet.plan():
            if action.kind == "start":
                assert action.worker not in self.names
                self.names.add(action.worker)
                self.starting.add(action.worker)
                self.unplaced[action.worker] = self.clock.now
            elif action.kind == "update":
                assert action.worker not in self.bringing and action.worker not in self.starting
                assert not self.withdrawn
                self.bringing[action.worker] = self.published
            else:
                assert action.worker not in self.ended and action.worker not in self.held.values()
                self.ended.add(action.worker)
                self.starting.discard(action.worker)
                self.unplaced.pop(action.worker, None)
                self.bringing.pop(action.worker, None)
                self.proofs.pop(action.worker, None)
        assert self.fleet.plan() == [] or self.fleet.count(State.DRAINING)

    def take_back(self, lost: set[str]) -> None:
        for request in lost:
            del self.held[request]  # a KeyError: it was returned before, or nobody's

    def prove(self, name: str) -> None:
        version = self.bringing.pop(name)
        assert self.fleet.proved(name, version) == (state(self.fleet, name) is State.SERVING)
        if version == self.published:
            self.proofs[name] = version

    def answer(self, request: str) -> None:
        name = self.held.pop(request)
        assert self.fleet.answered(name, request) is True
        self.failures[name], self.refusals[name] = max(0, self.failures.get(name, 0) - 1), set()

    def start(self, name: str) -> None:
        self.place(name)
        self.starting.discard(name)
        self.fleet.started(name)

    def place(self, name: str) -> None:
        self.unplaced.pop(name, None)
        self.fleet.placed(name)

    @rule(size=st.integers(1, 4))
    def scale(self, size) -> None:
        self.fleet.scale(size)

    @rule()
    def publish(self) -> None:
        self.published += 1
        self.fleet.publish(self.published)
        self.proofs.clear()
        self.withdrawn = False

    @rule()
    def plan(self) -> None:
        self.carry_out()

    @rule(data=st.data(), all_of_them=st.booleans())
    def one_starts(self, data, all_of_them) -> None:
        names = sorted(self.starting)
        if names and not all_of_them:
            names = [data.draw(st.sampled_from(names))]
        for name in names:
            self.start(name)

    @precondition(lambda self: self.unplaced)
    @rule(data=st.data())
    def one_is_placed(self, data) -> None:
        self.place(data.draw(st.sampled_from(sorted(self.unplaced))))

    @rule(data=st.data(), all_of_them=st.booleans())
    def one_proves(self, data, all_of_them) -> None:
        names = sorted(self.bringing)
        if names and not all_of_them:
            names = [data.draw(st.sampled_from(names))]
        for name in names:
            self.prove(name)

    @rule(count=st.integers(1, 5))
    def send(self, count) -> None:
        for _ in range(count):
            if (name := self.fleet.choose()) is None:
                return
            request = f"r{self.made}"
            self.made += 1
            self.fleet.sent(name, request)
            self.held[request] = name

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def one_answers(self, data) -> None:
        self.answer(data.draw(st.sampled_from(sorted(self.held))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def one_request_fails(self, data) -> None:
        request = data.draw(st.sampled_from(sorted(self.held)))
        name = self.held[request]
        own = {other for other, holder in self.held.items() if holder == name}
        lost = self.fleet.failed(name, "a reason", request)
        self.failures[name] = self.failures.get(name, 0) + FAILURE
        assert bool(state(self.fleet, name)) == (self.failures[name] < FATAL)
        assert lost == ({request} if state(self.fleet, name) else own)
        self.proofs.pop(name, None)
        self.take_back(lost)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def one_request_is_refused(self, data) -> None:
        request = data.draw(st.sampled_from(sorted(self.held)))
        name = self.held[request]
        own = self.fleet.holds(name)
        lost = self.fleet.refused(name, "a reason", request)
        self.refusals.setdefault(name, set()).add(request)
        assert bool(state(self.fleet, name)) == (len(self.refusals[name]) < REFUSALS)
        assert lost == ({request} if state(self.fleet, name) else own)
        self.take_back(lost)

    @precondition(lambda self: self.fleet.workers)
    @rule(data=st.data())
    def one_dies(self, data) -> None:
        name = data.draw(st.sampled_from([worker.name for worker in self.fleet.workers]))
        own = {request for request, holder in self.held.items() if holder == name}
        assert self.fleet.failed(name, "a reason") == own
        self.take_back(own)

    @rule(data=st.data(), seconds=st.sampled_from([1.0, SILENCE / 2, SILENCE, START]))
    def time_passes(self, data, seconds) -> None:
        self.clock.now += seconds
        for worker in self.fleet.workers:
            if data.draw(st.booleans()):
                self.fleet.heard(worker.name, self.clock.now)
        before = {worker.name for worker in self.fleet.workers}
        if before and before <= set(self.unplaced) and self.clock.now - max(self.unplaced[name] for name in before) >= START:
            with pytest.raises(FleetExhausted):
                self.fleet.check()
            self.place(min(before))
            return
        lost = set().union(*self.fleet.check())
        dead = before - {worker.name for worker in self.fleet.workers}
        assert not dead & set(self.unplaced)  # who waits for room is not timed
        assert lost == {request for request, name in self.held.items() if name in dead}
        self.take_back(lost)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def late_words(self, data) -> None:
        name, before = data.draw(st.sampled_from(sorted(self.ended))), self.fleet.states()
        self.fleet.placed(name)
        self.fleet.started(name)
        assert self.fleet.proved(name, self.published) is False and self.fleet.refused(name, "late", "r0") == set()
        self.fleet.heard(name, "late")
        assert self.fleet.failed(name, "late") == set() and not self.fleet.answered(name, "r0")
        assert self.fleet.states() == before

    @rule()
    def withdraw(self) -> None:
        self.fleet.withdraw()
        self.withdrawn = True
        self.held.clear()
        self.bringing.clear()
        self.proofs.clear()

    @invariant()
    def what_is_held_is_held_by_one_and_never_too_much(self) -> None:
        assert {worker.name: worker.holds for worker in self.fleet.workers} == {
            worker.name: {request for request, name in self.held.items() if name == worker.name}
            for worker in self.fleet.workers
        }
        assert set(self.held.values()) <= {worker.name for worker in self.fleet.workers}
        assert all(len(worker.holds) <= 2 for worker in self.fleet.workers)

    @invariant()
    def only_who_has_proved_the_current_version_serves(self) -> None:
        serve = {worker.name for worker in self.fleet.workers if worker.state is State.SERVING}
        assert serve <= set(self.proofs) and all(self.proofs[name] == self.fleet.version for name in serve)

    @invariant()
    def the_next_request_goes_to_who_serves_and_holds_least(self) -> None:
        serve = [worker for worker in self.fleet.workers if worker.state is State.SERVING and len(worker.holds) < 2]
        least = min(serve, key=lambda own: (len(own.holds), int(own.name[1:])), default=None)
        assert self.fleet.choose() == (least and least.name)

    def teardown(self) -> None:
        """When all goes well from here on, as many serve as shall."""
        if not self.fleet.target:
            self.fleet.scale(2)
        if self.withdrawn or not self.published:
            self.publish()
        for _ in range(8):
            self.carry_out()
            for name in sorted(self.starting):
                self.start(name)
            for name in list(self.bringing):
                self.prove(name)
            for request in list(self.held):
                self.answer(request)
        assert self.fleet.states() == {"serving": self.fleet.target}
        assert self.fleet.plan() == [] and len(self.alive()) == self.fleet.target


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=60, stateful_step_count=40, derandomize=True, deadline=None, database=None
)
