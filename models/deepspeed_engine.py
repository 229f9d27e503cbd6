"""One DeepSpeed engine for supervised stages and for the GRPO learner.

What holds
    * `step()` is the only boundary: any number of `backward()` calls may come before it, their gradients add up.
    * Losses are *global sums divided by a global count*: a rank backpropagates its own part of the sum and the ranks'
      gradients are added (`backward` multiplies by the world size, DeepSpeed divides by it). The update does therefore
      not depend on how rows are cut into ranks and micro-batches.
    * Under ZeRO-2 and ZeRO-3 every rank runs the same number of forward and backward passes.
    * Nothing is compiled at run time: torch's AdamW is the optimizer and DeepSpeed's shared-memory op, which would be
      built when the CPU backend starts, is switched off (it only serves inference).
    * `state_dict()` is a collective call: the full weights arrive on rank 0, gathered one layer at a time.
    * `load` restores states, not settings: rate, decay, betas and clipping are those this engine was made with, at the step
      of its own schedule that the checkpoint had reached.

The process group is made with torch before DeepSpeed looks for one; inside a Ray Train worker it is already there.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from configs.schema import OptimizerConfig

#: The shortest wait that a slow first step on a busy machine survives; collectives fail loudly after it.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: learning rate used, gradient norm over all ranks before clipping."""

    learning_rate: float
    grad_norm: float


class GradientNotFinite(FloatingPointError):
    """A step's gradient holds infinity or NaN: nothing trained from here on would mean anything."""


def _check_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise GradientNotFinite(
            f"the norm of the gradient is {norm}: lower the learning rate, look at the rows of this step, or train in float32; "
            "the last checkpoint is from before it"
        )


@contextmanager
def _untouched(adamw: torch.optim.AdamW) -> Iterator[None]:
    """Undoes the step on zero gradients with which DeepSpeed makes the states of bfloat16 weights without ZeRO
    (runtime/fp16/unfused_optimizer.py): a weight decay too many, and a count of steps that begins at one."""
    rates = [group["lr"] for group in adamw.param_groups]
    for group in adamw.param_groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(adamw.param_groups, rates, strict=True):
        group["lr"] = rate
    adamw.state.clear()


def free_port() -> int:
    """A TCP port of this machine that is free now; take it at once."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def set_rank_environment(
    rank: int, world_size: int, address: str, port: int, *, local_rank: int = 0, local_size: int = 1
) -> None:
    """The variables a launcher would set. With one visible GPU per process `local_rank` is 0 on every rank."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        LOCAL_SIZE=str(local_size),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )


def join_process_group(device: torch.device) -> None:
    """Make torch's default process group from the environment (gloo on CPU, nccl on GPU) unless it exists."""
    os.environ.setdefault("LOCAL_SIZE", "1")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)


def leave_process_group() -> None:
    """End torch's process groups, if this process is in any.

    A process that exits while gloo's threads still hold tensors is aborted: they free them in a dying interpreter.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def learning_rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate used by the step with index `step` (0 .. total_steps - 1).

    Warm-up rises linearly over ceil(warmup_ratio * total_steps) steps and starts above zero, then the rate falls to
    zero along a line or a half cosine, or stays.
    """
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0


