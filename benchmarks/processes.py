"""The processes that this one has started, with all that they have started: found by parentage, named by id, killed at once.

What holds: who was seen once stays known when its parent ends; a process id that the system uses again is another process.
Killing all stops every one first, until none is left that runs: nothing that is being killed can start anything.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection

import psutil

LOOK_SECONDS = 0.2


class Family:
    """All descendants of this process that began after it was made. A thread looks; use it as a context."""

    def __init__(self) -> None:
        self._before = set(psutil.Process().children(recursive=True))
        self._known: set[psutil.Process] = set()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Family:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            self.alive()

    def alive(self) -> set[psutil.Process]:
        """Who runs now."""
        with self._lock:
            parents: dict[int, list[psutil.Process]] = {}
            for process in psutil.process_iter(["ppid"]):
                parents.setdefault(process.info["ppid"], []).append(process)
            self._known = {own for own in self._known if runs(own)}
            looked, unseen = set[int](), [os.getpid(), *(own.pid for own in self._known)]
            while unseen:
                pid = unseen.pop()
                if pid not in looked:
                    looked.add(pid)
                    children = [own for own in parents.get(pid, ()) if own not in self._before and runs(own)]
                    self._known.update(children)
                    unseen += [own.pid for own in children]
            return set(self._known)

    def kill(self) -> int:
        """SIGKILL to all, as if the machine went down; returns how many there were."""
        stopped = set[psutil.Process]()
        while new := self.alive() - stopped:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            stopped |= new
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(stopped)

    def left(self, seconds: float) -> list[str]:
        """Who still runs when that time is over; returns at once when nobody does."""
        return left(self.alive, seconds)


def left(own: Callable[[], Collection[psutil.Process]], seconds: float) -> list[str]:
    """As `Family.left`, of those that `own` says."""
    until = time.monotonic() + seconds
    while (there := own()) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    return [told(process) for process in there if runs(process)]


def runs(process: psutil.Process) -> bool:
    """Whether it is there and has not ended (a zombie has)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def told(process: psutil.Process) -> str:
    """Id and command, as far as it says."""
    try:
        return f"{process.pid}: {' '.join(process.cmdline())[:120]}"
    except psutil.NoSuchProcess:
        return str(process.pid)


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, top down, so that none can replace another."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
