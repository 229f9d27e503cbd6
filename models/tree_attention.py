"""Attention over a packed pass: who sees whom, and three ways to compute it.

    sdpa    everywhere: prompts as causal batches of similar length, completions against their prompt and themselves, or,
            where they are longer than the prompt, as causal batches that carry its queries and keys again
    flex    GPU: one compiled call with a block mask of the same rule
    flash   GPU with flash-attn: one variable-length call; the keys of a prompt are repeated for its completions

The rule: a token sees the tokens before it of its own prompt and its own completion, and itself. The three give the
same numbers to the rounding of the type.

The library calls the implementation it finds under the name in the model's configuration and hands through the
keyword `layout`; it prepares no mask, because `NO_MASK` says that there is one (none) already.

Legend: S tokens of the pass, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

Attention = Literal["auto", "sdpa", "flex", "flash"]
#: As `attention_mask` of the language model: the mask is prepared, and it is none.
NO_MASK = {"full_attention": None}
#: A causal batch holds segments no shorter than this share of its longest.
_SIMILAR = 0.75


@dataclass(frozen=True)
class Node:
    """A prompt at `start` of `length` tokens, its completions right behind it; `branches` are their lengths."""

    start: int
    length: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class CausalBatch:
    """Segments that see only themselves, causally. `index` (B, L) into the pass, padded with a segment's last place;
    `real` (tokens) picks the places of the flattened batch whose results count: neither padding nor a prompt that is
    there again. One segment alone is a slice instead."""

    first: int
    last: int
    index: Tensor | None
    real: Tensor | None

    def places(self) -> Tensor:
        """Places in the pass of the tokens whose results this part gives, in its order."""
        return torch.arange(self.first, self.last) if self.index is None else self.index.flatten()[self.real]


@dataclass(frozen=True)
class Branches:
    """The completions of one prompt, first <= prompt < last. `index` (G, T) into the pass, padded; `real` as above;
    `mask` (T, P + T) true where a completion's token sees prompt and itself."""

    first: int
    last: int
    index: Tensor
    real: Tensor
    mask: Tensor

    def places(self) -> Tensor:
        """As those of `CausalBatch`."""
        return self.index.flatten()[self.real]


@dataclass(frozen=True)
class VarLen:
    """Segments of a variable-length call: places of all keys, cumulative lengths of queries and keys, the longest ones."""

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class TreeLayout:
    """The nodes of a pass, and the index tensors the sdpa form needs, made once for all layers.

    `order` (S): where the result of each token of the pass stands among the results of `causal`, then `branches`.
    """

    nodes: tuple[Node, ...]
    causal: tuple[CausalBatch, ...]
    branches: tuple[Branches, ...]
    order: Tensor

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> "TreeLayout":
        """A prompt with one completion is one causal segment. One with several has them apart, masked, if they are short:
        T (P + T) scores each. From T = P on a causal segment of prompt and completion, of half (P + T)^2, is cheaper, and
        a fast kernel needs no mask for it."""
        segments: list[_Segment] = []
        branches = []
        for node in nodes:
            prompt = torch.arange(node.start, node.start + node.length)
            if len(node.branches) == 1 or max(node.branches) >= node.length:
                segments += _continued(prompt, node.branches)
            else:
                segments.append(_Segment(prompt))
                if any(node.branches):
                    branches.append(_branches(node))
        causal = _causal_batches(segments)
        places = torch.cat([part.places() for part in (*causal, *branches)])
        return cls(tuple(nodes), causal, tuple(branches), places.argsort())

    def to(self, device: torch.device | str) -> "TreeLayout":
        def moved(parts: tuple) -> tuple:
            return tuple(
                replace(part, **{n: value.to(device) for n, value in vars(part).items() if isinstance(value, Tensor)})
                for part in parts
            )

        return replace(self, causal=moved(self.causal), branches=moved(self.branches), order=self.order.to(device))

    @cached_property
    def block_mask(self) -> Any:
        """The rule for `flex`: which blocks of queries and keys hold a pair that may see each other."""
        from torch.nn.attention.flex_attention import create_block_mask

        trees, branches = (owner.to(self.order.device) for owner in self.owners())

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (trees[query] == trees[key]) & (query >= key)
            return same & ((branches[key] == 0) | (branches[key] == branches[query]))

        tokens = len(self.order)
        return create_block_mask(sees, None, None, tokens, tokens, device=self.order.device)

    @cached_property
    def varlen(self) -> "VarLen":
        """The segments for `flash`: a prompt (with its completion, if it is the only one), then each completion."""
        queries, keys, places = [], [], []
        for node in self.nodes:
            prompt = torch.arange(node.start, node.start + node.length)
            if len(node.branches) == 1:
                prompt = torch.arange(node.start, node.start + node.length + node.branches[0])
            queries.append(len(prompt))
            places.append(prompt)
            keys.append(len(prompt))
            start = node.start + node.length
            for length in node.branches if len(node.branches) > 1 else ():
                if length:
                    queries.append(length)
                    keys.append(node.length + length)
                    places.append(torch.cat([prompt, torch.arange(start, start + length)]))
                start += length
        device = self.order.device
        ends = (torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (queries, keys))
        return VarLen(torch.cat(places).to(device), *ends, max(queries), max(keys))

    def owners(self) -> tuple[Tensor, Tensor]:
        """Per token its tree and, within the tree, its completion (from 1; 0: the prompt). (S,) each."""
        trees = [torch.full((node.length + sum(node.branches),), index) for index, node in enumerate(self.nodes)]
        branches = [
            torch.full((length,), number)
            for node in self.nodes
            for number, length in enumerate((node.length, *node.branches))
        ]
        return torch.cat(trees), torch.cat(branches)


