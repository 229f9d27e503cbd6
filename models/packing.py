"""Prompts and their completions as one sequence without padding, for one forward pass.

A tree is a prompt and the completions that continue it. It is laid out once:

    prompt tokens | completion 1 | completion 2 | ...        each completion without its last token, which predicts nothing

What holds
    * Every token has the position it would have alone, a completion's continuing the prompt's; who sees whom is the
      layout's affair (`models.tree_attention`): a prompt token sees the prompt before it, a completion's token its
      prompt and itself, and no tree sees another.
    * A prompt stands in the pass once, however many completions share it, and a picture goes through the vision tower
      once, however many prompts show it: pictures are told apart by `Encoded.media_keys`.

Alignment: the first token of every completion is predicted at the prompt's last token, each later one at the token
before it. Legend: S tokens of the pass, R completions, T the longest of them, N all completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from models.inputs import Encoded
from models.tree_attention import Node, TreeLayout


@dataclass(frozen=True)
class Tree:
    """A prompt and the completions whose tokens are scored. ValueError without completions or with an empty one."""

    encoded: Encoded
    completions: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.completions or any(not ids for ids in self.completions):
            raise ValueError("a tree needs at least one completion, and every completion at least one token")


def tree_tokens(prompt: int, completions: Sequence[int]) -> int:
    """Tokens that a tree takes in a pass, from the lengths of its prompt and its completions."""
    return prompt + sum(completions) - len(completions)


@dataclass(frozen=True)
class PackedBatch:
    """input_ids (S), positions (3, S). Visual token `feature_rows[i]` of the distinct media stands at `media_places[i]`.
    pixel_values (patches, 1176) and grid_thw (media, 3) of the distinct media, None without. targets, source (N):
    completion tokens, by tree and completion, and the places that predict them. lengths: tokens of each completion (R).
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    layout: TreeLayout
    targets: torch.Tensor
    source: torch.Tensor
    lengths: tuple[int, ...]
    media_places: torch.Tensor
    feature_rows: torch.Tensor
    pixel_values: torch.Tensor | None
    grid_thw: torch.Tensor | None

    @property
    def mask(self) -> torch.Tensor:
        """True on the tokens of the completions, (R, T)."""
        lengths = torch.tensor(self.lengths, device=self.input_ids.device)
        return torch.arange(max(self.lengths), device=self.input_ids.device) < lengths.unsqueeze(1)

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, layout=self.layout.to(device), **moved)


def pack(trees: Sequence[Tree], merge: int = 2) -> PackedBatch:
    """Lay the trees out one after another. `merge`: patches per side of a visual token. ValueError without trees."""
    if not trees:
        raise ValueError("a pass needs at least one tree")
    media = _DistinctMedia(merge)
    ids: list[int] = []
    positions, places, nodes, source = [], [], [], []
    for tree in trees:
        encoded, start, prompt = tree.encoded, len(ids), len(tree.encoded.input_ids)
        ids.extend(encoded.input_ids)
        positions.append(encoded.positions)
        places.append(start + torch.tensor(encoded.token_types).nonzero()[:, 0])
        media.add(encoded)
        for completion in tree.completions:
            inner = len(completion) - 1
            source.append(start + prompt - 1)
            source.extend(range(len(ids), len(ids) + inner))
            ids.extend(completion[:-1])
            positions.append((encoded.next_position + torch.arange(inner)).expand(3, -1))
        nodes.append(Node(start, prompt, tuple(len(completion) - 1 for completion in tree.completions)))
    completions = [completion for tree in trees for completion in tree.completions]
    media_places, feature_rows = torch.cat(places), media.rows()
    if len(media_places) != len(feature_rows):
        raise ValueError(f"{len(feature_rows)} visual tokens for {len(media_places)} placeholders")
    return PackedBatch(
        torch.tensor(ids), torch.cat(positions, 1), TreeLayout.of(nodes),
        torch.tensor([token for completion in completions for token in completion]), torch.tensor(source),
        tuple(map(len, completions)), media_places, feature_rows, *media.stacked(),
    )


class _DistinctMedia:
    """The media of a pass, each once, in the order of their first appearance."""

    def __init__(self, merge: int) -> None:
        self._merge = merge
        self._slots: dict[object, tuple[int, int]] = {}  # key -> rows of its visual tokens
        self._pixels: list[torch.Tensor] = []
        self._grids: list[torch.Tensor] = []
        self._order: list[tuple[int, int]] = []
        self._tokens = 0

    def add(self, encoded: Encoded) -> None:
        if encoded.pixel_values is None:
            return
        patches = encoded.grid_thw.prod(-1).tolist()
        keys = encoded.media_keys or [(id(encoded), index) for index in range(len(patches))]
        for key, pixels, grid in zip(keys, encoded.pixel_values.split(patches), encoded.grid_thw, strict=True):
            if key not in self._slots:
                self._slots[key] = (self._tokens, self._tokens + len(pixels) // self._merge**2)
                self._tokens = self._slots[key][1]
                self._pixels.append(pixels)
                self._grids.append(grid)
            self._order.append(self._slots[key])

    def rows(self) -> torch.Tensor:
        """The rows of the features for all visual tokens of the pass, in its order."""
        return torch.cat([torch.arange(first, last) for first, last in self._order] or [torch.zeros(0, dtype=torch.long)])

    def stacked(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (torch.cat(self._pixels), torch.stack(self._grids)) if self._pixels else (None, None)
