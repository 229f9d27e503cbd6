"""How many rollout workers keep the learner just busy: a pure rule that is told what each step showed.

    step ──StepLoad──▶ Autoscaler.after ──Decision (target, why) or None──▶ the caller scales the fleet and says why

What it looks at, over the last steps of a fleet that kept its size (`STEPS` before it grows, `CALM` before it shrinks):
    * waiting: the share of the steps in which the learner had no groups to learn from;
    * use: busy worker-seconds (a worker held prompts) over all worker-seconds in which the fleet could sample. With
      `grpo.staleness` above 0 that is the whole step. With 0 sampling and learning take turns: it is the longer of the two,
      because a fleet that samples no longer than the learner learns is large enough;
    * demand: busy worker-seconds over the seconds that the learner itself needs, the number of workers that would have
      the prompts ready when the learner comes for them.

What holds
    * It grows when the learner waits more than `WAITS` AND the workers are in use more than `SATURATED`: a learner that
      waits for one long prompt beside idle workers would wait for it in any fleet. It grows to the demand, at most to twice
      the size, because the demand is an estimate, and never beyond a worker for each prompt in the air.
    * It shrinks when the others could do the work with no more than `SPARE` of their time, to the demand at that use. Where
      sampling and learning overlap, it does not shrink while the learner waits.
    * It does not swing: what it shrinks to is used `SPARE` at most, what it grows from more than `SATURATED`, and after a
      change it looks at new steps. Steps in which the fleet had another size than it was to have tell nothing: somebody was
      joining, draining or dead.
    * With staleness 0 the learner waits in every step; the fleet then stops growing when sampling takes no longer than
      learning, or when there are no more prompts to give out.
    * What a worker holds is not weighed: many prompts that run side by side in one engine count as one busy worker.

Who waits for whom: nobody. `actors.trainer` asks after every step, unless `ladder scale` has set a size.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

#: Steps before it grows: one long prompt makes one step slow, not three. And before it shrinks, which saves less than a
#: learner that waits costs: more, so that some easy steps end no worker that the next ones need.
STEPS, CALM = 3, 6
#: Share of the time that the learner may wait: about what one step differs from the next by.
WAITS = 0.1
#: Use from which workers count as saturated: the rest is the time between an answer and the next prompt.
SATURATED = 0.85
#: Most use that a smaller fleet may come to; the distance to SATURATED is what keeps it from growing again.
SPARE = 0.7
#: Most times as many workers as before.
GROWTH = 2


@dataclass(frozen=True)
class StepLoad:
    """What a step showed: seconds the learner waited for groups, seconds in all, worker-seconds in which workers held
    prompts, and how many workers served at its end."""

    waited: float
    seconds: float
    busy: float
    serving: int


@dataclass(frozen=True)
class Decision:
    """From now on `target` workers; `reason` with the figures."""

    target: int
    reason: str


class Autoscaler:
    """Keeps a fleet between `least` and `most` workers; it starts with `target`.

    `in_air`: prompts that may be asked for at a time, those of a step times staleness + 1: a worker without one is useless.
    `overlap`: whether sampling goes on while the learner learns (staleness above 0).
    """

    def __init__(self, least: int, most: int, target: int, in_air: int, overlap: bool) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"an autoscaler needs 1 <= least <= most, not {least} and {most}")
        self.target = target
        self._least, self._overlap = least, overlap
        self._most = max(least, min(most, in_air))
        self._limit = f"max is {most}" if most <= in_air else f"there are {in_air} prompts in the air"
        self._loads: deque[StepLoad] = deque(maxlen=CALM)
        self._serving: int | None = None  # at the end of the step before

    def after(self, load: StepLoad) -> Decision | None:
        """What the step says; a decision is taken as carried out, and the next one looks at steps after it."""
        before, self._serving = self._serving, load.serving
        if not before == load.serving == self.target:
            self._loads.clear()  # half of it was another fleet's
            return None
        self._loads.append(load)
        decision = self._larger() or self._smaller()
        if decision is not None:
            self.target = decision.target
            self._loads.clear()
        return decision

    def _larger(self) -> Decision | None:
        if len(self._loads) < STEPS:
            return None
        seen = self._seen(STEPS)
        if seen.waiting <= WAITS or seen.use <= SATURATED:
            return None
        wanted = min(math.ceil(seen.demand), GROWTH * self.target)
        target, limit = (wanted, "") if wanted <= self._most else (self._most, f"; {self._limit}")
        return self._decision(target, f"{seen.told}{limit}") if target > self.target else None

    def _smaller(self) -> Decision | None:
        if len(self._loads) < CALM or self.target <= self._least:
            return None
        seen = self._seen(CALM)
        target = max(self._least, math.ceil(seen.use * self.target / SPARE))
        if target >= self.target or (self._overlap and seen.waiting > WAITS):
            return None
        return self._decision(target, f"{seen.told}, and {target} would be busy {seen.use * self.target / target:.0%}")

    def _seen(self, steps: int) -> "_Seen":
        """The last `steps` steps together."""
        last = list(self._loads)[-steps:]
        waited, seconds = sum(load.waited for load in last), sum(load.seconds for load in last)
        busy = sum(load.busy for load in last)
        learning = max(seconds - waited, 1e-6)
        could = seconds if self._overlap else max(waited, learning)
        waiting, use, demand = waited / seconds, busy / (could * self.target), busy / learning
        told = (
            f"the learner waited {waiting:.0%} of the last {steps} steps and workers were busy {use:.0%} of the time they "
            f"could sample in; {busy:.0f} busy worker-seconds for {learning:.0f} s of learning ask for {demand:.1f} workers"
        )
        return _Seen(waiting, use, demand, told)

    def _decision(self, target: int, told: str) -> Decision:
        return Decision(target, f"{self.target} worker{'s' if self.target > 1 else ''} -> {target}: {told}")


@dataclass(frozen=True)
class _Seen:
    """See the module; `told`: in words."""

    waiting: float
    use: float
    demand: float
    told: str
