"""A supervised stage (1, 2 or the cold start): a Ray Train job with a DeepSpeed engine inside.

    driver: run_sft -> TorchTrainer.fit -> ranks: train_rank (model, rows, engine, steps, checkpoints, STAGE/hf)
                    \\-> Watcher reads STAGE/metrics.jsonl and prints progress

What holds
    * The loss of a step is the mean negative log-probability over the assistant's tokens of the whole batch, over all
      ranks and micro-batches: the update does not depend on how the rows are cut.
    * The same command resumes: Ray Train finds its newest checkpoint in the stage folder, the row order is a function
      of the seed, and metrics after the checkpoint are written again, not twice. A finished stage returns at once.
    * Work of other settings is never resumed: checkpoints live under a fingerprint of settings, rows and model.
    * STAGE/hf appears whole or not at all.

The stage folder must be visible under the same path to the driver and to every rank.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import RunConfig, SFTConfig
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, read_rows
from data.stage_files import fingerprint, keep_steps, write_text
from data.types import Example

if TYPE_CHECKING:
    from sft.reading import StepRows

STAGE_FILES = {"sft1": GROUNDING_FILE, "sft2": SPATIAL_FILE, "coldstart": COLDSTART_FILE}
METRICS, FINISHED, MODEL = "metrics.jsonl", "trained.json", "hf"
#: Seconds between two progress lines.
PROGRESS_SECONDS = 4.0
_CHECKPOINT_TAG = "engine"
_WORK = "ray_train"

Progress = Callable[[str], None]


class StageFailed(RuntimeError):
    """A supervised stage stopped; says which rank and why. The stage folder can be resumed."""


@dataclass(frozen=True)
class SFTTask:
    """What every rank is told: plain data, absolute paths."""

    stage: str
    examples: tuple[Example, ...]
    model_folder: str
    stage_folder: str
    run: RunConfig
    config: SFTConfig


def run_sft(
    config: RunConfig,
    stage: str,
    section: SFTConfig,
    *,
    model_folder: Path,
    data_folder: Path,
    stage_folder: Path,
    progress: Progress = print,
) -> Path:
    """Train one stage on its rows of data_folder/train; returns the model folder it wrote. Ray must be initialised.

    Errors: RowError, TargetError, ModelFolderError before anything starts; StageFailed when a rank fails.
    """
    rows = read_rows(data_folder, STAGE_FILES[stage], "train")
    return train_rows(
        SFTTask(
            stage, tuple(rows), str(Path(model_folder).absolute()), str(Path(stage_folder).absolute()), config, section
        ),
        progress,
    )


def train_rows(task: SFTTask, progress: Progress = print) -> Path:
    """`run_sft` on rows already read."""
    from models.loading import check_model_folder

    check_model_folder(task.model_folder)
    if not task.examples:
        raise StageFailed(
            f"stage {task.stage} has no training rows; build the data with rows for it, or leave the stage out"
        )
    folder, identity = Path(task.stage_folder), identity_of(task)
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / FINISHED
    if finished.is_file() and json.loads(finished.read_text())["fingerprint"] == identity and (folder / MODEL).is_dir():
        progress(f"{task.stage}: already trained")
        return folder / MODEL
    for other in (folder / _WORK).glob("*"):
        if other.name != identity:
            shutil.rmtree(other)
    progress(f"{task.stage}: {len(task.examples)} rows, {task.config.ranks} rank(s); starting Ray Train")
    with Watcher(folder / METRICS, task.stage, progress):
        _fit(task, identity)
    write_text(finished, json.dumps({"fingerprint": identity}) + "\n")
    shutil.rmtree(folder / _WORK)
    return folder / MODEL


def identity_of(task: SFTTask) -> str:
    """Fingerprint of the stage's work."""
    settings = (
        task.stage,
        task.run.seed,
        task.run.model.dtype,
        task.run.model.freeze_vision,
        task.run.model.lora,
        task.run.model.box_frame,
        task.run.data.preset,
        task.config,
    )
    return fingerprint(settings, task.examples, Path(task.model_folder))


