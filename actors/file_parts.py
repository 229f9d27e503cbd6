"""A file of another machine, part by part through Ray's object store: a task on that machine reads, the caller writes. And a
folder there that nobody removes any more.

What holds: a task needs no CPU of its node and imports next to nothing; nobody else is asked. The caller owns the parts:
they are gone when it drops them. `read_part` may read past the end, and returns what there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

#: Bytes of a part.
PART_BYTES = 64 << 20


def read_part(path: str, offset: int, size: int) -> np.ndarray:
    """At most `size` bytes of the file from `offset` on (uint8). FileNotFoundError without the file."""
    return np.fromfile(path, np.uint8, size, offset=offset)


async def read_part_on(node: str, path: str, offset: int) -> np.ndarray:
    """`PART_BYTES` of the node's file, fewer at its end. Raises RayError: no such node or file, or it ended meanwhile."""
    return await _on(node, read_part).remote(path, offset, PART_BYTES)


def remove_folder_on(node: str, path: str) -> Any:
    """The reference of the task that does it; fails with RayError where the node is gone, and its folder with it."""
    return _on(node, shutil.rmtree).remote(path, ignore_errors=True)


def _on(node: str, function: Callable) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return _remote(function).options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


@cache
def _remote(function: Callable) -> Any:
    import ray

    return ray.remote(num_cpus=0)(function)


def this_node() -> str | None:
    """The Ray node of this process, None outside Ray."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
