"""Stage 3: group-relative policy optimisation, one flat step after another.

What holds
    * Strictly on-policy: step s + 1 samples from the weights that step s made, and only after every worker has proved
      that it holds them.
    * A failure is never a reward: completions without a score leave the statistics of their group and carry no
      gradient; when more of them fail than `reward.max_failed_share` allows, the run stops.
    * The same command resumes at the last checkpoint; prompts, sampling seeds and records continue as if undisturbed.
    * Any actor that fails ends the run with one message, and all actors with it; the folder can be resumed.

Source: SPATIALLADDER §6.1; the advantages and losses are those of `grpo`.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from actors.batching import TrainGroup
from actors.deadlines import DeadlineExceeded
from actors.ledger import PromptSchedule
from actors.record import MODEL, Progress, StageRecord
from actors.reward import reward_row
from actors.rollout import RolloutRequest
from actors.stage import CANARY_COMPLETIONS, CANARY_TOKENS, PromptTask, Rollouts, StageActors, Sync
from actors.types import Group
from configs.schema import GRPOConfig, RunConfig, SamplingConfig
from data.prompts import render
from data.reading import GROUNDING_FILE, SPATIAL_FILE, read_rows
from data.stage_files import fingerprint
from data.types import Example
from grpo.advantages import GroupAdvantages, group_advantages
from grpo.shaping import overlong_penalty
from models.inputs import image_size, processed_size, prompt_token_ids
from models.loading import check_model_folder, load_processor
from rewards.contract import source_hash

Say = Callable[[str], None]
#: Keys of a step in which nothing could be learned; they are null there.
LEARNER_KEYS = (
    "loss",
    "lr",
    "grad_norm",
    "kl",
    "clip_fraction",
    "is_ratio_mean",
    "is_ratio_max",
    "logprob_gap_mean",
    "logprob_gap_max",
    "trained_tokens",
)


class GrpoFailed(RuntimeError):
    """Stage 3 stopped; says what failed and what to do. The stage folder can be resumed."""


@dataclass(frozen=True)
class Batch:
    """A step's groups, their advantages and why (`grpo.advantages`), and the part of them that carries gradient."""

    groups: tuple[Group, ...]
    advantages: tuple[GroupAdvantages, ...]
    trained: tuple[TrainGroup, ...]


@dataclass
class Stopwatch:
    """Seconds of the named parts of one step."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """What has passed since the last lap is `name`."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now


def run_grpo(
    config: RunConfig, *, model_folder: Path, data_folder: Path, stage_folder: Path, progress: Say = print
) -> Path:
    """Train on the spatial and localisation rows of data_folder/train; returns the model folder.

    Ray must be initialised. Errors: RowError, ModelFolderError, CheckpointMismatch (a folder of other work), ValueError
    (settings that fit no data) before anything starts; later GrpoFailed, and MediaError for a picture that is gone.
    """
    rows = [row for name in (GROUNDING_FILE, SPATIAL_FILE) for row in read_rows(data_folder, name, "train")]
    return train_policy(config, rows, Path(model_folder).absolute(), Path(stage_folder).absolute(), progress)


def train_policy(
    config: RunConfig, examples: Sequence[Example], model_folder: Path, stage_folder: Path, say: Say
) -> Path:
    """`run_grpo` on rows already read."""
    check_model_folder(model_folder)
    record = StageRecord(stage_folder, identity_of(config, examples, model_folder))
    if record.finished:
        say("grpo: already trained")
        return stage_folder / MODEL
    schedule = PromptSchedule(examples, config.grpo, config.seed)
    tasks = TaskMaker(config, schedule, model_folder)
    position = record.resume()
    say(
        f"grpo: {len(examples)} prompts, {schedule.steps} steps from {position.step}; starting "
        f"{config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s), the reward actor"
    )
    actors = StageActors(config, str(model_folder), str(stage_folder), schedule.steps)
    try:
        actors.start(str(position.checkpoint) if position.checkpoint else None, say)
        optimise(actors, tasks, schedule.steps, position, record, config, say)
        actors.export(str(stage_folder / MODEL))
        record.finish()
    except (RayError, DeadlineExceeded) as error:
        raise GrpoFailed(
            f"grpo stopped: {reason(error)}\nRun the same command again to resume from the last checkpoint."
        ) from error
    finally:
        actors.close()
    return stage_folder / MODEL


