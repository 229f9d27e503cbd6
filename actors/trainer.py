"""Stage 3: group-relative policy optimisation, one flat step after another.

What holds
    * With `grpo.staleness` 0 strictly on-policy: step s + 1 samples from the weights that step s made, of workers that have
      proved that they hold them. With K, up to K steps are sampled ahead (`actors.rollouts`).
    * A failure is never a reward: completions without a score leave the statistics of their group and carry no
      gradient; when more of them fail than `reward.max_failed_share` allows, the run stops.
    * The same command resumes at the last checkpoint; prompts, sampling seeds and records continue as if undisturbed.
    * A rollout worker or reward actor that dies is replaced, and others do its work; when a learner rank dies, all ranks start
      again at the last checkpoint, and the fleet stays. Too many deaths end the run with one message, and all actors with
      it; the folder can be resumed.

Source: GRPO (arXiv 2402.03300) as SpatialLadder uses it (arXiv 2510.08531); the advantages and losses are those of `grpo`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import RayError

from actors.autoscaler import Autoscaler
from actors.deadlines import DEATHS, DeadlineExceeded
from actors.fleet import Fleet, FleetExhausted, FleetLimits, State
from actors.fleet_status import FleetStatus
from actors.identities import Identities
from actors.learners import Learners
from actors.ledger import Ledger
from actors.oversight import Oversight, SizeRequest
from actors.prompt_tasks import TaskMaker
from actors.ray_port import STOP_SECONDS, RayPort, told
from actors.record import MODEL, Accepted, CheckpointMismatch, Progress, StageRecord, Work
from actors.reward import component_weights, reward_specs, reward_versions
from actors.rollouts import Rollouts
from actors.sampling import GrpoFailed, Stopwatch, sample_step
from actors.schedule import PromptSchedule
from actors.step_batch import step_batch
from actors.step_metrics import FleetFigures, gap_alarm, progress_line, step_metrics
from actors.types import Sync
from actors.weights import shared_memory_folder
from configs.changes import deciding, of_stage_3
from configs.schema import RunConfig
from data.joining import join_boxes
from data.reading import GROUNDING_FILE, SPATIAL_FILE, read_rows
from data.stage_files import fingerprint
from data.types import Example
from models.loading import check_model_folder

Say = Callable[[str], None]
#: Settings that stage 3 reads too, though not alone.
OF_ALL_STAGES = ("seed", "data.preset", "model.dtype", "model.freeze_vision", "model.lora", "model.box_frame",
                 "learner.")


def run_grpo(
    config: RunConfig, *, model_folder: Path, data_folder: Path, stage_folder: Path, progress: Say = print,
    accept_changes: bool = False,
) -> Path:
    """Train on the spatial and localisation rows of data_folder/train; returns the model folder. `accept_changes`: an
    unfinished stage goes on with other settings than those it was begun with, as far as it can (`configs.changes`).

    Ray must be initialised. Errors: RowError, ModelFolderError, CheckpointMismatch (a folder of other work), ValueError
    (settings that fit no data) before anything starts; later GrpoFailed, and MediaError for a picture that is gone.
    """
    localization, questions = (read_rows(data_folder, name, "train") for name in (GROUNDING_FILE, SPATIAL_FILE))
    if config.grpo.joined_boxes:
        joined = join_boxes(questions, localization)
        questions = list(joined.rows)
        progress(f"grpo: {joined}; their prompts ask for these too")
    rows = localization + questions
    return train_policy(config, rows, Path(model_folder).absolute(), Path(stage_folder).absolute(), progress, accept_changes)


def train_policy(
    config: RunConfig, examples: Sequence[Example], model_folder: Path, stage_folder: Path, say: Say,
    accept_changes: bool = False,
) -> Path:
    """`run_grpo` on rows already read."""
    check_model_folder(model_folder)
    accepted = Accepted(settings=accept_changes, rewards=config.reward.accept_changed)
    record = StageRecord(stage_folder, work_of(config, examples, model_folder), accepted)
    if record.finished:
        changed = record.changed_rewards()
        say("grpo: already trained" + "".join(f", by another source of reward {name}" for name in changed))
        return stage_folder / MODEL
    schedule = PromptSchedule(examples, config.grpo, config.seed)
    tasks = TaskMaker(config, schedule, model_folder)
    position = resumed(record, schedule.steps, say)
    say(
        f"grpo: {len(examples)} prompts, {schedule.steps} steps, {position.step} of them done; starting "
        f"{config.rollout.workers.min} rollout worker(s), {config.learner.ranks} learner rank(s), "
        f"{config.reward.actors} reward actor(s)"
    )
    identities = Identities()
    status = FleetStatus(stage_folder, schedule.steps, os.getpid(), identities)
    learners = Learners(config, str(model_folder), str(stage_folder), schedule.steps, status, identities)
    port = None
    try:
        port = RayPort(config, str(model_folder), learners, tasks.canary(), status, identities, say)
        fleet = Fleet(fleet_limits(config), noted=status.worker)
        fleet.scale(config.rollout.workers.min)
        oversight = Oversight(
            fleet, config.learner.ranks, port.groups, identities, status, SizeRequest(stage_folder, say), say,
            autoscaler(config),
        )
        oversight()  # before anybody is started: another size may have been asked for
        ledger = Ledger(config.failures.attempts, position.ledger)
        rollouts = Rollouts(fleet, ledger, port, tasks.take, say, turned=oversight)
        persist(Training(config, schedule.steps, rollouts, learners, port, record, status, oversight, say), position)
        record.finish()
    except (RayError, DeadlineExceeded, FleetExhausted) as error:
        raise GrpoFailed(
            f"grpo stopped: {told(error)}\nRun the same command again to resume from the last checkpoint."
        ) from error
    finally:
        end(port, learners)
        shutil.rmtree(shared_memory_folder(stage_folder), ignore_errors=True)
        status.close("finished" if record.finished else "stopped")
    return stage_folder / MODEL


def resumed(record: StageRecord, steps: int, say: Say) -> Progress:
    """Where the stage of `steps` steps goes on, with what is new since then. CheckpointMismatch as `StageRecord.resume`, and
    when more steps are done."""
    position = record.resume()
    if position.step > steps:
        raise CheckpointMismatch(
            f"{position.checkpoint} has {position.step} steps, the stage would have {steps} now: set grpo.steps to "
            f"{position.step} to end it there, or to more"
        )
    for remark in position.remarks:
        say(f"grpo: {remark}")
    for change in record.changes:
        say(f"grpo: from step {position.step + 1} on with {change}")
    for name in record.changed_rewards():
        say(f"grpo: from step {position.step + 1} on by another source of reward {name} (reward.accept_changed)")
    return position


def fleet_limits(config: RunConfig) -> FleetLimits:
    """Of the rollout fleet. A worker holds as many prompts as fill its engine, and one that waits there."""
    rollout, deadlines = config.rollout, config.deadlines
    outstanding = -(-rollout.max_num_seqs // config.grpo.group_size) + 1
    silence = max(deadlines.generation, deadlines.weights)
    return FleetLimits(deadlines.engine_start, silence, outstanding, config.failures.workers)


def autoscaler(config: RunConfig) -> Autoscaler | None:
    """What decides between rollout.workers.min and max; None where they are the same."""
    workers, grpo = config.rollout.workers, config.grpo
    if workers.fixed:
        return None
    in_air = grpo.prompts_per_step * (grpo.staleness + 1)
    return Autoscaler(workers.min, workers.max, workers.min, in_air, overlap=grpo.staleness > 0)


@dataclass(frozen=True)
class Training:
    """What the steps of one run share."""

    config: RunConfig
    steps: int
    rollouts: Rollouts
    learners: Learners
    port: RayPort
    record: StageRecord
    status: FleetStatus
    oversight: Oversight
    say: Say


def persist(run: Training, position: Progress) -> None:
    """`optimise`, then write the model; from the last checkpoint again whenever a learner rank dies. The fleet stays.

    Raises the death that is one more than `failures.learner` without a new checkpoint between them.
    """
    rollouts, learners, say, deaths = run.rollouts, run.learners, run.say, 0
    while True:
        try:
            run.status.step, run.status.doing = position.step, "starting"
            (address,) = rollouts.meanwhile(learners.address())
            rollouts.meanwhile(learners.start(address, position.checkpoint))
            learners.ready()
            say("grpo: the learner is ready")
            optimise(run, position)
            run.status.doing = "exporting"
            rollouts.meanwhile(learners.export(run.record.folder / MODEL))
            return
        except RayError as error:
            # A rank's death, or what that made of the others' collective; every other actor's is an event of the port.
            lost = learners.lost()
            if not lost and not isinstance(error, DEATHS):
                raise
            run.port.withdraw()  # first: to read a checkpoint takes long
            before, position = position.step, run.record.resume()
            for remark in position.remarks:
                say(f"grpo: {remark}")
            deaths = 1 if position.step > before else deaths + 1
            if deaths > run.config.failures.learner:
                raise
            again = min(position.step + 1, run.steps)  # the last may be done, but not exported
            say(f"grpo: a learner rank was lost ({told(error)}); all ranks start again at step {again}")
            learners.replace(lost, told(error))
            rollouts.withdraw(rollouts.ledger.rewound(position.ledger))


def optimise(run: Training, position: Progress) -> None:
    """The algorithm: the steps from `position` on, with a learner that is ready."""
    config, rollouts, learners, record, status = run.config, run.rollouts, run.learners, run.record, run.status
    last = rollouts.fleet.version  # of a learner that was lost
    synced = publish(run, position.version if last is None else last + 1)
    run.say(f"grpo: version {synced.version} proved, canary gap {synced.canary_gap:.1e} nats")
    weights, grpo, durations = component_weights(config.reward), config.grpo, list[float]()
    for step in range(position.step, run.steps):
        run.oversight.step_begins()
        watch = Stopwatch()
        status.step, status.doing = step, "sampling"
        rollouts.admit(step, min(step + grpo.staleness, run.steps - 1), grpo.prompts_per_step)  # q ~ P(Q)
        try:
            sampled = sample_step(rollouts, learners, config, step, watch)  # o_1 … o_G ~ pi_old(. | q), r_i, A_i
        except GrpoFailed as error:
            kept = record.write_failed(step, rollouts.scored(step))
            raise GrpoFailed(f"{error}\nIts groups, as far as they were scored: {kept}") from None
        status.doing = "learning"
        batch = step_batch(sampled.groups, sampled.rewards, sampled.advantages, grpo, synced.version)
        learned = rollouts.meanwhile(learners.step(batch.train))[0] if batch.train else {}  # theta <- theta - lr * gradient
        watch.lap("learn")
        if batch.train:
            synced = publish(run, synced.version + 1)  # pi_old <- pi_theta, proved
        watch.lap("sync")
        metrics = step_metrics(step, sampled, batch, learned, synced, watch.seconds, fleet_figures(run), weights)
        advantages = [own.advantages_G.tolist() for own in sampled.advantages]
        record.append(metrics, sampled.groups, sampled.rewards, advantages, [task.row for task in sampled.tasks])
        record.append_ledger(rollouts.trained(step))
        durations.append(metrics["seconds"])
        run.say(progress_line(metrics, run.steps, durations))
        if alarm := gap_alarm(metrics, config.rollout.canary_tolerance):
            run.say(alarm)
        if (step + 1) % grpo.checkpoint_steps == 0 or step + 1 == run.steps:
            save(run, Progress(step + 1, synced.version))
        run.oversight.step_ends(waited=metrics["seconds_wait"])


def fleet_figures(run: Training) -> FleetFigures:
    """Since the last step's."""
    workers = run.rollouts.fleet.count(State.SERVING, State.STALE, State.SUSPECT)
    return FleetFigures(workers, run.port.passes_per_picture(), run.port.slowest_control())


