"""The ladder: data, then for each stage evaluate, train, evaluate, manifest; then summary, table and report.

What holds: re-running resumes. A finished stage is skipped when its inputs are unchanged, a finished run does nothing, one
that only lacks its report writes just that; what is already evaluated is not evaluated again. A model is evaluated once
for both "after this stage" and "before the next"; its engines live across stages where they can (`launch.evaluators`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.schema import RunConfig, StageName
from launch import stages as rooms
from launch.data_checks import check_rows
from launch.interrupts import terminations_interrupt
from launch.places import run_path, with_absolute_paths
from launch.preflight import Capacity, check, hosting_nodes, local_capacity, remarks, room_remarks
from launch.progress import Progress
from launch.run_folder import CONFIG, DATA_STAGE, RunFolder, RunFolderError, fingerprint
from launch.summary import local_hardware, results_table, write_summary

PROCESSOR_FILES = ("*processor_config.json",)
MODEL_FILES = ("*.safetensors", "config.json", "tokenizer.json", *PROCESSOR_FILES, "chat_template.*")
INTERRUPTED = "interrupted: ending what was started, which takes some seconds"
DATA_FILES = ("*.jsonl", "manifest.json")


def run(
    config: RunConfig, only: Sequence[StageName] = (), say: Progress | None = None, accept_changes: bool = False
) -> RunFolder:
    """Runs the stages of `config` (or of `only`) that are not finished. `config` keeps paths as the user wrote them.
    `accept_changes`: an unfinished stage 3 goes on with new settings (`RunFolder.open`).

    Raises RunFolderError, PreflightError before anything starts; failures of a stage pass through.
    """
    say = say or Progress()
    path = run_path(config)
    if finished(config, say, accept_changes):
        return RunFolder.existing(path)
    folder = _begun(config, accept_changes)
    if folder is None or not folder.measured:
        folder = _measure(config, only, say, accept_changes)
    report = rooms.write_report(path, config.evaluation.pictures)
    say(f"results of {config.name} ({folder.summary_path}):")
    print(results_table(folder.summary()), flush=True)
    say(f"report: {report}")
    return folder


def finished(config: RunConfig, say: Progress, accept_changes: bool = False) -> bool:
    """Whether nothing is left to do, which it then says. Raises RunFolderError on a folder of other settings."""
    folder = _begun(config, accept_changes)
    if folder is None or not folder.finished:
        return False
    say(f"{folder.path} is finished: nothing to do (summary.json, report/index.html). For another run give --name.")
    return True


def _begun(config: RunConfig, accept_changes: bool) -> RunFolder | None:
    """The folder of the run when it was started before. Raises RunFolderError on a folder of other settings."""
    path = run_path(config)
    return RunFolder.open(config, path, accept_changes) if (path / CONFIG).exists() else None


def _measure(config: RunConfig, only: Sequence[StageName], say: Progress, accept_changes: bool) -> RunFolder:
    """Everything up to the summary."""
    path, resolved, given = run_path(config), with_absolute_paths(config), _address() is not None
    if not given:
        check(resolved, local_capacity(), path)
    with connected(resolved, say) as capacity:
        if given:
            check(resolved, capacity, path)
        for remark in (*remarks(config), *room_remarks(config, capacity)):
            say(f"note: {remark}")
        folder = RunFolder.open(config, path, accept_changes)
        with folder.locked():
            for change in folder.accepted:
                say(f"accepted, from here on: {change}")
            folder.write_settings()
            evaluators = rooms.evaluators(resolved, path, say)
            try:
                _climb(folder, resolved, tuple(only) or config.stages, evaluators, say, accept_changes)
            finally:
                evaluators.close()
            write_summary(folder, local_hardware() | {"ray_cpus": capacity.cpus, "ray_gpus": capacity.gpus})
    return folder


def _climb(
    folder: RunFolder, config: RunConfig, wanted: Sequence[StageName], evaluators, say: Progress, accept_changes: bool
) -> None:
    """Walks the stages of the configuration in order; `config` has absolute paths."""
    data = _data(folder, config, evaluators, say)
    check_rows(config, data, folder.path)
    data_hash = fingerprint(data, DATA_FILES)
    base = Path(config.model.path)
    for number, stage in enumerate(config.stages, start=1):
        inputs = {"model": fingerprint(base, MODEL_FILES), "data": data_hash}
        done = folder.stage_done(stage, inputs)
        title = f"stage {number} of {len(config.stages)}, {stage}"
        if done is not None:
            say(f"{title}: finished, skipped")
        elif stage in wanted:
            say(f"{title}: begins from {base}")
            folder.forget(config.stages[number - 1 :])  # a summary must not show what came from another model or data
            _stage(folder, config, stage, base, data, inputs, evaluators, say, accept_changes)
            say(f"{title}: done")
        elif any(later in wanted for later in config.stages[number:]):
            raise RunFolderError(
                f"stage {stage} has not finished and comes before {', '.join(wanted)}: run it first (--stage {stage}), or "
                f"begin from model.path as it is (a new --name with --set 'stages=[{', '.join(wanted)}]')"
            )
        else:
            return
        base = folder.model(stage)


def _data(folder: RunFolder, config: RunConfig, evaluators, say: Progress) -> Path:
    """The data folder of the run: the one named, or one built once for this base model's pictures."""
    if config.data.path is not None:
        return Path(config.data.path)
    inputs = {"processor": fingerprint(Path(config.model.path), PROCESSOR_FILES)}
    if config.data.source is not None:
        inputs["source"] = fingerprint(Path(config.data.source))
    if folder.stage_done(DATA_STAGE, inputs) is None:
        begun = time.monotonic()
        evaluators.prepare(Path(config.model.path))  # with new data, the first thing after it is to measure the base
        say("building the data")
        shutil.rmtree(folder.data, ignore_errors=True)  # whole, but of an interrupted or changed run
        rooms.build_data(config, folder.data, say)
        listed = [folder.data / "manifest.json", *sorted(folder.data.rglob("*.jsonl"))]
        folder.finish_stage(DATA_STAGE, inputs, listed, {}, {"build": time.monotonic() - begun})
    return folder.data


