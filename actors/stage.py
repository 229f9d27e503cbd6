"""The actors of stage 3 as the trainer uses them: started together, waited for with deadlines, ended together.

    trainer ──requests──▶ RolloutWorkers ──generations──▶ RewardActor ──scores──▶ trainer
       ▲                        ▲                                                    │ groups that carry gradient
       └──────metrics──── Learner ranks ◀──────────────────────────────────────────────┘
                                └─── versions in shared memory, named by a manifest ──▶ RolloutWorkers

What holds
    * Every wait has a deadline on silence and says who waited for what (`actors.deadlines`). Generations report the
      tokens computed, scores their groups; a learner's call reports only its end.
    * A worker generates only with a version it has proved: `sync` publishes, updates, runs the canary and compares its
      log-probs with the learner's before it returns.
    * A group is scored as soon as it is generated: the reward calls are queued on the generations, not on the trainer.
    * Learner ranks are never kept in a collective while rollouts generate: their calls are issued together.
    * `close` ends every actor, whatever state it is in.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.batching import TrainBatch, TrainGroup
from actors.deadlines import RayWait
from actors.learner import Learner
from actors.reward import RewardActor, longest_silence, reward_versions
from actors.rollout import RolloutRequest, RolloutWorker
from actors.types import Generation, Group
from actors.weights import shared_memory_folder
from configs.schema import RunConfig
from data.types import Prompt
from models.heap import training_runtime
from rewards.outcome import Score
from rewards.rows import RewardRow

#: Calls an async rollout actor takes at a time; beyond it calls queue in Ray, control calls included.
ROLLOUT_CONCURRENCY = 1000
#: Completions and tokens of the canary.
CANARY_COMPLETIONS, CANARY_TOKENS = 2, 16
#: Seconds between two lines about actors that are still starting.
START_LINE_SECONDS = 5.0
#: Seconds that actors get to end by themselves.
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class PromptTask:
    """A prompt on its way: what the learner encodes, what the engine samples, what the rewards read."""

    prompt: Prompt
    request: RolloutRequest
    row: RewardRow


@dataclass(frozen=True)
class Rollouts:
    """Generations in the order of their tasks, and the references of their scores."""

    tasks: tuple[PromptTask, ...]
    generations: tuple[Generation, ...]
    score_refs: tuple[ray.ObjectRef, ...]


@dataclass(frozen=True)
class Sync:
    """A proved version: its number, bytes, and the largest canary gap over the workers, nats."""

    version: int
    nbytes: int
    canary_gap: float


class StageActors:
    """Rollout workers, reward actors and learner ranks of one run. Make it, `start` it, `close` it in any case."""

    def __init__(self, config: RunConfig, model_folder: str, stage_folder: str, steps: int) -> None:
        """Creates the actors; they are placed when Ray finds room."""
        rollout, learner, reward = config.rollout, config.learner, config.reward
        self._config, self._stage_folder = config, stage_folder
        self._wait = RayWait("the trainer")
        self._workers = [
            ray.remote(RolloutWorker)
            .options(num_cpus=rollout.num_cpus, num_gpus=rollout.num_gpus, max_concurrency=ROLLOUT_CONCURRENCY)
            .remote(f"w{index}", model_folder, rollout, config.model.dtype, config.seed)
            for index in range(rollout.workers)
        ]
        self._rewards = [
            # A group whose generation comes first is scored first, whatever was queued before it.
            ray.remote(RewardActor)
            .options(num_cpus=reward.num_cpus, max_concurrency=reward.processes, allow_out_of_order_execution=True)
            .remote(reward)
            for _ in range(reward.actors)
        ]
        self._learners = [
            ray.remote(Learner)
            .options(
                num_cpus=learner.num_cpus, num_gpus=learner.num_gpus, runtime_env=training_runtime(learner.num_gpus)
            )
            .remote(config, model_folder, stage_folder, rank, learner.ranks, steps)
            for rank in range(learner.ranks)
        ]
        self._computed = [0] * rollout.workers

    @property
    def workers(self) -> int:
        return len(self._workers)

    def start(self, checkpoint: str | None, progress: Callable[[str], None]) -> None:
        """All actors at once; returns when every one is ready. `checkpoint`: a folder `save` wrote."""
        begun = told = time.monotonic()
        limit = self._config.deadlines.engine_start
        refs = {f"rollout worker w{index}": worker.start.remote() for index, worker in enumerate(self._workers)}
        versions = reward_versions(self._config.reward)
        refs |= {f"reward actor {index}": actor.start.remote(versions) for index, actor in enumerate(self._rewards)}
        address = self._wait.one(self._learners[0].address.remote(), "learner rank 0 to answer", limit)
        refs |= {
            f"learner rank {rank}": learner.start.remote(*address, checkpoint)
            for rank, learner in enumerate(self._learners)
        }
        missing = dict.fromkeys(refs)

        def arrived(label: str, _: Any) -> None:
            missing.pop(label)
            progress(f"grpo: {label} ready ({time.monotonic() - begun:.0f} s)")

        def still_starting() -> None:
            nonlocal told
            if time.monotonic() - told > START_LINE_SECONDS:
                told = time.monotonic()
                progress(f"grpo: waiting for {', '.join(missing)} ({told - begun:.0f} s)")

        self._wait.all(refs, "actors to start", limit, still_starting, arrived)

    def roll_out(self, tasks: Sequence[PromptTask]) -> Rollouts:
        """One request with n = G per prompt, spread evenly over the workers."""
        refs = [self._workers[index % self.workers].generate.remote(task.request) for index, task in enumerate(tasks)]
        score_refs = tuple(
            self._rewards[index % len(self._rewards)].score.remote(task.row, ref)
            for index, (task, ref) in enumerate(zip(tasks, refs, strict=True))
        )
        by_id = self._wait.all(
            {task.request.request_id: ref for task, ref in zip(tasks, refs, strict=True)},
            "generations",
            self._config.deadlines.generation,
            self._generated,
        )
        return Rollouts(tuple(tasks), tuple(by_id[task.request.request_id] for task in tasks), score_refs)

    def _generated(self) -> int:
        """What the engines have computed so far; one that does not answer at once has what it said last."""
        refs = [worker.health.remote() for worker in self._workers]
        ready, _ = ray.wait(refs, num_returns=self.workers, timeout=1.0)
        for ref in ready:
            self._computed[refs.index(ref)] = ray.get(ref).progress
        return sum(self._computed)

    def score(self, rollouts: Rollouts, arrived: Callable[[Sequence[Score]], None]) -> tuple[Group, ...]:
        """The groups with their scores; `arrived` sees the scores of each group as they come, and may raise."""
        refs = {task.request.request_id: ref for task, ref in zip(rollouts.tasks, rollouts.score_refs, strict=True)}
        # Scores arrive by group, and every member of a group may take its whole time.
        limit = self._config.deadlines.reward + longest_silence(self._config.reward, self._config.grpo.group_size)
        scores: dict[str, tuple[Score, ...]] = self._wait.all(
            refs, "scores", limit, arrived=lambda _, own: arrived(own)
        )
        return tuple(
            Group(task.prompt, generation, scores[task.request.request_id])
            for task, generation in zip(rollouts.tasks, rollouts.generations, strict=True)
        )

    def penalties(self, groups: Sequence[TrainGroup]) -> list[list[float]]:
        """What the rewards of the groups' members lose for their divergence; see `Learner.penalties`."""
        shared = ray.put(tuple(groups))
        return self._on_all_ranks(
            [learner.penalties.remote(shared) for learner in self._learners],
            "the reference's log-probs",
            self._config.deadlines.learner,
        )[0]

    def learn(self, batch: TrainBatch) -> dict[str, float]:
        """The optimizer steps on a batch over all ranks; the metrics of `Learner.step`."""
        shared = ray.put(batch)
        return self._on_all_ranks(
            [learner.step.remote(shared) for learner in self._learners],
            "an optimizer step",
            self._config.deadlines.learner * self._config.grpo.inner_epochs,
        )[0]

    def sync(self, version: int, canary: PromptTask) -> Sync:
        """Publish the learner's weights as `version`, bring them to every worker and prove them there.

        Raises WeightVersionError or CanaryMismatch (by way of Ray) when a worker does not hold them.
        """
        limit = self._config.deadlines.weights
        published = self._on_all_ranks(
            [learner.publish.remote(version) for learner in self._learners], f"version {version} to be published", limit
        )[0]
        self._on_all_workers(
            [worker.update_weights.remote(published) for worker in self._workers],
            f"version {version} to be loaded",
            limit,
        )
        generations = self._on_all_workers(
            [worker.canary.remote(canary.request) for worker in self._workers],
            f"the canary of version {version}",
            self._config.deadlines.generation,
        )
        gaps = self._canary_gaps(canary.prompt, generations)
        self._on_all_workers(
            [worker.prove.remote(gap) for worker, gap in zip(self._workers, gaps, strict=True)],
            f"version {version} to be proved",
            limit,
        )
        self._wait.one(self._learners[0].release_before.remote(version), "older versions to be released", limit)
        return Sync(version, published.nbytes, max(gaps))

    def _canary_gaps(self, prompt: Prompt, generations: Sequence[Generation]) -> list[float]:
        """Per worker the largest |learner - worker| log-prob over its canary's tokens, nats."""
        completions = [completion for generation in generations for completion in generation.completions]
        arguments = (prompt, generations[0].expanded_prompt_ids, [completion.token_ids for completion in completions])
        expected = self._on_all_ranks(
            [learner.logprobs.remote(*arguments) for learner in self._learners],
            "the canary's log-probs",
            self._config.deadlines.learner,
        )[0]
        rows = iter(zip(completions, expected, strict=True))
        gaps = []
        for generation in generations:
            own = [next(rows) for _ in generation.completions]
            gaps.append(
                largest_gap(
                    (ours, theirs)
                    for completion, row in own
                    for ours, theirs in zip(row, completion.logprobs, strict=True)
                )
            )
        return gaps

    def pictures_encoded(self) -> int:
        """Pictures that have gone through the engines' vision towers."""
        return sum(
            self._on_all_workers(
                [worker.image_passes.remote() for worker in self._workers],
                "the picture counters",
                self._config.deadlines.generation,
            )
        )

    def save(self, folder: str) -> None:
        """A resumable checkpoint of the learner."""
        self._on_all_ranks(
            [learner.save.remote(folder) for learner in self._learners], "a checkpoint", self._config.deadlines.learner
        )

    def export(self, folder: str) -> None:
        """The policy in the Hugging Face layout."""
        self._on_all_ranks(
            [learner.export.remote(folder) for learner in self._learners],
            "the model to be written",
            self._config.deadlines.learner,
        )

    def _on_all_ranks(self, refs: Sequence[ray.ObjectRef], what: str, limit: float) -> list[Any]:
        results = self._wait.all({f"learner rank {rank}": ref for rank, ref in enumerate(refs)}, what, limit)
        return [results[f"learner rank {rank}"] for rank in range(len(refs))]

    def _on_all_workers(self, refs: Sequence[ray.ObjectRef], what: str, limit: float) -> list[Any]:
        results = self._wait.all({f"rollout worker w{index}": ref for index, ref in enumerate(refs)}, what, limit)
        return [results[f"rollout worker w{index}"] for index in range(len(refs))]

    def close(self) -> None:
        """Ask every actor to end what it owns, then kill it; removes the published weights. Dead ones are no error."""
        farewells = [worker.stop.remote() for worker in self._workers]
        farewells += [actor.close.remote() for actor in (*self._rewards, *self._learners)]
        ray.wait(farewells, num_returns=len(farewells), timeout=STOP_SECONDS)
        for actor in (*self._workers, *self._rewards, *self._learners):
            ray.kill(actor)
        shutil.rmtree(shared_memory_folder(Path(self._stage_folder)), ignore_errors=True)


def largest_gap(pairs: Iterable[tuple[float, float]]) -> float:
    """The largest difference of two log-probs, nats; NaN as soon as one difference is no finite number."""
    gaps = [abs(ours - theirs) for ours, theirs in pairs]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.nan
