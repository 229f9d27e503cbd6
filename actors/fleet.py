"""Who serves: the life of every rollout worker, as a pure machine that is told what happened and says what to do.

    JOINING ──started──▶ STALE ──proved──▶ SERVING ──superfluous──▶ DRAINING ──last answer──▶ GONE
       │                  │ ▲               │    ▲
       │                  │ └─ published ───┤    │ progress, or proved anew
       │ failed, silent   │                 ▼    │
       └──────────────────┴───▶ DEAD ◀─── SUSPECT ◀── one failed request, or silent for half the limit

What holds
    * Only a SERVING worker is given work, and it came there by a proof of the current version: a new worker passes STALE,
      and so does every worker when a version is published.
    * Health is progress. A worker that owes something (its start, a version, answers) and has not progressed for half of
      its limit is SUSPECT and gets no new work; after all of it, it is DEAD. One that owes nothing is not timed.
    * A worker that fails never attracts work by being free: after a failed request it must prove its version anew. Every
      failure weighs as much as two answers; two at once are its death, and so is refusing `REFUSALS` requests in a row.
    * What a dead worker held is returned to the caller once; others answer it.
    * A worker that waits for room in the cluster is not timed, as long as others are there.
    * Deaths have a budget: more than `deaths` within `window` seconds raise FleetExhausted, because workers that die as
      fast as they start would otherwise be replaced for ever. Those of one node within `NODE_SECONDS` count once.
    * Names are never used twice: what a lost worker still says is nobody's.

`actors.rollouts` carries out what `plan` says.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal


class FleetExhausted(RuntimeError):
    """Too many workers died in too short a time; the message has the last reasons."""


class State(str, Enum):
    JOINING = "joining"
    STALE = "stale"
    SERVING = "serving"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"
    GONE = "gone"


#: Who leaves first when the fleet shrinks. These count for its size: they serve, or will.
LEAVING_ORDER = (State.JOINING, State.SUSPECT, State.STALE, State.SERVING)
#: What a failed request and an answer weigh, and the weight of failures that a worker does not survive.
FAILURE, ANSWER, FATAL = 2, 1, 4
#: Requests that a worker may refuse without an answer between: some cannot be answered by anybody.
REFUSALS = 3
#: Workers of one node that die within so many seconds count as one death: they die with it.
NODE_SECONDS = 60.0


@dataclass(frozen=True)
class FleetLimits:
    """Seconds without progress after which a worker is dead: while it starts, and while it owes anything else.
    `outstanding`: requests a worker may hold. `deaths` workers may die within `window` seconds."""

    start_silence: float
    silence: float
    outstanding: int
    deaths: int
    window: float = 3600.0

    def __post_init__(self) -> None:
        if min(self.start_silence, self.silence, self.window) <= 0 or self.outstanding < 1 or self.deaths < 0:
            raise ValueError(f"{self}: times and outstanding must be positive, deaths not negative")


@dataclass(frozen=True)
class Action:
    """What the caller is to do: start a worker, bring it the current version and have it proved, or end it."""

    kind: Literal["start", "update", "end"]
    worker: str
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """A worker's passage from one state (None: it is new) to another; what it held then, and the version on its way to it."""

    worker: str
    before: State | None
    after: State
    holds: int
    bringing: int | None
    reason: str = ""


@dataclass(frozen=True)
class _Death:
    time: float
    node: str | None
    told: str


@dataclass
class Worker:
    """A member. `holds`: requests without an answer. `bringing`: the version on its way to it. `since`: of its state."""

    name: str
    state: State
    since: float
    changed: float
    version: int | None = None
    bringing: int | None = None
    holds: set[str] = field(default_factory=set)
    placed: bool = False
    node: str | None = None
    failures: int = 0
    refusals: set[str] = field(default_factory=set)
    progress: object = None
    busy_since: float | None = None  # when it was given the first of what it holds


