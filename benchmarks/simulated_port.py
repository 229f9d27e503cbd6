"""A port of `actors.rollouts` in virtual time: engines, rewards and a learner whose latencies are given; nothing is sampled.

What holds
    * `Clock.now` moves in `wait` only, to the next time at which something happens, at most `seconds` on; all that happens
      at that time is returned together, in the order in which it was planned. The same settings give the same run.
    * An engine runs `capacity` prompts at once and queues the others. While it takes a version it is frozen, and so are its
      prompts, which go on with the new weights; a generation is of the version its first token came from. Versions are
      taken one after the other.
    * A worker that dies says so, unless it hangs: then it says nothing ever again. What an ended worker did is never told.
      Deaths are drawn from the workers that the cluster has made room for.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from actors.rollouts import Answered, Event, Failed, Heard, Lost, Placed, Proved, Refused, Scored, Started
from actors.types import Completion, Generation, PromptTask
from rewards.outcome import Score

#: What becomes of a prompt when it has run: it is answered, or it fails, is refused, or takes its worker with it.
Fate = Literal["answered", "failed", "refused", "deadly"]
_COMPLETION = Completion((1,), (0.0,), "", "stop")
_SCORE = Score("ok", {}, 1.0)


@dataclass(frozen=True)
class Latencies:
    """Seconds. Room for a worker, its start, versions and their proofs take between 0.8 and 1.2 of what is given, so that no
    two are at once; `hangs` of the deaths, `failures` and `refusals` of the sendings of prompts are drawn."""

    start: float = 60.0
    update: float = 2.0
    score: float = 0.1
    health: float = 1.0
    deaths_per_hour: float = 0.0
    hangs: float = 0.0
    failures: float = 0.0
    refusals: float = 0.0
    place: float = 0.0


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True, eq=False)
class _Running:
    """A prompt in an engine; `end` moves while the engine is frozen."""

    task: PromptTask
    version: int
    seconds: float
    fate: Fate
    end: float
    era: int


@dataclass(slots=True, eq=False)
class _Engine:
    name: str
    placed: bool = False
    ready: bool = False
    version: int = -1
    frozen: int = 0  # versions on their way to it
    until: float = 0.0  # when it has taken them
    quiet: bool = False  # dead, hanging or ended: nothing happens in it any more
    died: tuple[float, bool] | None = None  # when, and whether nobody was told
    replaces: tuple[float, bool] | None = None  # the death whose place it takes
    waiting: deque[tuple[PromptTask, int]] = field(default_factory=deque)
    running: dict[tuple[str, int], _Running] = field(default_factory=dict)


class Due:
    """A call of the simulated learner: done at a time."""

    def __init__(self, clock: Clock, due: float) -> None:
        self._clock, self._due = clock, due

    def done(self) -> bool:
        return self._clock.now >= self._due

    def results(self) -> list[Any]:
        return [{}]


def _own_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """Counts what the simulation itself takes, so that it is not taken for the controller's."""

    @functools.wraps(method)
    def timed(self: "SimulatedPort", *values: Any) -> Any:
        begun = perf_counter()
        try:
            return method(self, *values)
        finally:
            self.own_seconds += perf_counter() - begun

    return timed


