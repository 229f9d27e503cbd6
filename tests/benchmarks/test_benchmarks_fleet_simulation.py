"""What the simulator shows of the real controller: how old samples are, that none is left out for its length, and that its
own check would find a controller that takes what comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from actors.rollouts import Collected, Rollouts
from actors.types import PromptTask
from benchmarks.fleet_simulation import LEDGER_STEP, Settings, Simulation, ledger_costs
from benchmarks.simulated_port import Fate, Latencies
from rewards.outcome import Score

SIZE = 8
QUIET = Latencies(start=5.0, update=1.0)
ROUGH = Latencies(5.0, 1.0, deaths_per_hour=240.0, hangs=0.3, failures=0.03)
SCALE = ((20.0, 2), (60.0, 7), (150.0, 3))


def simulation(staleness: int, fate: Callable[[PromptTask, str], Fate] | None = None, **changes: Any) -> Simulation:
    """Four workers with two places; of 400 prompts the longest takes thirty times the median. Losses drop no prompt."""
    small = {"workers": 4, "capacity": 2, "prompts": 400, "prompts_per_step": SIZE, "learn": 5.0, "generate": 5.0}
    rest = {"sigma": 1.5, "silence": 60.0, "start_silence": 60.0, "attempts": 10_000, "latencies": QUIET}
    return Simulation(Settings(**(small | rest | {"staleness": staleness} | changes)), fate=fate)


# no sample is older than K, and K is used


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("latencies, scale", [(QUIET, ()), (ROUGH, SCALE)], ids=["quiet", "rough"])
def test_no_sample_is_older_than_k_and_overlap_makes_them_that_old(
    staleness: int, latencies: Latencies, scale: tuple[tuple[float, int], ...]
) -> None:
    own = simulation(staleness, latencies=latencies, scale=scale)
    own.run()
    own.check()
    histogram = own.result()["staleness"]
    assert min(histogram) == 0 and max(histogram) == staleness and sum(histogram.values()) == 400
    assert sum(count for age, count in histogram.items() if age) >= 300 * (staleness > 0)


# every prompt is trained on with its own length, the longest too


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("latencies, scale", [(QUIET, ()), (ROUGH, SCALE)], ids=["quiet", "rough"])
def test_what_is_trained_on_has_the_lengths_of_the_data(
    staleness: int, latencies: Latencies, scale: tuple[tuple[float, int], ...]
) -> None:
    """Of the run, and of every step: no long prompt is put off either."""
    own = simulation(staleness, latencies=latencies, scale=scale)
    own.run()
    assert sorted(own.lengths) == list(enumerate(own.seconds))
    steps = [sorted(seconds for _, seconds in own.lengths[first : first + SIZE]) for first in range(0, 400, SIZE)]
    assert steps == [sorted(own.seconds[first : first + SIZE]) for first in range(0, 400, SIZE)]
    assert max(own.seconds) == max(seconds for _, seconds in own.lengths) > 20 * sorted(own.seconds)[200]
    if latencies is ROUGH:
        assert own.port.deaths > 5 and own.port.delays and any(line["sent_again"] for line in own.trained)


# the check would find what must not be


class FirstCome(Rollouts):
    """What must not be: a step is trained with whatever comes first, of any step; the long ones come later."""

    def collect(self, step: int, place: int, arrived: Callable[[Sequence[Score]], None]) -> Collected:
        while len(self._groups) < SIZE:
            self.pump()
        names = sorted(self._groups, key=self._came.__getitem__)[:SIZE]
        self._positions = [(self._tasks[name].request.seed, 1) for name in names]
        return Collected(tuple(map(self._tasks.get, names)), tuple(map(self._groups.pop, names)), (), 0.0)

    def trained(self, step: int) -> dict[str, Any]:
        return {"step": step, "positions": self._positions, "trained": SIZE, "dropped": {}, "sent_again": {}}


def test_a_controller_that_trains_on_what_comes_first_does_not_pass() -> None:
    own = simulation(staleness=2)
    own.rollouts = FirstCome(own.fleet, own.ledger, own.port, own._take, own.said.append, own.clock)
    own.run()
    assert sorted(own.lengths) == list(enumerate(own.seconds))  # all come in the end, but late,
    halves = [sum(seconds for _, seconds in half) for half in (own.lengths[:200], own.lengths[200:])]
    assert halves[0] < 0.9 * halves[1]  # so that short ones are trained on first,
    assert max(own.staleness) > 2  # and long ones when they are too old
    with pytest.raises(AssertionError, match="in another step than its own"):
        own.check()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda own: own.staleness.update({2: 1}), "too stale"),
        (lambda own: own.trained.pop(3), "skipped or trained twice"),
        (lambda own: own.trained[0].update(positions=[(0, 7), (6, 1)]), "skipped or trained twice"),
        (lambda own: own.lengths.__setitem__(0, (own.lengths[0][0], 1.0)), "not the data's"),
        (lambda own: own.lengths.__setitem__(0, own.lengths[1]), "trained on twice"),
    ],
)
def test_the_check_finds(spoil: Callable[[Simulation], object], message: str) -> None:
    own = simulation(staleness=1, prompts=80)
    own.run()
    own.check()
    spoil(own)
    with pytest.raises(AssertionError, match=message):
        own.check()


# its figures


def test_the_ideal_is_the_slower_of_learning_and_generation() -> None:
    """8 prompts of 5 s on 8 places beside 10 s of learning, K = 1: the learner never waits but for a proof."""
    settings = Settings(
        workers=1, capacity=8, prompts=160, prompts_per_step=8, staleness=1, learn=10.0, latencies=Latencies(1.0, 0.01, 0.01)
    )
    own = Simulation(settings, [5.0] * 160)
    own.run()
    result = own.result()
    assert result["ideal_step_s"] == 10.0
    assert result["of_ideal"] == round(200 / own.clock.now, 3) > 0.95
    assert result["of_ideal_running"] == pytest.approx(1.0, abs=0.002) == result["of_ideal_within_k"]


def test_without_staleness_the_ideal_within_k_is_one_after_the_other() -> None:
    """Every step has a prompt of 30 s, and 10 s of learning behind it; 8 places share 44 s of generation."""
    settings = Settings(
        workers=1, capacity=8, prompts=160, prompts_per_step=8, staleness=0, learn=10.0, latencies=Latencies(1.0, 0.01, 0.0)
    )
    own = Simulation(settings, ([30.0] + [2.0] * 7) * 20)
    own.run()
    result = own.result()
    assert result["ideal_step_s"] == 10.0 and result["of_ideal_running"] == pytest.approx(0.25, abs=0.001)
    assert result["of_ideal_within_k"] == pytest.approx(1.0, abs=0.001)


def test_recoveries_are_told_apart() -> None:
    own = simulation(staleness=1)
    own.port.at(20.0, lambda _: own.port.kill("w0"))
    own.port.at(30.0, lambda _: own.port.kill("w1", hangs=True))
    own.run()
    own.check()
    recovery = own.result()["recovery_s"]
    assert recovery["told"]["count"] == recovery["silent"]["count"] == 1
    assert recovery["told"]["worst"] < 10 < 60 < recovery["silent"]["worst"]


def test_a_ledger_keeps_the_prompts_of_open_steps_only() -> None:
    few, more = ledger_costs(10 * LEDGER_STEP, 1), ledger_costs(10 * LEDGER_STEP, 4)
    assert few["prompts"] == 40_000 and few["open_prompts"] == LEDGER_STEP
    assert 3.5 < more["memory_bytes"] / few["memory_bytes"] < 4.5 and more["memory_bytes"] < 4 * LEDGER_STEP * 400
    assert few["committed_bytes"] < more["committed_bytes"] < 300  # stretches, not prompts


def test_the_same_settings_give_the_same_run() -> None:
    first, second = (simulation(2, latencies=ROUGH, scale=SCALE) for _ in range(2))
    for own in (first, second):
        own.run()
    assert first.lengths == second.lengths and first.ends == second.ends
    assert Counter(first.said) == Counter(second.said)
