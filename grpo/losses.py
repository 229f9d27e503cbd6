"""The loss of one token: importance weight times policy term, plus the divergence from the reference.

    loss = w * policy(rho, A) + beta * kl        (`grpo.importance`, `grpo.objectives`, `grpo.kl`)

What holds: `logprobs` is the only input that receives a gradient; entries outside the mask may hold anything (NaN
too) and yield a loss of 0 and a gradient of 0. In the first update on a batch `old` may be `logprobs.detach()`: rho is
then 1 and no clip acts.

Shapes: R rows (completions) by T token positions; `mask_R_T` is true on sampled tokens; `advantages_R` one per row.
All log-probs are of the sampled token, at the sampling temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from grpo.importance import Importance, importance_weights
from grpo.kl import KLEstimator, token_kl
from grpo.objectives import Objective, policy_terms


@dataclass(frozen=True)
class LossSettings:
    """Everything a token's loss depends on beside its log-probs. `kl_coef` 0: divergence is measured, not trained.

    ValueError for combinations that do not do what they say.
    """

    objective: Objective
    importance: Importance
    kl_estimator: KLEstimator
    kl_coef: float

    def __post_init__(self) -> None:
        if not self.kl_coef >= 0 or self.kl_estimator not in get_args(KLEstimator):
            raise ValueError(f"KL coefficient {self.kl_coef} of {self.kl_estimator!r}: give 0 or more, of k1, k2 or k3")
        if self.kl_coef > 0 and self.kl_estimator == "k1":
            raise ValueError(
                "k1 in the loss has a gradient whose expectation is zero: take k2 or k3, or k1 in the reward"
            )
        if self.objective.kind == "gspo" and (self.importance.level, self.importance.mode) == ("token", "mask"):
            raise ValueError(
                "gspo has one ratio for all tokens of a completion, so leaving out single ones would not keep them "
                "from being trained: take importance level sequence, or mode truncate"
            )


@dataclass(frozen=True)
class TokenLoss:
    """Per-token terms, all (R, T) and 0 (ratio and importance: 1) outside the mask. Only `loss_R_T` carries a gradient.

    `ratio_R_T` is rho, `kl_R_T` the estimate (zeros without a reference), `clipped_R_T` (bool) where a clip acts,
    `importance_R_T` the ratio pi_old / mu before cap or mask, `dropped_R_T` (bool) the tokens whose weight is 0.
    """

    loss_R_T: Tensor
    ratio_R_T: Tensor
    kl_R_T: Tensor
    clipped_R_T: Tensor
    importance_R_T: Tensor
    dropped_R_T: Tensor


def token_loss(
    logprobs_R_T: Tensor,
    old_logprobs_R_T: Tensor,
    behaviour_logprobs_R_T: Tensor,
    advantages_R: Tensor,
    mask_R_T: Tensor,
    settings: LossSettings,
    reference_logprobs_R_T: Tensor | None = None,
) -> TokenLoss:
    """The module's loss. `old`: the learner before the batch's first update; `behaviour`: what the engine reported.

    ValueError when shapes differ or `settings.kl_coef` > 0 comes without a reference.
    """
    _check(logprobs_R_T, mask_R_T, advantages_R, old_logprobs_R_T, behaviour_logprobs_R_T, reference_logprobs_R_T)
    if settings.kl_coef > 0 and reference_logprobs_R_T is None:
        raise ValueError(
            f"a KL coefficient of {settings.kl_coef} needs the reference's log-probs: give them, or set it to 0"
        )
    policy = policy_terms(logprobs_R_T, old_logprobs_R_T, advantages_R, mask_R_T, settings.objective)
    importance = importance_weights(old_logprobs_R_T, behaviour_logprobs_R_T, mask_R_T, settings.importance)
    loss_R_T = importance.weights_R_T * policy.loss_R_T
    kl_R_T = torch.zeros_like(logprobs_R_T)
    if reference_logprobs_R_T is not None:
        kl_R_T = token_kl(logprobs_R_T, reference_logprobs_R_T, mask_R_T, settings.kl_estimator)
        if settings.kl_coef > 0:
            loss_R_T = loss_R_T + settings.kl_coef * kl_R_T
    return TokenLoss(
        loss_R_T=loss_R_T,
        ratio_R_T=policy.ratio_R_T,
        kl_R_T=kl_R_T.detach(),
        clipped_R_T=policy.clipped_R_T,
        importance_R_T=importance.ratios_R_T,
        dropped_R_T=(importance.weights_R_T == 0) & mask_R_T,
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
