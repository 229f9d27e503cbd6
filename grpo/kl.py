"""Divergence from the reference policy, estimated from the sampled tokens; in the loss or in the reward.

With d = log pi - log pi_ref of a token that pi sampled (Schulman, "Approximating KL divergence"):

    k1 = d                     unbiased, of either sign
    k2 = d^2 / 2               biased, its gradient is that of the true divergence (on policy)
    k3 = exp(-d) + d - 1       unbiased and never negative (GRPO, eq. 4)

In the loss each token's estimate is added, times beta, and differentiated; k1 is refused there, because the expectation
of its gradient is zero. In the reward (PPO's way) a completion loses beta times the sum of its tokens' estimates, of
constant log-probs, before its group is compared.

Shapes: R rows (completions) by T token positions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from grpo.ratios import log_ratio

KLEstimator = Literal["k1", "k2", "k3"]


def token_kl(logprobs_R_T: Tensor, reference_R_T: Tensor, mask_R_T: Tensor, estimator: KLEstimator) -> Tensor:
    """The estimate per token, 0 outside the mask; d is limited to +-20. (R, T)

    Differentiable in `logprobs_R_T` only. ValueError for an unknown estimator.
    """
    d_R_T = log_ratio(logprobs_R_T, reference_R_T.detach(), mask_R_T)
    if estimator == "k1":
        return d_R_T
    if estimator == "k2":
        return d_R_T.square() / 2
    if estimator == "k3":
        return torch.expm1(-d_R_T) + d_R_T
    raise ValueError(f"KL estimator {estimator!r}: choose one of {', '.join(get_args(KLEstimator))}")


def reward_penalty(
    logprobs_R_T: Tensor, reference_R_T: Tensor, mask_R_T: Tensor, estimator: KLEstimator, coef: float
) -> Tensor:
    """What each completion's reward loses: coef times the sum of its tokens' estimates, a constant. (R,)"""
    return coef * token_kl(logprobs_R_T.detach(), reference_R_T, mask_R_T, estimator).sum(dim=1)
