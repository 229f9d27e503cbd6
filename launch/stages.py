"""The calls into the rooms that do the work, each once: what `launch.run` needs of data, training, evaluation, report.

Imports are inside the functions: the command line answers without loading torch, Ray or vLLM.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.schema import RunConfig, StageName
from launch.preflight import sft_section
from launch.progress import Say

if TYPE_CHECKING:
    from launch.evaluators import Evaluators

#: What the held-out rows of a stage measure (`evaluation.scoring`).
METRICS: Mapping[StageName, str] = {
    "sft1": "localization_iou",
    "sft2": "accuracy",
    "coldstart": "think",
    "grpo": "think",
}


@dataclass(frozen=True)
class EvaluationRequest:
    """Evaluate a model on the held-out rows of `stage`: `folder`/eval_<when>.jsonl and .json."""

    stage: StageName
    folder: Path
    when: Literal["before", "after"]


def build_data(config: RunConfig, folder: Path, say: Say, workers: int | None = None) -> None:
    """Writes a data folder (train/, heldout/, manifest.json), whole or not at all. `workers` scenes at a time on the
    connected cluster, 1: in this process; None: few scenes here, many on all its CPUs."""
    from data.build import MANY_SCENES, scenes_to_build
    from data.build import build_data as build
    from models.inputs import frame_size
    from models.loading import load_processor

    if workers is None:
        workers = _cluster_cpus() if scenes_to_build(config.data, config.seed) >= MANY_SCENES else 1
    processor = load_processor(config.model.path)
    build(config.data, folder, config.seed, lambda size: frame_size(processor, size, config.model.box_frame), say, workers=workers)


def _cluster_cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def train(
    config: RunConfig, stage: StageName, base: Path, data: Path, folder: Path, say: Say, accept_changes: bool
) -> Path:
    """Runs one stage from the model in `base`, resumes from checkpoints in `folder`; returns the model folder.
    `accept_changes`: an unfinished stage 3 goes on with other settings."""
    if stage == "grpo":
        from actors.trainer import run_grpo

        return run_grpo(
            config, model_folder=base, data_folder=data, stage_folder=folder, progress=say, accept_changes=accept_changes
        )
    from sft.stage import run_sft

    return run_sft(
        config,
        stage,
        sft_section(config, stage),
        model_folder=base,
        data_folder=data,
        stage_folder=folder,
        progress=say,
    )


def evaluate(config: RunConfig, evaluators: Evaluators, model: Path, data: Path, requests: Sequence[EvaluationRequest],
             provenance: Mapping[str, str], say: Say) -> None:
    """Greedy answers of one model to the held-out rows of one or more stages.

    `provenance` says which weights and data these are. What is on disk with the same identity is not asked again: the
    answers after the cold start are also those before GRPO when both ask the same rows.
    """
    from data.reading import load_split
    from evaluation.evaluate import evaluate as ask_rows
    from evaluation.evaluate import prepare
    from actors.reward import reward_settings
    from evaluation.scoring import Scoring
    from models.loading import load_processor

    split, processor = load_split(data, "heldout"), load_processor(model)

    async def ask_all(workers: Sequence) -> None:
        for number, request in enumerate(requests):
            metric = METRICS[request.stage]
            if number and METRICS[requests[number - 1].stage] == metric:
                _copy_evaluation(requests[number - 1], request)
            questions = prepare(stage_rows(config, metric, split), metric, processor, config.data.preset,
                                config.model.box_frame)
            await ask_rows(
                [worker.generate_many.remote for worker in workers], questions,
                Scoring(metric, reward_settings(config.reward)),
                folder=request.folder, when=request.when, max_new_tokens=config.evaluation.max_new_tokens,
                provenance=provenance, silence_seconds=config.deadlines.generation, seed=config.seed, progress=say,
            )

    with evaluators.serving(model) as workers:
        asyncio.run(ask_all(workers))


def scoring(config: RunConfig) -> Mapping[str, Any]:
    """What an evaluation notes of how its answers are scored: plain JSON data."""
    from actors.reward import reward_settings

    return asdict(reward_settings(config.reward))


def evaluators(config: RunConfig, run_folder: Path, say: Say) -> Evaluators:
    """The engines that answer held-out questions for the whole run; nothing starts yet."""
    from launch.evaluators import Evaluators

    return Evaluators(config, run_folder, say)


def stage_rows(config: RunConfig, metric: str, split) -> tuple:
    """Held-out rows of a metric, `evaluation.rows` of each kind it measures; the same for every model and stage."""
    from evaluation.selection import heldout_rows

    n, seed = config.evaluation.rows, config.seed
    parts = {
        "localization_iou": (split.grounding,),
        "accuracy": (split.spatial,),
        "think": (split.spatial, split.grounding),
    }
    return tuple(row for part in parts[metric] if part for row in heldout_rows(part, n, seed))


def stage_metrics(folder: Path, seed: int) -> Mapping[str, Any]:
    """The stage's part of summary.json from its two evaluations: {metric: {before, after, n, ci95, ...}}."""
    from evaluation.evaluate import compare, load_evaluation

    return compare(load_evaluation(folder, "before"), load_evaluation(folder, "after"), seed)


def write_report(run_folder: Path, pictures: int) -> Path:
    """The report page of a run, in whatever state it is."""
    from viewer.report import write_report as write

    return write(run_folder, pictures=pictures)


def _copy_evaluation(done: EvaluationRequest, wanted: EvaluationRequest) -> None:
    for suffix in (".jsonl", ".json"):  # the second file makes the first one count
        source = done.folder / f"eval_{done.when}{suffix}"
        wanted.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, wanted.folder / f"eval_{wanted.when}{suffix}")
