"""What a run tells others about its actors while it goes on: who they are and what they do now, and what became of them.

    STAGE/fleet.json    now: replaced at every change, and every second while the trainer lives
    STAGE/fleet.jsonl   one line for every change of an actor's life, also of earlier starts of the run

What holds: a reader sees a whole file or none; `time` tells how old it is. A worker's way through STALE at every new version
is left out of the lines: it is the course of things.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from actors.fleet import Change, Fleet, State
from actors.identities import Identities, Identity
from data.stage_files import write_text

NOW, LIVES = "fleet.json", "fleet.jsonl"
#: Least seconds between two writings of what has changed, and most while nothing does.
SHORTEST, LONGEST = 0.2, 1.0
Doing = Literal["starting", "sampling", "learning", "publishing", "saving", "exporting", "finished", "stopped"]
Kind = Literal["worker", "learner", "reward"]


class FleetStatus:
    """The files of one run of `steps` steps; `pid` is the trainer's."""

    def __init__(
        self,
        folder: Path,
        steps: int,
        pid: int,
        identities: Identities,
        clock: Callable[[], float] = time.time,
        pace: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: seconds since 1970, for readers; `pace`: of a clock that nobody sets."""
        self._folder, self._steps, self._pid, self._identities = folder, steps, pid, identities
        self._clock, self._pace = clock, pace
        self.step = 0
        self.doing: Doing = "starting"
        self._served: set[str] = set()
        self._shown: dict[str, Any] | None = None
        self._written = float("-inf")

    def worker(self, change: Change) -> None:
        """A rollout worker has changed."""
        name, before, after = change.worker, change.before, change.after
        course = {before, after} == {State.SERVING, State.STALE} and name in self._served
        if after is State.SERVING:
            self._served.add(name)
        if not course:
            self.life("worker", name, before, after, change.reason, holds=change.holds, bringing=change.bringing)

    def life(self, kind: Kind, name: str, before: str | None, after: str, reason: str = "", **more: Any) -> None:
        """Append a line; `more` are further keys of it."""
        own = self._identities.of(name)
        line = {
            "time": self._clock(), "step": self.step, "kind": kind, "name": name, "actor": own.actor if own else None,
            "before": before, "after": after, **more, "reason": reason,
        }
        with (self._folder / LIVES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write(self, fleet: Fleet, ranks: int, groups: Mapping[str, int]) -> float:
        """Write what is now, unless that was done a moment ago; returns the seconds until there may be something to write.
        `groups`: reward actors, and how many each is scoring."""
        now = self._pace()
        if (early := self._written + SHORTEST - now) > 0:
            return early
        shown = {
            "pid": self._pid, "step": self.step, "steps": self._steps, "doing": self.doing, "target": fleet.target,
            "version": fleet.version, "workers": self._workers(fleet),
            "learners": [{"name": name, **self._who(name)} for name in rank_names(ranks)],
            "scorers": [{"name": name, "groups": count, **self._who(name)} for name, count in groups.items()],
        }
        if shown != self._shown or now - self._written >= LONGEST:
            write_text(self._folder / NOW, json.dumps({"time": self._clock(), **shown}) + "\n", durable=False)
            self._shown, self._written = shown, now
        return LONGEST

    def _workers(self, fleet: Fleet) -> Sequence[dict[str, Any]]:
        return [
            {
                "name": worker.name, "state": worker.state.value, "holds": len(worker.holds), "version": worker.version,
                "bringing": worker.bringing, **self._who(worker.name),
            }
            for worker in fleet.workers
        ]

    def _who(self, name: str) -> dict[str, Any]:
        own = self._identities.of(name) or Identity("")
        return {"actor": own.actor, "pid": own.pid, "node": own.node}

    def close(self, doing: Literal["finished", "stopped"]) -> None:
        """The last word: nobody of the run is there any more."""
        shown = {"pid": self._pid, "step": self.step, "steps": self._steps, "doing": doing, "target": 0, "version": None}
        nobody: dict[str, Any] = {"workers": [], "learners": [], "scorers": []}
        write_text(self._folder / NOW, json.dumps({"time": self._clock(), **shown, **nobody}) + "\n")


def rank_names(ranks: int) -> tuple[str, ...]:
    return tuple(f"rank {rank}" for rank in range(ranks))