@dataclass(frozen=True)
class _Segment:
    """Places of the pass, causal among themselves; the results of the first `skip` come from another segment."""

    places: Tensor
    skip: int = 0

    def __len__(self) -> int:
        return len(self.places)


def _continued(prompt: Tensor, branches: Sequence[int]) -> list[_Segment]:
    """The prompt with each of its completions; the first gives the prompt's results too."""
    ends = torch.tensor(branches).cumsum(0) + int(prompt[-1]) + 1
    tails = [torch.arange(end - length, end) for end, length in zip(ends.tolist(), branches, strict=True)]
    again = [_Segment(torch.cat([prompt, tail]), len(prompt)) for tail in tails[1:] if len(tail)]
    return [_Segment(torch.cat([prompt, tails[0]])), *again]


def _causal_batches(segments: Sequence[_Segment]) -> tuple[CausalBatch, ...]:
    batches, group = [], []
    for segment in sorted(segments, key=lambda segment: -len(segment)):
        if group and len(segment) < _SIMILAR * len(group[0]):
            batches.append(_causal_batch(group))
            group = []
        group.append(segment)
    return (*batches, _causal_batch(group))


def _causal_batch(group: Sequence[_Segment]) -> CausalBatch:
    first, last = int(group[0].places[0]), int(group[0].places[-1]) + 1
    if len(group) == 1 and last - first == len(group[0]) and not group[0].skip:
        return CausalBatch(first, last, None, None)
    index = pad_sequence([segment.places for segment in group], batch_first=True)
    offsets = torch.arange(index.shape[1])
    lengths, skips = (torch.tensor(values).unsqueeze(1) for values in
                      ([len(segment) for segment in group], [segment.skip for segment in group]))
    index = index.where(offsets < lengths, index.gather(1, lengths - 1))
    return CausalBatch(0, 0, index, ((offsets >= skips) & (offsets < lengths)).flatten().nonzero()[:, 0])


def _branches(node: Node) -> Branches:
    starts = torch.tensor((0, *node.branches)).cumsum(0)[:-1] + node.start + node.length
    index, real = _padded([(s, n) for s, n in zip(starts.tolist(), node.branches, strict=True) if n])
    longest = index.shape[1]
    mask = torch.ones(longest, node.length + longest, dtype=torch.bool).tril(node.length)
    return Branches(node.start, node.start + node.length, index, real, mask)


