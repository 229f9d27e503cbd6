"""`ladder data build`: a data folder from rooms or scenes, on the cores of this machine or on a cluster.

What holds: the folder is written whole; the same command goes on where an interrupted one stopped. Few scenes are built
in this process, many on Ray: on the cluster of RAY_ADDRESS, else on one of this command's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.load import load_config
from configs.schema import RunConfig
from launch.data_checks import data_problems
from launch.places import home, with_absolute_paths
from launch.preflight import model_problems
from launch.problems import PreflightError
from launch.progress import Progress
from launch.run_folder import RunFolderError


def add_command(data: argparse._SubParsersAction, settings: Callable[[argparse.ArgumentParser], None]) -> None:
    """The action of `ladder data`; `settings` adds the options of every command that reads a configuration."""
    build = data.add_parser("build", help="write a data folder")
    build.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", help="configuration whose data section and seed count"
    )
    build.add_argument(
        "--source", type=Path, metavar="PATH", help="instead of data.source; posed frames, unless data.source_format says else"
    )
    build.add_argument("--out", type=Path, metavar="DIR", help="folder to write, not there yet (default: datasets/NAME)")
    build.add_argument(
        "--workers", type=int, metavar="N", help="scenes built at a time; 1: no Ray (default: 1 for few, all CPUs for many)"
    )
    settings(build)
    build.set_defaults(command=_build)


def _build(options: argparse.Namespace) -> int:
    if options.config is None and options.source is None:
        raise RunFolderError("ladder data build: give a CONFIG, or --source DIR, to build from")
    if options.workers is not None and options.workers < 1:
        raise RunFolderError("ladder data build: --workers must be at least 1")
    overrides = options.overrides + ([f"data.source={json.dumps(str(options.source))}"] if options.source else [])
    config = load_config(options.config, overrides) if options.config else _defaults(overrides)
    out = options.out or home() / "datasets" / config.name
    if out.exists():
        raise RunFolderError(f"{out} exists already; a data folder is written whole: choose another --out or remove it")
    resolved = with_absolute_paths(config)
    problems = [*model_problems(resolved), *data_problems(resolved)]
    if problems:
        raise PreflightError(problems)
    build_here(resolved, out.absolute(), options.workers, Progress())
    return 0


def build_here(config: RunConfig, out: Path, workers: int | None, say: Progress) -> None:
    """Builds `out`, with a cluster of its own where `workers`, or the number of scenes, ask for one and none is given."""
    from data.build import MANY_SCENES, scenes_to_build
    from launch.run import connected
    from launch.stages import build_data

    if workers == 1 or (workers is None and scenes_to_build(config.data, config.seed) < MANY_SCENES):
        build_data(config, out, say, 1)
        return
    with connected(config, say) as capacity:
        if workers is not None and workers > capacity.cpus:
            say(f"note: {workers} workers are wanted, {capacity.owner} has {capacity.cpus:g} CPUs: no more run at a time")
        build_data(config, out, say, workers)


def _defaults(overrides: Sequence[str]) -> RunConfig:
    """The schema's defaults with overrides: what `--source` uses without a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "defaults.yaml"
        empty.write_text("{}\n", encoding="utf-8")
        return load_config(empty, overrides)
