"""Rollout workers and reward actors on Ray, as the controller sees them: calls go out, events come in.

    start ──▶ update_weights ──▶ canary ──▶ (the learner's log-probs) ──▶ prove ──▶ generate …

What holds
    * Nothing blocks but `wait`. What a call returns, or fails with, becomes an event; the errors of Ray and vLLM end here.
    * A version is brought to a worker by its file, or sent by the learner (`rollout.transport`); the engine compares its
      checksums, then its canary must agree with the learner. The learner is asked once for each version, about the tokens of
      the first worker, before it goes on learning; others, which draw the same tokens with the same seed, are compared with
      that answer as far as theirs are the same (rounding may part two engines). So a joiner never waits for the learner.
    * A version's file stays while a worker is being brought to it, and until a newer one is published: a joiner can always
      load what it was told to.
    * Each worker is an actor of its own in a room of its own (`actors.worker_rooms`): adding one never touches the others,
      nor the learner. The room is given back when the worker is ended, whatever it died of.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.deadlines import DEATHS, Calls
from actors.engine_death import UNKNOWN, actor_death
from actors.fleet_status import FleetStatus
from actors.identities import Identities
from actors.learners import Learners
from actors.rollout import RolloutWorker, Taken, WorkerDead, WorkerHealth, WorkerState
from actors.rollouts import POLL_SECONDS, Answered, Event, Failed, Heard, Lost, Placed, Proved, Refused, Scored, Started, Unproved
from actors.scorers import Scorers
from actors.types import Completion, Generation, PromptTask
from actors.weights import WeightVersion
from actors.worker_rooms import Rooms
from configs.schema import RunConfig

#: Calls an async rollout actor takes at a time; beyond it calls queue in Ray, control calls included.
ROLLOUT_CONCURRENCY = 1000
#: Seconds that actors get to end by themselves.
STOP_SECONDS = 10.0
#: Seconds between two looks when nothing is under way.
NAP_SECONDS = 0.05

Outcome = Any  # what a call returned, or the exception it failed with
Handler = Callable[[Outcome], Iterable[Event]]
#: Tokens of each canary completion, and the learner's log-probs of them.
Canary = tuple[tuple[tuple[int, ...], Sequence[float]], ...]


class RayPort:
    """The port of one run; `offer` a version before the fleet is told of it. `close` ends all actors but the learner."""

    def __init__(
        self,
        config: RunConfig,
        model_folder: str,
        learners: Learners,
        canary: PromptTask,
        status: FleetStatus,
        identities: Identities,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._model_folder, self._learners, self._canary = config, model_folder, learners, canary
        self._identities, self._say = identities, say
        self._workers: dict[str, Any] = {}
        self._refs: dict[ray.ObjectRef, Handler] = {}
        self._work: set[ray.ObjectRef] = set()  # of them generations, and versions on their way
        self._scorers = Scorers(config, status, identities, say)
        self._version: WeightVersion | None = None
        self._expected: Canary | None = None  # what the learner says of the version
        self._canaries: list[tuple[str, Generation]] = []  # that wait for it
        self._bringing: dict[str, int] = {}
        self._kept: frozenset[int] = frozenset()  # versions that were left when others were removed
        self._asking: list[tuple[Calls, Callable[[], None]]] = []  # calls of the learner, and what follows them
        self._next_watch = 0.0  # when the learner ranks are asked again whether they live
        self._next_health: dict[str, float] = {}
        self._asked: dict[str, float] = {}  # when a worker was asked how it is, until it answers
        self._working: set[str] = set()  # workers that have been heard of at work
        self._ending: list[tuple[str, Any, ray.ObjectRef, float]] = []
        self._rooms = Rooms(config.rollout)
        self._placed: set[str] = set()  # of the workers, those that have their room
        self._pictures = PictureCount()
        self._slowest_control = 0.0

    def offer(self, version: WeightVersion) -> None:
        """From now on workers are brought this version."""
        self._version, self._expected, self._canaries = version, None, []

    # calls

    def start(self, worker: str) -> None:
        rollout = self._config.rollout
        options = self._rooms.reserve(worker, time.monotonic())
        actor = ray.remote(RolloutWorker).options(max_concurrency=ROLLOUT_CONCURRENCY, **options).remote(
            worker, self._model_folder, rollout, self._config.model.dtype, self._config.seed
        )
        self._workers[worker] = actor
        self._identities.ask(worker, actor)

        def placed(_: WorkerHealth) -> Iterable[Event]:
            if worker not in self._workers:
                return ()  # it was ended meanwhile
            self._placed.add(worker)
            # Only now: a worker that loads its engine sends no answer before it has, not even to what it was asked first.
            self._expect(actor.start.remote(), worker, lambda _: [Started(worker)])
            self._identities.look()
            identity = self._identities.of(worker)
            return [Placed(worker, identity.node if identity else None)]

        self._expect(actor.health.remote(), worker, placed)

    def update(self, worker: str) -> None:
        actor, version = self._workers[worker], self._version
        assert version is not None  # the fleet is told of a version after it was offered

        def loaded(taken: Taken) -> Iterable[Event]:
            if taken.remark is not None:
                self._say(f"grpo: rollout worker {worker} read version {version.number} from its file: {taken.remark}")
            self._expect(actor.canary.remote(self._canary.request), worker, sampled, work=True)
            return ()

        def sampled(generation: Generation) -> Iterable[Event]:
            return self._compare(worker, version, generation)

        self._bringing[worker] = version.number
        self._expect(actor.update_weights.remote(version, self._learners.source()), worker, loaded, work=True)

    def _compare(self, worker: str, version: WeightVersion, generation: Generation) -> Iterable[Event]:
        """The canary's log-probs against the learner's, which is asked about the first canary of a version."""
        if version is not self._version:  # a newer one is there, which it will be brought now: this one serves nobody
            self._bringing.pop(worker, None)
            self._release()
            return [Unproved(worker)] if worker in self._workers else []
        if self._expected is not None:
            self._prove(worker, version, generation)
        else:
            self._canaries.append((worker, generation))
            if len(self._canaries) == 1:
                self._ask_learner(version, generation)
        return ()

    def _ask_learner(self, version: WeightVersion, generation: Generation) -> None:
        tokens = tuple(completion.token_ids for completion in generation.completions)
        calls = self._learners.logprobs(self._canary.prompt, generation.expanded_prompt_ids, tokens)

        def answered() -> None:
            self._expected = tuple(zip(tokens, calls.results()[0], strict=True))
            first, *others = self._canaries
            self._canaries = []
            if not self._prove(first[0], version, first[1]):
                self._expected = None  # what a wrong worker has drawn says little about others
            for worker, own in others:
                self._compare(worker, version, own)

        self._asking.append((calls, answered))

    def _prove(self, worker: str, version: WeightVersion, generation: Generation) -> bool:
        """Tell the worker its gap; whether that proves it."""
        assert self._expected is not None
        gap = canary_gap(self._expected, generation.completions)
        if worker in self._workers:
            proof = self._workers[worker].prove.remote(gap)
            self._expect(proof, worker, lambda _: self._proved(worker, version, gap), work=True)
        return gap <= self._config.rollout.canary_tolerance

    def _proved(self, worker: str, version: WeightVersion, gap: float) -> Iterable[Event]:
        self._bringing.pop(worker, None)
        self._release()
        return [Proved(worker, version.number, gap)] if worker in self._workers else []

    def _release(self) -> None:
        """Remove the versions that nobody needs any more."""
        assert self._version is not None
        needed = frozenset([self._version.number, *self._bringing.values()])
        if needed != self._kept:
            self._kept = needed
            self._asking.append((self._learners.release_all_but(needed), lambda: None))

    def generate(self, worker: str, task: PromptTask) -> None:
        request = task.request.request_id
        ref = self._workers[worker].generate.remote(task.request)

        def answered(outcome: Outcome) -> Iterable[Event]:
            if isinstance(outcome, Generation):
                self._pictures.answered(worker, outcome.pictures_encoded, task.request.pictures)
                return [Answered(worker, request, outcome)]
            if isinstance(outcome, ValueError):  # of the engine, or MediaError
                return [Refused(worker, request, told(outcome))]
            if isinstance(outcome, (*DEATHS, WorkerDead)):
                return [Lost(worker, told(outcome))]
            return [Failed(worker, request, told(outcome))]

        self._refs[ref] = answered
        self._work.add(ref)

    def score(self, task: PromptTask, generation: Generation) -> None:
        self._scorers.score(task, generation)

    def end(self, worker: str, reason: str) -> None:
        actor = self._workers.pop(worker)
        self._identities.forget(worker)
        self._learners.forget(worker)
        self._bringing.pop(worker, None)
        self._next_health.pop(worker, None)
        self._asked.pop(worker, None)
        self._working.discard(worker)
        patience = STOP_SECONDS if worker in self._placed else 0.0  # one without room cannot answer, and wants none any more
        self._placed.discard(worker)
        self._ending.append((worker, actor, actor.stop.remote(), time.monotonic() + patience))

    def withdraw(self) -> None:
        """The learner is lost: what is generated, scored or proved now belongs to nobody."""
        for ref in self._work:
            self._refs.pop(ref, None)
        for worker, actor in self._workers.items():
            self._expect(actor.abandon.remote(), worker, lambda _: [])
        self._work, self._asking, self._bringing, self._canaries = set(), [], {}, []
        self._pictures.given_up()
        self._next_watch = 0.0
        self._scorers.withdraw()

    def _expect(self, ref: ray.ObjectRef, worker: str, handler: Handler, work: bool = False) -> None:
        """A call of a worker that may not fail: if it does, the worker is lost."""

        def settled(outcome: Outcome) -> Iterable[Event]:
            return [Lost(worker, told(outcome))] if isinstance(outcome, Exception) else handler(outcome)

        self._refs[ref] = settled
        if work:
            self._work.add(ref)

    # events

    def wait(self, seconds: float, pending: Calls | None = None) -> list[Event]:
        """Also raises what a call of the learner, or the start of a reward actor, has failed with."""
        self._ask_health()
        self._watch_learner()
        for said in self._rooms.without(time.monotonic(), self._placed):
            self._say(said)
        learner = [ref for calls, _ in self._asking for ref in calls.missing]
        learner += pending.missing if pending is not None else ()
        refs = [*self._refs, *self._scorers.refs, *learner]
        if not refs:
            time.sleep(NAP_SECONDS)
            return []
        ray.wait(refs, num_returns=1, timeout=seconds)
        self._go_on()  # it may raise: before any event is taken
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        events: list[Event] = []
        for ref in ready:
            self._work.discard(ref)
            if (handler := self._refs.pop(ref, None)) is not None:
                events += handler(_outcome(ref))
            elif (scored := self._scorers.take(ref)) is not None:
                events.append(Scored(*scored))
        self._scorers.check()  # after the scores that had come
        self._end_overdue(time.monotonic())
        return events

    def _watch_learner(self) -> None:
        """Keep a call open at every rank: one that dies is noticed at once, also while nothing is asked of the learner."""

        def answered() -> None:
            self._next_watch = time.monotonic() + POLL_SECONDS

        if time.monotonic() >= self._next_watch:
            self._next_watch = math.inf
            self._asking.append((self._learners.watch(), answered))

    def _ask_health(self) -> None:
        """Ask every worker how it is, once in a while; one that does not answer is not asked again."""
        now = time.monotonic()
        for name, actor in self._workers.items():
            if now >= self._next_health.get(name, 0.0):
                self._next_health[name], self._asked[name] = math.inf, now
                self._expect(actor.health.remote(), name, lambda health, name=name: self._health(name, health))

    def _health(self, worker: str, health: WorkerHealth) -> Iterable[Event]:
        now = time.monotonic()
        self._next_health[worker] = now + POLL_SECONDS
        if worker in self._working:  # one that loads has no ear yet
            self._slowest_control = max(self._slowest_control, now - self._asked[worker])
        self._asked.pop(worker)
        if health.state in (WorkerState.SERVING.value, WorkerState.UPDATING.value):
            self._working.add(worker)
        dead = health.state == WorkerState.DEAD.value
        return [Lost(worker, f"its engine died: {health.reason or UNKNOWN}")] if dead else [Heard(worker, health.progress)]

    def _go_on(self) -> None:
        """With what the learner was asked."""
        asking, self._asking = self._asking, []
        for calls, then in asking:
            if calls.done():
                then()
            else:
                self._asking.append((calls, then))

    def groups(self) -> Mapping[str, int]:
        """Reward actors, and how many groups each is scoring."""
        return self._scorers.groups()

    def slowest_control(self) -> float:
        """The longest that a control call has taken since the last look, or is taking, seconds, of workers at work. What the
        trainer itself was busy with meanwhile is part of it."""
        now = time.monotonic()
        slowest, self._slowest_control = self._slowest_control, 0.0
        return max([slowest, *(now - asked for name, asked in self._asked.items() if name in self._working)])

    def passes_per_picture(self) -> float | None:
        """How often engines have run their vision towers for each picture of the prompts that were answered since the last
        call. None when none was, or when some were given up since, of which nobody knows how far they had come."""
        return self._pictures.passes_per_picture()

    # the end

    def _end_overdue(self, now: float) -> None:
        ending, self._ending = self._ending, []
        for worker, actor, stopped, deadline in ending:
            if now > deadline or ray.wait([stopped], timeout=0)[0]:
                ray.kill(actor)
                self._rooms.release(worker)
            else:
                self._ending.append((worker, actor, stopped, deadline))

    def close(self) -> None:
        """Ask every actor to end what it owns, then kill it, whatever state it is in."""
        for name in list(self._workers):
            self.end(name, "the run is over")
        self._end_overdue(time.monotonic())  # nobody waits for those that never had room
        stopping = [*(stopped for _, _, stopped, _ in self._ending), *self._scorers.close()]
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        self._end_overdue(math.inf)
        self._scorers.kill()


def _outcome(ref: ray.ObjectRef) -> Outcome:
    try:
        return ray.get(ref)
    except Exception as error:  # the process boundary: whatever the actor raised is data from here on
        return error


class PictureCount:
    """Pictures that went through vision towers against those that prompts had."""

    def __init__(self) -> None:
        self._encoded: dict[str, int] = {}  # by worker, since its start
        self._shown = self._before = 0
        self._known = True

    def answered(self, worker: str, encoded: int, shown: int) -> None:
        """A prompt of `shown` pictures was answered by a worker that has encoded `encoded` since its start."""
        self._encoded[worker] = max(encoded, self._encoded.get(worker, 0))
        self._shown += shown

    def given_up(self) -> None:
        """What was asked for is not answered any more."""
        self._known = False

    def passes_per_picture(self) -> float | None:
        """See `RayPort.passes_per_picture`."""
        if not self._shown:
            return None
        encoded = sum(self._encoded.values())
        passes = (encoded - self._before) / self._shown if self._known else None
        self._before, self._shown, self._known = encoded, 0, True
        return passes


def told(error: Exception) -> str:
    """One line for what a remote call raised, without the traces of the machinery."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, RayActorError):
        return f"its process died: {actor_death(str(error))}"
    return str(error)


def canary_gap(expected: Canary, completions: Sequence[Completion]) -> float:
    """The largest |learner - worker| log-prob, nats, over the tokens that are the same.

    NaN when fewer than half of the learner's are: wrong weights soon draw other tokens, rounding seldom does.
    """
    pairs: list[tuple[float, float]] = []
    for (tokens, logprobs), completion in zip(expected, completions, strict=True):
        for ours, theirs, wanted, drawn in zip(logprobs, completion.logprobs, tokens, completion.token_ids):
            if wanted != drawn:
                break
            pairs.append((ours, theirs))
    return largest_gap(pairs) if 2 * len(pairs) >= sum(len(tokens) for tokens, _ in expected) else math.nan


def largest_gap(pairs: Iterable[tuple[float, float]]) -> float:
    """The largest difference of two log-probs, nats; NaN as soon as one difference is no finite number."""
    gaps = [abs(ours - theirs) for ours, theirs in pairs]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.nan
