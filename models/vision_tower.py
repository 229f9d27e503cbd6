"""The vision tower at speed: all windows of one size in one attention call, patches embedded by one product.

What holds
    * The result is the library's to the rounding of the type, and so are the order of the visual tokens, the names of the
      weights and what is saved.
    * The library attends window by window and picture by picture in a Python loop; here those of one size are a batch: 64
      small pictures take one call per layer instead of hundreds.
    * A convolution whose stride is its kernel is a product of matrices; as such it takes the fast path everywhere.
"""

from __future__ import annotations

import torch
from torch import nn
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


class PatchProduct(nn.Module):
    """The patch embedding's convolution as a matrix product. Takes over the weight of `convolution`, which has no bias."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = convolution.weight

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(patches, channels, time, height, width), one kernel each, to (patches, features, 1, 1, 1)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1))[..., None, None, None]


def quicken_vision(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make `model`'s vision tower use the module's forms; its weights and what is saved of it do not change."""
    AttentionInterface.register(NAME, segment_attention)
    # The public setter would try to load a kernel library of that name.
    model.model.visual.config._attn_implementation = NAME
    embed = model.model.visual.patch_embed
    embed.proj = PatchProduct(embed.proj)
