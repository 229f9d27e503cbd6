"""The fleet of a run as its trainer last described it: STAGE/fleet.json, read by commands that are not the run.

What holds: the file is replaced whole, at every change and at least every second while the trainer lives. So information
that is older than `OLD_SECONDS` means that nobody writes it any more: the run is not running, whatever the file says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.run_folder import RunFolderError

FLEET, STAGE = "fleet.json", "grpo"
#: A trainer that has written nothing for so long is gone; machines' clocks differ by less.
OLD_SECONDS = 30.0
#: The order in which states are shown.
STATES = ("serving", "stale", "suspect", "joining", "draining")
#: More workers of one state are counted, not named.
NAMED = 8


@dataclass(frozen=True)
class SeenWorker:
    """`version`: the last that it has proved. `placed`: the cluster has made room for it."""

    name: str
    state: str
    holds: int
    version: int | None
    placed: bool


@dataclass(frozen=True)
class FleetView:
    """`time`: seconds since 1970 by the clock of the trainer's machine; `doing`: what the trainer does, or how it ended."""

    time: float
    step: int
    steps: int
    doing: str
    target: int
    version: int | None
    workers: tuple[SeenWorker, ...]

    def age(self, now: float) -> float:
        """Seconds since it was written."""
        return max(0.0, now - self.time)

    @property
    def finished(self) -> bool:
        return self.doing == "finished"

    def running(self, now: float) -> bool:
        """Whether there is a trainer that still writes it."""
        return self.doing not in ("finished", "stopped") and self.age(now) <= OLD_SECONDS

    def told(self, now: float) -> str:
        """Of `ladder status`: a line, and one more of the workers while there are any."""
        if not self.running(now):  # a trainer that was killed has left its workers in the file
            doing = "finished" if self.finished else "stopped"
            return f"    {self._at()}, {doing} {self.age(now):.0f} s ago"
        version = "none" if self.version is None else self.version
        return (
            f"    {self._at()}, {self.doing}; weights of version {version}; as of {self.age(now):.0f} s ago\n"
            f"    {self.target} rollout worker(s) wanted: {by_state((own.name, own.state) for own in self.workers)}"
        )

    def _at(self) -> str:
        """People count steps from 1, files from 0; what comes after the last belongs to it."""
        return f"step {min(self.step + 1, self.steps)} of {self.steps}"


def read_fleet(run_folder: Path) -> FleetView | None:
    """What the run's trainer says of its fleet; None when stage 3 has not begun. RunFolderError on a damaged file."""
    path = run_folder / STAGE / FLEET
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        workers = tuple(_worker(own) for own in said["workers"])
        return FleetView(said["time"], said["step"], said["steps"], said["doing"], said["target"], said["version"], workers)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({type(error).__name__}: {error}); a run writes it anew") from None


def _worker(said: Mapping) -> SeenWorker:
    return SeenWorker(said["name"], said["state"], said["holds"], said["version"], said["pid"] is not None)


def by_state(members: Iterable[tuple[str, str]]) -> str:
    """`serving w0 w1, joining w2` of (name, state); many are counted."""
    found: dict[str, list[str]] = {}
    for name, state in members:
        found.setdefault(state, []).append(name)
    order = sorted(found, key=lambda state: STATES.index(state) if state in STATES else len(STATES))
    shown = {state: " ".join(names) if len(names) <= NAMED else str(len(names)) for state, names in found.items()}
    return ", ".join(f"{state} {shown[state]}" for state in order) or "none"
