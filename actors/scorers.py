"""The RewardActors of a run: groups go to the one with the fewest, and a lost actor is replaced and asked again.

What holds: a group is scored by one actor, to its end; when that actor dies, or is silent for longer than the groups it has
may take, another is started in its place and gets them. That may happen `failures.rewards` times within an hour. What a reward does
costs its own call (`actors.reward`); what kills its actor is the machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.deadlines import DEATHS, DeadlineExceeded, Silence
from actors.engine_death import actor_death
from actors.fleet_status import FleetStatus
from actors.identities import Identities
from actors.reward import RewardActor, longest_silence, reward_versions
from actors.types import Generation, PromptTask
from configs.schema import RunConfig
from rewards.outcome import Score

WINDOW = 3600.0


@dataclass
class _Actor:
    """`asked`: the groups it has, by the reference of their scores. `starting`: of its start, None once it is ready; groups
    that come before are `waiting`."""

    name: str
    handle: Any
    starting: ray.ObjectRef | None
    silence: Silence
    answers: int = 0
    waiting: list[tuple[PromptTask, Generation]] = field(default_factory=list)
    asked: dict[ray.ObjectRef, tuple[PromptTask, Generation]] = field(default_factory=dict)


class Scorers:
    """Makes the actors; every reference they may answer is in `refs`, and goes to `take` when it is there."""

    def __init__(
        self,
        config: RunConfig,
        status: FleetStatus,
        identities: Identities,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """RewardContractError when a custom reward does not load."""
        self._config, self._status, self._identities, self._say, self._clock = config, status, identities, say, clock
        self._count = 0
        self._versions = reward_versions(config.reward)
        self._limit = config.deadlines.reward + longest_silence(config.reward, config.grpo.group_size)
        self._deaths: deque[float] = deque()
        self._actors = [self._made() for _ in range(config.reward.actors)]

    def _made(self) -> _Actor:
        reward = self._config.reward
        # A group whose generation comes first is scored first, whatever was queued before it.
        options = {"max_concurrency": reward.processes, "allow_out_of_order_execution": True}
        handle = ray.remote(RewardActor).options(num_cpus=reward.num_cpus, **options).remote(reward)
        name, self._count = f"r{self._count}", self._count + 1
        self._identities.ask(name, handle)
        self._status.life("reward", name, None, "starting")
        return _Actor(name, handle, handle.start.remote(self._versions), Silence(self._limit, self._clock))

    @property
    def refs(self) -> Iterable[ray.ObjectRef]:
        for actor in self._actors:
            yield from actor.asked
            if actor.starting is not None:
                yield actor.starting

    def score(self, task: PromptTask, generation: Generation) -> None:
        """Have the group scored, by whoever has the fewest."""
        actor = min(self._actors, key=lambda own: len(own.asked) + len(own.waiting))
        if actor.starting is not None:
            actor.waiting.append((task, generation))
            return
        if not actor.asked:
            actor.silence = Silence(self._limit, self._clock)  # before, it owed nothing
        actor.asked[actor.handle.score.remote(task.row, generation)] = (task, generation)

    def take(self, ref: ray.ObjectRef) -> tuple[str, tuple[Score, ...]] | None:
        """What a reference that is there says: a request and its scores, or nothing for the caller.

        Raises what a reward actor's start raises, and RewardContractError for a reward that has changed under way.
        """
        actor = next((own for own in self._actors if ref in own.asked or ref == own.starting), None)
        if actor is None:
            return None
        try:
            result = ray.get(ref)
        except DEATHS as error:
            self._replace(actor, actor_death(str(error)))
            return None
        actor.answers += 1
        if ref == actor.starting:
            actor.starting = None
            self._status.life("reward", actor.name, "starting", "ready")
            self._say("grpo: a reward actor is ready")
            waiting, actor.waiting = actor.waiting, []
            for task, generation in waiting:
                self.score(task, generation)
            return None
        task, _ = actor.asked.pop(ref)
        return task.request.request_id, result

    def groups(self) -> Mapping[str, int]:
        """Names of the actors, and how many groups each has."""
        return {actor.name: len(actor.asked) + len(actor.waiting) for actor in self._actors}

    def withdraw(self) -> None:
        """Nobody wants the scores that are still to come."""
        for actor in self._actors:
            for ref in actor.asked:
                ray.cancel(ref)  # those that are being scored are scored to their end
            actor.asked.clear()
            actor.waiting.clear()

    def check(self) -> None:
        """Look at the clock. DeadlineExceeded when actors were lost too often."""
        for actor in list(self._actors):
            actor.silence.observe(actor.answers)
            if (actor.asked or actor.starting is not None) and actor.silence.exceeded:
                self._replace(actor, f"no scores for {self._limit:.0f} s")

    def _replace(self, actor: _Actor, reason: str) -> None:
        now = self._clock()
        self._deaths.append(now)
        while now - self._deaths[0] > WINDOW:
            self._deaths.popleft()
        if len(self._deaths) > self._config.failures.rewards:
            lost = f"{len(self._deaths)} reward actors were lost within an hour (failures.rewards)"
            raise DeadlineExceeded(f"{lost}; the last: {reason}")
        groups = [*actor.asked.values(), *actor.waiting]
        self._say(f"grpo: a reward actor was lost ({reason}); {len(groups)} groups go to another")
        state = "scoring" if actor.asked else "ready" if actor.starting is None else "starting"
        self._status.life("reward", actor.name, state, "lost", reason, groups=len(groups))
        self._identities.forget(actor.name)
        ray.kill(actor.handle)
        self._actors[self._actors.index(actor)] = self._made()
        for task, generation in groups:
            self.score(task, generation)

    def close(self) -> list[ray.ObjectRef]:
        """Ask every actor to end its processes; `kill` them when that is done, or has taken too long."""
        return [actor.handle.close.remote() for actor in self._actors]

    def kill(self) -> None:
        """Dead ones are no error."""
        for actor in self._actors:
            ray.kill(actor.handle)