def _stage(
    folder: RunFolder, config: RunConfig, stage: StageName, base: Path, data: Path, inputs: dict[str, str], evaluators,
    say: Progress, accept_changes: bool,
) -> None:
    seconds: dict[str, float] = {}
    here, later = folder.stage(stage), config.stages[config.stages.index(stage) + 1 :][:1]
    with _timed(seconds, "evaluate_before"):
        wanted = [rooms.EvaluationRequest(stage, here, "before")]
        if not folder.evaluated(stage, "before", inputs, rooms.scoring(config)):
            rooms.evaluate(config, evaluators, base, data, wanted, inputs, say)
    with _timed(seconds, "train"):
        model = rooms.train(config, stage, base, data, here, say, accept_changes)
    result = {"model": fingerprint(model, MODEL_FILES), "data": inputs["data"]}
    with _timed(seconds, "evaluate_after"):
        wanted = [rooms.EvaluationRequest(stage, here, "after")]
        wanted += [rooms.EvaluationRequest(name, folder.stage(name), "before") for name in later]
        rooms.evaluate(config, evaluators, model, data, wanted, result, say)
    metrics = rooms.stage_metrics(here, config.seed)
    outputs = [
        model,
        *(here / f"eval_{when}{suffix}" for when in ("before", "after") for suffix in (".jsonl", ".json")),
    ]
    folder.finish_stage(stage, inputs, outputs, metrics, seconds)
    write_summary(folder, local_hardware())


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begun, 3)


@contextmanager
def connected(config: RunConfig, say: Progress) -> Iterator[Capacity]:
    """A Ray driver on the cluster of RAY_ADDRESS (set inside jobs), else on a cluster of our own that ends with us."""
    from launch.cluster import LocalCluster, adopt_token
    from launch.engines import engine_environment

    variables = engine_environment(config)
    os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
    adopt_token()
    import ray  # it reads the authentication mode when it is imported

    cluster = None if _address() else LocalCluster(say)
    with terminations_interrupt(INTERRUPTED):
        try:
            address = cluster.start() if cluster else _address()
            ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=True, logging_level="warning")
            total = ray.cluster_resources()
            nodes = hosting_nodes(config, ray.nodes())
            with terminations_interrupt(INTERRUPTED):  # once more: ray.init has taken SIGTERM for itself
                yield Capacity(total.get("CPU", 0.0), total.get("GPU", 0.0), f"the cluster at {address}", nodes)
        finally:
            ray.shutdown()
            if cluster:
                cluster.stop()


def _address() -> str | None:
    return os.environ.get("RAY_ADDRESS") or None
