"""The local cluster: its own, with and without a token, gone afterwards, whatever ends the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.cluster import adopt_token, free_ports
from launch.jobs import runtime_environment

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from launch import jobs
from launch.cluster import LocalCluster
jobs.INTERRUPTED = 130
command = sys.argv[1:]
original = jobs._follow
jobs._follow = lambda address, _, variables, say: original(address, command, variables, say)
sys.exit(jobs.submit_and_follow([], print))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    dropped = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "LADDER_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept | {"HOME": str(home), "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"} | more


def cluster_processes(temporary: Path) -> list[int]:
    """Ids of processes that work in the folder of a cluster."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(temporary) in " ".join(p.info["cmdline"] or [])]


@pytest.fixture
def temporary():
    import tempfile

    with tempfile.TemporaryDirectory(prefix="t-") as folder:  # short: sockets live below it
        yield Path(folder)


def test_ports_are_free_and_different():
    ports = free_ports(8)
    assert len(set(ports)) == 8 and all(1024 <= port < 65536 for port in ports)


@pytest.mark.parametrize(
    "variables, file, mode",
    [
        ({}, False, None),
        ({}, True, "token"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "disabled"),
        ({"RAY_AUTH_TOKEN": "t"}, False, "token"),
    ],
)
def test_a_token_that_exists_is_used_unless_told_otherwise(monkeypatch, tmp_path, variables, file, mode):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    adopt_token()
    assert os.environ.get("RAY_AUTH_MODE") == mode
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def test_jobs_carry_the_project_and_their_home():
    found = runtime_environment({"LADDER_HOME": "/h"})
    assert found == {"working_dir": str(PROJECT), "env_vars": {"LADDER_HOME": "/h"}}


@pytest.mark.engine
@pytest.mark.parametrize("token", [False, True])
def test_submission_follows_the_log_and_passes_the_exit_code(temporary, token):
    if token:
        (temporary / ".ray").mkdir()
        (temporary / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    code = "import os, sys; from launch.places import home; print('runs go to', home());"
    code += "sys.exit(3 if os.path.exists('tests') else 0)"
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, sys.executable, "-c", code],
        cwd=temporary,
        env=environment(temporary, TMPDIR=str(temporary)),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"runs go to {temporary}" in result.stdout and "succeeded" in result.stdout
    assert cluster_processes(temporary) == []
    assert not list(temporary.glob("ladder-ray-*"))
    assert (temporary / ".ray").exists() == token  # no token was left behind in the home folder


@pytest.mark.engine
def test_interrupting_stops_the_job_and_the_cluster(temporary):
    code = "import time; print('running', flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, sys.executable, "-c", code],
        cwd=temporary,
        env=environment(temporary, TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("running"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130, "".join(lines)
    assert cluster_processes(temporary) == []


@pytest.mark.engine
def test_a_killed_command_leaves_no_cluster(temporary):
    code = "import time; print('running', flush=True); time.sleep(100)"  # it outlives its cluster
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, sys.executable, "-c", code],
        cwd=temporary,
        env=environment(temporary, TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("running"):
            process.kill()
            break
    process.wait(30)
    deadline = time.monotonic() + 90
    while cluster_processes(temporary) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert cluster_processes(temporary) == []
