"""From scored groups to what the learner is given: length shaping, divergence, advantages, and who is trained on.

What holds
    * A member without a score has no reward: it is in no statistic, no average and no gradient.
    * The step's averages are over all members with a reward. Those without an advantage (no spread in their group) are
      sent to the learner only where the loss has a divergence term, which they have too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.batching import TrainBatch, TrainGroup
from actors.types import Group, Rewards
from configs.schema import GRPOConfig
from grpo.advantages import GroupAdvantages, group_advantages
from grpo.dynamic_sampling import groups_to_keep
from grpo.shaping import overlong_penalty


def group_rewards(group: Group, config: GRPOConfig) -> Rewards:
    """What each member is compared by: its score and, with a buffer, its overlong penalty; None without a reward."""
    if not config.overlong_buffer:
        return tuple(score.total for score in group.scores)
    limit = config.sampling.max_new_tokens
    rewards: list[float | None] = []
    for score, completion in zip(group.scores, group.generation.completions, strict=True):
        earned = 0.0 if score.outcome == "truncated" else score.total
        penalty = overlong_penalty(len(completion.token_ids), limit, config.overlong_buffer)
        rewards.append(None if earned is None else earned + penalty)
    return tuple(rewards)


def penalised(rewards: Rewards, penalties: Sequence[float]) -> Rewards:
    """The rewards less the penalties, which are of the members with a reward, in order."""
    lost = iter(penalties)
    return tuple(None if reward is None else reward - next(lost) for reward in rewards)


def advantages_of(rewards: Rewards, config: GRPOConfig) -> GroupAdvantages:
    """The advantages of one group."""
    return group_advantages(
        torch.tensor([float("nan") if reward is None else reward for reward in rewards], dtype=torch.float64),
        torch.tensor([reward is not None for reward in rewards]),
        config.std_normalization,
        config.zero_variance_tolerance,
    )


def rewarded(group: Group, rewards: Rewards, advantages_G: Sequence[float]) -> TrainGroup:
    """The members that have a reward, as the learner needs them."""
    completions = group.generation.completions
    members = [index for index, reward in enumerate(rewards) if reward is not None]
    return TrainGroup(
        group.prompt,
        group.generation.expanded_prompt_ids,
        tuple(completions[index].token_ids for index in members),
        tuple(completions[index].logprobs for index in members),
        tuple(float(advantages_G[index]) for index in members),
        tuple(group.generation.versions(index) for index in members),
    )


@dataclass(frozen=True)
class StepBatch:
    """All groups a step has asked for, with their advantages, and what the learner gets (None: nothing to learn)."""

    groups: tuple[Group, ...]
    advantages: tuple[GroupAdvantages, ...]
    train: TrainBatch | None


def step_batch(
    groups: Sequence[Group],
    rewards: Sequence[Rewards],
    advantages: Sequence[GroupAdvantages],
    config: GRPOConfig,
    version: int,
) -> StepBatch:
    """Groups and members that are trained on, and the totals their loss is averaged over. `version`: the learner's."""
    kept = groups_to_keep([own.outcome for own in advantages], config.sampling_rounds)
    everywhere = config.kl.coef > 0 and config.kl.place == "loss"
    valid = [rewarded(groups[index], rewards[index], advantages[index].advantages_G.tolist()) for index in kept]
    trained = tuple(
        group
        for index, group in zip(kept, valid, strict=True)
        if group.advantages and (everywhere or advantages[index].outcome == "signal")
    )
    lengths = [length for group in valid for length in group.size().completions]
    train = TrainBatch(trained, len(lengths), sum(lengths), version) if trained else None
    return StepBatch(tuple(groups), tuple(advantages), train)
