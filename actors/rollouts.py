"""The controller of stage 3's first half: prompts are admitted, sent to workers, scored and collected, while the fleet changes.

    ledger (what) ──pending prompts──▶ fleet (who) ──requests──▶ port: rollout workers
       ▲                                                            │ generations
       └──────── groups, complete per step ◀── scores ◀── port: reward actors

What holds
    * Staleness is bounded by admission: prompts of step s are asked for once step s - K - 1 is learned, whose weights are then
      the newest, and only workers that have proved the newest get any. Weights only get newer under way, so no token that
      step s trains on is more than K versions old. K = 0 is strictly on-policy.
    * A step is collected when all prompts that were asked for it are there: the slow ones are waited for, never replaced
      by faster ones, so what is trained on has the lengths of the data.
    * A prompt that a worker lost goes to another one with the same seed. With its last chance it is the only such prompt of
      its worker, so that one on which workers die is found out: it is dropped with the reason, and counts as failed completions.
    * There is one thread and no lock: everything happens in `pump`, between which the caller owns all state.

Who waits for whom: `collect` and `meanwhile` pump until what they wait for is there. Workers are timed by the fleet, scores
and learners by the port; each raises when it has been silent for too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.fleet import Fleet
from actors.ledger import Ledger, LedgerError, Status
from actors.schedule import Stretch
from actors.types import Generation, Group, PromptTask
from rewards.outcome import Score

#: Longest nap between two looks at the clock, seconds.
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Placed:
    """The cluster has made room for the worker, on that node."""

    worker: str
    node: str | None = None


@dataclass(frozen=True)
class Started:
    """The worker's engine is up."""

    worker: str


@dataclass(frozen=True)
class Proved:
    """The worker holds the version: checksums were equal, and its canary agreed with the learner within `gap` nats."""

    worker: str
    version: int
    gap: float


@dataclass(frozen=True)
class Unproved:
    """What the worker was brought is not the newest version any more, and was not proved."""

    worker: str


@dataclass(frozen=True)
class Heard:
    """The worker's progress is now this."""

    worker: str
    progress: object


