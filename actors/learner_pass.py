"""One forward and backward pass of a learner rank, ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from actors.batching import TrainGroup
from models.inputs import Encoded
from models.packing import PackedBatch, Tree, pack
from models.passes import Pass


@dataclass
class LearnerPass:
    """The packed trees of a pass with what the loss needs of their completions, (R, T) and (R).

    On the CPU: a pass goes to the device when it runs. `versions`: of the weights that drew each token, -1 where there is
    none. `members`: group and member of every completion. `pictures`: distinct ones in it. Kept from the first of a step's
    updates for the later ones: `old` and `reference`, log-probs before it, and `features`, visual tokens of a tower that
    is frozen.
    """

    batch: PackedBatch
    behaviour: torch.Tensor
    versions: torch.Tensor
    advantages: torch.Tensor
    members: tuple[tuple[int, int], ...]
    pictures: int
    counts: bool
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    features: torch.Tensor | None = None


def pack_pass(one: Pass, groups: Sequence[TrainGroup], encoded: Mapping[int, Encoded]) -> LearnerPass:
    """The pass `one` of the plan over `groups`; `encoded` holds their prompts by group."""
    members = tuple((piece.tree, member) for piece in one.slices for member in range(piece.first, piece.last))
    batch = pack(
        [Tree(encoded[piece.tree], groups[piece.tree].completion_ids[piece.first : piece.last]) for piece in one.slices]
    )
    behaviour = pad_sequence(
        [torch.tensor(groups[group].behaviour_logprobs[member]) for group, member in members], batch_first=True
    )
    versions = pad_sequence(
        [torch.tensor(groups[group].token_versions(member)) for group, member in members], batch_first=True, padding_value=-1
    )
    advantages = torch.tensor([groups[group].advantages[member] for group, member in members])
    pictures = 0 if batch.grid_thw is None else len(batch.grid_thw)
    return LearnerPass(batch, behaviour, versions, advantages, members, pictures, one.counts)
