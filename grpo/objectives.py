"""What is minimised per token for the policy itself: clipped ratios in three published forms.

With rho = pi / pi_old of a token, A the advantage of its completion, and [lo, hi] = [1 - clip_low, 1 + clip_high]:

    ppo_clip   -min(rho A, clip(rho, lo, hi) A)                  PPO, per token as in GRPO; bounds apart as in DAPO
               and where A < 0 at most -dual_clip A              dual clip (Ye et al. 2020, eq. 5), if set
    gspo       the same with s = (product of rho)^(1 / |o|)      GSPO (Zheng et al. 2025, eq. 5-7), one per completion
    cispo      -sg(clip(rho, lo, hi)) A log pi                   CISPO (MiniMax-M1, eq. 4), every token keeps a gradient

What holds: log-probs outside the mask yield 0 and receive no gradient. On the weights that sampled (rho = 1), the three
have the same gradient where the loss is averaged over a completion's tokens of equal importance weight.

Shapes: R rows (completions) by T token positions; `advantages_R` one per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from grpo.ratios import log_ratio, sequence_log_ratio

ObjectiveKind = Literal["ppo_clip", "gspo", "cispo"]


@dataclass(frozen=True)
class Objective:
    """One of the module's forms. `dual_clip` > 1, for `ppo_clip` and `gspo` only, or None.

    ValueError for an unknown kind, a clip that is not positive, or a `dual_clip` that cannot be.
    """

    kind: ObjectiveKind
    clip_low: float
    clip_high: float
    dual_clip: float | None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ObjectiveKind):
            raise ValueError(f"objective {self.kind!r}: choose one of {', '.join(get_args(ObjectiveKind))}")
        if not (self.clip_low > 0 and self.clip_high > 0):
            raise ValueError(f"clip_low {self.clip_low} and clip_high {self.clip_high} must be positive")
        if self.dual_clip is not None and (self.kind == "cispo" or not self.dual_clip > 1):
            raise ValueError(f"dual_clip {self.dual_clip} with {self.kind}: give more than 1, and no cispo")


@dataclass(frozen=True)
class PolicyTerms:
    """Per token, (R, T): the loss (the only one with gradient), the ratio (1 outside the mask), and where the clip acts.

    `clipped_R_T` (bool) marks tokens whose term the clip has made constant; for `cispo`, whose weight it has changed.
    """

    loss_R_T: Tensor
    ratio_R_T: Tensor
    clipped_R_T: Tensor


def policy_terms(
    logprobs_R_T: Tensor, old_R_T: Tensor, advantages_R: Tensor, mask_R_T: Tensor, objective: Objective
) -> PolicyTerms:
    """The terms of `objective`; `old_R_T` are the log-probs before the batch's first update, a constant."""
    old_R_T = old_R_T.detach()
    if objective.kind == "gspo":
        log_R_1 = sequence_log_ratio(logprobs_R_T, old_R_T, mask_R_T, mean=True).unsqueeze(1)
        log_R_T = torch.where(mask_R_T, log_R_1, torch.zeros_like(logprobs_R_T))
    else:
        log_R_T = log_ratio(logprobs_R_T, old_R_T, mask_R_T)
    ratio_R_T = log_R_T.exp()
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    advantages_R_1 = advantages_R.to(logprobs_R_T.dtype).unsqueeze(1)
    if objective.kind == "cispo":
        weight_R_T = ratio_R_T.detach().clamp(low, high)
        own_R_T = torch.where(mask_R_T, logprobs_R_T, torch.zeros_like(logprobs_R_T))
        clipped_R_T = (weight_R_T != ratio_R_T) & mask_R_T
        return PolicyTerms(-weight_R_T * advantages_R_1 * own_R_T, ratio_R_T.detach(), clipped_R_T)
    gain_R_T = torch.minimum(ratio_R_T * advantages_R_1, ratio_R_T.clamp(low, high) * advantages_R_1)
    clipped_R_T = ((advantages_R_1 > 0) & (ratio_R_T > high)) | ((advantages_R_1 < 0) & (ratio_R_T < low))
    if objective.dual_clip is not None:
        floor_R_1 = objective.dual_clip * advantages_R_1
        gain_R_T = torch.where(advantages_R_1 < 0, torch.maximum(gain_R_T, floor_R_1), gain_R_T)
        clipped_R_T = clipped_R_T | ((advantages_R_1 < 0) & (ratio_R_T > objective.dual_clip))
    loss_R_T = torch.where(mask_R_T, -gain_R_T, torch.zeros_like(gain_R_T))
    return PolicyTerms(loss_R_T, ratio_R_T.detach(), clipped_R_T)
