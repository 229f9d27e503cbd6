"""What helps the tiny base to find what a question names: a linear head that must tell, from a name, where the thing is.

Looking up which of several things a word means forms late and slowly when only the numbers of an answer teach it. So
while the base is trained, the hidden state of each name in a question, after the first layer, must give the box of the
thing that is named. The head is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from models.forward import PolicyForward
from models.packing import PackedBatch
from sft.tiny_turns import Row

#: Weight of the mean absolute box error, in units of the picture's side, beside the loss of the answers' tokens.
LOOKUP_WEIGHT = 2.0


class LookupHead(nn.Module):
    """Box (x1, y1, x2, y2) in units of the side, from the hidden state of a name after the policy's first layer."""

    def __init__(self, policy: PolicyForward) -> None:
        super().__init__()
        decoder = policy.model.model.language_model
        self.out = nn.Linear(decoder.config.hidden_size, 4)
        self._hidden: torch.Tensor | None = None
        decoder.layers[0].register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._hidden = output

    def error(self, rows: Sequence[Row], batch: PackedBatch) -> torch.Tensor:
        """Mean absolute error over the names in `rows`, of the policy's last forward, which was of `batch`, made of them;
        zero where nothing is named."""
        found = [(node.start + position, box) for node, row in zip(batch.layout.nodes, rows, strict=True)
                 for position, box in row.named]
        if not found:
            return torch.zeros(())
        places, boxes = zip(*found)
        hidden = self._hidden[0, list(places)]
        return (self.out(F.rms_norm(hidden, hidden.shape[-1:])) - torch.tensor(boxes)).abs().mean()