def _fit(task: SFTTask, identity: str) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig as TrainRunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from models.heap import training_runtime

    gpus = task.run.learner.num_gpus
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=600),
        scaling_config=ScalingConfig(num_workers=task.config.ranks, use_gpu=gpus > 0),
        run_config=TrainRunConfig(
            name=identity,
            storage_path=str(Path(task.stage_folder) / _WORK),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env=training_runtime(gpus),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        rank, reason = next(iter(error.worker_failures.items()))
        raise StageFailed(f"stage {task.stage}: rank {rank} failed: {reason}") from error
    except ControllerError as error:
        raise StageFailed(f"stage {task.stage}: Ray Train could not run it: {error.controller_failure}") from error


def train_rank(job: dict[str, Any]) -> None:
    """One rank, inside its Ray Train worker."""
    import ray.train
    import torch

    task: SFTTask = job["task"]
    context = ray.train.get_context()
    if not task.run.learner.num_gpus:
        torch.set_num_threads(task.run.learner.threads)
    trainer = _RankTrainer(task, context.get_world_rank(), context.get_world_size(), rank_device(task.run))
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.resume(Path(folder))

    def keep(step: int) -> None:
        # Every rank writes its shard into a folder of its own; Ray Train merges them in the stage folder.
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(Path(folder), step)
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    trainer.train(keep)
    trainer.export()


def rank_device(config: RunConfig) -> str:
    """Where this rank trains. Ray Train lets its workers see every GPU of their machine and numbers them by local rank, as
    DeepSpeed expects."""
    from ray.train.torch import get_device

    return str(get_device()) if config.learner.num_gpus else "cpu"


class _RankTrainer:
    """Model, rows and engine of one rank."""

    def __init__(self, task: SFTTask, rank: int, ranks: int, device: str) -> None:
        from transformers.utils import logging as transformers_logging

        from models.adapters import add_adapters
        from models.deepspeed_engine import PolicyEngine
        from models.forward import PolicyForward
        from models.loading import load_policy, load_processor
        from sft.dataset import RowOrder, StageRows
        from sft.reading import StepReader

        transformers_logging.disable_progress_bar()
        self.task, self.rank, self.device = task, rank, device
        processor = load_processor(task.model_folder)
        self.model = load_policy(task.model_folder, task.run.model.dtype, device)
        text = self.model.config.get_text_config()
        rows = StageRows(
            task.stage,
            task.examples,
            processor,
            task.run.data.preset,
            self.model.config.vision_config.tokens_per_second,
            text.vocab_size,
            task.run.model.box_frame,
        )
        self.order = RowOrder([row.media for row in task.examples], task.config, task.run.seed)
        self.reader = StepReader(rows, self.order, rank, ranks, task.config.micro_batch_tokens)
        if task.run.model.lora is not None:
            add_adapters(self.model, task.run.model.lora, task.run.seed)
        elif task.run.model.freeze_vision:
            self.model.model.visual.requires_grad_(False)
        if task.config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()
        self.engine = PolicyEngine(
            PolicyForward(self.model, task.run.model.attention, always_see=ranks > 1),
            task.config.optimizer,
            task.config.zero_stage,
            self.order.steps,
            device,
        )
        self.metrics = Path(task.stage_folder) / METRICS
        self.first = 0

    def resume(self, folder: Path) -> None:
        self.first = self.engine.load(folder, _CHECKPOINT_TAG)["step"]

    def save(self, folder: Path, step: int) -> None:
        """`step` optimizer steps are done."""
        self.engine.save(folder, _CHECKPOINT_TAG, {"step": step})

    def train(self, keep: Callable[[int], None]) -> None:
        """All remaining steps; `keep(step)` after every `checkpoint_steps` and before the end."""
        if self.rank == 0:
            keep_steps(self.metrics, self.first)
        steps = self.reader.steps(self.first, ahead=2 if self.task.run.learner.num_gpus else 0)
        begun = time.monotonic()
        for step, rows in enumerate(steps, self.first):
            waited = time.monotonic() - begun
            record = {"step": step, "steps": self.order.steps, **self.step(rows)}
            seconds = time.monotonic() - begun
            record |= {"seconds": seconds, "seconds_read": waited, "samples_per_s": rows.samples / seconds}
            if self.rank == 0:
                with self.metrics.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            if (step + 1) % self.task.config.checkpoint_steps == 0 and step + 1 < self.order.steps:
                keep(step + 1)
            begun = time.monotonic()

    def step(self, rows: StepRows) -> dict[str, float]:
        """One optimizer step: forward and backward of this rank's micro-batches, then the update."""
        loss = 0.0
        for batch, counts in rows.passes:
            part = -self.engine(batch.to(self.device)).sum() / rows.tokens * float(counts)
            self.engine.backward(part)
            loss += float(part.detach())
        update = self.engine.step()
        return {
            **self.engine.sum_over_ranks({"loss": loss}),
            "lr": update.learning_rate,
            "grad_norm": update.grad_norm,
            "tokens": rows.tokens,
            "samples": rows.samples,
        }

    def export(self) -> None:
        """STAGE/hf from rank 0; the gathers under ZeRO-3 need every rank."""
        import torch.distributed as dist

        from models.adapters import merged
        from models.loading import save_policy

        weights = merged(self.engine.state_dict(), self.task.run.model.lora)
        if self.rank == 0:
            save_policy(self.model, self.task.model_folder, Path(self.task.stage_folder) / MODEL, weights)
        dist.barrier()


class Watcher:
    """Prints the newest line of the metrics file every few seconds, from a thread, while the job runs."""

    def __init__(self, metrics: Path, stage: str, progress: Progress) -> None:
        self._metrics, self._stage, self._progress = metrics, stage, progress
        self._begun = time.time()
        self._told: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sft-progress", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def _run(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            self._tell()

    def _tell(self) -> None:
        records = self._records()
        if not records:
            if not self._stop.is_set():
                self._progress(f"{self._stage}: starting ranks ({time.time() - self._begun:.0f} s)")
        elif records[-1]["step"] != self._told:
            self._progress(self._line(records))
            self._told = records[-1]["step"]

    def _records(self) -> list[dict]:
        """Whole lines written since the job began (a resumed run has older ones)."""
        if not self._metrics.is_file() or self._metrics.stat().st_mtime < self._begun:
            return []
        return [json.loads(line) for line in self._metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def _line(self, records: Sequence[dict]) -> str:
        last, recent = records[-1], records[-20:]
        seconds = sum(record["seconds"] for record in recent)
        left = (last["steps"] - last["step"] - 1) * seconds / len(recent)
        rate = sum(record["samples"] for record in recent) / seconds
        return (
            f"{self._stage}: step {last['step'] + 1}/{last['steps']}  loss {last['loss']:.4f}  lr {last['lr']:.2e}  "
            f"{rate:.1f} samples/s  {left:.0f} s left"
        )
