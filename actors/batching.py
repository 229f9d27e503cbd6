"""What the learner is given for one optimizer step.

What holds: a group carries the members that are trained on, in their order; the totals count every completion of the
step that has a reward, trained on or not, because the loss is an average over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.types import Prompt
from models.passes import TreeSize


@dataclass(frozen=True)
class TrainGroup:
    """The members of one group that are trained on, as the learner needs them.

    `expanded_prompt_ids` is what the engine reports to have run on; `completion_ids[i]` was sampled with the log-probs
    `behaviour_logprobs[i]` and has the advantage `advantages[i]`, which may be 0 (divergence from the reference only).
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

    def size(self) -> TreeSize:
        """What the group takes in a pass."""
        lengths = tuple(map(len, self.completion_ids))
        return TreeSize(len(self.expanded_prompt_ids), lengths, self.prompt.example.media)


@dataclass(frozen=True)
class TrainBatch:
    """The groups of one optimizer step; `sequences` and `tokens` count all its completions with a reward."""

    groups: tuple[TrainGroup, ...]
    sequences: int
    tokens: int