def _padded(segments: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([length for _, length in segments]).unsqueeze(1)
    offsets = torch.arange(int(lengths.max())).expand(len(segments), -1)
    index = torch.tensor([start for start, _ in segments]).unsqueeze(1) + offsets.minimum(lengths - 1)
    return index, (offsets < lengths).flatten().nonzero()[:, 0]


def sdpa_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
    layout: TreeLayout, scaling: float, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, None]:
    """query (1, H, S, D), key and value (1, K, S, D); gives (1, S, H, D)."""
    heads = query.shape[1] // key.shape[1]
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (S, heads, D)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, Lq, H, D) and (B, Lk, K, D); gives (B * Lq, H, D). The mask is causal if none is given."""
        k, v = (x.transpose(1, 2).repeat_interleave(heads, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
        return out.transpose(1, 2).flatten(0, 1)

    results = []
    for batch in layout.causal:
        if batch.index is None:
            parts = (x[batch.first:batch.last].unsqueeze(0) for x in (query, key, value))
            results.append(attend(*parts, None))
        else:
            parts = (x.index_select(0, batch.index.flatten()).unflatten(0, batch.index.shape) for x in (query, key, value))
            results.append(attend(*parts, None).index_select(0, batch.real))
    for group in layout.branches:
        q, *own = (x.index_select(0, group.index.flatten()).unflatten(0, group.index.shape) for x in (query, key, value))
        shared = (x[group.first:group.last].expand(len(group.index), -1, -1, -1) for x in (key, value))
        k, v = (torch.cat(pair, 1) for pair in zip(shared, own, strict=True))
        results.append(attend(q, k, v, group.mask).index_select(0, group.real))
    return torch.cat(results).index_select(0, layout.order).unsqueeze(0), None


def flex_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
    layout: TreeLayout, scaling: float, **_: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention`, without dropout; compiled on a GPU."""
    out = _flex(query.is_cuda)(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


@cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex, dynamic=True) if compiled else flex


def flash_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
    layout: TreeLayout, scaling: float, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention`; float16 or bfloat16 on a GPU."""
    from flash_attn import flash_attn_varlen_func

    parts = layout.varlen
    out = flash_attn_varlen_func(
        query[0].transpose(0, 1), *(x[0].transpose(0, 1).index_select(0, parts.keys) for x in (key, value)),
        parts.query_ends, parts.key_ends, parts.longest_query, parts.longest_key,
        dropout_p=dropout, softmax_scale=scaling, causal=True,
    )
    return out.unsqueeze(0), None


_IMPLEMENTATIONS = {"sdpa": sdpa_attention, "flex": flex_attention, "flash": flash_attention}


def choose_attention(wanted: Attention, device: torch.device, dtype: torch.dtype) -> Literal["sdpa", "flex", "flash"]:
    """What `auto` means here: flash on a GPU that has flash-attn, for 16-bit types; else flex on a GPU; else sdpa.

    ValueError when what is asked for cannot run here.
    """
    half, gpu = dtype in (torch.float16, torch.bfloat16), device.type == "cuda"
    has_flash = gpu and half and importlib.util.find_spec("flash_attn") is not None
    if wanted == "auto":
        return "flash" if has_flash else "flex" if gpu else "sdpa"
    if wanted == "flash" and not has_flash:
        raise ValueError(f"attention flash needs a GPU, bfloat16 and the package flash-attn; here: {device.type}, {dtype}. "
                         "Set model.attention to auto")
    return wanted


def use_tree_attention(model: Qwen2_5_VLForConditionalGeneration, kind: Literal["sdpa", "flex", "flash"]) -> None:
    """Make `model`'s language model use one of the three; its weights and what is saved of it do not change."""
    text = model.model.language_model.config
    if "sliding_attention" in text.layer_types:
        raise ValueError("the language model has sliding windows, which the packed pass does not know; "
                         "set use_sliding_window to false in its config.json")
    AttentionInterface.register(f"tree_{kind}", _IMPLEMENTATIONS[kind])
    # The public setter would try to load a kernel library of that name.
    text._attn_implementation = f"tree_{kind}"
