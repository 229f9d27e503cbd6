"""Ending a process with everything it started, whatever that did to get away.

What holds: the process is stopped before its descendants are counted, and each of them as it is found, until no new one
appears: a process that forks while it is looked at is caught. Sessions and process groups do not matter; that an orphan
stays a descendant is what `adopt_orphans` is for, which the process has called. Linux; elsewhere the group is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent has ended become children of this process, not of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> set[int]:
    """Processes below `pid`, zombies included. Reads /proc once."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir() if sys.platform == "linux" else ():
        if folder.name.isdigit() and (parent := _parent(folder)) is not None:
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = set(), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def kill_tree(process: subprocess.Popen) -> int:
    """Kill `process`, which leads a session of its own, and all below it; its exit code, negative for a signal."""
    if process.poll() is None:
        _send(process.pid, signal.SIGSTOP)
        below: set[int] = set()
        while new := descendants(process.pid) - below:
            for pid in new:
                _send(pid, signal.SIGSTOP)
            below |= new
        for pid in below:
            _send(pid, signal.SIGKILL)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the whole group is gone
    return process.wait()


def _parent(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):  # it has ended meanwhile
        return None


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
