"""Submits a command through Ray Jobs, follows its log, and reports its end as an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.cluster import ClusterError, LocalCluster, adopt_token
from launch.interrupts import terminations_interrupt
from launch.places import HOME_VARIABLE
from launch.progress import Say

PROJECT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 30.0
INTERRUPTED = 130
#: Ray's loggers that list every file left out of the upload and every closed connection.
CHATTY = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)


def submit_and_follow(arguments: Sequence[str], say: Say, address: str | None = None) -> int:
    """`python -m launch ARGUMENTS` as a Ray job, its log on the terminal. Exit code 0, 1 (failed) or 130 (stopped).

    Without an address (RAY_ADDRESS counts as one) a local cluster is started and stopped again. Raises ClusterError.
    """
    adopt_token()
    address = address or os.environ.get("RAY_ADDRESS") or None
    with terminations_interrupt():
        if address is not None:
            return _follow(address, ["python", "-m", "launch", *arguments], home_variable(own_cluster=False), say)
        cluster = LocalCluster(say)
        try:
            cluster.start()
            command = [sys.executable, "-m", "launch", *arguments]
            return _follow(cluster.dashboard_url, command, home_variable(own_cluster=True), say)
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            cluster.stop()


def home_variable(own_cluster: bool) -> dict[str, str]:
    """HOME of the job's relative paths: what the user set; else, on a cluster of our own, the current directory.

    The machines of any other cluster need not have our current directory: the job finds its own HOME there.
    """
    if given := os.environ.get(HOME_VARIABLE):
        return {HOME_VARIABLE: given}
    return {HOME_VARIABLE: str(Path.cwd())} if own_cluster else {}


def _follow(address: str, command: Sequence[str], variables: Mapping[str, str], say: Say) -> int:
    from ray.job_submission import JobStatus, JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray Jobs at {address} cannot be used: {error}\nCheck RAY_ADDRESS; with token authentication it needs "
            "RAY_AUTH_MODE=token and the token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)."
        ) from None
    job = client.submit_job(entrypoint=shlex.join(command), runtime_env=runtime_environment(variables))
    say(f"submitted as Ray job {job}; follow it elsewhere with: ray job logs --address {address} -f {job}")
    try:
        asyncio.run(_print_log(client, job))
        status = _final_status(client, job)
    except KeyboardInterrupt:
        say(f"interrupted: stopping job {job} (the run resumes when the same command is started again)")
        client.stop_job(job)
        _final_status(client, job, STOP_SECONDS)
        return INTERRUPTED
    if status == JobStatus.SUCCEEDED:
        say(f"job {job} succeeded")
        return 0
    message = client.get_job_info(job).message or ""
    say(f"job {job} {str(status.value).lower()}: {message.splitlines()[0] if message else 'no message'}")
    return 1


def runtime_environment(variables: Mapping[str, str]) -> dict:
    """Runtime environment of our jobs: the project as working directory (see .rayignore) and the given variables."""
    return {"working_dir": str(PROJECT), "env_vars": dict(variables)}


async def _print_log(client, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _final_status(client, job: str, limit: float = STOP_SECONDS):
    """The job's last status; the log ends a moment before the status does."""
    deadline = time.monotonic() + limit
    while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.2)
    return status
