"""The loss of one token: clipped policy gradient, KL to the reference, engine/learner importance weight.

    rho   = exp(log pi - log pi_old)
    loss  = -w * min(rho * A, clip(rho, 1 - low, 1 + high) * A) + beta * k3
    k3    = exp(log pi_ref - log pi) - (log pi_ref - log pi) - 1          (Schulman's estimator, >= 0)
    w     = min(exp(log pi_old - log pi_engine), cap)                    (truncated, no gradient)

Source: PPO's clip per token as in GRPO (SPATIALLADDER 6.1), with separate bounds; w corrects for the engine that
sampled the tokens not being bit-equal to the learner, and weighs the policy term only.

What holds: `logprobs` is the only input that receives a gradient; entries outside the mask may hold anything (NaN
too) and yield a loss of 0 and a gradient of 0. Log-ratios are limited to +-20 so that nothing overflows.

Shapes: R rows (completions) by T token positions; `mask_R_T` is true on sampled tokens; `advantages_R` one per row.
All log-probs are of the sampled token, at the sampling temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class TokenLoss:
    """Per-token terms, all (R, T) and 0 (ratio and importance: 1) outside the mask. Only `loss_R_T` carries a gradient.

    `ratio_R_T` is rho, `kl_R_T` is k3 (zeros without a reference), `clipped_R_T` (bool) marks tokens whose policy
    term the clip has made constant, `importance_R_T` is the engine/learner ratio *before* the cap.
    """

    loss_R_T: Tensor
    ratio_R_T: Tensor
    kl_R_T: Tensor
    clipped_R_T: Tensor
    importance_R_T: Tensor


def log_ratio(numerator_R_T: Tensor, denominator_R_T: Tensor, mask_R_T: Tensor) -> Tensor:
    """Difference of log-probs, 0 outside the mask, limited to +-LOG_RATIO_LIMIT. (R, T)"""
    difference_R_T = torch.where(mask_R_T, numerator_R_T - denominator_R_T, torch.zeros_like(numerator_R_T))
    return difference_R_T.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def k3_kl(logprobs_R_T: Tensor, reference_R_T: Tensor, mask_R_T: Tensor) -> Tensor:
    """k3 estimate of KL(pi || pi_ref) per token, >= 0, 0 outside the mask. (R, T)"""
    difference_R_T = log_ratio(reference_R_T, logprobs_R_T, mask_R_T)
    return torch.expm1(difference_R_T) - difference_R_T


def clipped_policy_loss(ratio_R_T: Tensor, advantages_R: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) per token. (R, T)"""
    advantages_R_1 = advantages_R.to(ratio_R_T.dtype).unsqueeze(1)
    return -torch.minimum(ratio_R_T * advantages_R_1, ratio_R_T.clamp(1 - clip_low, 1 + clip_high) * advantages_R_1)


def token_loss(
    logprobs_R_T: Tensor,
    old_logprobs_R_T: Tensor,
    behaviour_logprobs_R_T: Tensor,
    advantages_R: Tensor,
    mask_R_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    kl_coef: float = 0.0,
    reference_logprobs_R_T: Tensor | None = None,
) -> TokenLoss:
    """The module's loss. `old` is the learner before this update, `behaviour` what the engine reported when sampling.

    In the first update on a batch `old` may be `logprobs.detach()`: rho is then 1 and the clip idle. ValueError when
    shapes differ or `kl_coef` > 0 comes without a reference.
    """
    _check(logprobs_R_T, mask_R_T, advantages_R, old_logprobs_R_T, behaviour_logprobs_R_T, reference_logprobs_R_T)
    if kl_coef > 0 and reference_logprobs_R_T is None:
        raise ValueError(f"kl_coef {kl_coef} needs the reference's log-probs: give them, or set kl_coef to 0")
    old_R_T = old_logprobs_R_T.detach()
    ratio_R_T = torch.exp(log_ratio(logprobs_R_T, old_R_T, mask_R_T))
    importance_R_T = torch.exp(log_ratio(old_R_T, behaviour_logprobs_R_T.detach(), mask_R_T))
    policy_R_T = clipped_policy_loss(ratio_R_T, advantages_R, clip_low, clip_high)
    loss_R_T = importance_R_T.clamp(max=importance_cap) * policy_R_T
    kl_R_T = torch.zeros_like(logprobs_R_T)
    if reference_logprobs_R_T is not None:
        kl_R_T = k3_kl(logprobs_R_T, reference_logprobs_R_T.detach(), mask_R_T)
        loss_R_T = loss_R_T + kl_coef * kl_R_T
    gained_R_1, lost_R_1 = (advantages_R > 0).unsqueeze(1), (advantages_R < 0).unsqueeze(1)
    clipped_R_T = (gained_R_1 & (ratio_R_T > 1 + clip_high)) | (lost_R_1 & (ratio_R_T < 1 - clip_low))
    return TokenLoss(
        loss_R_T=torch.where(mask_R_T, loss_R_T, torch.zeros_like(loss_R_T)),
        ratio_R_T=ratio_R_T.detach(),
        kl_R_T=kl_R_T.detach(),
        clipped_R_T=clipped_R_T & mask_R_T,
        importance_R_T=importance_R_T,
    )


def _check(logprobs_R_T: Tensor, mask_R_T: Tensor, advantages_R: Tensor, *others_R_T: Tensor | None) -> None:
    shapes = [tuple(tensor.shape) for tensor in (logprobs_R_T, mask_R_T, *others_R_T) if tensor is not None]
    if len(set(shapes)) != 1 or logprobs_R_T.dim() != 2 or tuple(advantages_R.shape) != shapes[0][:1]:
        raise ValueError(
            f"log-probs and mask have shapes {shapes}, advantages {tuple(advantages_R.shape)}: "
            "give (R, T) tensors of one shape and (R,) advantages"
        )
    if mask_R_T.dtype != torch.bool:
        raise ValueError(f"the mask is {mask_R_T.dtype}: give a bool tensor, true on sampled tokens")
