"""Room in the cluster for one rollout worker: a placement group of its own, with all its CPUs and GPUs on one node.

What holds
    * A group that finds no room is pending, and a pending group is what makes Ray's autoscaler add a node. So each worker is
      a request of its own: it ends with the worker, and runs that share a cluster do not overwrite each other's, as those
      do that ask for totals (`ray.autoscaler.sdk.request_resources`).
    * Nothing here waits: an actor may be created in a group that is pending, and starts when the group has its room.
    * One bundle, because the processes of a tensor-parallel engine live in and under the one actor and share its GPUs.
    * A group belongs to the run's driver: when that dies, Ray removes it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from configs.schema import RolloutConfig

#: Seconds after which it is told that a worker has no room. What a dead one leaves is free sooner.
PATIENCE = 15.0
#: More workers are counted, not named.
NAMED = 8


class Rooms:
    """By the names of their workers. Workers that reserve nothing need none."""

    def __init__(self, rollout: RolloutConfig) -> None:
        wanted = {"CPU": rollout.num_cpus, "GPU": rollout.num_gpus}
        self._options = {"num_cpus": rollout.num_cpus, "num_gpus": rollout.num_gpus}
        self._bundle = {kind: amount for kind, amount in wanted.items() if amount}
        self._groups: dict[str, PlacementGroup] = {}
        self._unseen: dict[str, float] = {}  # workers of which nobody has looked whether they have room, and since when

    def reserve(self, worker: str, now: float) -> dict[str, Any]:
        """Ask for room, at `now` seconds; returns the options with which the worker's actor is created in it."""
        if not self._bundle:
            return self._options
        group = self._groups[worker] = placement_group([self._bundle], strategy="PACK", name=f"rollout worker {worker}")
        self._unseen[worker] = now
        return self._options | {"scheduling_strategy": PlacementGroupSchedulingStrategy(group)}

    def release(self, worker: str) -> None:
        """Give the room back, or withdraw the request for it; Ray ends what still runs in it."""
        self._unseen.pop(worker, None)
        if (group := self._groups.pop(worker, None)) is not None:
            remove_placement_group(group)

    def without(self, now: float, placed: Container[str]) -> list[str]:
        """What is to be said of workers that have waited for room for `PATIENCE`; of each once. `placed`: that run."""
        due = [worker for worker, since in self._unseen.items() if now - since >= PATIENCE]
        for worker in due:
            del self._unseen[worker]
        asked = [worker for worker in due if worker not in placed]
        waiting = [worker for worker in asked if placement_group_table(self._groups[worker])["state"] == "PENDING"]
        return [no_room(waiting, self._bundle, ray.available_resources())] if waiting else []


def no_room(workers: Sequence[str], bundle: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Of workers that wait for `bundle`, each on one node, while so much is `free` in the whole cluster."""
    asked, left = (", ".join(f"{own.get(kind, 0.0):g} {kind}" for kind in bundle) for own in (bundle, free))
    names = ", ".join(workers[:NAMED]) + (f" and {len(workers) - NAMED} more" if len(workers) > NAMED else "")
    return (
        f"grpo: no room in the cluster yet for rollout worker {names}: each asks for {asked} on one node; free in all nodes "
        f"together: {left}. It starts when there is room; see `ray status`"
    )