def _optimizer_groups(module: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters; with decay, vectors (norms, biases) are left out of it."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameter: everything is frozen")
    if weight_decay == 0:
        return [{"params": parameters, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _deepspeed_config(config: OptimizerConfig, zero_stage: int, bfloat16: bool, clip_here: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if clip_here else config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
        "zero_optimization": {"stage": zero_stage},
    }
    if bfloat16:
        settings["bf16"] = {"enabled": True}
    if config.offload:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero_stage in (1, 2):
        settings["zero_optimization"]["overlap_comm"] = False
    return settings


class PolicyEngine:
    """A module under DeepSpeed: `engine(...)` forwards, `backward(loss)`, `step()`; collective where ZeRO is.

    `module` is the wrapper that holds the policy in its attribute `model` (`models.forward.PolicyForward`), so that
    every forward pass of the policy goes through the engine.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: OptimizerConfig,
        zero_stage: int,
        total_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Errors: ValueError for mixed parameter types or a fully frozen module; whatever DeepSpeed refuses."""
        self.device = torch.device(device)
        deepspeed = _import_deepspeed(self.device)
        join_process_group(self.device)
        self.world_size, self.rank = dist.get_world_size(), dist.get_rank()
        self.zero_stage = zero_stage
        dtypes = {parameter.dtype for parameter in module.parameters()}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
            raise ValueError(
                f"the model has parameters of type {sorted(map(str, dtypes))}; load it in float32 or bfloat16"
            )
        bfloat16 = dtypes == {torch.bfloat16}
        clip_here = zero_stage == 0 and not bfloat16
        adamw = torch.optim.AdamW(
            _optimizer_groups(module, optimizer.weight_decay), lr=optimizer.lr, betas=optimizer.betas, fused=True
        )
        self._clipped_norm: torch.Tensor | None = None
        if clip_here:  # plain data parallelism: DeepSpeed would clip but keep the norm to itself
            adamw.register_step_pre_hook(lambda opt, *_: self._clip(opt, optimizer.max_grad_norm))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: learning_rate_factor(step, total_steps, optimizer)
        )
        self._optimizer, self._total_steps, self._clip_here = optimizer, total_steps, clip_here
        self._adamw, self._schedule = adamw, schedule
        with _untouched(adamw) if bfloat16 and zero_stage == 0 else nullcontext():
            self.engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=adamw,
                lr_scheduler=schedule,
                dist_init_required=False,
                config=_deepspeed_config(optimizer, zero_stage, bfloat16, clip_here),
            )

    def _clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._clipped_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        _check_finite(float(self._clipped_norm))  # before the weights are touched

    @property
    def module(self) -> torch.nn.Module:
        return self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this rank's part of a global loss (already divided by the global count)."""
        self.engine.backward(loss * self.world_size)

    def step(self) -> StepResult:
        """Reduce, clip, update, advance the schedule, clear the gradients. GradientNotFinite: the weights are unusable."""
        learning_rate = float(self.engine.get_lr()[0])
        self.engine.step()
        norm = float(self._clipped_norm if self._clipped_norm is not None else self.engine.get_global_grad_norm())
        _check_finite(norm)
        return StepResult(learning_rate, norm)

    def sum_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Mapping[str, float], operation: dist.ReduceOp.RedOpType) -> dict[str, float]:
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(tensor, operation)
        return dict(zip(names, tensor.tolist(), strict=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The policy's full weights on rank 0 (other ranks: empty), on the CPU, tied entries included.

        Names are those of the policy module itself. On CPU without ZeRO-3 the tensors are the live weights: use them
        before the next step.
        """
        policy = self.module.model
        if self.zero_stage < 3:
            if self.rank != 0:
                return {}
            return {name: tensor.detach().to("cpu") for name, tensor in policy.state_dict().items()}
        return dict(self._gathered(policy))

    def _gathered(self, policy: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.runtime.zero import GatheredParameters

        def layer(entry: tuple[str, torch.Tensor]) -> str:
            found = re.match(r".*?\.(?:layers|blocks)\.\d+\.", entry[0])
            return found.group(0) if found else entry[0]

        for _, entries in groupby(policy.named_parameters(remove_duplicate=False), key=layer):
            named = list(entries)
            with GatheredParameters([parameter for _, parameter in named], modifier_rank=None):
                if self.rank == 0:
                    yield from [(name, parameter.detach().to("cpu", copy=True)) for name, parameter in named]

    def save(self, folder: Path, tag: str, client_state: dict[str, Any]) -> None:
        """Weights, optimizer, schedule and `client_state` into folder/tag; collective; tied to the world size."""
        self.engine.save_checkpoint(str(folder), tag=tag, client_state=client_state)

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Restore the states that `save` wrote and return its `client_state`. Our own files only: DeepSpeed unpickles them.

        Errors: FileNotFoundError when the folder holds no such checkpoint.
        """
        path, client_state, optimizer = None, {}, self._optimizer
        decays = [group["weight_decay"] for group in self._adamw.param_groups]
        if (Path(folder) / tag).is_dir():
            path, client_state = self.engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint {tag!r} in {folder}: delete the folder to start afresh")
        for group, decay in zip(self._adamw.param_groups, decays, strict=True):
            rate = optimizer.lr * learning_rate_factor(self._schedule.last_epoch, self._total_steps, optimizer)
            group.update(lr=rate, initial_lr=optimizer.lr, betas=optimizer.betas, weight_decay=decay)
        self._schedule.base_lrs = [optimizer.lr for _ in decays]
        if not self._clip_here:
            self.engine.optimizer.clip_grad = optimizer.max_grad_norm
        return client_state
