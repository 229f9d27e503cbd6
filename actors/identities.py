"""Who the actors of a run are: the id, process and node of each, for whoever watches or repairs a run (`fleet.json`).

What holds: an actor is asked once, when it is made, before its first long call; until it has answered only its id is known.
Nothing here waits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError


@dataclass(frozen=True)
class Identity:
    """Ids as hexadecimal digits; `pid` and `node` are None until the actor runs."""

    actor: str
    pid: int | None = None
    node: str | None = None


class Identities:
    """By name: `w3`, `rank 0`, `r1`."""

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}
        self._asked: dict[ray.ObjectRef, str] = {}

    def ask(self, name: str, handle: Any) -> None:
        """The name is this actor's from now on."""
        self._known[name] = Identity(handle._ray_actor_id.hex())
        self._asked[handle.__ray_call__.remote(_identity)] = name

    def look(self) -> bool:
        """Take in what has been answered; whether something was new."""
        if not self._asked:
            return False
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for ref in ready:
            name = self._asked.pop(ref)
            try:
                identity = ray.get(ref)
            except RayError:
                continue  # it died before it could answer, which others tell
            if name in self._known and self._known[name].actor == identity.actor:
                self._known[name] = identity
        return bool(ready)

    def of(self, name: str) -> Identity | None:
        """None for a name that was never asked for, or is forgotten."""
        return self._known.get(name)

    def forget(self, name: str) -> None:
        self._known.pop(name, None)


def _identity(_actor: Any) -> Identity:
    """Of the actor in whose process this runs."""
    context = ray.get_runtime_context()
    return Identity(context.get_actor_id(), os.getpid(), context.get_node_id())
