"""What travels between the actors of stage 3. Plain frozen data: ids, log-probs and references, never pixels.

Alignment, stated once: `token_ids[i]` was drawn with log-probability `logprobs[i]` (processed: after temperature and
bans) given `prompt_token_ids + token_ids[:i]`. `prompt_token_ids` is the *unexpanded* prompt (one placeholder per
medium) that was sent to the engine; `expanded_prompt_ids` is what the engine reports to have run on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.schema import SamplingConfig
from data.types import Prompt
from rewards.outcome import Score
from rewards.rows import RewardRow


#: Which weights drew which tokens: (first token, version), from token 0 on, both rising.
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Completion:
    """Exactly what the engine sampled for one of the G members of a group.

    `versions`: more than one where weights came while it was written; none where the engine has named none, which are
    then the generation's.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: Literal["stop", "length", "abort"]
    versions: Spans = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} tokens with {len(self.logprobs)} log-probs")
        starts = [first for first, _ in self.versions]
        numbers = [version for _, version in self.versions]
        if starts and (starts[0] != 0 or starts != sorted(set(starts)) or numbers != sorted(set(numbers))):
            raise ValueError(f"version spans {self.versions}: give (first token, version) from 0 on, both rising")


@dataclass(frozen=True)
class Generation:
    """The answer to one rollout request: G completions of one prompt. `version`: the oldest among their tokens.
    `pictures_encoded`: how many pictures (a video is one) the worker's vision tower had seen by then, since its start."""

    request_id: str
    expanded_prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    version: int
    worker: str
    seconds: float
    pictures_encoded: int = 0

    def versions(self, member: int) -> Spans:
        """The version spans of a completion."""
        return self.completions[member].versions or ((0, self.version),)


@dataclass(frozen=True)
class RolloutRequest:
    """One prompt to sample: ids with ONE placeholder per medium, media by path, and how to sample.

    `media` are the image files in order, or the frames of one video. Completion i of n is drawn with seed + i.
    `greedy` takes the most likely token and ignores the temperature.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    media: tuple[str, ...]
    is_video: bool
    n: int
    seed: int
    sampling: SamplingConfig
    greedy: bool = False

    @property
    def pictures(self) -> int:
        """A video counts as one."""
        return 1 if self.is_video else len(self.media)


@dataclass(frozen=True)
class PromptTask:
    """A prompt on its way: what the learner encodes, what the engine samples, what the rewards read."""

    prompt: Prompt
    request: RolloutRequest
    row: RewardRow


@dataclass(frozen=True)
class Sync:
    """A proved version: its number, bytes, and the largest canary gap of the workers that had proved it when the run went on, nats."""

    version: int
    nbytes: int
    canary_gap: float


#: What each member of a group is compared by: its score, shaped; None for one without a reward.
Rewards = tuple[float | None, ...]


@dataclass(frozen=True)
class Group:
    """A prompt, its completions and their scores: the unit of admission, loss and trace."""

    prompt: Prompt
    generation: Generation
    scores: tuple[Score, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.generation.completions):
            raise ValueError(f"{len(self.generation.completions)} completions with {len(self.scores)} scores")
