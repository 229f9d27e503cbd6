"""How many workers a run takes: decisions from what steps showed, and their course in the simulator."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors.autoscaler import CALM, STEPS, Autoscaler, Decision, StepLoad
from actors.fleet import State
from actors.trainer import autoscaler
from benchmarks.fleet_simulation import Settings, Simulation, generation_seconds
from benchmarks.simulated_port import Latencies
from configs.schema import RolloutConfig, RunConfig


def scaler(target: int, least: int = 1, most: int = 16, in_air: int = 96, overlap: bool = True) -> Autoscaler:
    own = Autoscaler(least, most, target, in_air, overlap)
    assert own.after(StepLoad(1.0, 10.0, 10.0 * target, target)) is None  # the fleet has only now reached its size
    return own


def decisions(own: Autoscaler, *loads: StepLoad) -> list[Decision | None]:
    return [own.after(load) for load in loads]


def steady(target: int, waited: float, busy: float, steps: int, serving: int | None = None) -> list[StepLoad]:
    """Steps of 10 s in which the learner waited for `waited` and each worker was busy for `busy` of its time."""
    return [StepLoad(10.0 * waited, 10.0, 10.0 * busy * target, serving or target)] * steps


@pytest.mark.parametrize(
    "target, waited, busy, changed, wanted",
    [
        (4, 0.5, 1.0, {}, 8),  # 4 busy workers against half of the time: 8
        (4, 0.25, 0.96, {}, 6),  # 3.84 against 0.75: 5.12
        (4, 0.75, 1.0, {}, 8),  # 16 would be needed: at most twice as many at once
        (1, 0.9, 1.0, {}, 2),
        (4, 0.5, 1.0, {"most": 7}, 7),
        (4, 0.5, 1.0, {"in_air": 5}, 5),  # one prompt for each
        (4, 0.5, 1.0, {"in_air": 4}, None),
        (4, 0.5, 1.0, {"most": 4}, None),
        (4, 0.1, 1.0, {}, None),  # it hardly waits
        (4, 0.5, 0.85, {}, None),  # it waits for something that more workers do not hasten
        (4, 0.0, 1.0, {}, None),
        (4, 0.5, 0.5, {"overlap": False}, None),  # they take turns, and sampling takes no longer than learning
        (4, 0.75, 0.75, {"overlap": False}, 8),  # busy whenever there is something to do: 3 against 0.25
        (4, 0.6, 0.6, {"overlap": False}, 6),
        (4, 0.75, 0.6, {"overlap": False}, None),  # idle for a fifth of the sampling: for one long prompt
    ],
)
def test_growth(target, waited, busy, changed, wanted) -> None:
    found = decisions(scaler(target, **changed), *steady(target, waited, busy, STEPS))
    assert found[:-1] == [None] * (STEPS - 1)
    assert (found[-1].target if found[-1] else None) == wanted


@pytest.mark.parametrize(
    "target, waited, busy, changed, wanted",
    [
        (4, 0.0, 0.5, {}, 3),  # 2 workers' work: 3 would be busy 67 %
        (4, 0.0, 0.52, {}, 3),
        (4, 0.0, 0.55, {}, None),  # 3 would be busy 73 %
        (8, 0.0, 0.1, {}, 2),
        (8, 0.0, 0.0, {}, 1),
        (8, 0.0, 0.1, {"least": 5}, 5),
        (5, 0.0, 0.1, {"least": 5}, None),
        (1, 0.0, 0.1, {}, None),
        (8, 0.2, 0.1, {}, None),  # the learner waits all the same
        (8, 0.1, 0.1, {}, 2),
        (4, 0.5, 0.2, {"overlap": False}, 3),  # it always waits; half of the sampling is idle: 1.6 of them work
        (8, 0.2, 0.1, {"overlap": False}, 2),  # 0.8 workers for 0.8 of the time
        (4, 0.5, 0.4, {"overlap": False}, None),
    ],
)
def test_shrinking(target, waited, busy, changed, wanted) -> None:
    found = decisions(scaler(target, **changed), *steady(target, waited, busy, CALM))
    assert found[:-1] == [None] * (CALM - 1)
    assert (found[-1].target if found[-1] else None) == wanted


def test_the_reason_has_the_figures() -> None:
    *_, larger = decisions(scaler(4), *steady(4, 0.48, 0.97, STEPS))
    assert larger == Decision(
        8, "4 workers -> 8: the learner waited 48% of the last 3 steps and workers were busy 97% of the time they could "
        "sample in; 116 busy worker-seconds for 16 s of learning ask for 7.5 workers",
    )
    *_, capped = decisions(scaler(1, in_air=2), *steady(1, 0.8, 1.0, STEPS))
    assert capped is not None and capped.reason.startswith("1 worker -> 2: ") and "air" not in capped.reason
    *_, capped = decisions(scaler(2, in_air=3), *steady(2, 0.8, 1.0, STEPS))
    assert capped is not None and capped.reason.endswith("ask for 10.0 workers; there are 3 prompts in the air")
    *_, capped = decisions(scaler(2, most=3), *steady(2, 0.8, 1.0, STEPS))
    assert capped is not None and capped.reason.endswith("ask for 10.0 workers; max is 3")
    *_, smaller = decisions(scaler(8), *steady(8, 0.0, 0.25, CALM))
    assert smaller is not None and smaller.target == 3 and smaller.reason.endswith(", and 3 would be busy 67%")


def test_nothing_is_decided_while_the_fleet_changes_and_for_some_steps_after_it() -> None:
    own = scaler(2)
    *_, first = decisions(own, *steady(2, 0.5, 1.0, STEPS))
    assert first is not None and first.target == own.target == 4
    assert decisions(own, *steady(2, 0.5, 1.0, 5)) == [None] * 5  # two are still joining
    assert own.after(*steady(4, 0.5, 1.0, 1)) is None  # a step that began without them
    *_, second = found = decisions(own, *steady(4, 0.5, 1.0, STEPS))
    assert found[:-1] == [None] * (STEPS - 1) and second is not None and second.target == 8


def test_steps_with_a_worker_missing_count_for_nothing() -> None:
    own = scaler(4)
    assert decisions(own, *steady(4, 0.5, 1.0, STEPS - 1), *steady(4, 0.5, 1.0, 1, serving=3)) == [None] * STEPS
    assert decisions(own, *steady(4, 0.5, 1.0, STEPS)) == [None] * STEPS
    assert own.after(*steady(4, 0.5, 1.0, 1)) is not None


def test_a_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="1 <= least <= most, not 3 and 2"):
        Autoscaler(3, 2, 3, 8, True)


class Course:
    """A simulated run that is autoscaled from one worker on, as `actors.trainer` does it."""

    def __init__(self, staleness: int, steps: int, longer: Sequence[float], **changes: float) -> None:
        """`longer`: times as long as drawn the prompts run, for each part of the steps."""
        own: dict = {"learn": 20.0, "generate": 20.0, "sigma": 0.5, "capacity": 4, "longest": 80.0, "prompts_per_step": 32}
        own |= changes | {"workers": 1, "staleness": staleness, "prompts": steps * 32, "latencies": Latencies(start=30.0)}
        settings = Settings(**own)
        part = settings.prompts // len(longer)
        drawn = enumerate(generation_seconds(settings))
        seconds = [value * longer[min(index // part, len(longer) - 1)] for index, value in drawn]
        self.simulation = sim = Simulation(settings, seconds)
        self.loads, self.decisions = list[StepLoad](), dict[int, Decision]()
        scaler = Autoscaler(1, 32, 1, settings.prompts_per_step * (staleness + 1), staleness > 0)
        sim.publish(0)
        for step in range(steps):
            begun, busy = sim.clock.now, sim.fleet.busy_seconds
            sim.admit(step)
            sim.rollouts.collect(step, 0, lambda scores: None)
            waited = sim.clock.now - begun
            sim.rollouts.meanwhile(sim.port.learn(settings.learn))
            sim.publish(step + 1)
            sim.rollouts.trained(step)
            serving = sim.fleet.count(State.SERVING, State.STALE, State.SUSPECT)
            self.loads.append(StepLoad(waited, sim.clock.now - begun, sim.fleet.busy_seconds - busy, serving))
            if (decision := scaler.after(self.loads[-1])) is not None:
                self.decisions[step] = decision
                sim.fleet.scale(decision.target)

    @property
    def targets(self) -> dict[int, int]:
        """By the step after which it was decided."""
        return {step: decision.target for step, decision in self.decisions.items()}

    def waiting(self, first: int, last: int) -> float:
        own = self.loads[first:last]
        return sum(load.waited for load in own) / sum(load.seconds for load in own)


def test_the_learner_is_kept_just_busy_and_shorter_prompts_need_fewer_workers() -> None:
    # 32 prompts of 10 s in 4 places: 80 worker-seconds for 22 s of a step (with the sync), so at least 3.7 workers.
    course = Course(staleness=2, steps=220, longer=(1.0, 0.25), generate=10.0)
    assert course.targets == {3: 2, 7: 4, 11: 6, 110: 5, 117: 2}  # and for 98 steps nothing, before the change and after it
    assert course.waiting(0, 4) > 0.7 and course.waiting(15, 110) < 0.05 and course.waiting(120, 220) < 0.01


def test_a_step_ahead_waits_for_its_longest_prompts_and_the_fleet_does_not_grow_for_them() -> None:
    course = Course(staleness=1, steps=220, longer=(1.0, 0.25), seed=1)
    assert course.targets == {3: 2, 7: 4, 11: 8, 115: 4, 219: 3}  # the last: nothing is left to be asked for
    assert course.waiting(15, 110) > 0.4 and course.waiting(120, 215) < 0.05


def test_without_overlap_the_fleet_stops_growing_although_the_learner_waits_in_every_step() -> None:
    course = Course(staleness=0, steps=220, longer=(1.0, 0.25), seed=1)
    assert course.targets == {3: 2, 7: 4, 13: 8, 20: 6, 115: 4}
    assert course.waiting(21, 110) > 0.7 and course.waiting(120, 220) > 0.4


def test_a_run_with_the_settings_there_are_can_grow() -> None:
    config = RunConfig(rollout=RolloutConfig(workers={"min": 1, "max": 4}))
    own = autoscaler(config)
    assert own is not None and own.after(StepLoad(1.0, 10.0, 10.0, 1)) is None
    grown = [decision.target for decision in decisions(own, *steady(1, 0.8, 0.99, STEPS)) if decision]
    assert grown == [2] and autoscaler(RunConfig()) is None
