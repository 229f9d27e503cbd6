"""Group-relative advantages: how much better a completion did than the others of its prompt.

What holds: statistics use valid members only (an invalid one has no reward, its entry may be NaN) and its advantage
is 0; a group with fewer than two valid members, or whose rewards spread by no more than an explicit tolerance, carries
no gradient: all its advantages are exactly 0 and `outcome` says why.

Shapes: G members of one group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GroupOutcome = Literal["signal", "zero_variance", "too_few_valid"]
#: Added to the standard deviation (the released code: 1e-4).
STD_EPSILON = 1e-4


@dataclass(frozen=True)
class GroupAdvantages:
    """`advantages_G` float64; `mean` and unbiased `std` of the valid rewards (None where undefined)."""

    advantages_G: Tensor
    outcome: GroupOutcome
    mean: float | None
    std: float | None


def group_advantages(
    rewards_G: Tensor, valid_G: Tensor, std_normalization: bool = True, tolerance: float = 1e-6
) -> GroupAdvantages:
    """A_i = r_i - mean(r), divided by std(r) + 1e-4 if `std_normalization` (GRPO; without: Dr.GRPO).

    `rewards_G` float, `valid_G` bool, both (G,). `tolerance` is the largest spread (max - min) of the valid rewards
    that still counts as equal. ValueError when shapes differ, a valid reward is not finite, or rewards are so far apart
    that their statistics are no numbers.
    """
    if rewards_G.shape != valid_G.shape or rewards_G.dim() != 1 or valid_G.dtype != torch.bool:
        raise ValueError(
            f"rewards {tuple(rewards_G.shape)} and valid {tuple(valid_G.shape)} ({valid_G.dtype}): "
            "give a (G,) float and a (G,) bool tensor"
        )
    members = rewards_G[valid_G].double()
    if not torch.isfinite(members).all():
        raise ValueError(f"rewards {members.tolist()} of valid members: a failure must be masked, not scored")
    zeros_G = torch.zeros(rewards_G.shape, dtype=torch.float64, device=rewards_G.device)
    mean = float(members.mean()) if len(members) else None
    std = float(members.std(correction=1)) if len(members) > 1 else None
    if len(members) < 2:
        return GroupAdvantages(zeros_G, "too_few_valid", mean, std)
    if float(members.max() - members.min()) <= tolerance:
        return GroupAdvantages(zeros_G, "zero_variance", mean, std)
    scale = std + STD_EPSILON if std_normalization else 1.0
    if not math.isfinite(mean) or not math.isfinite(scale):
        raise ValueError(f"rewards {members.tolist()} have mean {mean} and standard deviation {std}: no reward may be so large")
    return GroupAdvantages(zeros_G.masked_scatter(valid_G, (members - mean) / scale), "signal", mean, std)
