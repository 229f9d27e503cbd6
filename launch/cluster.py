"""A Ray cluster on this machine that belongs to one command and ends with it.

What holds: the cluster lives on free ports and in a temporary folder of its own, so that it neither joins nor disturbs
another one; it is stopped by process id, never by name; if this process is killed, even by SIGKILL, the kernel ends the
cluster (every process is tied to its parent on Linux; two agents of Ray look for it for about a minute first). Token
authentication is Ray's own decision and is left on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from launch.progress import Say

OBJECT_STORE_BYTES = 500_000_000
START_SECONDS = 120.0
STOP_SECONDS = 5.0
GRACE_SECONDS = 5.0
SOCKET_PATH_LIMIT = 60  # Ray appends about 45 characters; Unix sockets end at 107
_PR_SET_PDEATHSIG = 1


class ClusterError(RuntimeError):
    """The local cluster did not come up, or a given one cannot be reached; the message says what to do."""


class LocalCluster:
    """`start()` gives the address for `ray.init`; `dashboard_url` is for Ray Jobs; `stop()` ends exactly this one."""

    def __init__(self, say: Say, cpus: int | None = None):
        self.say, self.cpus = say, cpus or os.cpu_count() or 1
        self.address = self.dashboard_url = ""
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None

    def start(self) -> str:
        """Starts the head node and waits until jobs can be submitted. Raises ClusterError."""
        adopt_token()
        self._folder = Path(tempfile.mkdtemp(prefix="ladder-ray-", dir=_short_temporary_folder()))
        gcs, dashboard, client, agent = free_ports(4)
        self.address, self.dashboard_url = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        command = [
            sys.executable,
            "-c",
            "from ray.scripts.scripts import main; main()",
            "start",
            "--head",
            "--block",
            "--node-ip-address",
            "127.0.0.1",
            "--port",
            str(gcs),
            "--dashboard-host",
            "127.0.0.1",
            "--dashboard-port",
            str(dashboard),
            "--ray-client-server-port",
            str(client),
            "--dashboard-agent-listen-port",
            str(agent),
            "--min-worker-port",
            "0",
            "--max-worker-port",
            "0",
            "--num-cpus",
            str(self.cpus),
            "--object-store-memory",
            str(OBJECT_STORE_BYTES),
            "--temp-dir",
            str(self._folder),
            "--disable-usage-stats",
            *self.options(self._folder),
        ]
        self.say(f"starting a local Ray cluster ({self.cpus} CPUs)")
        log = self._folder / "start.log"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # Jobs and workers inherit this: `python` is this environment's, and no address of another cluster leaks in.
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PATH": path}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._wait(log)
        self.say(f"Ray is up at {self.address}, dashboard {self.dashboard_url}")
        return self.address

    def options(self, folder: Path) -> list[str]:
        """More options of `ray start`, for clusters of another kind; `address` is known, `folder` is the cluster's own."""
        return []

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if _jobs_api_answers(self.dashboard_url):
                return
            time.sleep(0.25)
        tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-15:])
        self.stop()
        raise ClusterError(
            f"the local Ray cluster did not come up within {START_SECONDS:.0f} s; its last words:\n  {tail}"
        )

    def stop(self) -> None:
        """Ends the cluster's processes and removes its temporary folder; nothing to do when it never started."""
        process, self._process = self._process, None
        if process is not None:
            members = _descendants(process.pid)
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _end(members)
            self.say("the local Ray cluster is stopped")
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def adopt_token() -> None:
    """Where a token exists and nothing else was said, this process uses it too, as `ray start` does.

    Without this, a cluster that turned authentication on by itself refuses our own submission.
    """
    if os.environ.get("RAY_AUTH_MODE"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    default = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or (named and Path(named).is_file()) or default.is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on right now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _jobs_api_answers(url: str) -> bool:
    """Whether the dashboard serves Ray Jobs; a refusal for lack of a token is an answer too."""
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


def _short_temporary_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= SOCKET_PATH_LIMIT - len("/ladder-ray-12345678") else "/tmp"


def _end_with_parent() -> None:
    """Runs in the child before exec: the kernel ends it when the parent is gone, and its own children with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descendants(pid: int) -> list:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(processes: list) -> None:
    """Ends what outlived the head process: workers detach from it only when it dies."""
    import psutil

    deadline = time.monotonic() + GRACE_SECONDS
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil compares start times: never another process with a re-used id


def _runs(process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
