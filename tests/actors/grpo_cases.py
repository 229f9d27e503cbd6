"""What the runs of stage 3 in the tests share: rows, and the processes of a run."""

from __future__ import annotations

import contextlib

import psutil

from data.types import Box, Example


def row(index: int, media: tuple[str, ...] = ("a.png",), located: bool = False) -> Example:
    if located:
        return Example(
            id=f"train/g/{index}",
            question_id=index,
            data_type="single_image",
            question="Where is the chair?",
            question_type="object localization",
            media=media,
            boxes=(Box("chair", (1.0, 2.0, 30.0, 40.0)),),
        )
    kind = {1: "single_image", 2: "multi_view", 4: "video"}[len(media)]
    return Example(
        id=f"train/s/{index}",
        question_id=index,
        data_type=kind,
        question="How many chairs?",
        question_type="object count",
        media=media,
        answer="2",
    )


def processes() -> set[int]:
    """Engines, actors and rewards below this process; those of another run beside the tests are not theirs."""
    marks = ("EngineCore", "ray::RolloutWorker", "ray::Learner", "ray::RewardActor", "rewards.supervisor")
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(mark in " ".join(process.cmdline()) for mark in marks):
                found.add(process.pid)
    return found


def left(pids: set[int]) -> set[int]:
    """Those that still run when ten seconds have passed."""
    there = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            there.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(there, timeout=10)
    found = set()
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found
