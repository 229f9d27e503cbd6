"""Log-ratios of token log-probs: per token, and summed or averaged over a completion.

What holds: entries outside the mask may hold anything (NaN too); they count as 0 and receive no gradient. Every log-ratio
that will be exponentiated is limited to +-20, so that nothing overflows.

Shapes: R rows (completions) by T token positions; `mask_R_T` is true on sampled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def log_ratio(numerator_R_T: Tensor, denominator_R_T: Tensor, mask_R_T: Tensor) -> Tensor:
    """Difference of log-probs, 0 outside the mask, limited to +-LOG_RATIO_LIMIT. (R, T)"""
    return masked_difference(numerator_R_T, denominator_R_T, mask_R_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(numerator_R_T: Tensor, denominator_R_T: Tensor, mask_R_T: Tensor, *, mean: bool) -> Tensor:
    """Log-ratio of whole completions (R,): the sum over their tokens, or with `mean` its share per token; limited.

    The sum is the log of the true sequence ratio; the mean is that of its geometric mean (GSPO). A row without tokens: 0.
    """
    total_R = masked_difference(numerator_R_T, denominator_R_T, mask_R_T).sum(dim=1)
    if mean:
        total_R = total_R / mask_R_T.sum(dim=1).clamp(min=1)
    return total_R.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def masked_difference(first_R_T: Tensor, second_R_T: Tensor, mask_R_T: Tensor) -> Tensor:
    """first - second, exactly 0 outside the mask whatever stands there. (R, T)"""
    return torch.where(mask_R_T, first_R_T - second_R_T, torch.zeros_like(first_R_T))
