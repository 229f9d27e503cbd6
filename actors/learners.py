"""The learner ranks of one run as a gang: every call goes to all of them at once, and is waited for as one.

What holds: ranks get the same calls in the same order, so none is ever left alone in a collective; a call that is silent for
its limit raises DeadlineExceeded, one that fails on any rank raises what it failed with. Nothing here waits: the caller
does, who has a fleet to look after meanwhile (`actors.rollouts.Rollouts.meanwhile`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.batching import TrainBatch, TrainGroup
from actors.deadlines import DEATHS, Calls
from actors.learner import Learner
from configs.schema import RunConfig
from data.types import Prompt
from models.heap import training_runtime

#: Seconds that Ray may need to find out that a rank is dead, after others have noticed.
LOOK_SECONDS = 5.0


class Learners:
    """Makes the ranks; `start` starts them, `close` ends them in any case."""

    def __init__(self, config: RunConfig, model_folder: str, stage_folder: str, steps: int) -> None:
        """Creates the actors; they are placed when Ray finds room."""
        self._config, self._limits = config, config.deadlines
        self._arguments = (model_folder, stage_folder, steps)
        self._ranks = self._made()

    def _made(self) -> list[Any]:
        learner, (model_folder, stage_folder, steps) = self._config.learner, self._arguments
        options = {"num_cpus": learner.num_cpus, "num_gpus": learner.num_gpus, "runtime_env": training_runtime(learner.num_gpus)}
        return [
            ray.remote(Learner).options(**options).remote(self._config, model_folder, stage_folder, rank, learner.ranks, steps)
            for rank in range(learner.ranks)
        ]

    def replace(self) -> None:
        """A rank is lost, and with it the gang: end what is left of it and make another, to be started."""
        self.kill()
        self._ranks = self._made()

    def address(self) -> Calls:
        """Where the ranks will meet, of rank 0."""
        return Calls([self._ranks[0].address.remote()], "the trainer", "learner rank 0 to answer", self._limits.engine_start)

    def start(self, address: tuple[str, int], checkpoint: str | None) -> Calls:
        """`checkpoint`: a folder `save` wrote."""
        return self._call(lambda rank: rank.start.remote(*address, checkpoint), "the learner to start", self._limits.engine_start)

    def penalties(self, groups: Sequence[TrainGroup]) -> Calls:
        """What the rewards of the groups' members lose for their divergence; see `Learner.penalties`."""
        shared = ray.put(tuple(groups))
        return self._call(lambda rank: rank.penalties.remote(shared), "the reference's log-probs", self._limits.learner)

    def step(self, batch: TrainBatch) -> Calls:
        """The optimizer steps on a batch over all ranks; the metrics of `Learner.step`."""
        shared, epochs = ray.put(batch), self._config.grpo.inner_epochs
        return self._call(lambda rank: rank.step.remote(shared), "an optimizer step", self._limits.learner * epochs)

    def publish(self, version: int) -> Calls:
        """The weights as `version`; of rank 0 the WeightVersion."""
        return self._call(lambda rank: rank.publish.remote(version), f"version {version} to be published", self._limits.weights)

    def logprobs(self, prompt: Prompt, expanded: Sequence[int], completions: Sequence[Sequence[int]]) -> Calls:
        """Of the completions' tokens under the current weights; see `Learner.logprobs`."""
        what = "the canary's log-probs"
        return self._call(lambda rank: rank.logprobs.remote(prompt, expanded, completions), what, self._limits.learner)

    def release_all_but(self, versions: frozenset[int]) -> Calls:
        """Remove the versions that no worker needs any more; comes behind an optimizer step that is under way."""
        limit = self._limits.learner * (1 + self._config.grpo.inner_epochs)
        return Calls([self._ranks[0].release_all_but.remote(versions)], "the trainer", "old versions to be released", limit)

    def lost(self) -> bool:
        """Whether a rank has died; looks for at most `LOOK_SECONDS`, in which one that works need not answer."""
        asked = [rank.address.remote() for rank in self._ranks]
        for ref in ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)[0]:
            try:
                ray.get(ref)
            except DEATHS:
                return True
        return False

    def save(self, folder: Path) -> Calls:
        """A resumable checkpoint."""
        return self._call(lambda rank: rank.save.remote(str(folder)), "a checkpoint", self._limits.learner)

    def export(self, folder: Path) -> Calls:
        """The policy in the Hugging Face layout."""
        return self._call(lambda rank: rank.export.remote(str(folder)), "the model to be written", self._limits.learner)

    def close(self) -> list[ray.ObjectRef]:
        """Ask every rank to leave what it owns; `kill` them when that is done, or has taken too long."""
        return [rank.close.remote() for rank in self._ranks]

    def kill(self) -> None:
        """Dead ones are no error."""
        for rank in self._ranks:
            ray.kill(rank)

    def _call(self, call: Callable[[Any], ray.ObjectRef], what: str, limit: float) -> Calls:
        return Calls([call(rank) for rank in self._ranks], "the trainer", what, limit)
