"""`ladder scale RUN N`: another number of rollout workers while a run goes on.

    STAGE/scale.json ──read within a second──▶ trainer ──▶ fleet ──▶ STAGE/fleet.json ──▶ the lines printed here

What holds
    * The request is a file of the run folder: it works from every machine that has the folder, a Ray job included, needs no
      connection to the run, and holds for resumed runs too.
    * Nothing here touches an actor. That one waits, or stops waiting, changes nothing about the request.
    * The wait ends well when exactly N workers are there and each has served since; otherwise when the run stops, when
      somebody asks for another number, or when nothing has progressed for `deadlines.engine_start`. Progress is a worker
      that comes, gets room, serves for the first time, answers while it drains, or goes.

Who waits for whom: this command for the trainer, by looking at its file every `POLL_SECONDS`; nobody for this command.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.stage_files import write_text
from launch.fleet_view import FLEET, STAGE, FleetView, SeenWorker, by_state, read_fleet
from launch.run_folder import RunFolder

SCALE = "scale.json"
POLL_SECONDS = 0.2
DONE, FAILED = 0, 1
RESUMED = "the size will hold when it is resumed"


class ScaleRefused(RuntimeError):
    """The number cannot be asked for; says why and what to do. Nothing was written."""


def scale(
    folder: RunFolder,
    workers: int,
    say: Callable[[str], None],
    wait: bool = True,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Ask for `workers` and, with `wait`, follow the fleet until they serve; returns the exit code.

    ScaleRefused when the run has no fleet that could change. `clock`: seconds since 1970, as the trainer writes them.
    """
    fleet = _fleet(folder, workers)
    begun = clock()
    write_text(folder.path / STAGE / SCALE, json.dumps({"workers": workers}) + "\n")
    if not fleet.running(begun):
        say(f"{folder.path}: the run is not running: it wrote {FLEET} last {fleet.age(begun):.0f} s ago; {RESUMED}")
        return FAILED if wait else DONE
    if not wait:
        say(f"{folder.path}: {workers} rollout worker(s) are asked for, {fleet.target} were")
        return DONE
    return _Watch(folder, workers, say, clock, begun).follow(sleep)


def _fleet(folder: RunFolder, workers: int) -> FleetView:
    """The fleet that is to change."""
    if workers < 1:
        raise ScaleRefused(f"a fleet needs at least one rollout worker, not {workers}; to stop a run, end its process or job")
    if STAGE not in folder.config.stages:
        raise ScaleRefused(f"{folder.path} has no stage {STAGE}, the only one with rollout workers: see its `stages`")
    fleet = read_fleet(folder.path)
    if (fleet is not None and fleet.finished) or folder.manifest(STAGE) is not None:
        raise ScaleRefused(f"{folder.path}: stage {STAGE} is finished and has no rollout workers any more: nothing to do")
    if fleet is None:
        raise ScaleRefused(
            f"{folder.path}: stage {STAGE} has not begun: ask again when it has, or start the run with "
            f"--set rollout.workers={workers}"
        )
    return fleet


@dataclass
class _Watch:
    """Looks at the fleet until it is as asked for. `served`: workers that have been seen serving, or served before."""

    folder: RunFolder
    wanted: int
    say: Callable[[str], None]
    clock: Callable[[], float]
    begun: float
    served: set[str] = field(default_factory=set)

    def follow(self, sleep: Callable[[float], None]) -> int:
        patience = self.folder.config.deadlines.engine_start
        last_line, last_progress, moved = "", None, self.begun
        while True:
            fleet, now = self._look(), self.clock()
            if (line := by_state((own.name, self._state(own)) for own in fleet.workers)) != last_line:
                self.say(f"{now - self.begun:6.1f} s  {self.wanted} wanted: {line}")
                last_line = line
            if self._reached(fleet):
                self.say(f"{self.wanted} rollout worker(s) serve, {now - self.begun:.1f} s after they were asked for")
                return DONE
            if (progress := self._progress(fleet)) != last_progress:
                last_progress, moved = progress, now
            if (trouble := self._trouble(fleet, now, now - moved, patience)) is not None:
                self.say(trouble)
                return FAILED
            sleep(POLL_SECONDS)

    def _look(self) -> FleetView:
        fleet = read_fleet(self.folder.path)
        assert fleet is not None  # it was there, and is only ever replaced
        self.served |= {own.name for own in fleet.workers if own.state == "serving"}
        return fleet

    def _state(self, worker: SeenWorker) -> str:
        """Its state; one that is only being brought the next version of the weights is shown as serving."""
        return "serving" if worker.state == "stale" and worker.name in self.served else worker.state

    def _reached(self, fleet: FleetView) -> bool:
        serving = [self._state(own) == "serving" for own in fleet.workers]
        return fleet.target == self.wanted == len(serving) and all(serving)

    def _progress(self, fleet: FleetView) -> object:
        """Changes when the fleet has come nearer to what is asked for; steps that go on meanwhile are none."""
        left = {own.name: own.holds for own in fleet.workers if own.state == "draining"}
        return fleet.target, {own.name: (self._state(own), own.placed) for own in fleet.workers}, left

    def _trouble(self, fleet: FleetView, now: float, silent: float, patience: float) -> str | None:
        """Why there is nothing to wait for any more."""
        if fleet.finished:
            return f"the run has finished stage {STAGE} before its fleet had the size asked for"
        if not fleet.running(now):
            return f"the run is not running any more (its trainer wrote last {fleet.age(now):.0f} s ago); {RESUMED}"
        if (asked := _asked(self.folder.path)) != self.wanted:
            return f"somebody has asked for {asked} rollout worker(s) since: that is what the run goes by"
        if silent < patience:
            return None
        waiting = [f"{own.name}: {_reason(own)}" for own in fleet.workers if self._state(own) != "serving"]
        if fleet.target != self.wanted:
            waiting.append(f"the trainer has not taken up the request: it still wants {fleet.target}")
        return (
            f"nothing has progressed for {silent:.0f} s (deadlines.engine_start is {patience:g}); the request holds. "
            "Waiting for:\n  " + "\n  ".join(waiting or [f"{self.wanted - len(fleet.workers)} worker(s) that are not there"])
        )


def _reason(worker: SeenWorker) -> str:
    """What a worker that does not serve waits for."""
    if worker.state == "joining" and not worker.placed:
        return "pending: the cluster has had no room for it; see `ray status`"
    return {
        "joining": "joining: its engine is starting",
        "stale": "stale: it is being brought the weights",
        "suspect": "suspect: it has failed or been silent, and must prove itself",
        "draining": f"draining: it still has {worker.holds} prompt(s) to answer",
    }.get(worker.state, worker.state)


def _asked(run_folder: Path) -> int:
    return json.loads((run_folder / STAGE / SCALE).read_text(encoding="utf-8"))["workers"]
