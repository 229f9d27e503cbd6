"""The weight of a sampled token for not having been drawn from the policy that is being updated.

The engine that samples is not bit-equal to the learner and may hold older weights, so tokens come from mu while the
update is that of pi_old. The policy term of each token is weighted by w, a constant:

    ratio       r = pi_old / mu, of the token, or of its whole completion (the product over its tokens)
    truncate    w = min(r, cap)                               bounded variance, a little bias (TIS)
    mask        w = r where floor <= r <= cap, else 0         what differs too much is not learned from (IcePop)

What holds: on equal log-probs every weight is exactly 1. The KL term is not weighted.

Shapes: R rows (completions) by T token positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo.ratios import log_ratio, sequence_log_ratio


@dataclass(frozen=True)
class Importance:
    """How the weight is made. `floor` counts only for `mask`.

    ValueError for an unknown level or mode and unless 0 <= floor <= 1 <= cap.
    """

    level: Literal["token", "sequence"]
    mode: Literal["truncate", "mask"]
    floor: float
    cap: float

    def __post_init__(self) -> None:
        if self.level not in ("token", "sequence") or self.mode not in ("truncate", "mask"):
            raise ValueError(f"importance {self.level!r}, {self.mode!r}: give token or sequence, truncate or mask")
        if not 0 <= self.floor <= 1 <= self.cap:
            raise ValueError(f"importance floor {self.floor} and cap {self.cap}: give 0 <= floor <= 1 <= cap")


@dataclass(frozen=True)
class ImportanceWeights:
    """`weights_R_T` as used, `ratios_R_T` before cap or mask; both 1 outside the mask of tokens, without gradient."""

    weights_R_T: Tensor
    ratios_R_T: Tensor


def importance_weights(
    old_R_T: Tensor, behaviour_R_T: Tensor, mask_R_T: Tensor, settings: Importance
) -> ImportanceWeights:
    """The weights of the module's table from the log-probs of pi_old (`old`) and of the sampling engine (`behaviour`)."""
    old_R_T, behaviour_R_T = old_R_T.detach(), behaviour_R_T.detach()
    if settings.level == "token":
        ratios_R_T = log_ratio(old_R_T, behaviour_R_T, mask_R_T).exp()
    else:
        whole_R = sequence_log_ratio(old_R_T, behaviour_R_T, mask_R_T, mean=False).exp()
        ratios_R_T = torch.where(mask_R_T, whole_R.unsqueeze(1), torch.ones_like(old_R_T))
    if settings.mode == "truncate":
        return ImportanceWeights(ratios_R_T.clamp(max=settings.cap), ratios_R_T)
    # Written so that a ratio that is no number is kept: a broken log-prob must show, not vanish.
    beyond_R_T = (ratios_R_T < settings.floor) | (ratios_R_T > settings.cap)
    return ImportanceWeights(torch.where(beyond_R_T, torch.zeros_like(ratios_R_T), ratios_R_T), ratios_R_T)
