"""Who is killed: an actor of a running stage 3, chosen by its id when it is in a state, as the trainer's fleet.json says.

What holds: the kill is a SIGKILL to the process that fleet.json names for that actor. Whether the choice was right is asked
afterwards: the line of fleet.jsonl in which that very actor is lost must say that it was in that state. When it says
another, the state had changed before the trainer noticed: the kill counted, the aim was missed, somebody else is aimed at.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLEET, LIVES = "fleet.json", "fleet.jsonl"
LOOK_SECONDS = 0.02
#: What an actor's last line says.
LOST = ("dead", "lost")
#: Of a kind of actor, where fleet.json lists it and the state in which it works again.
PLACES = {"worker": "workers", "reward": "scorers", "learner": "learners"}
WORKING = {"worker": "serving", "reward": "ready", "learner": "ready"}

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """`fits(actor, fleet)`: whether this entry of fleet.json is wanted. `confirmed(line)`: whether the line in which it is
    lost says the same."""

    kind: str
    fits: Callable[[Line, Line], bool]
    confirmed: Callable[[Line], bool]


def _updating(own: Line) -> bool:
    return own["bringing"] is not None


AIMS: Mapping[str, Aim] = {
    "worker_idle": Aim(
        "worker",
        lambda own, fleet: own["state"] == "serving" and not own["holds"] and fleet["doing"] == "sampling",
        lambda line: line["before"] == "serving" and not line["holds"],
    ),
    "worker_generating": Aim(
        "worker",
        lambda own, fleet: own["state"] == "serving" and own["holds"] > 0,
        lambda line: line["before"] == "serving" and line["holds"] > 0,
    ),
    "worker_updating": Aim(
        "worker",
        lambda own, fleet: own["state"] == "stale" and _updating(own) and fleet["step"] > 0,
        lambda line: line["before"] == "stale" and _updating(line),
    ),
    "worker_joining": Aim("worker", lambda own, fleet: own["state"] == "joining", lambda line: line["before"] == "joining"),
    "reward_scoring": Aim("reward", lambda own, fleet: own["groups"] > 0, lambda line: line["before"] == "scoring"),
    "learner_learning": Aim(
        "learner", lambda own, fleet: fleet["doing"] == "learning", lambda line: line["before"] == "learning"
    ),
}


@dataclass(frozen=True)
class Kill:
    """Who was killed when (unix seconds), and what the trainer did."""

    aim: str
    kind: str
    name: str
    actor: str
    pid: int
    time: float
    step: int
    doing: str
    state: Line


def fleet(stage: Path) -> Line | None:
    """What fleet.json says now; None as long as there is none."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((stage / FLEET).read_text())
    return None


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of records; none when it is not there."""
    *whole, _torn = path.read_text().split("\n") if path.is_file() else [""]
    return [json.loads(line) for line in whole]


def lives(stage: Path) -> list[dict[str, Any]]:
    return lines(stage / LIVES)


def aim_at(name: str, seen: Line, fits: Callable[[Line], bool] = lambda own: True) -> Line | None:
    """The actor that the aim wants, and `fits`, of those whose process is known; the youngest of several."""
    aim = AIMS[name]
    own = [one for one in seen[PLACES[aim.kind]] if one["pid"] is not None and aim.fits(one, seen) and fits(one)]
    return own[-1] if own else None


def end(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def kill(name: str, seen: Line, own: Line, by: Callable[[int], None] = end) -> Kill | None:
    """Have the actor's process killed, now; None when it had ended by itself."""
    now = time.time()
    try:
        by(own["pid"])
    except ProcessLookupError:
        return None
    return Kill(name, AIMS[name].kind, own["name"], own["actor"], own["pid"], now, seen["step"], seen["doing"], own)


def loss_of(killed: Kill, told: Sequence[Line]) -> Line | None:
    """The line in which that actor is lost."""
    own = [line for line in told if line["actor"] == killed.actor and line["after"] in LOST]
    return own[0] if own else None


def hit(killed: Kill, told: Sequence[Line]) -> bool:
    """Whether the actor was lost in the state that was aimed at."""
    loss = loss_of(killed, told)
    return loss is not None and AIMS[killed.aim].confirmed(loss)


def recovered(killed: Kill, told: Sequence[Line]) -> float | None:
    """Seconds from the kill until an actor of the kind works that began afterwards: for a worker until it serves, for the
    others until they are ready. None as long as there is none."""
    began: set[str] = set()
    for line in told:
        if line["kind"] != killed.kind or line["time"] < killed.time:
            continue
        if killed.kind == "learner" and line["name"] != killed.name:
            continue
        if line["after"] in ("joining", "starting"):
            began.add(line["name"])
        elif line["after"] == WORKING[killed.kind] and line["name"] in began:
            return round(line["time"] - killed.time, 3)
    return None
