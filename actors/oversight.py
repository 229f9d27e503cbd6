"""What goes on beside the work, at every turn of the controller: sizes that are asked for are taken, the status is written.

    ladder scale ──STAGE/scale.json──▶ Oversight ──▶ Fleet.scale            Oversight ──▶ STAGE/fleet.json ──▶ ladder status

What holds: the file is looked at once a second; it holds for resumed runs too, and outranks `rollout.workers` while it is
there. One that says nothing usable is told about once and changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.fleet import Fleet
from actors.fleet_status import FleetStatus
from actors.identities import Identities

SIZE = "scale.json"
LOOK_SECONDS = 1.0


class SizeRequest:
    """What STAGE/scale.json asks for: {"workers": N}."""

    def __init__(self, folder: Path, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._say, self._clock = folder / SIZE, say, clock
        self._looked = float("-inf")
        self._seen: str | None = None

    def look(self) -> int | None:
        """A size that has been asked for since the last look, at most one look a second."""
        if self._clock() - self._looked < LOOK_SECONDS:
            return None
        self._looked = self._clock()
        text = self._path.read_text(encoding="utf-8") if self._path.is_file() else None
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
    """One turn is one call. `groups`: reward actors, and how many groups each is scoring."""

    def __init__(
        self, fleet: Fleet, ranks: int, groups: Callable[[], Mapping[str, int]], identities: Identities, status: FleetStatus,
        request: SizeRequest, say: Callable[[str], None],
    ) -> None:
        self._fleet, self._ranks, self._groups, self._identities = fleet, ranks, groups, identities
        self._status, self._request, self._say = status, request, say

    def __call__(self) -> None:
        size = self._request.look()
        if size is not None and size != self._fleet.target:
            self._say(f"grpo: {size} rollout workers are asked for ({SIZE}), there were to be {self._fleet.target}")
            self._fleet.scale(size)
        self._identities.look()
        self._status.write(self._fleet, self._ranks, self._groups())