@dataclass(frozen=True)
class Lost:
    """The worker is dead, or must not be used any more."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Answered:
    worker: str
    request: str
    generation: Generation


@dataclass(frozen=True)
class Failed:
    """The worker could not answer."""

    worker: str
    request: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """The worker says that the request cannot be answered: a picture is missing, or it is too long."""

    worker: str
    request: str
    reason: str


@dataclass(frozen=True)
class Scored:
    request: str
    scores: tuple[Score, ...]


Event = Placed | Started | Proved | Unproved | Heard | Lost | Answered | Failed | Refused | Scored


class Pending(Protocol):
    """Calls of the learner."""

    def done(self) -> bool:
        """Whether all are done. Raises what one has failed with, and DeadlineExceeded."""

    def results(self) -> list[Any]: ...


class Port(Protocol):
    """Where workers and rewards really are: Ray (`actors.ray_port`), or a simulation. Nothing here blocks but `wait`."""

    def start(self, worker: str) -> None: ...

    def update(self, worker: str) -> None:
        """Bring the worker the version published last, and prove it."""

    def end(self, worker: str, reason: str) -> None: ...

    def generate(self, worker: str, task: PromptTask) -> None: ...

    def score(self, task: PromptTask, generation: Generation) -> None: ...

    def wait(self, seconds: float, pending: Pending | None) -> Sequence[Event]:
        """What has happened, after at most `seconds` or when some of `pending` is done."""


class Rollouts:
    """See the module. `take(step, stretch, place)` makes the tasks of a stretch of the schedule, the first at `place`."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        port: Port,
        take: Callable[[int, Stretch, int], Sequence[PromptTask]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        turned: Callable[[], float] = lambda: POLL_SECONDS,
    ) -> None:
        """`turned` is called at every turn of `pump`, before it waits, and says within how many seconds it wants to be called
        again; see `actors.oversight`."""
        self.fleet, self.ledger = fleet, ledger
        self._port, self._take, self._say, self._clock, self._turned = port, take, say, clock, turned
        self._tasks: dict[str, PromptTask] = {}
        self._generations: dict[str, Generation] = {}
        self._came: dict[str, float] = {}
        self._groups: dict[str, Group] = {}
        self._collecting: tuple[int, int, Callable[[Sequence[Score]], None]] | None = None
        self._checked = clock()
        self.gaps: dict[str, float] = {}
        self._admitted = -1  # prompts of later steps are not sent
        for step in ledger.steps:
            self._make(step, ledger.asked(step))

    # what the trainer wants

    def admit(self, first: int, last: int, count: int) -> None:
        """The steps up to `last` may be answered; ask for `count` prompts for each from `first` on that has none yet."""
        self._admitted = last
        for step in range(first, last + 1):
            if not self.ledger.asked(step):
                self.ask(step, count)

    def ask(self, step: int, count: int) -> None:
        """Ask for `count` more prompts for the step."""
        self._admitted = max(self._admitted, step)
        place = self.asked(step)
        self._make(step, [self.ledger.ask(step, count)], place)

    def asked(self, step: int) -> int:
        """How many prompts the step has asked for."""
        return sum(count for _, count in self.ledger.asked(step))

    def _make(self, step: int, stretches: Iterable[Stretch], place: int = 0) -> None:
        for stretch in stretches:
            for task in self._take(step, stretch, place):
                self._tasks[task.request.request_id] = task
            place += stretch[1]

    def collect(self, step: int, place: int, arrived: Callable[[Sequence[Score]], None]) -> "Collected":
        """The groups of the step's prompts from `place` on, when all are there; `arrived` sees scores as they come, and
        may raise."""
        if not self.asked(step):
            raise LedgerError(f"step {step} has not asked for prompts")
        self._admitted = max(self._admitted, step)
        begun = self._clock()
        for entry in self.ledger.entries(step)[place:]:
            if entry.name in self._groups:
                arrived(self._groups[entry.name].scores)
        self._collecting = (step, place, arrived)
        try:
            while not self.ledger.complete(step):
                self.pump()
        finally:
            self._collecting = None
        entries = self.ledger.entries(step)[place:]
        names = [entry.name for entry in entries if entry.status is Status.ANSWERED]
        return Collected(
            tuple(self._tasks[name] for name in names),
            tuple(self._groups[name] for name in names),
            tuple(entry.reason for entry in entries if entry.status is Status.DROPPED),
            self._clock() - max([begun, *(self._came[name] for name in names)]),
        )

    def scored(self, step: int) -> list[tuple[PromptTask, Group]]:
        """What is there of a step that is not trained yet."""
        names = [entry.name for entry in self.ledger.entries(step) if entry.name in self._groups]
        return [(self._tasks[name], self._groups[name]) for name in names]

    def meanwhile(self, pending: Pending) -> list[Any]:
        """Let the fleet work until the learner's calls are done; returns their results."""
        while not pending.done():
            self.pump(pending)
        return pending.results()

    def publish(self, version: int) -> None:
        """A version is there to be brought to the workers; returns when the first has proved it."""
        self.gaps = {}
        self.fleet.publish(version)
        while not self.gaps:
            self.pump()

    def trained(self, step: int) -> dict[str, Any]:
        """The step is learned: forget it; returns its line in ledger.jsonl."""
        for entry in self.ledger.entries(step):
            for store in (self._tasks, self._groups, self._came):
                store.pop(entry.name, None)
        return self.ledger.train(step)

    def withdraw(self, ledger: Ledger) -> None:
        """The learner is lost: forget what was asked for since `ledger` was saved, and ask for its prompts; the fleet stays."""
        self.ledger, self._admitted = ledger, -1
        for store in (self._tasks, self._generations, self._came, self._groups):
            store.clear()
        self.fleet.withdraw()
        for step in ledger.steps:
            self._make(step, ledger.asked(step))

    # what happens

    def pump(self, pending: Pending | None = None) -> None:
        """One turn: carry out what the fleet plans, send what can be sent, take in what has happened."""
        lost: list[str] = []
        for action in self.fleet.plan():  # the dead come first
            if action.kind == "start":
                if lost:
                    self._say(f"grpo: rollout worker {action.worker} starts in place of {lost.pop(0)}")
                self._port.start(action.worker)
            elif action.kind == "update":
                self._port.update(action.worker)
            else:
                lost.append(action.worker)
                self._say(f"grpo: rollout worker {action.worker} ended: {action.reason}")
                self._port.end(action.worker, action.reason)
        self._send()
        for event in self._port.wait(min(POLL_SECONDS, self._turned()), pending):
            self._take_in(event)
        if self._clock() - self._checked >= POLL_SECONDS:
            self._checked = self._clock()
            for held in self.fleet.check():
                self._lose(held, "its worker was silent")

    def _send(self) -> None:
        held_back = []
        admitted = self._admitted
        while (worker := self.fleet.choose()) is not None and (name := self.ledger.take_pending(admitted)) is not None:
            if self.ledger.was_lost(name) and (worker := self.fleet.choose_without(self._harmful_to(name))) is None:
                held_back.append(name)
                continue
            self.ledger.sent(name, worker)
            self.fleet.sent(worker, name)
            self._port.generate(worker, self._tasks[name])
        for name in held_back:
            self.ledger.hold_back(name)

    def _harmful_to(self, name: str) -> Callable[[str], bool]:
        """Which prompts it must not share a worker with: of two that were lost before, neither may have its last chance."""
        ledger, last = self.ledger, self.ledger.last_chance(name)
        return lambda other: ledger.was_lost(other) and (last or ledger.last_chance(other))

    def _take_in(self, event: Event) -> None:
        fleet = self.fleet
        if isinstance(event, Heard):
            fleet.heard(event.worker, event.progress)
        elif isinstance(event, Answered):
            if fleet.answered(event.worker, event.request):
                self._generations[event.request] = event.generation
                self._came[event.request] = self._clock()
                self._port.score(self._tasks[event.request], event.generation)
        elif isinstance(event, Scored):
            self._scored(event)
        elif isinstance(event, Refused):
            self._lose(fleet.refused(event.worker, event.reason, event.request), event.reason)
        elif isinstance(event, Placed):
            fleet.placed(event.worker, event.node)
        elif isinstance(event, Started):
            fleet.started(event.worker)
            self._say(f"grpo: rollout worker {event.worker} is ready")
        elif isinstance(event, Proved):
            if fleet.proved(event.worker, event.version):
                self.gaps[event.worker] = event.gap
        elif isinstance(event, Unproved):
            fleet.unproved(event.worker)
        elif isinstance(event, Failed):
            self._lose(fleet.failed(event.worker, event.reason, event.request), event.reason)
        else:
            self._lose(fleet.failed(event.worker, event.reason), event.reason)

    def _scored(self, event: Scored) -> None:
        generation = self._generations.pop(event.request, None)
        if generation is not None:
            self._groups[event.request] = Group(self._tasks[event.request].prompt, generation, event.scores)
            self.ledger.answered(event.request)
            entry = self.ledger.entry(event.request)
            if self._collecting is not None and entry.step == self._collecting[0] and entry.place >= self._collecting[1]:
                self._collecting[2](event.scores)

    def _lose(self, requests: Iterable[str], reason: str) -> None:
        for name in self.ledger.lost(requests, reason):
            self._say(f"grpo: prompt {name} is dropped: {reason}")


@dataclass(frozen=True)
class Collected:
    """Tasks and groups of a step's answered prompts, in their order, and why the others were dropped. `scoring_seconds`:
    of the wait, what was left when the last generation had come."""

    tasks: tuple[PromptTask, ...]
    groups: tuple[Group, ...]
    dropped: tuple[str, ...]
    scoring_seconds: float
