"""What a step's tokens say about its health, as sums that add up over micro-batches and ranks.

What holds: `merge` is exact (sums and maxima, no means of means); a step without tokens has no numbers.

Shapes: R rows by T token positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from grpo.losses import TokenLoss


@dataclass(frozen=True)
class TokenStats:
    """Sums and maxima over `tokens` tokens, each counted in every update on it: importance ratios before cap and mask,
    `dropped` tokens that the mask has left out; over the `fresh` ones, which the weights of pi_old drew, gaps
    |log pi_old - log pi_engine| in nats; over the others the ratios once more (`stale`)."""

    tokens: int = 0
    clipped: int = 0
    dropped: int = 0
    fresh: int = 0
    kl_sum: float = 0.0
    is_ratio_sum: float = 0.0
    is_ratio_max: float = 0.0
    stale_ratio_sum: float = 0.0
    stale_ratio_max: float = 0.0
    gap_sum: float = 0.0
    gap_max: float = 0.0

    def merge(self, other: "TokenStats") -> "TokenStats":
        """The stats of both parts together."""
        mine, theirs = asdict(self), asdict(other)
        joined = {key: max(mine[key], theirs[key]) if key.endswith("_max") else mine[key] + theirs[key] for key in mine}
        return TokenStats(**joined)

    def metrics(self) -> dict[str, float]:
        """Numbers for the step's record, of which those are left out that there was no token for."""
        if self.tokens == 0:
            return {}
        stale, own = self.tokens - self.fresh, {}
        if self.fresh:
            own |= {"logprob_gap_mean": self.gap_sum / self.fresh, "logprob_gap_max": self.gap_max}
        if stale:
            own |= {"is_ratio_stale_mean": self.stale_ratio_sum / stale, "is_ratio_stale_max": self.stale_ratio_max}
        return own | {
            "kl": self.kl_sum / self.tokens,
            "clip_fraction": self.clipped / self.tokens,
            "is_dropped_fraction": self.dropped / self.tokens,
            "is_ratio_mean": self.is_ratio_sum / self.tokens,
            "is_ratio_max": self.is_ratio_max,
        }


def token_stats(
    terms: TokenLoss, old_logprobs_R_T: Tensor, behaviour_logprobs_R_T: Tensor, mask_R_T: Tensor, fresh_R_T: Tensor
) -> TokenStats:
    """Stats of one micro-batch: its loss terms, the learner's and the engine's log-probs, and which tokens (bool) were
    drawn from the very weights of pi_old, all (R, T).

    ValueError when a log-prob of a sampled token is NaN: a maximum would hide it.
    """
    tokens = int(mask_R_T.sum())
    if tokens == 0:
        return TokenStats()
    gaps = (old_logprobs_R_T - behaviour_logprobs_R_T).detach()[mask_R_T].double().abs()
    if gaps.isnan().any():
        broken = int(gaps.isnan().sum())
        raise ValueError(f"{broken} of {tokens} sampled tokens have a NaN log-prob in engine or learner")
    ratios, fresh = terms.importance_R_T[mask_R_T].double(), fresh_R_T[mask_R_T]
    none = ratios.new_zeros(1)  # a maximum of nothing; ratios and gaps are never below it
    return TokenStats(
        tokens=tokens,
        clipped=int(terms.clipped_R_T.sum()),
        dropped=int(terms.dropped_R_T.sum()),
        fresh=int(fresh.sum()),
        kl_sum=float(terms.kl_R_T[mask_R_T].double().sum()),
        is_ratio_sum=float(ratios.sum()),
        is_ratio_max=float(ratios.max()),
        stale_ratio_sum=float(ratios[~fresh].sum()),
        stale_ratio_max=float(torch.cat([none, ratios[~fresh]]).max()),
        gap_sum=float(gaps[fresh].sum()),
        gap_max=float(torch.cat([none, gaps[fresh]]).max()),
    )
