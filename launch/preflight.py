"""Everything that can be known to be wrong before anything heavy starts, in one message.

What holds: nothing is written and no engine, actor or job is started here; all checks run, so the user sees every
problem at once, each with what, where and what to do. Paths in the configuration are absolute (`launch.places`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import RunConfig, SFTConfig, StageName

if TYPE_CHECKING:
    from data.reading import Split

SPLITS = ("train", "heldout")
FREE_MARGIN = 1 << 30  # bytes kept free beside the estimate
COPIES_PER_STAGE = 5  # model, optimizer state in float32 (master, two moments), and one spare while replacing


@dataclass(frozen=True)
class Problem:
    """What is wrong, where it was said or found, what to do."""

    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n      -> {self.remedy}"


class PreflightError(RuntimeError):
    """A run that cannot work; `problems` lists everything found."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"nothing was started, {count}:", *(f"  {problem}" for problem in self.problems)]))


@dataclass(frozen=True)
class Capacity:
    """CPUs and GPUs that Ray may hand out, and whose they are."""

    cpus: float
    gpus: float
    owner: str


def local_capacity() -> Capacity:
    """What a cluster started on this machine will have."""
    return Capacity(float(os.cpu_count() or 1), float(_local_gpus()), "this machine")


def check(config: RunConfig, capacity: Capacity, run_folder: Path) -> None:
    """Raises PreflightError with every problem found."""
    problems = [
        *model_problems(config),
        *data_problems(config),
        *resource_problems(config, capacity),
        *disk_problems(config, run_folder),
    ]
    if problems:
        raise PreflightError(problems)


def model_problems(config: RunConfig) -> Iterator[Problem]:
    """The base model: complete, and of the family this system trains."""
    from models.loading import ModelFolderError, check_model_folder

    try:
        check_model_folder(config.model.path)
    except ModelFolderError as error:
        what, _, remedy = str(error).partition("; ")
        yield Problem(what, "model.path", remedy or "name a complete Qwen2.5-VL model folder")


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """A data folder: every row fits the schema, every picture is there and can be decoded. A source: it has a scene."""
    if config.data.path is not None and config.data.source is not None:
        yield Problem(
            "both are set", "data.path, data.source", "keep one: a built data folder, or a source to build from"
        )
        return
    if config.data.source is not None:
        yield from _source_problems(Path(config.data.source))
    if config.data.path is not None:
        yield from _folder_problems(config, Path(config.data.path))


def _source_problems(folder: Path) -> Iterator[Problem]:
    from data.scenes.posed_frames import SceneError, read_posed_frames

    try:
        read_posed_frames(folder)
    except SceneError as error:
        yield Problem(str(error), "data.source", "correct what is named; data/scenes/posed_frames.py describes the format")


def _folder_problems(config: RunConfig, folder: Path) -> Iterator[Problem]:
    from data.reading import DataError, check_media, load_split

    splits = {}
    for split in SPLITS:
        try:
            splits[split] = load_split(folder, split)
            check_media(splits[split].examples)
        except DataError as error:
            yield Problem(
                str(error).replace("\n", "\n    "),
                f"data.path, {split}/",
                "correct what is named, or build the folder again with `ladder data build`",
            )
    if len(splits) == len(SPLITS):
        yield from row_problems(config, folder, **splits)


def check_rows(config: RunConfig, folder: Path) -> None:
    """Raises PreflightError when a data folder that was just built lacks rows for a stage."""
    from data.reading import load_split

    problems = [*row_problems(config, folder, **{split: load_split(folder, split) for split in SPLITS})]
    if problems:
        raise PreflightError(problems)


def row_problems(config: RunConfig, folder: Path, train: Split, heldout: Split) -> Iterator[Problem]:
    """Stages that would find no rows to train on or to be measured on, or too few for one step."""
    per_step = config.grpo.prompts_per_step
    needs = {  # rows of the stage, how many one step takes, rows it is measured on
        "sft1": (len(train.grounding), 1, len(heldout.grounding), "localisation"),
        "sft2": (len(train.spatial), 1, len(heldout.spatial), "spatial"),
        "coldstart": (len(train.coldstart), 1, len(heldout.spatial) + len(heldout.grounding), "cold-start"),
        "grpo": (len(train.spatial) + len(train.grounding), per_step, len(heldout.spatial) + len(heldout.grounding),
                 "spatial or localisation"),
    }
    for stage in config.stages:
        have, want, measured, kind = needs[stage]
        if have < want:
            lower = "lower grpo.prompts_per_step, " if have else ""
            yield Problem(f"stage {stage} needs at least {want} {kind} rows to train on, there are {have}", f"{folder}/train",
                          f"{lower}build more rooms (data.rooms, data.construction), or leave the stage out of `stages`")
        if not measured:
            yield Problem(f"stage {stage} has no held-out rows to be measured on", f"{folder}/heldout",
                          "build held-out rooms (data.rooms.heldout_rooms), or leave the stage out of `stages`")