def optimise(
    actors: StageActors,
    tasks: TaskMaker,
    steps: int,
    position: Progress,
    record: StageRecord,
    config: RunConfig,
    say: Say,
) -> None:
    """The algorithm: the steps from `position` to `steps`, with actors that are ready."""
    synced = actors.sync(position.version, tasks.canary())
    say(f"grpo: version {synced.version} proved on every worker, canary gap {synced.canary_gap:.1e} nats")
    for step in range(position.step, steps):
        watch = Stopwatch()
        prompts = tasks.of_step(step)  # q ~ P(Q)
        rollouts = actors.roll_out(prompts)  # o_1 … o_G ~ pi_old(. | q)
        watch.lap("generate")
        groups = actors.score(rollouts)  # r_1 … r_G
        check_failed_share(groups, config.reward.max_failed_share)
        watch.lap("reward")
        pictures = actors.pictures_encoded()
        batch = with_advantages(groups, config.grpo)  # A_i = (r_i - mean r) / std r
        learned = actors.learn(batch.trained) if batch.trained else {}  # theta <- theta - lr * gradient of the loss
        watch.lap("learn")
        if batch.trained:
            synced = actors.sync(synced.version + 1, tasks.canary())  # pi_old <- pi_theta, proved on every worker
        watch.lap("sync")
        metrics = step_metrics(step, rollouts, batch, learned, synced, watch.seconds, pictures, actors.workers)
        record.append(metrics, groups, [advantage.advantages_G.tolist() for advantage in batch.advantages])
        say(progress_line(metrics, steps))
        if alarm := gap_alarm(metrics, config.rollout.canary_tolerance):
            say(alarm)
        if (step + 1) % config.grpo.checkpoint_steps == 0 or step + 1 == steps:
            actors.save(str(record.checkpoint_folder(step + 1)))
            record.commit(step + 1, synced.version)


def reason(error: Exception) -> str:
    """One message for what a remote call raised, without the traces of the machinery."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, ray.exceptions.ActorDiedError):
        return f"an actor died: {error}"
    return str(error)


def identity_of(config: RunConfig, examples: Sequence[Example], model_folder: Path) -> str:
    """Fingerprint of the stage's work, the source of custom rewards included."""
    model, data = (config.model.dtype, config.model.freeze_vision), config.data.preset
    # By name and content: a job's copy of the working directory has another path at every start.
    custom = tuple((location.rpartition(":")[2], source_hash(location)) for location in config.reward.custom)
    built_in = config.reward.model_copy(update={"custom": ()})
    settings = (config.seed, config.grpo, config.learner, built_in, custom, model, data)
    return fingerprint(settings, examples, model_folder)


class TaskMaker:
    """Renders the prompts of a step: ids with one placeholder per medium, pictures by path."""

    def __init__(self, config: RunConfig, schedule: PromptSchedule, model_folder: Path) -> None:
        self._config, self._schedule = config, schedule
        self._processor = load_processor(model_folder)

    def of_step(self, step: int) -> tuple[PromptTask, ...]:
        """The tasks of a step. Errors: MediaError for a picture that cannot be read."""
        grpo = self._config.grpo
        return tuple(
            self._task(
                example,
                f"s{step}-p{place}",
                grpo.group_size,
                self._schedule.sampling_seed(step, place),
                grpo.sampling,
            )
            for place, example in enumerate(self._schedule.take(step))
        )

    def canary(self) -> PromptTask:
        """The prompt whose log-probs prove a version: short, the first of the run with the fewest pictures."""
        sampling = self._config.grpo.sampling
        tokens = min(CANARY_TOKENS, sampling.max_new_tokens)
        example = min(self._schedule.take(0), key=lambda example: len(example.media))
        return self._task(
            example,
            "canary",
            CANARY_COMPLETIONS,
            self._config.seed,
            SamplingConfig(temperature=sampling.temperature, max_new_tokens=tokens),
        )

    def _task(self, example: Example, name: str, n: int, seed: int, sampling: SamplingConfig) -> PromptTask:
        prompt = render(example, "think", self._config.data.preset)
        original = image_size(example.media[0])
        request = RolloutRequest(
            request_id=name,
            prompt_token_ids=prompt_token_ids(self._processor, prompt.messages),
            media=example.media,
            is_video=example.data_type == "video",
            n=n,
            seed=seed,
            sampling=sampling,
        )
        return PromptTask(prompt, request, reward_row(prompt, original, processed_size(self._processor, original)))


def check_failed_share(groups: Sequence[Group], allowed: float) -> None:
    """GrpoFailed when too large a share of the step's completions has no score; truncated ones are not failures."""
    scores = [score for group in groups for score in group.scores]
    failed = [score for score in scores if score.outcome in ("timeout", "error")]
    if len(failed) > allowed * len(scores):
        raise GrpoFailed(
            f"{len(failed)} of {len(scores)} completions of one step could not be scored, {allowed:.0%} are allowed "
            f"(reward.max_failed_share). The first: {failed[0].outcome}: {failed[0].detail}"
        )


def with_advantages(groups: Sequence[Group], config: GRPOConfig) -> Batch:
    """Advantages over the valid members of each group; groups and members without gradient are left out of training."""
    advantages, trained = [], []
    for group in groups:
        rewards = shaped_rewards(group, config)
        valid = [reward is not None for reward in rewards]
        own = group_advantages(
            torch.tensor([float("nan") if reward is None else reward for reward in rewards], dtype=torch.float64),
            torch.tensor(valid),
            config.std_normalization,
            config.zero_variance_tolerance,
        )
        advantages.append(own)
        if own.outcome == "signal":
            completions = group.generation.completions
            members = [index for index, ok in enumerate(valid) if ok]
            trained.append(
                TrainGroup(
                    group.prompt,
                    group.generation.expanded_prompt_ids,
                    tuple(completions[index].token_ids for index in members),
                    tuple(completions[index].logprobs for index in members),
                    tuple(float(own.advantages_G[index]) for index in members),
                )
            )
    return Batch(tuple(groups), tuple(advantages), tuple(trained))


