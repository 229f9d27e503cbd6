"""The engine's end of the weights' way: a weight-transfer backend for vLLM, which takes a version from its file or a group.

This module is imported in the vLLM worker process, because `actors.engine` names its extension class; importing it
registers the backend before vLLM builds its transfer engine. Nothing else imports it.

What holds
    * Every tensor of a file is compared with the manifest before the model is touched, so a wrong file leaves the engine
      as it was. The layerwise reload (the only way into CPU-packed and kernel-specific layers) is therefore opened at the
      first `receive_weights`, not at `start_weight_update`, and always closed again: one bracket per update.
    * Of a group (`actors.weight_groups`) every tensor is compared before the model gets it, one after the other: a second
      copy of all weights need not fit beside the engine.
    * An update that breaks off, or does not fill every parameter of the engine's model, raises. The engine is then half
      new: the RolloutWorker does not serve again before a complete update.
    * Tied heads need no special case here: a version always brings `lm_head.weight` (see `actors.weights`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engine import WEIGHT_BACKEND
from actors.weight_groups import Group, Meeting, receive
from actors.weights import TensorSpec, WeightVersionError, read_verified

# At every update it warns "Failed to load weights" of layers that have none in any checkpoint (rotary tables). Layers
# that should have received weights and did not are an error below.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


@dataclass
class VersionInit(WeightTransferInitInfo):
    """Nothing: a group is joined when the first version comes over it."""


@dataclass
class VersionUpdate(WeightTransferUpdateInfo):
    """One complete version: rows of its manifest as `WeightVersion.wire` makes them, and the path of its file, or the fields
    of the `Meeting` of the group over which it comes."""

    manifest: list[list]
    path: str | None = None
    group: dict | None = None


class VersionTransferEngine(WeightTransferEngine[VersionInit, VersionUpdate]):
    init_info_cls = VersionInit
    update_info_cls = VersionUpdate
    supports_draft_weight_update = False

    _open = False
    _group: Group | None = None

    def init_transfer_engine(self, init_info: VersionInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Deferred to the first `receive_weights` (see the module docstring)."""

    @torch.no_grad()
    def receive_weights(self, update_info: VersionUpdate) -> None:
        specs = [TensorSpec(name, dtype, tuple(shape), check) for name, dtype, shape, check in update_info.manifest]
        if update_info.group is None:
            tensors = iter(read_verified(update_info.path, specs))
        else:
            self._join(Meeting(**update_info.group))
            tensors = self._received(specs)
        needed = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        if not self._open:
            initialize_layerwise_reload(self.model)
            self._open = True
        try:
            loaded = self.model.load_weights(tensors)
            if unfilled := sorted(needed - loaded):
                raise WeightVersionError(f"the engine's {unfilled[:5]} got no weights from {update_info.path or 'the group'}")
        except BaseException:
            self._close()
            raise

    def _join(self, meeting: Meeting) -> None:
        if self._group is None or self._group.meeting != meeting:
            self._leave()
            self._group = Group(meeting, 1 + self.parallel_config.rank)

    def _received(self, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._group is not None
        try:
            yield from receive(self._group, specs, self.device)
        except BaseException:  # also when the model does not want the rest
            self._leave()
            raise

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def finish_weight_update(self) -> None:
        if not self._open:
            raise WeightVersionError("finish_weight_update without weights: no version was received")
        self._close()

    def _close(self) -> None:
        self._open = False
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._leave()


WeightTransferEngineFactory.register_engine(WEIGHT_BACKEND, VersionTransferEngine)


class LadderWorkerExtension:
    """Mixed into vLLM's worker class; its methods are callable through `collective_rpc`."""

    _ladder_images = 0

    def ladder_count_images(self) -> None:
        """Start counting the pictures (or videos) that go through the vision tower."""

        def count(_module, args, kwargs):
            grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
            self._ladder_images += len(grid)

        self.model_runner.get_model().visual.register_forward_pre_hook(count, with_kwargs=True)

    def ladder_images(self) -> int:
        """Pictures (or videos) encoded by the vision tower since counting began."""
        return self._ladder_images

    def ladder_cached_pictures(self) -> int:
        """Pictures (or videos) whose encoding is kept for the next prompt that shows them."""
        cache = self.model_runner.encoder_cache
        return len(cache if isinstance(cache, dict) else cache.encoder_outputs)  # vLLM's first and second model runner
