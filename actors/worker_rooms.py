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

from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from configs.schema import RolloutConfig


class Rooms:
    """By the names of their workers. Workers that reserve nothing need none."""

    def __init__(self, rollout: RolloutConfig) -> None:
        wanted = {"CPU": rollout.num_cpus, "GPU": rollout.num_gpus}
        self._options = {"num_cpus": rollout.num_cpus, "num_gpus": rollout.num_gpus}
        self._bundle = {kind: amount for kind, amount in wanted.items() if amount}
        self._groups: dict[str, PlacementGroup] = {}

    def reserve(self, worker: str) -> dict[str, Any]:
        """Ask for room; returns the options with which the worker's actor is created in it."""
        if not self._bundle:
            return self._options
        group = self._groups[worker] = placement_group([self._bundle], strategy="PACK", name=f"rollout worker {worker}")
        return self._options | {"scheduling_strategy": PlacementGroupSchedulingStrategy(group)}

    def release(self, worker: str) -> None:
        """Give the room back, or withdraw the request for it; Ray ends what still runs in it."""
        if (group := self._groups.pop(worker, None)) is not None:
            remove_placement_group(group)