def shaped_rewards(group: Group, config: GRPOConfig) -> list[float | None]:
    """What each member is compared by: its score and, with a buffer, its overlong penalty; None without a reward."""
    if not config.overlong_buffer:
        return [score.total for score in group.scores]
    limit = config.sampling.max_new_tokens
    rewards: list[float | None] = []
    for score, completion in zip(group.scores, group.generation.completions, strict=True):
        earned = 0.0 if score.outcome == "truncated" else score.total
        penalty = overlong_penalty(len(completion.token_ids), limit, config.overlong_buffer)
        rewards.append(None if earned is None else earned + penalty)
    return rewards


def step_metrics(
    step: int,
    rollouts: Rollouts,
    batch: Batch,
    learned: dict[str, float],
    synced: Sync,
    seconds: dict[str, float],
    engine_pictures: int,
    workers: int,
) -> dict[str, Any]:
    """The line of metrics.jsonl.

    `version` is the one the step sampled from. `image_passes_per_prompt`: how often a picture was read and processed,
    engine and learner together, over the step's pictures (a video is one); `vision_passes_per_prompt` counts every
    vision tower it went through, the reference's included. `seconds_wait`: what the learner had nothing to do.
    `seconds_reward`: scoring that was left when the last generation came. `wire_bytes`: requests, generations and
    batches through the trainer; weights are `weight_bytes`, per worker.
    """
    scores = [score for group in batch.groups for score in group.scores]
    ok = [score for score in scores if score.outcome == "ok"]
    lengths = [
        len(completion.token_ids) for generation in rollouts.generations for completion in generation.completions
    ]
    names = sorted({name for score in ok for name in score.components})
    outcomes = [advantage.outcome for advantage in batch.advantages]
    pictures = sum(1 if task.request.is_video else len(task.request.media) for task in rollouts.tasks)
    versions = [generation.version for generation in rollouts.generations]
    current = synced.version - bool(batch.trained)
    total = sum(seconds.values())
    wire = (tuple(task.request for task in rollouts.tasks), rollouts.generations, batch.trained)
    return {
        "step": step,
        "version": current,
        "reward": _mean([score.total for score in ok]),
        "reward_std": _mean([advantage.std for advantage in batch.advantages if advantage.std is not None]),
        **{
            f"reward_{name}": _mean([score.components[name] for score in ok if name in score.components])
            for name in names
        },
        "valid_fraction": len(ok) / len(scores),
        "truncated_fraction": sum(score.outcome == "truncated" for score in scores) / len(scores),
        "zero_variance_fraction": outcomes.count("zero_variance") / len(outcomes),
        **dict.fromkeys(LEARNER_KEYS),
        **{key: value for key, value in learned.items() if key in LEARNER_KEYS},
        "staleness_max": current - min(versions),
        "canary_gap": synced.canary_gap,
        "completion_tokens": _mean(lengths),
        "completion_tokens_max": max(lengths),
        "samples_per_s": len(scores) / total,
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "seconds_wait": seconds["generate"] + seconds["reward"],
        "seconds": total,
        "wire_bytes": len(pickle.dumps(wire)),
        "weight_bytes": synced.nbytes if batch.trained else 0,
        "image_passes_per_prompt": (engine_pictures + learned.get("image_passes", 0.0)) / pictures,
        "vision_passes_per_prompt": (engine_pictures + learned.get("vision_passes", 0.0)) / pictures,
        "workers": workers,
    }


def progress_line(metrics: dict[str, Any], steps: int) -> str:
    """What a reader of the log wants to know about a step."""
    parts = "  ".join(
        f"{key.removeprefix('reward_')} {value:.2f}"
        for key, value in metrics.items()
        if key.startswith("reward_") and key != "reward_std" and value is not None
    )
    left = (steps - metrics["step"] - 1) * metrics["seconds"]
    gap = f"  gap {metrics['logprob_gap_max']:.1e}" if metrics["logprob_gap_max"] is not None else "  nothing to learn"
    reward = f"{metrics['reward']:.3f}" if metrics["reward"] is not None else "none"
    return (
        f"grpo: step {metrics['step'] + 1}/{steps}  reward {reward}  {parts}  tokens {metrics['completion_tokens']:.0f}"
        f"{gap}  {metrics['seconds']:.1f} s  {left:.0f} s left"
    )


def gap_alarm(metrics: dict[str, Any], tolerance: float) -> str | None:
    """What to say when engine and learner disagreed about a token the step trained on by more than the canary may."""
    gap = metrics["logprob_gap_max"]
    if gap is None or gap <= tolerance:
        return None
    return (
        f"grpo: WARNING: step {metrics['step'] + 1}: engine and learner differ by {gap:.2g} nats on a sampled token "
        f"(rollout.canary_tolerance is {tolerance:g}); compare their prompts, positions and types before trusting this run"
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
