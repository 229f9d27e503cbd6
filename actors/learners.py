"""The learner ranks of one run as a gang: every call goes to all of them at once, and is waited for as one.

What holds: ranks get the same calls in the same order, so none is ever left alone in a collective; a call that is silent for
its limit raises DeadlineExceeded, one that fails on any rank raises what it failed with. Nothing here waits: the caller
does, who has a fleet to look after meanwhile (`actors.rollouts.Rollouts.meanwhile`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.batching import TrainBatch, TrainGroup
from actors.deadlines import DEATHS, Calls
from actors.file_parts import remove_folder_on, this_node
from actors.fleet_status import FleetStatus, rank_names
from actors.identities import Identities
from actors.learner import Learner
from actors.weight_groups import SENDER_THREADS, SENDERS, RaySource
from actors.weights import shared_memory_folder
from configs.schema import LearnerConfig, RunConfig
from data.types import Prompt
from models.heap import training_runtime

#: Part of the silence allowed for a version, for which the ends of a group wait: the file can come after it.
GROUP_PATIENCE = 0.25
#: Seconds that Ray may need to find out that a rank is dead, after others have noticed.
LOOK_SECONDS = 5.0


def learner_room(learner: LearnerConfig) -> PlacementGroup | None:
    """A placement group with a bundle for each rank, which stays when ranks are replaced: a worker that waits for room cannot
    take theirs meanwhile. None when they reserve nothing."""
    wanted = {"CPU": learner.num_cpus, "GPU": learner.num_gpus}
    bundle = {kind: amount for kind, amount in wanted.items() if amount}
    return placement_group([bundle] * learner.ranks, strategy="PACK", name="learner") if bundle else None


class Learners:
    """Makes the ranks; `start` starts them, `close` ends them in any case."""

    def __init__(
        self,
        config: RunConfig,
        model_folder: str,
        stage_folder: str,
        steps: int,
        status: FleetStatus,
        identities: Identities,
    ) -> None:
        """Creates the actors; they are placed when Ray finds room."""
        self._config, self._limits, self._status, self._identities = config, config.deadlines, status, identities
        self._arguments = (model_folder, stage_folder, steps)
        self._room = learner_room(config.learner)
        self._publishers: set[str] = set()  # other nodes on which rank 0 has been
        self._ranks = self._made()

    def _made(self) -> list[Any]:
        learner, (model_folder, stage_folder, steps) = self._config.learner, self._arguments
        options = {"num_cpus": learner.num_cpus, "num_gpus": learner.num_gpus, "runtime_env": training_runtime(learner.num_gpus)}
        if self._room is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._room)
        sends = self._config.rollout.transport == "collective"
        actor = ray.remote(concurrency_groups={SENDERS: SENDER_THREADS})(Learner) if sends else ray.remote(Learner)
        ranks = [
            actor.options(**options).remote(self._config, model_folder, stage_folder, rank, learner.ranks, steps)
            for rank in range(learner.ranks)
        ]
        for name, rank in zip(rank_names(learner.ranks), ranks, strict=True):
            self._identities.ask(name, rank)
            self._status.life("learner", name, None, "starting")
        return ranks

    def ready(self) -> None:
        """All ranks have started: note it."""
        for name in rank_names(len(self._ranks)):
            self._status.life("learner", name, "starting", "ready")
        self._identities.look()
        identity = self._identities.of("rank 0")
        if identity is not None and identity.node not in (None, this_node()):
            self._publishers.add(identity.node)

    def replace(self, lost: Sequence[str], reason: str) -> None:
        """The ranks of these names are lost, and with them the gang: end what is left of it and make another, to be started."""
        for name in rank_names(len(self._ranks)):
            after, why = ("lost", reason) if name in lost or not lost else ("ended", "another rank was lost")
            self._status.life("learner", name, self._status.doing, after, why)
        self.kill()
        self._ranks = self._made()

    def address(self) -> Calls:
        """Where the ranks will meet, of rank 0."""
        return Calls([self._ranks[0].address.remote()], "the trainer", "learner rank 0 to answer", self._limits.engine_start)

    def watch(self) -> Calls:
        """A call that every rank answers when it has done what it was asked before; it fails as soon as one dies. Without a
        limit: what they do has its own."""
        return Calls([rank.address.remote() for rank in self._ranks], "the trainer", "the learner to live", math.inf)

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

    def source(self) -> RaySource | None:
        """Who sends published versions to workers; None where they read the files."""
        if self._config.rollout.transport != "collective":
            return None
        return RaySource(self._ranks[0], self._limits.weights * GROUP_PATIENCE)

    def forget(self, worker: str) -> None:
        """The worker is no more: whatever is kept for it goes, sooner or later."""
        if self.source() is not None:
            self._ranks[0].close_group.options(concurrency_group=SENDERS).remote(worker)

    def logprobs(self, prompt: Prompt, expanded: Sequence[int], completions: Sequence[Sequence[int]]) -> Calls:
        """Of the completions' tokens under the current weights; see `Learner.logprobs`."""
        what = "the canary's log-probs"
        return self._call(lambda rank: rank.logprobs.remote(prompt, expanded, completions), what, self._limits.learner)

    def release_all_but(self, versions: frozenset[int]) -> Calls:
        """Remove the versions that no worker needs any more; comes behind an optimizer step that is under way."""
        limit = self._limits.learner * (1 + self._config.grpo.inner_epochs)
        return Calls([self._ranks[0].release_all_but.remote(versions)], "the trainer", "old versions to be released", limit)

    def lost(self) -> list[str]:
        """A rank that has died, with others if several have; looks for at most `LOOK_SECONDS`, in which one that works need
        not answer."""
        names = rank_names(len(self._ranks))
        asked = {rank.address.remote(): name for name, rank in zip(names, self._ranks, strict=True)}
        dead: list[str] = []
        deadline = time.monotonic() + LOOK_SECONDS
        while asked and not dead and (left := deadline - time.monotonic()) > 0:
            ready, _ = ray.wait(list(asked), num_returns=1, timeout=left)
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0) if ready else (ready, None)
            for ref in ready:
                name = asked.pop(ref)
                try:
                    ray.get(ref)
                except DEATHS:
                    dead.append(name)
        return dead

    def save(self, folder: Path) -> Calls:
        """A resumable checkpoint."""
        return self._call(lambda rank: rank.save.remote(str(folder)), "a checkpoint", self._limits.learner)

    def stamps(self, folder: Path) -> Calls:
        """What `Checkpoints.commit` wants to know of a checkpoint that is saved; a rank reads it, not the trainer."""
        ref = self._ranks[0].stamps.remote(str(folder))
        return Calls([ref], "the trainer", "a checkpoint to be read again", self._limits.learner)

    def export(self, folder: Path) -> Calls:
        """The policy in the Hugging Face layout."""
        return self._call(lambda rank: rank.export.remote(str(folder)), "the model to be written", self._limits.learner)

    def close(self) -> list[ray.ObjectRef]:
        """Ask every rank to leave what it owns; `kill` them when that is done, or has taken too long."""
        return [rank.close.remote() for rank in self._ranks]

    def kill(self) -> None:
        """Dead ones are no error. The room stays, for those that replace them."""
        for rank in self._ranks:
            ray.kill(rank)

    def leave(self) -> None:
        """Nobody comes after these ranks: end them and give the room back. What they published goes, wherever it is; on this
        node the run removes it."""
        self.kill()
        folder = str(shared_memory_folder(self._arguments[1]))
        removing = [remove_folder_on(node, folder) for node in self._publishers]
        if removing:
            ray.wait(removing, num_returns=len(removing), timeout=LOOK_SECONDS)
        if self._room is not None:
            remove_placement_group(self._room)

    def _call(self, call: Callable[[Any], ray.ObjectRef], what: str, limit: float) -> Calls:
        return Calls([call(rank) for rank in self._ranks], "the trainer", what, limit)