def save(run: Training, progress: Progress) -> None:
    """Write a checkpoint and commit it: the run is resumed from there."""
    run.status.doing = "saving"
    folder = run.record.begin_checkpoint(progress.step)
    run.rollouts.meanwhile(run.learners.save(folder))
    (files,) = run.rollouts.meanwhile(run.learners.stamps(folder))
    run.record.commit(replace(progress, ledger=run.rollouts.ledger.state()), files)


def publish(run: Training, version: int) -> Sync:
    """Publish the learner's weights as `version`; returns when a first worker has proved that it holds them."""
    run.status.doing = "publishing"
    published, *_ = run.rollouts.meanwhile(run.learners.publish(version))
    run.port.offer(published)
    run.rollouts.publish(version)
    return Sync(version, published.nbytes, max(run.rollouts.gaps.values()))


def end(port: RayPort | None, learners: Learners) -> None:
    """Ask every actor to end what it owns, then kill it, whatever state it is in."""
    leaving = learners.close()
    if port is not None:
        port.close()
    ray.wait(leaving, num_returns=len(leaving), timeout=STOP_SECONDS)
    learners.leave()


def work_of(config: RunConfig, examples: Sequence[Example], model_folder: Path) -> Work:
    """What stage 3 is to do with these rows, from this model. RewardContractError for a custom reward that does not load."""
    # By name, not by path: a job's copy of the working directory has another path at every start.
    custom = [
        {"component": spec.component, "weight": spec.weight, "params": own.deciding_params, "batched": spec.batched}
        for spec, own in zip(reward_specs(config.reward), config.reward.custom, strict=True)
    ]
    settings = {key: value for key, value in deciding(config).items() if of_stage_3(key) or key.startswith(OF_ALL_STAGES)}
    written = json.loads(json.dumps(settings | {"reward.custom": custom}))  # as a checkpoint says it
    return Work(fingerprint((), examples, model_folder), written, reward_versions(config.reward))
