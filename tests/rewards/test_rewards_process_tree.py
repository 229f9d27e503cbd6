"""Finding and killing what a process has started, real processes all."""

import subprocess
import sys
import time
from pathlib import Path

from rewards.process_tree import descendants, kill_tree

#: Adopts orphans, starts a sleeper and a daemon (a sleeper in a session of its own whose parent has ended).
PARENT = """
import os, subprocess, sys, time
from rewards.process_tree import adopt_orphans
adopt_orphans()
subprocess.Popen(["sleep", "600"])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "600"])
    os._exit(0)
time.sleep(0.3)
print("ready", flush=True)
time.sleep(600)
"""


def ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_tree_is_found_and_killed_daemons_included():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    below = descendants(process.pid)
    sleeping = {pid for pid in below if not ended(pid)}
    assert len(sleeping) == 2
    assert kill_tree(process) == -9
    time.sleep(0.2)
    assert all(ended(pid) for pid in below)
    process.stdout.close()


def test_a_process_that_has_ended_gives_its_code():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"], start_new_session=True)
    process.wait()
    assert kill_tree(process) == 5