class Fleet:
    """The members, of which `target` shall serve `version` (None: none is published yet). Times are those of `clock`; every
    change is told to `noted`, which may look, and must not touch."""

    def __init__(
        self,
        limits: FleetLimits,
        clock: Callable[[], float] = time.monotonic,
        noted: Callable[[Change], None] = lambda change: None,
    ) -> None:
        self.limits, self.target = limits, 0
        self.version: int | None = None
        self._clock, self._noted = clock, noted
        self._workers: dict[str, Worker] = {}
        self._made = 0
        self._deaths: deque[_Death] = deque()
        self._ending: list[Action] = []
        self._free: list[tuple[int, int, str]] = []  # heap of (requests held, age, name); some entries are out of date
        self._busy = 0.0
        self._withdrawn = False
        self._settled = True  # nothing to plan since the last plan

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All but the dead and the gone, the oldest first."""
        return tuple(self._workers.values())

    def holds(self, name: str) -> frozenset[str]:
        """The requests it has not answered."""
        return frozenset(self._workers[name].holds)

    def count(self, *states: State) -> int:
        """Members in any of the states."""
        return sum(worker.state in states for worker in self._workers.values())

    @property
    def busy_seconds(self) -> float:
        """Worker-seconds, since there is a fleet, in which a worker held requests."""
        now = self._clock()
        return self._busy + sum(now - own.busy_since for own in self._workers.values() if own.busy_since is not None)

    def states(self) -> dict[str, int]:
        """Members by state."""
        return dict(Counter(worker.state.value for worker in self._workers.values()))

    # what the caller wants

    def scale(self, target: int) -> None:
        """From now on `target` workers. ValueError for fewer than one: a run without workers would wait for ever."""
        if target < 1:
            raise ValueError(f"a fleet needs at least one worker, not {target}")
        self.target, self._settled = target, False

    def publish(self, version: int) -> None:
        """A newer version is there: until they have proved it, workers are STALE."""
        if self.version is not None and version <= self.version:
            raise ValueError(f"version {version} after version {self.version}")
        self.version, self._withdrawn = version, False
        for worker in self._workers.values():
            if worker.state is State.SERVING:
                self._enter(worker, State.STALE)
        self._settled = False

    def withdraw(self) -> None:
        """Who published the version is lost, and what was asked for with it: nobody holds a request, and nobody serves before
        the next version."""
        self._withdrawn, self._settled = True, False
        for worker in self._workers.values():
            worker.holds.clear()
            self._rest(worker)
            worker.version = worker.bringing = None
            if worker.state in (State.SERVING, State.SUSPECT):
                self._enter(worker, State.STALE)

    def plan(self) -> list[Action]:
        """What is to be done now. Every action is named once."""
        if self._settled:
            return []
        actions, self._ending = self._ending, []
        alive = [worker for worker in self._workers.values() if worker.state in LEAVING_ORDER]
        for _ in range(self.target - len(alive)):
            actions.append(Action("start", self._join()))
        if superfluous := max(0, len(alive) - self.target):
            leaving = sorted(reversed(alive), key=lambda own: (LEAVING_ORDER.index(own.state), len(own.holds)))
            for worker in leaving[:superfluous]:
                self._enter(worker, State.DRAINING)
        for worker in self.workers:
            if worker.state is State.DRAINING and not worker.holds:
                actions.append(self._ended(worker, State.GONE, "the fleet is smaller now"))
            elif self._is_behind(worker):
                worker.bringing, worker.changed = self.version, self._clock()
                actions.append(Action("update", worker.name))
        self._settled = True
        return actions

    def _is_behind(self, worker: Worker) -> bool:
        # One that leaves takes a newer version only if it has lost its proof on the way: its answers wait for one.
        unproved = worker.state is State.DRAINING and worker.version is None and bool(worker.holds)
        waits = (worker.state in (State.STALE, State.SUSPECT) or unproved) and worker.bringing is None
        return waits and self.version is not None and not self._withdrawn and worker.version != self.version

    def _join(self) -> str:
        name, now = f"w{self._made}", self._clock()
        self._made += 1
        self._workers[name] = Worker(name, State.JOINING, now, now)
        self._noted(Change(name, None, State.JOINING, 0, None))
        return name

    def choose(self) -> str | None:
        """Who gets the next request: of those that serve and have room who holds least, the oldest of equals."""
        while self._free:
            held, _, name = self._free[0]
            worker = self._workers.get(name)
            if worker is not None and worker.state is State.SERVING and len(worker.holds) == held:
                return name
            heapq.heappop(self._free)
        return None

    def choose_without(self, harmful: Callable[[str], bool]) -> str | None:
        """As `choose`, of those that hold no such request. Looks at every member."""
        room = [worker for worker in self._workers.values() if self._has_room(worker)]
        free = [worker for worker in room if not any(map(harmful, worker.holds))]
        return min(free, key=lambda worker: len(worker.holds)).name if free else None

    # what has happened

    def placed(self, name: str, node: str | None = None) -> None:
        """The cluster has made room for it, on that node: its engine starts now."""
        if (worker := self._workers.get(name)) is not None:
            worker.placed, worker.node, worker.changed = True, node, self._clock()

    def started(self, name: str) -> None:
        """Its engine is up, with the weights of no version."""
        worker = self._workers.get(name)
        if worker is not None and worker.state is State.JOINING:
            self._enter(worker, State.STALE)

    def proved(self, name: str, version: int) -> bool:
        """It has proved `version`; True when it serves with it, because that is still the current one."""
        if (worker := self._workers.get(name)) is None:
            return False
        worker.version, worker.bringing, worker.changed = version, None, self._clock()
        if version != self.version or self._withdrawn:
            self._settled = False  # it is to be brought another
            return False
        if worker.state in (State.STALE, State.SUSPECT):
            self._enter(worker, State.SERVING)
        return worker.state is State.SERVING

    def unproved(self, name: str) -> None:
        """What it was brought is not the newest any more, and was not proved: it is to be brought that."""
        if (worker := self._workers.get(name)) is not None:
            worker.version, worker.bringing, worker.changed = None, None, self._clock()
            self._settled = False

    def heard(self, name: str, progress: object) -> None:
        """What it says of its progress; any change of it is life."""
        worker = self._workers.get(name)
        if worker is not None and progress != worker.progress:
            worker.progress = progress
            self._lives(worker)

    def sent(self, name: str, request: str) -> None:
        """It was given a request."""
        worker = self._workers[name]
        if not worker.holds:
            worker.changed = worker.busy_since = self._clock()  # before, it owed nothing
        worker.holds.add(request)
        self._offer(worker)

    def answered(self, name: str, request: str) -> bool:
        """It has answered; False when the request is not its own any more."""
        worker = self._workers.get(name)
        if worker is None or request not in worker.holds:
            return False
        worker.holds.discard(request)
        self._rest(worker)
        worker.failures, worker.refusals = max(0, worker.failures - ANSWER), set()
        self._settled &= worker.state is not State.DRAINING
        self._lives(worker)
        self._offer(worker)
        return True

    def failed(self, name: str, reason: str, request: str | None = None) -> set[str]:
        """It failed at a request, or (None) altogether; returns the requests that others must answer.

        FleetExhausted when that is one death too many.
        """
        worker = self._workers.get(name)
        if worker is None or (request is not None and request not in worker.holds):
            return set()
        worker.failures += FAILURE
        if request is None or worker.failures >= FATAL:
            return self._died(worker, reason)
        worker.holds.discard(request)
        self._rest(worker)
        worker.version = None  # what it holds is in doubt
        self._settled = False
        if worker.state is State.SERVING:
            self._enter(worker, State.SUSPECT)
        return {request}

    def refused(self, name: str, reason: str, request: str) -> set[str]:
        """It says that the request cannot be answered, by it or by anybody; returns and raises as `failed`."""
        worker = self._workers.get(name)
        if worker is None or request not in worker.holds:
            return set()
        worker.refusals.add(request)  # the same one, asked again, says nothing about the worker
        if len(worker.refusals) >= REFUSALS:
            return self._died(worker, f"{REFUSALS} requests refused in a row, the last: {reason}")
        worker.holds.discard(request)
        self._rest(worker)
        self._settled &= worker.state is not State.DRAINING
        self._lives(worker)
        self._offer(worker)
        return {request}

    def check(self) -> list[set[str]]:
        """Look at the clock; returns what each of the silent workers held. FleetExhausted as in `failed`, and when the cluster has had no
        room for anybody."""
        lost: list[set[str]] = []
        unplaced = [worker for worker in self.workers if worker.state is State.JOINING and not worker.placed]
        waited = min((self._clock() - worker.since for worker in unplaced), default=0.0)
        if len(unplaced) == len(self._workers) and waited >= self.limits.start_silence:
            raise FleetExhausted(f"the cluster has had no room for a rollout worker for {waited:.0f} s: see `ray status`")
        for worker in self.workers:
            if (limit := self._limit(worker)) is None:
                continue
            silent = self._clock() - worker.changed
            if silent >= limit:
                lost += [self._died(worker, f"no progress for {silent:.0f} s while {worker.state.value}")]
            elif silent >= limit / 2 and worker.state is State.SERVING:
                self._enter(worker, State.SUSPECT)
        return lost

    def _limit(self, worker: Worker) -> float | None:
        """Seconds of silence allowed to what it owes; None when it owes nothing."""
        if worker.state is State.JOINING:
            return self.limits.start_silence if worker.placed else None
        return self.limits.silence if worker.holds or worker.bringing is not None else None

    def _lives(self, worker: Worker) -> None:
        worker.changed = self._clock()
        if worker.state is State.SUSPECT and worker.version == self.version:
            self._enter(worker, State.SERVING)

    def _died(self, worker: Worker, reason: str) -> set[str]:
        now, held = self._clock(), set(worker.holds)
        self._ending.append(self._ended(worker, State.DEAD, reason))
        self._settled = False
        while self._deaths and now - self._deaths[0].time > self.limits.window:
            self._deaths.popleft()
        with_node = (own for own in self._deaths if own.node == worker.node and now - own.time <= NODE_SECONDS)
        if worker.node is None or not any(with_node):  # the workers of a node that is lost are one loss
            self._deaths.append(_Death(now, worker.node, f"{worker.name}: {reason}"))
        if len(self._deaths) > self.limits.deaths:
            shown = "\n  ".join(own.told for own in list(self._deaths)[-3:])
            raise FleetExhausted(
                f"{len(self._deaths)} rollout workers died within {self.limits.window:g} s, {self.limits.deaths} may "
                f"(failures.workers). The last:\n  {shown}"
            )
        return held

    def _ended(self, worker: Worker, state: State, reason: str) -> Action:
        self._noted(Change(worker.name, worker.state, state, len(worker.holds), worker.bringing, reason))
        worker.state = state
        worker.holds.clear()
        self._rest(worker)
        del self._workers[worker.name]
        return Action("end", worker.name, reason)

    def _rest(self, worker: Worker) -> None:
        """Count the time in which it held something, when it holds nothing any more."""
        if not worker.holds and worker.busy_since is not None:
            self._busy += self._clock() - worker.busy_since
            worker.busy_since = None

    def _enter(self, worker: Worker, state: State) -> None:
        self._noted(Change(worker.name, worker.state, state, len(worker.holds), worker.bringing))
        worker.state, worker.since = state, self._clock()
        self._settled &= state is State.SERVING  # all other states may ask for something to be done
        self._offer(worker)

    def _has_room(self, worker: Worker) -> bool:
        return worker.state is State.SERVING and len(worker.holds) < self.limits.outstanding

    def _offer(self, worker: Worker) -> None:
        """Put it where `choose` looks, if it may be given work."""
        if self._has_room(worker):
            heapq.heappush(self._free, (len(worker.holds), int(worker.name[1:]), worker.name))
        if len(self._free) > 64 + 8 * len(self._workers):  # mostly entries that are out of date
            room = [own for own in self._workers.values() if self._has_room(own)]
            self._free = [(len(own.holds), int(own.name[1:]), own.name) for own in room]
            heapq.heapify(self._free)
