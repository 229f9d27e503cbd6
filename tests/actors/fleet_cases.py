"""A fleet of simulated time, for the tests of `actors.fleet`."""

from __future__ import annotations

from actors.fleet import Fleet, FleetLimits, State

START, SILENCE, WINDOW = 100.0, 40.0, 3600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, workers: int = 2, outstanding: int = 2, deaths: int = 3) -> Fleet:
    fleet = Fleet(FleetLimits(START, SILENCE, outstanding, deaths, WINDOW), clock)
    fleet.scale(workers)
    return fleet


def serving(clock: Clock, workers: int = 2, outstanding: int = 2, deaths: int = 3) -> Fleet:
    """A fleet all of whose workers have proved version 1."""
    fleet = made(clock, workers, outstanding, deaths)
    fleet.publish(1)
    start(fleet)
    bring(fleet)
    assert fleet.states() == {"serving": workers}
    return fleet


def start(fleet: Fleet) -> None:
    for action in fleet.plan():
        assert action.kind == "start"
        fleet.placed(action.worker)
        fleet.started(action.worker)


def bring(fleet: Fleet) -> None:
    for action in fleet.plan():
        assert action.kind == "update"
        fleet.proved(action.worker, fleet.version)


def lost(fleet: Fleet) -> set[str]:
    """What silent workers held."""
    return set().union(*fleet.check())


def told(fleet: Fleet) -> list[str]:
    return [f"{action.kind} {action.worker}" for action in fleet.plan()]


def state(fleet: Fleet, name: str) -> State | None:
    return next((worker.state for worker in fleet.workers if worker.name == name), None)


def give(fleet: Fleet, *requests: str) -> list[str]:
    """Who got them."""
    names = []
    for request in requests:
        names.append(fleet.choose())
        fleet.sent(names[-1], request)
    return names
