"""The cases of the chaos matrix in which more than an actor is lost: the trainer, its Ray job, a node; and Ctrl-C.

What holds: what a kill or an interruption has to take with it is known by id before, and must be gone soon after.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import join
from typing import Any

import psutil

from benchmarks.chaos_cases import (
    LEAVE_SECONDS,
    MOST_ATTEMPTS,
    Run,
    RunEnded,
    Shown,
    finish,
    folder_of,
    gone_after,
    kill_one,
    started,
    whole,
)
from benchmarks.digit_run import PROJECT, command
from benchmarks.processes import Family, kill_tree, runs
from benchmarks.victims import Line
from launch.cluster import LocalCluster, free_ports

#: CPUs of the node that dies: room for a worker, and for the replacement elsewhere when it is gone.
NODE_CPUS, HEAD_CPUS = 1, 2
#: Between two questions to the server of Ray Jobs.
ASK_SECONDS = 0.5


def learning(run: Run, first: int) -> Line:
    """fleet.json of a moment at which the learner works on step `first` or a later one."""
    return run.until("the learner works", run.seen(lambda now: now["doing"] == "learning" and now["step"] >= first))


def until_new_step(run: Run, before: int) -> None:
    """A step that had no line when there were `before`."""
    run.until("a new step", lambda: True if run.steps() > before else None)


def trainer(
    place: Path, model: Path, family: Family, repeat: int, *, steps: int, interrupt: bool, **changes: Any
) -> Shown:
    """The trainer's own process is killed, or interrupted, while the learner works; then the same command at once.

    After an interruption nothing runs any more. After a kill, two agents of the dead raylet try for a minute to reach its
    cluster, which is gone as well: they have to be gone at the end.
    """
    shown, folder, ended, before = Shown(), folder_of(place, model, steps, **changes), 0.0, 0
    for turn in range(repeat + 1):
        with started(folder) as (run, process):
            if turn:
                until_new_step(run, before)
                shown.seconds.append(round(time.time() - ended, 3))
            if turn == repeat:
                finish(run, process)
                continue
            seen = learning(run, run.steps() + 1)
            assert seen["pid"] == process.pid, f"fleet.json names {seen['pid']} as the trainer, not {process.pid}"
            before, ended = run.steps(), time.time()
            shown.attempts += 1
            if interrupt:
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.kill()
            code = process.wait(LEAVE_SECONDS)
            assert code == (130 if interrupt else -signal.SIGKILL), f"the run ended with {code}"
        if interrupt:
            shown.gone_after_seconds.append(gone_after(family.alive))
    shown.gone_after_seconds.append(gone_after(family.alive))
    return shown


def job(place: Path, model: Path, family: Family, repeat: int, *, steps: int, stop: bool, **changes: Any) -> Shown:
    """The run as a Ray job of a cluster that stays: its driver is killed, or the job stopped; then it is submitted again."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    shown, folder, ended, before = Shown(), folder_of(place, model, steps, **changes), 0.0, 0
    environment = {"env_vars": {"PYTHONPATH": str(PROJECT)}}  # benchmarks are not sent with a job
    with LocalCluster(print) as cluster:
        client = JobSubmissionClient(cluster.dashboard_url)
        for turn in range(repeat + 1):
            name = client.submit_job(entrypoint=join(command(folder)), runtime_env=environment)
            run = Run(folder / "grpo", seldom(lambda name=name: client.get_job_status(name).is_terminal()))
            if turn:
                until_new_step(run, before)
                shown.seconds.append(round(time.time() - ended, 3))
            if turn == repeat:
                run.until_over()
                assert client.get_job_status(name) == JobStatus.SUCCEEDED, client.get_job_logs(name)[-2000:]
                continue
            seen = learning(run, run.steps() + 1)
            own, before, ended = members(seen), run.steps(), time.time()
            shown.attempts += 1
            if stop:
                client.stop_job(name)
            else:
                os.kill(seen["pid"], signal.SIGKILL)
            run.until_over()
            wanted = JobStatus.STOPPED if stop else JobStatus.FAILED
            assert client.get_job_status(name) == wanted, f"the job is {client.get_job_status(name)}, not {wanted}"
            shown.gone_after_seconds.append(gone_after(lambda: {one for one in own if runs(one)}))
    shown.gone_after_seconds.append(gone_after(family.alive))
    return shown


def seldom(ask: Callable[[], bool]) -> Callable[[], bool]:
    """The same question, asked again only after a while: its answer comes from a server."""
    answer, asked = False, float("-inf")

    def known() -> bool:
        nonlocal answer, asked
        if time.monotonic() - asked >= ASK_SECONDS:
            answer, asked = ask(), time.monotonic()
        return answer

    return known


def members(seen: Line) -> set[psutil.Process]:
    """The trainer and every actor that fleet.json names, with all they have started."""
    actors = [own["pid"] for kind in ("workers", "learners", "scorers") for own in seen[kind] if own["pid"] is not None]
    found = {psutil.Process(pid) for pid in [seen["pid"], *actors]}
    return found.union(*(own.children(recursive=True) for own in found))


def node(place: Path, model: Path, family: Family, repeat: int, *, steps: int, **changes: Any) -> Shown:
    """A second raylet with a worker on it is killed, with all it has started, while that worker generates."""
    shown = Shown()
    for turn in range(repeat):
        while not _node_killed(folder_of(place / str(turn), model, steps, **changes), shown):
            assert shown.attempts < MOST_ATTEMPTS * (turn + 1), f"no kill of a node has hit in {shown.attempts} attempts"
            shutil.rmtree(place / str(turn))
        shown.gone_after_seconds.append(gone_after(family.alive))
    return shown


def _node_killed(folder: Path, shown: Shown) -> bool:
    """False when Ray has placed every worker on the first node, as it may, and when the worker did something else in the
    moment of the kill: there is no second such node in a run."""
    with LocalCluster(print, HEAD_CPUS) as cluster, second_node(cluster.address) as raylet:
        head = head_node(cluster.dashboard_url)
        with started(folder, RAY_ADDRESS=cluster.address) as (run, process):
            seen = run.until("all are there", run.seen(whole))
            if all(own["node"] == head for own in seen["workers"]):
                shown.attempts += 1
                return False
            hits = len(shown.kills)
            with suppress(RunEnded):
                kill_one(run, "worker_generating", shown, lambda own: own["node"] != head, lambda _: kill_tree(raylet.pid))
            finish(run, process)
    return len(shown.kills) > hits


@contextmanager
def second_node(address: str) -> Iterator[subprocess.Popen]:
    """Another raylet of the cluster on this machine."""
    line = ["start", "--address", address, "--block", "--node-ip-address", "127.0.0.1", "--num-cpus", str(NODE_CPUS),
            "--object-store-memory", "100000000", "--dashboard-agent-listen-port", str(*free_ports(1)),
            "--min-worker-port", "0", "--max-worker-port", "0", "--disable-usage-stats"]
    program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *line]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(program, cwd=PROJECT, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def head_node(dashboard: str) -> str:
    """Its id, once two nodes are there."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import ServerUnavailable

    until = time.monotonic() + LEAVE_SECONDS
    while time.monotonic() < until:
        with suppress(ServerUnavailable):  # a dashboard may be busy for a moment
            nodes = [own for own in list_nodes(address=dashboard) if own.state == "ALIVE"]
            if len(nodes) > 1:
                return next(own.node_id for own in nodes if own.is_head_node)
        time.sleep(0.5)
    raise AssertionError(f"the second node has not joined within {LEAVE_SECONDS:.0f} s")