class SimulatedPort:
    """See the module. What is asked for belongs to an era, which ends when it is withdrawn.

    `seconds(task)` is how long a prompt runs; `fate(task, worker)` what becomes of it, drawn if None.

    `recoveries`: seconds from each death to the proof of the worker that took the place, and whether nobody was told of it.
    `delays`: from the loss of a prompt with its worker to its answer.
    """

    def __init__(
        self,
        clock: Clock,
        latencies: Latencies,
        capacity: int,
        seconds: Callable[[PromptTask], float],
        seed: int = 0,
        fate: Callable[[PromptTask, str], Fate] | None = None,
    ) -> None:
        self._clock, self._latencies, self._capacity, self._seconds = clock, latencies, capacity, seconds
        self._random, self._fate = random.Random(seed), fate or self._drawn
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()
        self._engines: dict[str, _Engine] = {}
        self._events: list[Event] = []
        self._vacant: deque[tuple[float, bool]] = deque()
        self._lost: dict[str, float] = {}
        self.version, self._era = -1, 0
        self.own_seconds, self.deaths = 0.0, 0
        self.recoveries: list[tuple[float, bool]] = []
        self.delays: list[float] = []
        self.at(latencies.health, self._tell_health)
        if latencies.deaths_per_hour:
            self._plan_death()

    # what the controller calls

    @_own_time
    def start(self, worker: str) -> None:
        engine = self._engines[worker] = _Engine(worker, replaces=self._vacant.popleft() if self._vacant else None)
        self._later(self._about(self._latencies.place), self._placed, engine)

    @_own_time
    def update(self, worker: str) -> None:
        engine, seconds = self._engines[worker], self._about(self._latencies.update)
        engine.frozen += 1
        engine.until = max(engine.until, self._clock.now) + seconds
        for own in engine.running.values():
            own.end += seconds
        self._later(engine.until - self._clock.now, self._updated, (engine, self.version, self._era))

    @_own_time
    def end(self, worker: str, reason: str) -> None:
        engine = self._engines.pop(worker)
        engine.quiet = True
        if engine.died is not None:
            self._vacant.append(engine.replaces if engine.replaces is not None else engine.died)

    @_own_time
    def generate(self, worker: str, task: PromptTask) -> None:
        engine = self._engines[worker]
        engine.waiting.append((task, self._era))
        if engine.quiet:
            self._lost.setdefault(task.request.request_id, self._clock.now)
        self._fill(engine)

    @_own_time
    def score(self, task: PromptTask, generation: Generation) -> None:
        self._later(self._latencies.score, self._scored, (generation, self._era))

    @_own_time
    def wait(self, seconds: float, pending: object | None = None) -> Sequence[Event]:
        self._vacant.clear()  # places that were not filled in the turn in which they became free are none any more
        clock, heap, last = self._clock, self._heap, self._clock.now + seconds
        if heap[0][0] > last:
            clock.now = last
            return ()
        clock.now = heap[0][0]
        while heap[0][0] <= clock.now:
            _, _, happens, what = heapq.heappop(heap)
            happens(what)
        events, self._events = self._events, []
        return events

    # what the simulation is told

    def offer(self, version: int) -> None:
        """From now on workers are brought this version."""
        self.version = version

    def withdraw(self) -> None:
        """What is generated, scored or proved now is told to nobody; engines still run it to its end."""
        self._era += 1
        self._lost.clear()

    def learn(self, seconds: float) -> Due:
        """A call of the learner, done `seconds` from now."""
        self._later(seconds, lambda _: None, None)
        return Due(self._clock, self._clock.now + seconds)

    def at(self, time: float, happens: Callable[[Any], None]) -> None:
        """Call `happens(None)` at that time."""
        heapq.heappush(self._heap, (time, next(self._order), happens, None))

    def kill(self, worker: str, hangs: bool = False) -> None:
        """The worker dies now, and says so unless it hangs."""
        engine = self._engines[worker]
        if engine.quiet:
            return
        engine.quiet, engine.died = True, (self._clock.now, hangs)
        self.deaths += 1
        for name in (*(name for name, _ in engine.running), *(task.request.request_id for task, _ in engine.waiting)):
            self._lost.setdefault(name, self._clock.now)
        if not hangs:
            self._events.append(Lost(worker, "killed"))

    # what happens

    def _later(self, seconds: float, happens: Callable[[Any], None], what: Any) -> None:
        heapq.heappush(self._heap, (self._clock.now + seconds, next(self._order), happens, what))

    def _about(self, seconds: float) -> float:
        return seconds * self._random.uniform(0.8, 1.2)

    def _placed(self, engine: _Engine) -> None:
        if not engine.quiet:
            engine.placed = True
            self._events.append(Placed(engine.name))
            self._later(self._about(self._latencies.start), self._started, engine)

    def _started(self, engine: _Engine) -> None:
        if not engine.quiet:
            engine.ready = True
            self._events.append(Started(engine.name))

    def _updated(self, what: tuple[_Engine, int, int]) -> None:
        engine, version, era = what
        if engine.quiet:
            return
        engine.frozen -= 1
        engine.version = version
        if engine.replaces is not None and version == self.version:
            died, untold = engine.replaces
            self.recoveries.append((self._clock.now - died, untold))
            engine.replaces = None
        if era == self._era:
            self._events.append(Proved(engine.name, version, 0.0))
        self._fill(engine)

    def _fill(self, engine: _Engine) -> None:
        """Begin what waits while there is room."""
        while engine.waiting and len(engine.running) < self._capacity and not engine.frozen and not engine.quiet:
            task, era = engine.waiting.popleft()
            seconds = self._seconds(task)
            own = _Running(task, engine.version, seconds, self._fate(task, engine.name), self._clock.now + seconds, era)
            engine.running[task.request.request_id, era] = own
            self._later(seconds, self._finished, (engine, own))

    def _finished(self, what: tuple[_Engine, _Running]) -> None:
        engine, own = what
        if engine.quiet:
            return
        if own.end > self._clock.now:  # it was frozen under way
            heapq.heappush(self._heap, (own.end, next(self._order), self._finished, what))
            return
        name = own.task.request.request_id
        if own.fate == "deadly":
            self.kill(engine.name)
            return
        del engine.running[name, own.era]
        if own.era != self._era:
            pass  # nobody is told
        elif own.fate == "failed":
            self._events.append(Failed(engine.name, name, "drawn to fail"))
        elif own.fate == "refused":
            self._events.append(Refused(engine.name, name, "drawn to be refused"))
        else:
            if name in self._lost:
                self.delays.append(self._clock.now - self._lost.pop(name))
            generation = Generation(name, (), (_COMPLETION,), own.version, engine.name, own.seconds)
            self._events.append(Answered(engine.name, name, generation))
        self._fill(engine)

    def _scored(self, what: tuple[Generation, int]) -> None:
        generation, era = what
        if era == self._era:
            self._events.append(Scored(generation.request_id, (_SCORE,)))

    def _tell_health(self, _: None) -> None:
        """The progress of all, together: it moves while something runs."""
        now = self._clock.now
        for engine in self._engines.values():
            if engine.ready and engine.running and not engine.quiet:
                self._events.append(Heard(engine.name, now))
        self.at(now + self._latencies.health, self._tell_health)

    def _plan_death(self) -> None:
        self._later(self._random.expovariate(self._latencies.deaths_per_hour / 3600), self._die, None)

    def _die(self, _: None) -> None:
        alive = [engine.name for engine in self._engines.values() if engine.placed and not engine.quiet]
        if alive:
            self.kill(self._random.choice(alive), self._random.random() < self._latencies.hangs)
        self._plan_death()

    def _drawn(self, task: PromptTask, worker: str) -> Fate:
        latencies = self._latencies
        if not latencies.failures and not latencies.refusals:
            return "answered"
        drawn = self._random.random()
        if drawn < latencies.failures:
            return "failed"
        return "refused" if drawn < latencies.failures + latencies.refusals else "answered"
