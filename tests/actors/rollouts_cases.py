"""A controller of rollouts on simulated engines that notes who is given what, for the tests of `actors.rollouts`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from actors.fleet import State
from actors.rollouts import Event, Proved
from actors.types import PromptTask
from benchmarks.fleet_simulation import Settings, Simulation
from benchmarks.simulated_port import Fate, Latencies, SimulatedPort


class Recorder(SimulatedPort):
    """Notes who is given what and when, and who proves when; `tell` puts events of one's own before the next ones."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.given: list[tuple[float, str, PromptTask, int]] = []  # the last: of the version offered last
        self.proofs: dict[str, float] = {}
        self.told: list[Event] = []
        self.fleet: Any = None
        self.ledger: Any = None
        self.alone, self.crowded = 0, list[str]()  # last chances that were given to a worker without and with another lost one

    def generate(self, worker: str, task: PromptTask) -> None:
        (own,) = (one for one in self.fleet.workers if one.name == worker)
        assert own.state is State.SERVING and own.version == self.version, f"{worker} is given work without a proof"
        self.given.append((self._clock.now, worker, task, self.version))
        lost = [name for name in own.holds if self.ledger.entry(name).losses]
        if any(self.ledger.last_chance(name) for name in lost):
            self.alone += lost == [task.request.request_id]
            self.crowded += [task.request.request_id] * (len(lost) > 1)
        super().generate(worker, task)

    def wait(self, seconds: float, pending: object | None = None) -> Sequence[Event]:
        events = [*self.told, *super().wait(seconds, pending)]
        self.told = []
        for event in events:
            if isinstance(event, Proved):
                self.proofs.setdefault(event.worker, self._clock.now)
        return events

    def tell(self, *events: Event) -> None:
        self.told += events

    def workers_of(self) -> dict[str, list[str]]:
        """Who was given each request, in order."""
        found: dict[str, list[str]] = defaultdict(list)
        for _, worker, task, _ in self.given:
            found[task.request.request_id].append(worker)
        return found


def simulation(seconds: Sequence[float] | None = None, fate: Any = None, state: Any = None, **changes: Any) -> Simulation:
    """Four workers with two places each, six steps of eight prompts."""
    small = {"workers": 4, "prompts": 48, "prompts_per_step": 8, "capacity": 2, "learn": 5.0, "generate": 5.0, "sigma": 1.5}
    own = {"latencies": Latencies(start=5.0, update=1.0), "silence": 60.0, "start_silence": 60.0}
    made = Simulation(Settings(**(small | own | changes)), seconds, fate, state, Recorder)
    made.port.fleet, made.port.ledger = made.fleet, made.ledger
    return made


def pump_until(own: Simulation, time: float) -> None:
    while own.clock.now < time:
        own.rollouts.pump()


def answers_of(*positions: int, by: Fate) -> Any:
    """A fate: `by` for these positions of the schedule, answered for all others."""
    return lambda task, worker: by if task.request.seed in positions else "answered"


def assert_suspects_were_alone(port: Recorder) -> None:
    """No worker held a prompt with its last chance and another that was lost before."""
    assert not port.crowded and port.alone
