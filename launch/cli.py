"""The command line `ladder` (also `python -m launch`).

Exit codes: 0 done; 1 the work failed, or a check found a fault; 2 refused before any stage was started (bad arguments,
configuration, inputs, too few resources), with one message on standard error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.load import ConfigError, load_config
from configs.schema import STAGES
from data.build_folder import BuildRefused
from data.trace_drafts import TracesRefused
from launch import data_build, data_frames
from launch.data_check import DataRefused
from launch.fleet_view import STAGE, read_fleet
from launch.places import home, with_absolute_paths
from launch.problems import PreflightError
from launch.progress import Progress
from launch.reward_findings import RewardRefused
from launch.run_folder import RunFolder, RunFolderError
from launch.scale import ScaleRefused, scale
from launch.summary import results_table

HOUSE = ("actors", "configs", "data", "evaluation", "grpo", "launch", "models", "rewards", "sft", "viewer")
REFUSALS = (BuildRefused, ConfigError, DataRefused, PreflightError, RewardRefused, RunFolderError, ScaleRefused, TracesRefused)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except REFUSALS as error:
        print(f"ladder: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ladder: interrupted; the same command resumes", file=sys.stderr)
        return 130
    except Exception as error:  # the process boundary: errors of the house explain themselves, others are defects
        if type(error).__module__.split(".")[0] not in HOUSE:
            raise
        print(f"ladder: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ladder", description="Progressive training of vision-language models for spatial reasoning."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quickstart = commands.add_parser("quickstart", help="the whole ladder on this machine, through Ray Jobs")
    quickstart.add_argument(
        "--smoke", action="store_true", help="every part once, in the shortest time; no meaningful numbers"
    )
    quickstart.add_argument("--seed", type=int, help="seed of data, training and sampling")
    _settings(quickstart)
    _name(quickstart)
    _accepting(quickstart)
    quickstart.set_defaults(command=_quickstart)

    run = commands.add_parser("run", help="run the stages of a configuration in this process (what a Ray job executes)")
    run.add_argument("config", metavar="CONFIG", type=Path)
    run.add_argument("--stage", action="append", default=[], choices=STAGES, help="only this stage; may be repeated")
    _settings(run)
    _name(run)
    _accepting(run)
    run.set_defaults(command=_run)

    status = commands.add_parser("status", help="what a run has done so far")
    status.add_argument("run", metavar="RUN", help="run folder, or its name below runs/")
    status.set_defaults(command=_status)

    scaled = commands.add_parser("scale", help="another number of rollout workers, while the run trains")
    scaled.add_argument("run", metavar="RUN", help="run folder, or its name below runs/")
    scaled.add_argument("workers", metavar="N", type=int, help="rollout workers from now on, for resumed runs too")
    scaled.add_argument("--no-wait", action="store_true", help="ask and return; do not wait until they serve")
    scaled.set_defaults(command=_scale)

    data = commands.add_parser("data", help="data folders").add_subparsers(required=True, metavar="ACTION")
    data_build.add_command(data, _settings)
    data_frames.add_command(data)
    _data_commands(data)

    traces = data.add_parser("traces", help="cold-start rows written by a model and kept by the rewards (docs/data.md)")
    traces.add_argument("config", metavar="CONFIG", type=Path)
    traces.add_argument("--data", type=Path, metavar="DIR", help="the data folder whose training rows are asked (data.path)")
    traces.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="data folder to write; the same command goes on"
    )
    _settings(traces)
    traces.set_defaults(command=_traces)

    reward = commands.add_parser("reward", help="rewards of your own").add_subparsers(required=True, metavar="ACTION")
    _reward_commands(reward)
    return parser


def _data_commands(data: argparse._SubParsersAction) -> None:
    check = data.add_parser("check", help="everything that is wrong with a data folder (docs/data.md)")
    check.add_argument("folder", metavar="DIR", type=Path, help="a data folder, or the released files as they come")
    check.add_argument("--against", type=Path, metavar="FILE", help="scene ids, one per line, that must not be trained on")
    check.add_argument("--limit", type=int, default=20, metavar="N", help="most lines of a kind (default 20; 0: all)")
    check.set_defaults(command=_check_data)

    card = data.add_parser("card", help="what is in a data folder: composition, balance, what text alone gives away")
    card.add_argument("folder", metavar="DIR", type=Path, help="a data folder, or the released files as they come")
    card.add_argument("--out", type=Path, metavar="DIR", help="where to write the card (default: DIR/card)")
    card.set_defaults(command=_card)


def _reward_commands(reward: argparse._SubParsersAction) -> None:
    check = reward.add_parser("check", help="does a reward keep the contract? (docs/rewards.md)")
    check.add_argument(
        "source", metavar="SOURCE", help="path/file.py:name, an entry point, http or judge; with --config also a component"
    )
    check.add_argument("--cases", type=Path, metavar="FILE", help="JSON lines {text, example, expected} of your own")
    check.add_argument("--traces", metavar="RUN_OR_FILE", help="score the completions of an earlier run again")
    check.add_argument(
        "--config", type=Path, metavar="CONFIG", help="take params, weight, batched and limits from its reward section"
    )
    check.add_argument("--batched", action="store_true", help="it takes the texts of a group at once")
    check.add_argument(
        "--param", action="append", default=[], metavar="NAME=JSON", dest="params", help="a keyword argument of every call"
    )
    check.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="deadline of a call (default: reward.timeout_seconds)"
    )
    _settings(check)
    check.set_defaults(command=_check_reward)

    new = reward.add_parser("new", help="write a reward to start from, and its test")
    new.add_argument("file", metavar="FILE.py", type=Path)
    new.add_argument("--name", help="name of the function (default: that of the file)")
    new.set_defaults(command=_new_reward)


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting, e.g. grpo.steps=10",
    )


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="name of the run (its folder below root)")


def _accepting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-changes", action="store_true", help="an unfinished stage grpo goes on with the settings of now"
    )


def _overrides(options: argparse.Namespace) -> list[str]:
    named = [f"name={options.name}"] if options.name else []
    return [*options.overrides, *named]


def _quickstart(options: argparse.Namespace) -> int:
    from launch.quickstart import quickstart

    overrides = _overrides(options) + ([f"seed={options.seed}"] if options.seed is not None else [])
    return quickstart("smoke" if options.smoke else "tiny", overrides, Progress(), options.accept_changes)


def _run(options: argparse.Namespace) -> int:
    from launch.run import run

    run(load_config(options.config, _overrides(options)), options.stage, Progress(), options.accept_changes)
    return 0


def _existing(named: str) -> RunFolder:
    """The run whose folder, or name below runs/, this is."""
    return RunFolder.existing(Path(named) if Path(named).is_dir() else home() / "runs" / named)


def _scale(options: argparse.Namespace) -> int:
    folder = _existing(options.run)
    try:
        return scale(folder, options.workers, lambda line: print(line, flush=True), wait=not options.no_wait)
    except KeyboardInterrupt:
        print(f"ladder: not followed any more; what was asked of {folder.path} holds", file=sys.stderr)
        return 130


def _status(options: argparse.Namespace) -> int:
    folder = _existing(options.run)
    print(f"{folder.path}: {'finished' if folder.finished else 'not finished'}")
    for stage in folder.config.stages:
        manifest, started = folder.manifest(stage), (folder.path / stage).is_dir()
        print(f"  {stage:10} {'done' if manifest else 'started' if started else 'waiting'}", end="")
        print(f", {sum(manifest.seconds.values()):.0f} s" if manifest else "")
        if stage == STAGE and manifest is None and (fleet := read_fleet(folder.path)) is not None:
            print(fleet.told(time.time()))
    done = {stage: dict(m.metrics) for stage in folder.config.stages if (m := folder.manifest(stage))}
    if done:
        print(results_table({"stages": done}))
    return 0


def _check_data(options: argparse.Namespace) -> int:
    from launch.data_check import check

    return check(options.folder, options.against, options.limit, Progress())


def _card(options: argparse.Namespace) -> int:
    from launch.data_card import write_card

    page = write_card(options.folder, options.out or options.folder / "card", Progress())
    print(f"open {page}")
    return 0


def _traces(options: argparse.Namespace) -> int:
    from launch.data_traces import write_traces

    overrides = options.overrides + ([f"data.path={json.dumps(str(options.data))}"] if options.data else [])
    config = with_absolute_paths(load_config(options.config, overrides))
    print(write_traces(config, options.out.absolute(), Progress()).table(), flush=True)
    return 0


def _check_reward(options: argparse.Namespace) -> int:
    from launch.reward_check import check, inquiry

    return check(
        inquiry(
            options.source, config=options.config, overrides=options.overrides, params=options.params,
            batched=options.batched, timeout=options.timeout, cases=options.cases, traces=options.traces,
        )
    )


def _new_reward(options: argparse.Namespace) -> int:
    from launch.reward_new import write_starter

    reward, test = write_starter(options.file, options.name)
    print(f"{reward} and {test} are written; try: ladder reward check {reward}:{options.name or reward.stem}")
    return 0
