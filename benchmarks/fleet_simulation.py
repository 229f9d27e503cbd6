"""What the controller of stage 3's rollouts does with a fleet: throughput, staleness, recovery, and what it costs itself.

    python -m benchmarks.fleet_simulation [--workers 8] [--prompts 100000] [--staleness 1] [--prompts-per-step 64]
                                          [--deaths-per-hour 60] [--scale 600:4 ...] [--grid] [--json FILE]

Engines and learner are simulated and their latencies given; `Rollouts`, `Fleet` and `Ledger` are the real ones. Time is
virtual, so that the seconds below are the simulation's, but for `controller`: real CPU time spent in these three (Ray's
calls and the trainer's own work are not in it), per prompt, and as a share of the step's simulated seconds.

`of_ideal`: how much of the throughput is reached that the slower of learner and generation (all of it, spread evenly over
all places of all workers) allows, the start of the fleet and the first step included, for which a learner has to wait.
`of_ideal_running`: the same of the middle half of the steps. `of_ideal_within_k`: of the throughput that an ideal fleet and
learner reach under the same bound K: between the admission of a step and the version it makes lie its longest prompt, or
all its prompts spread evenly, and its learning, and no more than K + 1 steps are in that at once.
`staleness` counts trained prompts by how many versions older than the learner the one was that their first token came from.
`recovery_s`: from a death to the proof of the worker that took the place; `told`: the death was noticed at once, `silent`:
by the silence of the worker. What is plotted and written in docs/ is made of the JSON by `benchmarks.fleet_plot`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from actors.checkpoints import Checkpoints
from actors.fleet import Fleet, FleetLimits
from actors.ledger import Ledger
from actors.rollouts import Collected, Rollouts
from actors.schedule import Stretch
from actors.types import PromptTask, RolloutRequest
from benchmarks.simulated_port import Clock, Fate, Latencies, SimulatedPort
from configs.schema import SamplingConfig
from data.types import Example, Prompt
from rewards.rows import RewardRow

#: Runs of the grid: workers, K, and (prompts a step for every place, steps). Learning takes as long as generation spread
#: evenly, where overlap has most to win and to lose.
GRID_WORKERS, GRID_STALENESS, GRID_LOADS = (1, 8, 64, 512), (0, 1, 2, 4), ((1, 40), (8, 16))
#: A ledger of a million prompts, and how many steps it has open: those of K = 4, and all.
LEDGER_PROMPTS, LEDGER_STEP, LEDGER_OPEN = 1_000_000, 4000, (5, 250)
_PROMPT = Prompt(Example("simulated", 0, "single_image", "", "object count", ("none",)), "think", ())
_ROW = RewardRow("simulated", "", "object count", None, None)
_SAMPLING = SamplingConfig()


@dataclass(frozen=True)
class Settings:
    """Of one run. `generate`: mean seconds of a prompt, if none were cut off at `longest`; their logarithms spread by
    `sigma`. `scale`: (second, workers). `deaths`: the fleet's budget within an hour."""

    workers: int = 8
    prompts: int = 100_000
    staleness: int = 1
    prompts_per_step: int = 64
    capacity: int = 8
    learn: float = 20.0
    generate: float = 20.0
    sigma: float = 1.0
    longest: float = 160.0
    latencies: Latencies = field(default_factory=Latencies)
    scale: tuple[tuple[float, int], ...] = ()
    silence: float = 120.0
    start_silence: float = 600.0
    deaths: int = 1_000_000
    attempts: int = 3
    seed: int = 0

    @property
    def steps(self) -> int:
        return -(-self.prompts // self.prompts_per_step)


def generation_seconds(settings: Settings) -> list[float]:
    """How long each position of the schedule runs: lognormal and cut off, the same for every fleet and K."""
    location = np.log(settings.generate) - settings.sigma**2 / 2
    drawn = np.random.default_rng(settings.seed).lognormal(location, settings.sigma, settings.prompts)
    return [min(float(value), settings.longest) for value in drawn]


class Simulation:
    """One run, as `actors.trainer.optimise` makes it; `trained` is the ledger's line of every step, in order."""

    def __init__(
        self,
        settings: Settings,
        seconds: Sequence[float] | None = None,
        fate: Callable[[PromptTask, str], Fate] | None = None,
        state: Mapping[str, Any] | None = None,
        port_type: type[SimulatedPort] = SimulatedPort,
    ) -> None:
        """`seconds`: of each position, drawn if None. `state`: of the ledger, to go on from."""
        self.settings, self.seconds = settings, seconds if seconds is not None else generation_seconds(settings)
        self.clock, self.said = Clock(), list[str]()
        own = self.seconds
        self.port = port_type(
            self.clock, settings.latencies, settings.capacity, lambda task: own[task.request.seed], settings.seed, fate
        )
        self._take_seconds, self._worker_seconds, self._scaled = 0.0, 0.0, 0.0
        limits = FleetLimits(settings.start_silence, settings.silence, settings.capacity + 1, settings.deaths)
        self.fleet = Fleet(limits, self.clock)
        self.ledger = Ledger(settings.attempts, state)
        self.rollouts = Rollouts(self.fleet, self.ledger, self.port, self._take, self.said.append, self.clock)
        self._scale(settings.workers)
        for time, target in settings.scale:
            self.port.at(time, lambda _, target=target: self._scale(target))
        self.trained: list[dict[str, Any]] = []
        self.staleness: Counter[int] = Counter()
        self.lengths: list[tuple[int, float]] = []  # (position, seconds its generation took) of all that was trained on
        self.ends: list[float] = []  # when each step's version was proved
        self._waits = {"groups": 0.0, "proof": 0.0, "fleet": 0.0}

    def _take(self, step: int, stretch: Stretch, place: int) -> list[PromptTask]:
        """Tasks whose seed is their position of the schedule: all that the simulated engines look at."""
        begun = perf_counter()
        tasks = [
            PromptTask(_PROMPT, RolloutRequest(f"s{step}-p{place + index}", (), (), False, 1, first, _SAMPLING), _ROW)
            for index, first in enumerate(range(stretch[0], sum(stretch)))
        ]
        self._take_seconds += perf_counter() - begun
        return tasks

    def _scale(self, target: int) -> None:
        self._worker_seconds += self.fleet.target * (self.clock.now - self._scaled)
        self._scaled = self.clock.now
        self.fleet.scale(target)

    def run(self, first: int = 0, steps: int | None = None) -> None:
        """Train the steps from `first` to `steps` (all), with a learner that is at version `first`."""
        last = self.settings.steps if steps is None else steps
        begun, used = perf_counter(), process_time()
        before = self.port.own_seconds + self._take_seconds
        self._wait("fleet", self.publish, first)
        learned = 0.0
        for step in range(first, last):
            self.admit(step)
            collected = self._wait("groups", self.rollouts.collect, step, 0, lambda scores: None)
            self.rollouts.meanwhile(self.port.learn(self.settings.learn))
            learned += self._note(step, collected)
            self._wait("proof", self.publish, step + 1)
            self.trained.append(self.rollouts.trained(step))
            self.ends.append(self.clock.now)
        simulated, passed = self.port.own_seconds + self._take_seconds - before + learned, perf_counter() - begun
        self.controller_seconds = (passed - simulated) * (process_time() - used) / passed  # others may have had the core
        self._scale(self.fleet.target)

    def admit(self, step: int) -> None:
        """Ask for what may be asked for before the step is trained."""
        size = self.settings.prompts_per_step
        for ahead in range(step, min(step + self.settings.staleness, self.settings.steps - 1) + 1):
            self.rollouts.admit(ahead, ahead, min(size, self.settings.prompts - ahead * size))

    def publish(self, version: int) -> None:
        self.port.offer(version)
        self.rollouts.publish(version)

    def _wait(self, what: str, call: Callable[..., Any], *values: Any) -> Any:
        begun = self.clock.now
        result = call(*values)
        self._waits[what] += self.clock.now - begun
        return result

    def _note(self, step: int, collected: Collected) -> float:
        """What the step was trained on; returns the real seconds of noting it."""
        begun = perf_counter()
        for task, group in zip(collected.tasks, collected.groups, strict=True):
            self.lengths.append((task.request.seed, group.generation.seconds))
            self.staleness[step - group.generation.version] += 1
        return perf_counter() - begun

    def check(self, first: int = 0) -> None:
        """AssertionError unless all positions from `first` on were trained once, each in its own step, with its own length,
        within K; dropped ones are said to be."""
        stretches = [stretch for line in self.trained for stretch in line["positions"]]
        positions = [place for begin, count in stretches for place in range(begin, begin + count)]
        assert sorted(positions) == list(range(first, self.settings.prompts)), "positions were skipped or trained twice"
        size = self.settings.prompts_per_step
        assert all(
            begin // size == (begin + count - 1) // size == line["step"]
            for line in self.trained for begin, count in line["positions"]
        ), "a prompt was trained in another step than its own"
        dropped = sum(len(line["dropped"]) for line in self.trained)
        assert sum(line["trained"] for line in self.trained) == len(self.lengths) == len(positions) - dropped
        assert len({place for place, _ in self.lengths}) == len(self.lengths), "a prompt was trained on twice"
        assert all(took == self.seconds[place] for place, took in self.lengths), "the lengths are not the data's"
        assert all(0 <= age <= self.settings.staleness for age in self.staleness), f"too stale: {self.staleness}"

    def result(self) -> dict[str, Any]:
        """Figures of a whole run."""
        settings, port, total = self.settings, self.port, self.clock.now
        told, silent = ([own for own, untold in port.recoveries if untold is kind] for kind in (False, True))
        return {
            "settings": asdict(settings),
            "simulated_s": round(total, 1),
            "prompts_per_s": round(settings.prompts / total, 3),
            **self._of_ideal(),
            "learner_waits": {name: round(seconds / total, 3) for name, seconds in self._waits.items()},
            "staleness": dict(sorted(self.staleness.items())),
            "trained": len(self.lengths),
            "dropped": sum(len(line["dropped"]) for line in self.trained),
            "sent_again": sum(len(line["sent_again"]) for line in self.trained),
            "deaths": port.deaths,
            "recovery_s": {"told": _median_and_worst(told), "silent": _median_and_worst(silent)},
            "lost_prompt_to_answer_s": _median_and_worst(port.delays),
            "controller": {
                "us_per_prompt": round(self.controller_seconds / settings.prompts * 1e6, 1),
                "ms_per_step": round(self.controller_seconds / settings.steps * 1e3, 2),
                "share_of_step": round(self.controller_seconds / total, 6),
            },
        }

    def _of_ideal(self) -> dict[str, float]:
        """See the module. An ideal step's seconds, and their share in what a step really takes."""
        settings, total, steps = self.settings, self.clock.now, self.settings.steps
        places = settings.capacity * self._worker_seconds / total
        first, last = steps // 4, steps - 1 - steps // 4
        running = (self.ends[last] - self.ends[first]) / (last - first)
        generate, _ = self._generation(0, steps, places)
        alone, longest = self._generation(first + 1, last + 1, places)
        ideal, middle = max(settings.learn, generate), max(settings.learn, alone)
        within = max(middle, (max(alone, longest) + settings.learn) / (settings.staleness + 1))
        return {
            "ideal_step_s": round(ideal, 2),
            "of_ideal": round(steps * ideal / total, 3),
            "of_ideal_running": round(middle / running, 3),
            "of_ideal_within_k": round(within / running, 3),
        }

    def _generation(self, first: int, last: int, places: float) -> tuple[float, float]:
        """Of the steps from `first` to before `last`: seconds of a step's prompts spread over `places`, of the longest."""
        size = self.settings.prompts_per_step
        own = [self.seconds[step * size : (step + 1) * size] for step in range(first, last)]
        return sum(map(sum, own)) / places / len(own), statistics.mean(map(max, own))


def _median_and_worst(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"count": len(values), "median": round(statistics.median(values), 1), "worst": round(max(values), 1)}


def simulate(settings: Settings) -> dict[str, Any]:
    """One checked run."""
    simulation = Simulation(settings)
    simulation.run()
    simulation.check()
    return simulation.result()


def grid(settings: Settings) -> list[dict[str, Any]]:
    """Small to large fleets with every K and load, then a million prompts on a large one that changes."""
    results = []
    for workers in GRID_WORKERS:
        for load, steps in GRID_LOADS:
            size, learn = load * workers * settings.capacity, load * settings.generate
            for staleness in GRID_STALENESS:
                own = replace(settings, workers=workers, staleness=staleness, learn=learn)
                results.append(simulate(replace(own, prompts=steps * size, prompts_per_step=size)))
                print(_line(results[-1]), flush=True)
    latencies = replace(settings.latencies, deaths_per_hour=240.0, hangs=0.2)
    changing = ((1000.0, 384), (2500.0, 576), (4000.0, 512))
    large = replace(settings, workers=512, staleness=2, learn=8 * settings.generate, latencies=latencies, scale=changing)
    results.append(simulate(replace(large, prompts=1_000_000, prompts_per_step=8 * 512 * settings.capacity)))
    return results


def _line(result: Mapping[str, Any]) -> str:
    own = result["settings"]
    return (
        f"{own['workers']} workers, K = {own['staleness']}, {own['prompts']} prompts: {result['of_ideal_running']:.3f} of "
        f"the ideal, controller {result['controller']['share_of_step']:.3%} of a step"
    )


def ledger_costs(prompts: int, open_steps: int) -> dict[str, Any]:
    """A ledger that has given out `prompts`, all trained but those of the last `open_steps` steps, half of them answered:
    its memory, and the seconds of that, of committing it as a run does, and of going on from there."""
    steps = prompts // LEDGER_STEP
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    ledger = _ledger(steps, open_steps)
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    begun = perf_counter()
    ledger = _ledger(steps, open_steps)
    made = perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.begin(steps)
        begun = perf_counter()
        checkpoints.commit(steps, {"ledger": ledger.state()}, {})
        committed = perf_counter() - begun
        state = checkpoints.newest().state["ledger"]
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.json"))
    begun = perf_counter()
    again = Ledger(3, state)
    restored = perf_counter() - begun
    assert again.waiting == open_steps * LEDGER_STEP and again.next == prompts
    return {
        "prompts": prompts,
        "open_prompts": open_steps * LEDGER_STEP,
        "memory_bytes": size,
        "bytes_per_open_prompt": round(size / open_steps / LEDGER_STEP),
        "committed_bytes": written,
        "run_s": round(made, 3),
        "commit_s": round(committed, 4),
        "restore_s": round(restored, 3),
    }


def _ledger(steps: int, open_steps: int) -> Ledger:
    ledger = Ledger(3)
    for step in range(steps):
        ledger.ask(step, LEDGER_STEP)
        kept = step >= steps - open_steps
        for _ in range(LEDGER_STEP // 2 if kept else LEDGER_STEP):
            name = ledger.take_pending()
            ledger.sent(name, "w0")
            ledger.answered(name)
        if not kept:
            ledger.train(step)
    return ledger


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Settings()
    parser.add_argument("--workers", type=int, default=default.workers)
    parser.add_argument("--prompts", type=int, default=default.prompts)
    parser.add_argument("--staleness", type=int, default=default.staleness, help="K: steps sampled ahead of the learner")
    parser.add_argument("--prompts-per-step", type=int, default=default.prompts_per_step)
    parser.add_argument("--learn", type=float, default=default.learn, help="seconds of a learner's step")
    parser.add_argument("--deaths-per-hour", type=float, default=0.0, help="of all workers together")
    parser.add_argument("--hangs", type=float, default=0.0, help="share of the deaths that nobody tells")
    parser.add_argument("--scale", action="append", default=[], metavar="SECOND:WORKERS", help="repeatable")
    parser.add_argument("--grid", action="store_true", help="all sizes and K, then a million prompts")
    parser.add_argument("--json", type=Path, help="where the result goes")
    return parser.parse_args()


def main() -> None:
    from benchmarks.measure import report  # here: Ray and the models are not needed to simulate

    options = _options()
    if options.grid:
        ledgers = [ledger_costs(LEDGER_PROMPTS, open_steps) for open_steps in LEDGER_OPEN]
        report("fleet_simulation", options, {"runs": grid(Settings()), "ledger": ledgers})
        return
    changes = [text.split(":", 1) for text in options.scale]
    settings = Settings(
        workers=options.workers,
        prompts=options.prompts,
        staleness=options.staleness,
        prompts_per_step=options.prompts_per_step,
        learn=options.learn,
        latencies=Latencies(deaths_per_hour=options.deaths_per_hour, hangs=options.hangs),
        scale=tuple((float(second), int(workers)) for second, workers in changes),
    )
    report("fleet_simulation", options, simulate(settings))


if __name__ == "__main__":
    main()
