"""The frozen policy that GRPO diverges from: the base of the stage, as a model of its own or as the policy without adapters.

What holds
    * It never changes, so a step asks it for all its passes before the first update, and keeps what it says.
    * With `offload` its weights are on the device only while it is asked.
    * Without a model of its own, asking is collective where the policy is sharded: every rank has as many passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from models.adapters import adapters_off
from models.deepspeed_engine import PolicyEngine
from models.forward import PolicyForward

Forward = Callable[..., torch.Tensor]


class OwnReference:
    """A second model. It comes on `device`, for which it has chosen its attention, and waits there or on the CPU."""

    def __init__(self, forward: PolicyForward, device: torch.device, offload: bool) -> None:
        self._forward = forward.eval().requires_grad_(False)
        self._device, self._offload = device, offload
        self._rest()

    @contextmanager
    def awake(self) -> Iterator[Forward]:
        """What answers, ready to be asked."""
        self._forward.to(self._device)
        try:
            yield self._forward
        finally:
            self._rest()

    def _rest(self) -> None:
        if self._offload:
            self._forward.to("cpu")


class PolicyWithoutAdapters:
    """The policy's own weights, its adapters switched off while it is asked."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine

    @contextmanager
    def awake(self) -> Iterator[Forward]:
        """As `OwnReference.awake`."""
        with adapters_off(self._engine.module.model):
            yield self._engine


Reference = OwnReference | PolicyWithoutAdapters
