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

from collections.abc import Callable, Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError

from actors.deadlines import DeadlineExceeded
from actors.ledger import PromptSchedule
from actors.prompt_tasks import TaskMaker
from actors.record import FINISHED, MODEL, Progress, StageRecord
from actors.reward import component_weights, reward_specs, reward_versions
from actors.sampling import GrpoFailed, Stopwatch, sample_step
from actors.stage import StageActors
from actors.step_batch import step_batch
from actors.step_metrics import gap_alarm, progress_line, step_metrics
from configs.schema import OPERATIONAL_REWARD, RunConfig
from data.reading import GROUNDING_FILE, SPATIAL_FILE, read_rows
from data.stage_files import fingerprint
from data.types import Example
from models.loading import check_model_folder

Say = Callable[[str], None]


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
    record = StageRecord(stage_folder, identity_of(config, examples, model_folder), reward_versions(config.reward))
    if record.finished:
        changed = record.changed_rewards(stage_folder / FINISHED)
        say("grpo: already trained" + "".join(f", by another source of reward {name}" for name in changed))
        return stage_folder / MODEL
    schedule = PromptSchedule(examples, config.grpo, config.seed)
    tasks = TaskMaker(config, schedule, model_folder)
    position = record.resume(config.reward.accept_changed)
    for name in record.changed_rewards():
        say(f"grpo: from step {position.step + 1} on by another source of reward {name} (reward.accept_changed)")
    say(
        f"grpo: {len(examples)} prompts, {schedule.steps} steps from {position.step}; starting "
        f"{config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s), "
        f"{config.reward.actors} reward actor(s)"
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
    prompts, weights = position.prompts, component_weights(config.reward)
    for step in range(position.step, steps):
        watch, seen = Stopwatch(), actors.pictures_encoded()
        sampled = sample_step(actors, tasks, config, step, prompts, watch)  # q, o_1 … o_G ~ pi_old(. | q), r_i, A_i
        prompts += len(sampled.tasks)
        seen = actors.pictures_encoded() - seen
        batch = step_batch(sampled.groups, sampled.rewards, sampled.advantages, config.grpo)
        learned = actors.learn(batch.train) if batch.train else {}  # theta <- theta - lr * gradient of the loss
        watch.lap("learn")
        if batch.train:
            synced = actors.sync(synced.version + 1, tasks.canary())  # pi_old <- pi_theta, proved on every worker
        watch.lap("sync")
        metrics = step_metrics(step, sampled, batch, learned, synced, watch.seconds, seen, actors.workers, weights)
        advantages = [own.advantages_G.tolist() for own in sampled.advantages]
        record.append(metrics, sampled.groups, sampled.rewards, advantages, [task.row for task in sampled.tasks])
        say(progress_line(metrics, steps))
        if alarm := gap_alarm(metrics, config.rollout.canary_tolerance):
            say(alarm)
        if (step + 1) % config.grpo.checkpoint_steps == 0 or step + 1 == steps:
            actors.save(str(record.checkpoint_folder(step + 1)))
            record.commit(Progress(step + 1, synced.version, prompts))


def reason(error: Exception) -> str:
    """One message for what a remote call raised, without the traces of the machinery."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, ray.exceptions.ActorDiedError):
        return f"an actor died: {error}"
    return str(error)


def identity_of(config: RunConfig, examples: Sequence[Example], model_folder: Path) -> str:
    """Fingerprint of the stage's work; the source of custom rewards is apart (`reward_versions`)."""
    model, data = (config.model.dtype, config.model.freeze_vision, config.model.lora), config.data.preset
    # By name, not by path: a job's copy of the working directory has another path at every start.
    custom = [
        (spec.component, spec.weight, sorted(own.deciding_params.items()), spec.batched)
        for spec, own in zip(reward_specs(config.reward), config.reward.custom, strict=True)
    ]
    built_in = config.reward.model_dump(exclude={"custom", *OPERATIONAL_REWARD})
    settings = (config.seed, config.grpo, config.learner, built_in, custom, model, data)
    return fingerprint(settings, examples, model_folder)
