"""Everything that can be known to be wrong before anything heavy starts, in one message.

What holds: nothing is written and no engine, actor or job is started here; a custom reward is loaded in a child process.
All checks run, so the user sees every problem at once, each with what, where and what to do. Paths in the configuration
are absolute (`launch.places`).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.reward import reward_limits, reward_specs
from configs.schema import RunConfig, SFTConfig, StageName
from launch.data_checks import data_problems
from launch.problems import PreflightError, Problem
from rewards.errors import RewardContractError
from rewards.loading import check_names, served_seconds
from rewards.settings import RewardSettings
from rewards.worker import RewardProcess

FREE_MARGIN = 1 << 30  # bytes kept free beside the estimate
LORA_LR = 1e-5  # below, tens of steps move a weight by less than bfloat16 resolves
COPIES_PER_STAGE = 5  # model, optimizer state in float32 (master, two moments), and one spare while replacing


@dataclass(frozen=True)
class Capacity:
    """CPUs and GPUs that Ray may hand out, whose they are, and on how many nodes stage 3 could be placed."""

    cpus: float
    gpus: float
    owner: str
    nodes: int = 1


def local_capacity() -> Capacity:
    """What a cluster started on this machine will have."""
    return Capacity(float(os.cpu_count() or 1), float(_local_gpus()), "this machine")


def check(config: RunConfig, capacity: Capacity, run_folder: Path) -> None:
    """Raises PreflightError with every problem found."""
    problems = [
        *model_problems(config),
        *attention_problems(config),
        *data_problems(config),
        *reward_problems(config),
        *resource_problems(config, capacity),
        *node_problems(config, capacity),
        *disk_problems(config, run_folder),
    ]
    if problems:
        raise PreflightError(problems)


def model_problems(config: RunConfig) -> Iterator[Problem]:
    """The base model: complete, and of the family this system trains."""
    from models.loading import ModelFolderError, load_processor

    try:
        load_processor(config.model.path)
    except ModelFolderError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Problem(what, "model.path", remedy)


def attention_problems(config: RunConfig) -> Iterator[Problem]:
    """Forms of attention that cannot train where the learner runs; whether flash-attn is there, only its machine knows."""
    model, on_gpu = config.model, config.learner.num_gpus > 0
    remedy = "set it to auto, which takes the fastest that runs"
    if model.attention == "flash" and not (on_gpu and model.dtype == "bfloat16"):
        yield Problem("flash attention needs a GPU (learner.num_gpus) and model.dtype bfloat16", "model.attention", remedy)
    if model.attention == "flex" and not on_gpu:
        yield Problem("flex attention has no backward pass on a CPU", "model.attention", remedy)


def reward_problems(config: RunConfig) -> Iterator[Problem]:
    """Rewards of the user's own: each loads, in a process of its own as in the run, and has a name of its own."""
    specs = reward_specs(config.reward)
    try:
        check_names(specs)
    except RewardContractError as error:
        yield Problem(str(error), "reward.custom", "every reward is one component of the score and needs its own name")
        return
    for spec in specs:
        try:
            RewardProcess(RewardSettings(), [spec], reward_limits(config.reward)).close()
        except RewardContractError as error:
            configured = f"{spec.component} --config CONFIG" if spec.params or spec.batched else spec.source
            reason = str(error).replace("\n", "\n    ")
            yield Problem(reason, "reward.custom", f"correct it; this tries it alone: ladder reward check {configured}")


