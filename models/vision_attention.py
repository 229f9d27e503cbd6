"""Attention of the vision tower over all windows at once, where the library loops over them one by one.

What holds: windows and pictures of one size are a batch of one attention call; their order, and the result to the
rounding of the type, are the library's. A batch of 64 small pictures takes one call per layer instead of 64.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

#: The library hands all segments to an implementation whose name says "flash", and cuts them up for any other.
NAME = "flash_segments_of_one_size_as_a_batch"


def segment_attention(module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, scaling: float,
                      dropout: float, cu_seq_lens_q: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
    """Every segment attends to itself. query, key, value (1, H, N, D); cu_seq_lens_q (segments + 1). Gives (1, N, H, D)."""
    lengths = cu_seq_lens_q.diff()
    by_length = lengths.unique().tolist()
    if len(by_length) == 1:
        return _attend(query, key, value, by_length[0], scaling, dropout).unsqueeze(0), None
    token_lengths = lengths.repeat_interleave(lengths)
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    for length in by_length:
        tokens = (token_lengths == length).nonzero(as_tuple=True)[0]
        out = out.index_copy(0, tokens, _attend(query[:, :, tokens], key[:, :, tokens], value[:, :, tokens], length, scaling, dropout))
    return out.unsqueeze(0), None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int, scaling: float, dropout: float) -> torch.Tensor:
    """Segments of one length: (1, H, B * length, D) each; gives (B * length, H, D)."""
    split = lambda x: x[0].unflatten(1, (-1, length)).transpose(0, 1)
    out = F.scaled_dot_product_attention(split(query), split(key), split(value), dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)


def batch_vision_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make `model`'s vision tower use `segment_attention`; its weights and what is saved of it do not change."""
    AttentionInterface.register(NAME, segment_attention)
    # The public setter would try to load a kernel library of that name.
    model.model.visual.config._attn_implementation = NAME
