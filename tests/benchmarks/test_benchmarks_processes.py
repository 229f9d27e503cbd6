"""Processes that this one has started, and theirs: found when their parent is gone, ended all at once, others left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.processes import Family, kill_tree, runs

#: Starts a child that sleeps, tells its id, and waits or ends.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


def parent(seconds: float) -> tuple[subprocess.Popen, psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(seconds)], stdout=subprocess.PIPE, text=True)
    return process, psutil.Process(int(process.stdout.readline()))


def test_a_family_knows_those_whose_parent_has_ended_and_kills_all(tmp_path: Path) -> None:
    stranger, of_stranger = parent(600)
    try:
        with Family() as family:
            process, child = parent(0.5)
            assert child in family.alive()
            process.wait()
            assert family.alive() == {child} and family.left(0) == [f"{child.pid}: {' '.join(child.cmdline())[:120]}"]
            second, grandchild = parent(600)
            assert family.kill() == 3
            second.wait()
            assert family.left(10) == [] and not runs(child) and not runs(grandchild)
        assert runs(of_stranger)
    finally:
        kill_tree(stranger.pid)
        stranger.wait()
    psutil.wait_procs([of_stranger], timeout=10)
    assert not runs(of_stranger)
