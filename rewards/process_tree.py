"""Ending a process with everything it started, whatever that did to get away.

What holds: descendants are stopped as they are found, until no new one appears, and only then killed: one that forks while
it is looked at is caught. Sessions and process groups do not matter; that an orphan stays a descendant is what
`adopt_orphans` is for. Linux; elsewhere only the process group is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

#: A killed process is gone at once, unless the kernel holds it (a dead network disk): nobody waits for that.
KILL_SECONDS = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent(number: signal.Signals) -> None:
    """The kernel sends this process `number` when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


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


def kill_descendants(pid: int) -> None:
    """Kill all below `pid`, which does not fork meanwhile."""
    below: set[int] = set()
    while new := descendants(pid) - below:
        for found in new:
            _send(found, signal.SIGSTOP)
        below |= new
    for found in below:
        _send(found, signal.SIGKILL)


def kill_tree(process: subprocess.Popen) -> int | None:
    """Kill `process`, which leads a session of its own, and all below it; its exit code, negative for a signal.

    None for one that the kernel does not let go.
    """
    if process.poll() is None:
        _send(process.pid, signal.SIGSTOP)
        kill_descendants(process.pid)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or not ours any more
    try:
        return process.wait(timeout=KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _parent(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):  # it has ended meanwhile
        return None


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
