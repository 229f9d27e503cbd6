"""`ladder quickstart`: the tiny ladder on this machine, through Ray Jobs, exactly as a cluster would run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from configs.load import load_config
from launch.jobs import PROJECT, submit_and_follow
from launch.places import run_path, with_absolute_paths
from launch.preflight import check, local_capacity
from launch.progress import Progress
from launch.run import finished
from launch.run_folder import CONFIG, RunFolder
from launch.summary import results_table


def quickstart(
    preset: Literal["tiny", "smoke"], overrides: Sequence[str], say: Progress, accept_changes: bool = False
) -> int:
    """Submits `run configs/PRESET.yaml` and follows it. Returns the job's exit code; a finished run is only reported.

    Raises ConfigError, PreflightError, RunFolderError before any cluster is started, ClusterError when none comes up.
    """
    name = f"configs/{preset}.yaml"
    config = load_config(PROJECT / name, overrides)
    if finished(config, say, accept_changes):
        print(results_table(RunFolder.existing(run_path(config)).summary()), flush=True)
        return 0
    if not os.environ.get("RAY_ADDRESS"):
        check(with_absolute_paths(config), local_capacity(), run_path(config))
    accepts = ["--accept-changes"] if accept_changes else []
    code = submit_and_follow(["run", name, *(part for text in overrides for part in ("--set", text)), *accepts], say)
    if code == 0:
        say(f"all of it took {say.seconds() / 60:.1f} minutes; {_where_the_report_lies(run_path(config))}")
    return code


def _where_the_report_lies(path: Path) -> str:
    """A job on another machine leaves its run there; a folder of that name here may be an older, unfinished one."""
    if (path / CONFIG).is_file() and (folder := RunFolder.existing(path)).finished:
        return f"open {folder.report}"
    return "the report lies on the cluster, under the path in the line `report:` above"
