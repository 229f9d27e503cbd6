"""How a step's groups become forward passes: pure arithmetic, the same on every rank.

What holds
    * A group stays in one pass as long as it fits, so that its members share one vision pass; only a group that alone
      exceeds the budget is cut.
    * A pass holds at most `budget` padded tokens (rows times the longest row), unless one row alone is longer.
    * Every rank gets the same number of passes; a short rank repeats one with `counts` false (no loss, no statistics).
    * Every member is in exactly one pass that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.types import Prompt


@dataclass(frozen=True)
class TrainGroup:
    """The members of one group that carry gradient, as the learner needs them.

    `expanded_prompt_ids` is what the engine reports to have run on; `completion_ids[i]` was sampled with the log-probs
    `behaviour_logprobs[i]` and has the advantage `advantages[i]`.
    """

    prompt: Prompt
    expanded_prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    behaviour_logprobs: tuple[tuple[float, ...], ...]
    advantages: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.completion_ids) == len(self.behaviour_logprobs) == len(self.advantages):
            raise ValueError(
                f"row {self.prompt.example.id}: {len(self.completion_ids)} completions, "
                f"{len(self.behaviour_logprobs)} log-prob rows, {len(self.advantages)} advantages"
            )
        for ids, logprobs in zip(self.completion_ids, self.behaviour_logprobs, strict=True):
            if not ids or len(ids) != len(logprobs):
                raise ValueError(f"row {self.prompt.example.id}: {len(ids)} tokens with {len(logprobs)} log-probs")

    @property
    def tokens(self) -> int:
        """Sampled tokens that carry gradient."""
        return sum(map(len, self.completion_ids))

    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of every member's row, prompt included."""
        return tuple(len(self.expanded_prompt_ids) + len(ids) for ids in self.completion_ids)


@dataclass(frozen=True)
class Slice:
    """Members `first` … `last` - 1 of group `group`."""

    group: int
    first: int
    last: int


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one rank; `counts` is false for padding passes."""

    slices: tuple[Slice, ...]
    counts: bool = True


def plan_passes(row_lengths: Sequence[Sequence[int]], ranks: int, budget: int) -> list[list[Pass]]:
    """For every rank its passes over its groups; `row_lengths[g]` are the lengths of the rows of group g.

    Groups go to the rank with the least work so far, the costliest first, and within a rank similar lengths share a
    pass. No groups: no passes.
    """
    cost = [len(lengths) * max(lengths) for lengths in row_lengths]
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for group in sorted(range(len(cost)), key=lambda g: (-cost[g], g)):
        min(owned, key=lambda groups: sum(cost[g] for g in groups)).append(group)
    plans = [_pack(sorted(groups, key=lambda g: (max(row_lengths[g]), g)), row_lengths, budget) for groups in owned]
    longest = max(map(len, plans))
    filler = Pass((Slice(0, 0, 1),), counts=False)
    return [plan + [filler] * (longest - len(plan)) for plan in plans]


def _pack(groups: Sequence[int], row_lengths: Sequence[Sequence[int]], budget: int) -> list[Pass]:
    passes: list[Pass] = []
    slices: list[Slice] = []
    rows = 0
    for group in groups:
        size, width = len(row_lengths[group]), max(
            row_lengths[group]
        )  # groups come by width: this one is the widest yet
        if slices and (rows + size) * width > budget:
            passes.append(Pass(tuple(slices)))
            slices, rows = [], 0
        fit = max(1, budget // width)
        for first in range(0, size, fit):
            slices.append(Slice(group, first, min(first + fit, size)))
            rows += slices[-1].last - first
            if slices[-1].last < size:
                passes.append(Pass(tuple(slices)))
                slices, rows = [], 0
    if slices:
        passes.append(Pass(tuple(slices)))
    return passes
