"""The cases of the chaos matrix: a real run of stage 3 each, to which something is done; it has to end well all the same.

Who waits for whom: this process for the run, looking at its files; a run that leaves nothing new in them for
`SILENCE_SECONDS` is ended, with all it has started, and the case has failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from actors.deadlines import DeadlineExceeded, Silence
from benchmarks.digit_run import PROJECT, command, prepare, small
from benchmarks.processes import Family, kill_tree, left
from benchmarks.victims import (
    LOOK_SECONDS, LOST, Kill, Line, aim_at, end, fleet, hit, kill, lines, lives, loss_of, recovered,
)

Found = TypeVar("Found")
#: Of a run, in its files; it has to start an engine and a learner on two cores.
SILENCE_SECONDS = 180.0
#: What may take to end, once it was told to.
LEAVE_SECONDS = 90.0
#: Kills of one aim before it is given up: each may come when the state has just changed.
MOST_ATTEMPTS = 8
PROMPTS = 3
#: Seconds of a reward: nine make up most of a step, and a worker that has answered has nothing to do meanwhile.
REWARD_SECONDS = 0.15
#: Deaths that a run must survive: as many as wanted, not as many as are sensible.
FAILURES = {"workers": 100, "rewards": 100, "learner": 100, "attempts": 3}


class RunEnded(RuntimeError):
    """The run was over before that could happen."""


@dataclass
class Shown:
    """What a case has shown: kills that hit, how often they were tried, seconds until the run had recovered, and until all
    that had to end with what was killed was gone."""

    kills: list[Kill] = field(default_factory=list)
    attempts: int = 0
    seconds: list[float] = field(default_factory=list)
    gone_after_seconds: list[float] = field(default_factory=list)


@dataclass
class Run:
    """A run of stage 3 of this folder that somebody has started; `ended` says whether it is over."""

    stage: Path
    ended: Callable[[], bool]

    def until(self, what: str, find: Callable[[], Found | None]) -> Found:
        """What `find` finds, looking all the time. RunEnded, DeadlineExceeded."""
        silence = Silence(SILENCE_SECONDS)
        while True:
            over = self.ended()
            if (found := find()) is not None:
                return found
            if over:
                raise RunEnded(f"the run of {self.stage} ended before {what}")
            silence.observe(self._progress())
            if silence.exceeded:
                raise DeadlineExceeded(f"waited for: {what}. {self.stage} has had nothing new for {SILENCE_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)

    def _progress(self) -> tuple[int, ...]:
        names = ("metrics.jsonl", "fleet.jsonl", "traces/groups.jsonl")
        return tuple(path.stat().st_size for name in names if (path := self.stage / name).is_file())

    def until_over(self) -> None:
        self.until("its end", lambda: True if self.ended() else None)

    def seen(self, fits: Callable[[Line], bool]) -> Callable[[], Line | None]:
        """For `until`: fleet.json, once it is as wanted."""

        def look() -> Line | None:
            now = fleet(self.stage)
            return now if now is not None and fits(now) else None

        return look

    def steps(self) -> int:
        """Of the last line of metrics.jsonl; 0 when there is none."""
        told = lines(self.stage / "metrics.jsonl")
        return told[-1]["step"] + 1 if told else 0


@contextmanager
def started(folder: Path, **environment: str) -> Iterator[tuple[Run, subprocess.Popen]]:
    """The command of the folder in a process group of its own; its output goes to FOLDER/log. What is left is killed."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            command(folder), cwd=PROJECT, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield Run(folder / "grpo", lambda: process.poll() is not None), process
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
        process.wait()


def folder_of(
    place: Path, model: Path, steps: int, reward_seconds: float = REWARD_SECONDS, **changes: dict[str, Any]
) -> Path:
    """A folder with the work of a run of that many steps."""
    changes = {"failures": FAILURES} | changes | {"grpo": {"steps": steps} | changes.get("grpo", {})}
    prepare(place, small(changes, reward_seconds), model)
    return place


def finish(run: Run, process: subprocess.Popen) -> None:
    """Wait for the run's end, which must be a good one."""
    run.until_over()
    assert process.returncode == 0, f"the run of {run.stage} ended with {process.returncode}: see its log"


def kill_one(
    run: Run, aim: str, shown: Shown, fits: Callable[[Line], bool] = lambda own: True, by: Callable[[int], None] = end
) -> None:
    """Kill who is aimed at, and `fits`, until one was hit; returns when the trainer has replaced it."""

    def look() -> Kill | None:
        seen = fleet(run.stage)
        own = aim_at(aim, seen, fits) if seen is not None else None
        return kill(aim, seen, own, by) if own is not None else None

    for _ in range(MOST_ATTEMPTS):
        killed = run.until(f"{aim} was there to be killed", look)
        shown.attempts += 1
        seconds = run.until(f"{killed.name} was replaced", lambda: recovered(killed, lives(run.stage)))
        assert loss_of(killed, lives(run.stage)) is not None, f"nobody noticed that {killed} was killed"
        if hit(killed, lives(run.stage)):
            shown.kills.append(killed)
            shown.seconds.append(seconds)
            return
        run.until("all are back", run.seen(whole))
    raise AssertionError(f"{aim} was in another state every one of the {MOST_ATTEMPTS} times that it was killed")


def whole(seen: Line) -> bool:
    """Whether everybody works."""
    working = [own for own in seen["workers"] if own["state"] in ("serving", "stale")]
    return len(working) == seen["target"] and seen["doing"] in ("sampling", "learning", "publishing")


def actors(
    place: Path, model: Path, family: Family, repeat: int, *, aim: str, steps: int, name: str | None = None, **changes: Any
) -> Shown:
    """One actor of a kind after another (the one of that name), each when all others work again.

    A worker that joins is made by killing one that serves, but for the first.
    """
    shown, folder = Shown(), folder_of(place, model, steps, **changes)
    with started(folder) as (run, process):
        for turn in range(repeat):
            if turn or aim != "worker_joining":
                run.until("all are back", run.seen(whole))
            if turn and aim == "worker_joining":
                kill_serving(run)
            kill_one(run, aim, shown, lambda own: name in (None, own["name"]))
        finish(run, process)
    shown.gone_after_seconds.append(gone_after(family.alive))
    return shown


def kill_serving(run: Run) -> None:
    """Kill any worker that serves; returns when that is noticed."""
    seen = run.until("somebody serves", run.seen(lambda now: any(own["state"] == "serving" for own in now["workers"])))
    actor, pid = next((own["actor"], own["pid"]) for own in seen["workers"] if own["state"] == "serving")
    os.kill(pid, signal.SIGKILL)

    def noticed() -> bool | None:
        return True if any(line["actor"] == actor and line["after"] in LOST for line in lives(run.stage)) else None

    run.until("its loss is noticed", noticed)


def gone_after(own: Callable[[], Collection[psutil.Process]]) -> float:
    """Seconds until none of them is left. AssertionError names those who are there for too long."""
    begun = time.monotonic()
    there = left(own, LEAVE_SECONDS)
    assert not there, f"still running {LEAVE_SECONDS:.0f} s after the end: {there}"
    return round(time.monotonic() - begun, 3)
