"""From token losses to one number: sums over a fixed, global denominator, so that parts add up.

    sequence_mean   (1/N) sum_i (1/|o_i|) sum_t l_it      GRPO as published; long answers weigh less per token
    token_mean      sum_it l_it / sum_i |o_i|             every token weighs the same (DAPO)
    fixed_length    sum_it l_it / (N * L)                 no length in the weight at all (Dr.GRPO), L = max tokens

What holds: the denominator is a property of the whole optimizer step, never of the micro-batch: the losses of all
micro-batches of all ranks add up to the loss of the step. (An engine that *averages* gradients over its ranks needs
the loss times the number of ranks.)

Shapes: R rows by T token positions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "fixed_length"]


def step_denominator(mode: Aggregation, sequences: int, tokens: int, max_tokens: int) -> float:
    """Denominator of one optimizer step, from totals over all ranks and micro-batches.

    `sequences` N and `tokens` count what the masks of the step hold; `max_tokens` L is the length limit of a
    completion. ValueError for an unknown mode and for a step without tokens, which has no loss: skip it.
    """
    denominators = {"sequence_mean": sequences, "token_mean": tokens, "fixed_length": sequences * max_tokens}
    if mode not in denominators:
        raise ValueError(f"aggregation {mode!r}: choose one of {', '.join(get_args(Aggregation))}")
    if sequences <= 0 or tokens <= 0 or denominators[mode] <= 0:
        raise ValueError(f"{sequences} sequences, {tokens} tokens of at most {max_tokens}: nothing to average, skip it")
    return float(denominators[mode])


def aggregate(loss_R_T: Tensor, mask_R_T: Tensor, mode: Aggregation, denominator: float) -> Tensor:
    """This part's share of the step's loss, a scalar that sums over parts.

    `loss_R_T` is 0 outside `mask_R_T` (bool); a row without tokens adds nothing. `denominator` is `step_denominator`
    of the same mode.
    """
    if mode not in get_args(Aggregation):
        raise ValueError(f"aggregation {mode!r}: choose one of {', '.join(get_args(Aggregation))}")
    sums_R = torch.where(mask_R_T, loss_R_T, torch.zeros_like(loss_R_T)).sum(dim=1)
    if mode == "sequence_mean":
        sums_R = sums_R / mask_R_T.sum(dim=1).clamp(min=1)
    return sums_R.sum() / denominator