def remarks(config: RunConfig) -> Iterator[str]:
    """What works, but hardly as meant."""
    asked, allowed = config.evaluation.max_new_tokens, config.grpo.sampling.max_new_tokens
    if asked < allowed and {"coldstart", "grpo"} & set(config.stages):
        yield (
            f"evaluation.max_new_tokens ({asked}) is below grpo.sampling.max_new_tokens ({allowed}): held-out answers of a "
            "length that training allows are cut and count as wrong"
        )
    if "grpo" in config.stages and config.grpo.kl.coef > 0 and config.grpo.kl.place == "reward" and config.grpo.std_normalization:
        yield (
            "grpo.kl.place: reward with grpo.std_normalization: a group whose rewards are equal is normalised by the spread of its "
            "divergence alone, so that noise weighs as much as success; take kl.place: loss, or std_normalization: false"
        )
    for spec in reward_specs(config.reward):
        if (needed := served_seconds(spec)) > config.reward.timeout_seconds:
            yield (
                f"reward {spec.component!r} may take {needed:g} s for a request and its retries, reward.timeout_seconds "
                f"({config.reward.timeout_seconds:g}) ends all requests of a group before: raise it, or lower the reward's own params"
            )
    if config.learner.offload_reference and (config.model.lora is not None or config.grpo.kl.coef == 0):
        yield "learner.offload_reference does nothing here: with model.lora or grpo.kl.coef 0 there is no reference of its own"
    if config.model.lora is not None and config.model.dtype == "bfloat16":
        rates = {f"{stage}.optimizer.lr": sft_section(config, stage).optimizer.lr for stage in config.stages if stage != "grpo"}
        rates |= {"learner.optimizer.lr": config.learner.optimizer.lr} if "grpo" in config.stages else {}
        if low := [f"{key} ({rate:g})" for key, rate in rates.items() if rate < LORA_LR]:
            yield (
                f"{', '.join(low)} is low for model.lora in bfloat16: adapters are added to the weights when these are published "
                f"or saved, and what is less than their rounding is lost; adapters are usually trained at {LORA_LR:g} or more"
            )


def room_remarks(config: RunConfig, capacity: Capacity) -> Iterator[str]:
    """A fleet that may grow beyond what there is now; the cluster may grow, too."""
    most, fits = config.rollout.workers.max, _workers_that_fit(config, capacity)
    if "grpo" in config.stages and most > fits:
        yield (
            f"rollout.workers.max ({most}) is more than {capacity.owner} has room for ({fits:.0f}): beyond it, workers wait "
            "until the cluster adds a node"
        )


def node_problems(config: RunConfig, capacity: Capacity) -> Iterator[Problem]:
    """Where stage 3 is to hand on weights through shared memory alone, learner and rollout workers must share a machine."""
    if "grpo" in config.stages and config.rollout.transport == "memory" and capacity.nodes > 1:
        yield Problem(
            f"{capacity.owner} has {capacity.nodes} nodes on which rollout workers and learner could be placed, and weights "
            "are to travel through the shared memory of one machine",
            "rollout.transport",
            "leave it at auto, which copies them to other machines, or give the address of a cluster with one such node (nodes "
            "without a GPU do not count when rollout and learner both ask for GPUs)",
        )


def hosting_nodes(config: RunConfig, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Living nodes, as `ray.nodes()` lists them, on which Ray could place a rollout worker or a learner rank."""
    wanted = {"GPU" if section.num_gpus else "CPU" for section in (config.rollout, config.learner)}
    return sum(bool(node["Alive"] and any(node["Resources"].get(kind) for kind in wanted)) for node in nodes)


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
    """CPUs and GPUs that a stage's actors hold when it begins; `owner` says how the sum comes about."""
    if stage != "grpo":
        section = sft_section(config, stage)
        gpus = section.ranks * (1.0 if config.learner.num_gpus else 0.0)
        return Capacity(float(section.ranks), gpus, f"{section.ranks} learner rank(s)")
    rollout, learner, reward = config.rollout, config.learner, config.reward
    workers = rollout.workers.min
    cpus = workers * rollout.num_cpus + learner.ranks * learner.num_cpus + reward.actors * reward.num_cpus
    gpus = workers * rollout.num_gpus + learner.ranks * learner.num_gpus
    owner = f"{workers} rollout worker(s), {learner.ranks} learner rank(s), {reward.actors} reward actor(s)"
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
    if 1 <= (most := _workers_that_fit(config, capacity)) < math.inf:
        return f"at most rollout.workers={most:.0f} fit; or give the address of a larger cluster"
    return (
        "lower learner.ranks or num_cpus and num_gpus of rollout and learner, or give the address of a larger cluster"
    )


def _workers_that_fit(config: RunConfig, capacity: Capacity) -> float:
    """Rollout workers for which there is room beside the other actors of stage 3; infinitely many that reserve nothing."""
    rollout, need = config.rollout, stage_demand(config, "grpo")
    wants = [(rollout.num_cpus, need.cpus, capacity.cpus), (rollout.num_gpus, need.gpus, capacity.gpus)]
    rooms = [(there - needed) / own + rollout.workers.min for own, needed, there in wants if own]
    return min(math.floor(room + 1e-6) for room in rooms) if rooms else math.inf


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()
