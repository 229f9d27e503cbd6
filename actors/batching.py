"""What the learner is given for one optimizer step.

What holds: a group carries the members that are trained on, in their order; the totals count every completion of the
step that has a reward, trained on or not, because the loss is an average over all of them. Of every token it is known
which weights drew it; none are newer than the learner's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from actors.types import Spans
from data.types import Prompt
from models.passes import TreeSize


@dataclass(frozen=True)
class TrainGroup:
    """The members of one group that are trained on, as the learner needs them.

    `expanded_prompt_ids` is what the engine reports to have run on; `completion_ids[i]` was sampled with the log-probs
    `behaviour_logprobs[i]` by the weights `versions[i]` and has the advantage `advantages[i]`, which may be 0 (divergence
    from the reference only).
    """

    prompt: Prompt
    expanded_prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    behaviour_logprobs: tuple[tuple[float, ...], ...]
    advantages: tuple[float, ...]
    versions: tuple[Spans, ...]

    def __post_init__(self) -> None:
        row = f"row {self.prompt.example.id}"
        if not len(self.completion_ids) == len(self.behaviour_logprobs) == len(self.advantages) == len(self.versions):
            raise ValueError(
                f"{row}: {len(self.completion_ids)} completions, {len(self.behaviour_logprobs)} log-prob rows, "
                f"{len(self.advantages)} advantages, versions of {len(self.versions)}"
            )
        for ids, logprobs, spans in zip(self.completion_ids, self.behaviour_logprobs, self.versions, strict=True):
            if not ids or len(ids) != len(logprobs):
                raise ValueError(f"{row}: {len(ids)} tokens with {len(logprobs)} log-probs")
            if not spans or spans[0][0] != 0 or spans[-1][0] >= len(ids):
                raise ValueError(f"{row}: {len(ids)} tokens of the versions {spans}")

    def size(self) -> TreeSize:
        """What the group takes in a pass."""
        lengths = tuple(map(len, self.completion_ids))
        return TreeSize(len(self.expanded_prompt_ids), lengths, self.prompt.example.media)

    def token_versions(self, member: int) -> list[int]:
        """The version that drew each token of a completion."""
        return [version for count, version in self._stretches(member) for _ in range(count)]

    def tokens_by_version(self) -> Counter[int]:
        """How many tokens are of which version."""
        counts: Counter[int] = Counter()
        for member in range(len(self.versions)):
            for count, version in self._stretches(member):
                counts[version] += count
        return counts

    def _stretches(self, member: int) -> list[tuple[int, int]]:
        """(tokens, version) of every span."""
        spans = self.versions[member]
        ends = [first for first, _ in spans[1:]] + [len(self.completion_ids[member])]
        return [(end - first, version) for (first, version), end in zip(spans, ends, strict=True)]


@dataclass(frozen=True)
class TrainBatch:
    """The groups of one optimizer step; `sequences` and `tokens` count all its completions with a reward.

    `version`: of the learner's weights before the step. A token's age is how many versions older the weights are that
    drew it.
    """

    groups: tuple[TrainGroup, ...]
    sequences: int
    tokens: int
    version: int

    def tokens_by_age(self) -> list[int]:
        """Tokens that are trained on, by age, from 0 to that of the oldest. ValueError for one that is of the future."""
        counts = sum((group.tokens_by_version() for group in self.groups), Counter())
        if counts and max(counts) > self.version:
            raise ValueError(f"tokens of version {max(counts)}, but the learner's weights are version {self.version}")
        return [counts[version] for version in range(self.version, min(counts, default=self.version) - 1, -1)]
