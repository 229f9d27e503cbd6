"""How a step's trees become forward passes: pure arithmetic, the same on every rank.

What holds
    * A tree stays whole as long as it fits, so that its completions share its prompt and pictures; only one that alone
      exceeds the budget is cut, and then every piece carries the prompt again.
    * Trees that show the same pictures go into one pass as far as its share of the work allows, so that a picture is seen
      once for all of them.
    * A pass holds at most `budget` tokens, unless one completion with its prompt is longer.
    * Every rank gets the same number of passes, of about the same size; one without work repeats a piece with `counts`
      false (no loss, no statistics).
    * Every completion is in exactly one pass that counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from models.packing import tree_tokens


@dataclass(frozen=True)
class TreeSize:
    """Tokens of a prompt and of its completions, and the names of its pictures."""

    prompt: int
    completions: tuple[int, ...]
    media: tuple[str, ...] = ()

    def tokens(self, first: int, last: int) -> int:
        """What the prompt with completions `first` … `last` - 1 takes in a pass."""
        return tree_tokens(self.prompt, self.completions[first:last])


@dataclass(frozen=True)
class Slice:
    """Completions `first` … `last` - 1 of tree `tree`."""

    tree: int
    first: int
    last: int


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one rank; `counts` is false for padding passes."""

    slices: tuple[Slice, ...]
    counts: bool = True


def plan_passes(trees: Sequence[TreeSize], ranks: int, budget: int) -> list[list[Pass]]:
    """For every rank its passes; rank r takes every `ranks`-th. No trees: no passes."""
    pieces = [piece for index, tree in enumerate(trees) for piece in _pieces(index, tree, budget)]
    if not pieces:
        return [[] for _ in range(ranks)]
    load = {piece: trees[piece.tree].tokens(piece.first, piece.last) for piece in pieces}
    together: dict[object, list[Slice]] = {}
    for piece in pieces:
        together.setdefault(trees[piece.tree].media or piece, []).append(piece)
    bins = math.ceil(sum(load.values()) / (ranks * budget)) * ranks
    spread = _spread(together.values(), load, bins)
    while any(len(own) > 1 and sum(map(load.get, own)) > budget for own in spread):
        bins += ranks
        spread = _spread(together.values(), load, bins)
    planned = [Pass(tuple(sorted(own, key=pieces.index))) for own in spread if own]
    filler = Pass((Slice(pieces[0].tree, pieces[0].first, pieces[0].first + 1),), counts=False)
    planned += [filler] * (-len(planned) % ranks)
    return [planned[rank::ranks] for rank in range(ranks)]


def _pieces(index: int, tree: TreeSize, budget: int) -> list[Slice]:
    pieces, first = [], 0
    for last in range(1, len(tree.completions) + 1):
        if last == len(tree.completions) or tree.tokens(first, last + 1) > budget:
            pieces.append(Slice(index, first, last))
            first = last
    return pieces


def _spread(together: Iterable[Sequence[Slice]], load: Mapping[Slice, int], bins: int) -> list[list[Slice]]:
    """The pieces in bins of about equal load, the largest runs first, each into the emptiest bin. A run is of pieces that
    belong together, no longer than a bin's share of all."""
    share = sum(load.values()) / bins
    runs: list[list[Slice]] = []
    for group in together:
        runs.append([])
        for piece in group:
            if runs[-1] and sum(map(load.get, runs[-1])) + load[piece] > share:
                runs.append([])
            runs[-1].append(piece)
    spread: list[list[Slice]] = [[] for _ in range(bins)]
    filled = [0] * bins
    for run in sorted(runs, key=lambda run: -sum(map(load.get, run))):
        emptiest = filled.index(min(filled))
        spread[emptiest] += run
        filled[emptiest] += sum(map(load.get, run))
    return spread