def resource_problems(config: RunConfig, capacity: Capacity) -> Iterator[Problem]:
    """Stages that ask for more than the cluster can ever give."""
    for stage in config.stages:
        need = stage_demand(config, stage)
        if need.cpus > capacity.cpus + 1e-6:
            yield Problem(
                f"stage {stage} needs {need.cpus:g} CPUs ({need.owner}), {capacity.owner} has {capacity.cpus:g}",
                _resource_key(stage),
                _remedy(config, stage, capacity),
            )
        if need.gpus > capacity.gpus + 1e-6:
            none = (
                "set rollout.num_gpus and learner.num_gpus to 0 (CPU engine), or give an address of a cluster with GPUs"
            )
            yield Problem(
                f"stage {stage} needs {need.gpus:g} GPUs ({need.owner}), {capacity.owner} has {capacity.gpus:g}",
                _resource_key(stage),
                none if not capacity.gpus else _remedy(config, stage, capacity),
            )


def stage_demand(config: RunConfig, stage: StageName) -> Capacity:
    """CPUs and GPUs that a stage's actors hold at the same time; `owner` says how the sum comes about."""
    if stage != "grpo":
        section = sft_section(config, stage)
        gpus = section.ranks * (1.0 if config.learner.num_gpus else 0.0)
        return Capacity(float(section.ranks), gpus, f"{section.ranks} learner rank(s)")
    rollout, learner, reward = config.rollout, config.learner, config.reward
    cpus = rollout.workers * rollout.num_cpus + learner.ranks * learner.num_cpus + reward.num_cpus
    gpus = rollout.workers * rollout.num_gpus + learner.ranks * learner.num_gpus
    owner = f"{rollout.workers} rollout worker(s), {learner.ranks} learner rank(s), the reward actor"
    return Capacity(cpus, gpus, owner)


def sft_section(config: RunConfig, stage: StageName) -> SFTConfig:
    """The section of a supervised stage."""
    return {"sft1": config.sft1, "sft2": config.sft2, "coldstart": config.coldstart}[stage]


def disk_problems(config: RunConfig, run_folder: Path) -> Iterator[Problem]:
    """Room for the models and checkpoints the stages leave behind."""
    model = sum(file.stat().st_size for file in Path(config.model.path).glob("*.safetensors"))
    need = model * COPIES_PER_STAGE * len(config.stages) + FREE_MARGIN
    place = next(parent for parent in (run_folder, *run_folder.parents) if parent.exists())
    if not os.access(place, os.W_OK):
        yield Problem(f"{place} is not writable", "root", "set root to a folder you may write to")
    free = shutil.disk_usage(place).free
    if free < need:
        yield Problem(
            f"{free / 2**30:.1f} GiB are free in {place}, the run may need {need / 2**30:.1f} GiB",
            "root",
            "free some space, or set root to a folder on a larger disk",
        )


def _resource_key(stage: StageName) -> str:
    return "rollout.workers, learner.ranks" if stage == "grpo" else f"{stage}.ranks"


def _remedy(config: RunConfig, stage: StageName, capacity: Capacity) -> str:
    if stage != "grpo":
        return f"lower {stage}.ranks, or give the address of a larger cluster"
    rollout, fixed = config.rollout, stage_demand(config, stage)
    fits = []
    if rollout.num_cpus:
        fits.append((capacity.cpus - (fixed.cpus - rollout.workers * rollout.num_cpus)) / rollout.num_cpus)
    if rollout.num_gpus:
        fits.append((capacity.gpus - (fixed.gpus - rollout.workers * rollout.num_gpus)) / rollout.num_gpus)
    most = int(min(fits) + 1e-6) if fits else 0
    if most >= 1:
        return f"at most rollout.workers={most} fit; or give the address of a larger cluster"
    return (
        "lower learner.ranks or num_cpus and num_gpus of rollout and learner, or give the address of a larger cluster"
    )


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()
