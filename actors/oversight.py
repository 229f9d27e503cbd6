"""What goes on beside the work, at every turn of the controller: sizes that are asked for are taken, the status is written.

    ladder scale ──STAGE/scale.json──▶ Oversight ──▶ Fleet.scale            Oversight ──▶ STAGE/fleet.json ──▶ ladder status
           trainer ──a step's load──▶ Autoscaler ──┘

What holds: the file is looked at five times a second; it holds for resumed runs too, and outranks `rollout.workers` and the
autoscaler while it is there. One that says nothing usable is told about once and changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.autoscaler import Autoscaler, StepLoad
from actors.fleet import Fleet, State
from actors.fleet_status import FleetStatus
from actors.identities import Identities

SIZE = "scale.json"
LOOK_SECONDS = 0.2


class SizeRequest:
    """What STAGE/scale.json asks for: {"workers": N}."""

    def __init__(self, folder: Path, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._say, self._clock = folder / SIZE, say, clock
        self._looked = float("-inf")
        self._seen: str | None = None

    def look(self) -> int | None:
        """A size that has been asked for since the last look; no look sooner than `LOOK_SECONDS` after another."""
        if self._clock() - self._looked < LOOK_SECONDS:
            return None
        self._looked = self._clock()
        try:
            text = self._path.read_text(encoding="utf-8") if self._path.is_file() else None
        except OSError:  # it is being replaced, or the file system has a moment: there is another look soon
            return None
        except UnicodeDecodeError as error:
            text = str(error)
        if text == self._seen:
            return None
        self._seen = text
        return None if text is None else self._size(text)

    def _size(self, text: str) -> int | None:
        try:
            workers = json.loads(text)["workers"]
        except (ValueError, KeyError, TypeError):
            workers = None
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            self._say(f'grpo: {self._path} is ignored: it must say {{"workers": N}} with N of at least 1')
            return None
        return workers


class Oversight:
    """One turn is one call. `groups`: reward actors, and how many groups each is scoring. `autoscaler`: None for a fleet of
    fixed size."""

    def __init__(
        self, fleet: Fleet, ranks: int, groups: Callable[[], Mapping[str, int]], identities: Identities, status: FleetStatus,
        request: SizeRequest, say: Callable[[str], None], autoscaler: Autoscaler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._ranks, self._groups, self._identities = fleet, ranks, groups, identities
        self._status, self._request, self._autoscaler, self._say, self._clock = status, request, autoscaler, say, clock
        self._begun, self._busy = clock(), 0.0

    def __call__(self) -> float:
        """Seconds within which the next call is wanted."""
        size = self._request.look()
        if size is not None and self._autoscaler is not None:
            self._say(f"grpo: the number of rollout workers is decided by {SIZE} from now on, not by what the steps show")
            self._autoscaler = None
        if size is not None and size != self._fleet.target:
            self._say(f"grpo: {size} rollout worker(s) are wanted from now on ({SIZE}), not {self._fleet.target}")
            self._fleet.scale(size)
        self._identities.look()
        return min(LOOK_SECONDS, self._status.write(self._fleet, self._ranks, self._groups()))

    def step_begins(self) -> None:
        """What follows is another step."""
        self._begun, self._busy = self._clock(), self._fleet.busy_seconds

    def step_ends(self, waited: float) -> None:
        """The step is done, in which the learner waited for groups for so many seconds: it may change the size."""
        if self._autoscaler is None:
            return
        serving = self._fleet.count(State.SERVING, State.STALE, State.SUSPECT)
        load = StepLoad(waited, self._clock() - self._begun, self._fleet.busy_seconds - self._busy, serving)
        if (decision := self._autoscaler.after(load)) is not None:
            self._say(f"grpo: {decision.reason}")
            self._fleet.scale(decision.target)
