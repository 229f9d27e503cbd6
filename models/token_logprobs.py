"""Log-probabilities of given tokens without the logits of all: the output head in chunks, again in the backward pass.

What holds
    * At most `CHUNK_LOGITS` logits exist at a time, whatever the number of tokens and the size of the vocabulary; what
      is kept for the backward pass are the hidden states and one float per token.
    * The result is that of `(hidden @ weight.T / temperature).log_softmax(-1)` with banned columns at minus infinity, in
      float32 from the products on; the gradients of hidden and weight likewise.

Legend: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Logits alive at the same time: 128 MiB of float32.
CHUNK_LOGITS = 1 << 25
#: Elements of a product that are alive before they are added in another type: 16 MiB of bfloat16.
CHUNK_PRODUCT = 1 << 23


def token_logprobs(hidden_N_H: Tensor, weight_V_H: Tensor, targets_N: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Log-probabilities (N,) float32 of `targets_N` (int64); `banned` are token ids (int64) that have none.

    A banned target has minus infinity and must not be differentiated.
    """
    return _TokenLogProbs.apply(hidden_N_H, weight_V_H, targets_N, temperature, banned)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_N_H: Tensor, weight_V_H: Tensor, targets_N: Tensor, temperature: float, banned: Tensor) -> Tensor:
        logprobs_N = torch.empty(len(hidden_N_H), dtype=torch.float32, device=hidden_N_H.device)
        normalizers_N = torch.empty_like(logprobs_N)
        for part in _chunks(len(hidden_N_H), len(weight_V_H)):
            logits = _logits(hidden_N_H[part], weight_V_H, temperature, banned)
            normalizers_N[part] = logits.logsumexp(-1)
            logprobs_N[part] = logits.gather(-1, targets_N[part].unsqueeze(-1)).squeeze(-1) - normalizers_N[part]
        ctx.save_for_backward(hidden_N_H, weight_V_H, targets_N, normalizers_N, banned)
        ctx.temperature = temperature
        return logprobs_N

    @staticmethod
    def backward(ctx, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        """d log p_y / d logits = onehot(y) - softmax, over the temperature."""
        hidden_N_H, weight_V_H, targets_N, normalizers_N, banned = ctx.saved_tensors
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden_N_H) if to_hidden else None
        # Summed over chunks in float32, whatever the type of the weights.
        weight_gradient = torch.zeros_like(weight_V_H, dtype=torch.float32) if to_weight else None
        for part in _chunks(len(hidden_N_H), len(weight_V_H)):
            logits = _logits(hidden_N_H[part], weight_V_H, ctx.temperature, banned)
            slope = logits.sub_(normalizers_N[part].unsqueeze(-1)).exp_().neg_()
            ones = torch.ones_like(targets_N[part], dtype=slope.dtype).unsqueeze(-1)
            slope.scatter_add_(-1, targets_N[part].unsqueeze(-1), ones)
            slope = slope.mul_((gradient_N[part] / ctx.temperature).unsqueeze(-1)).to(weight_V_H.dtype)
            if to_hidden:
                hidden_gradient[part] = slope @ weight_V_H
            if to_weight:
                _add_product(weight_gradient, slope, hidden_N_H[part])
            del logits, slope  # before the gradient is copied to the weights' type
        return hidden_gradient, weight_gradient.to(weight_V_H.dtype) if to_weight else None, None, None, None


def _add_product(total_V_H: Tensor, slope_N_V: Tensor, hidden_N_H: Tensor) -> None:
    """total += slope.T @ hidden, whose product is never whole beside the total."""
    if slope_N_V.dtype == total_V_H.dtype:
        total_V_H.addmm_(slope_N_V.T, hidden_N_H)
        return
    rows = max(1, CHUNK_PRODUCT // total_V_H.shape[1])
    for start in range(0, len(total_V_H), rows):
        total_V_H[start : start + rows] += slope_N_V[:, start : start + rows].T @ hidden_N_H


def _logits(hidden: Tensor, weight_V_H: Tensor, temperature: float, banned: Tensor) -> Tensor:
    logits = (hidden @ weight_V_H.T).float().div_(temperature)
    return logits.index_fill_(-1, banned, float("-inf")) if len(banned) else logits


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
