"""From scored groups to the learner's batch: statistics, penalties, who is trained on, what the averages are over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from actors.step_batch import advantages_of, group_rewards, penalised, step_batch
from actors.types import Completion, Generation, Group
from configs.schema import GRPOConfig, KLConfig, SamplingConfig
from data.types import Example, Prompt
from rewards.outcome import Score

ROW = Example("train/s/0", 0, "single_image", "How many chairs?", "object count", ("a.png",), None, "2")
NO_KL = KLConfig(coef=0.0)


def group(*scores: Score, tokens: int = 2) -> Group:
    completions = tuple(Completion((i, *[2] * (tokens - 1)), (-1.0,) * tokens, "text", "stop") for i in range(len(scores)))
    return Group(Prompt(ROW, "think", ()), Generation("r", (7, 8), completions, 0, "w0", 0.1), scores)


def ok(total: float) -> Score:
    return Score("ok", {"format": total}, total)


def batch_of(groups: list[Group], config: GRPOConfig):
    rewards = [group_rewards(one, config) for one in groups]
    return step_batch(groups, rewards, [advantages_of(own, config) for own in rewards], config, 3)


GROUPS = [
    group(ok(1.0), Score("timeout", detail="x"), ok(0.0), Score("truncated")),
    group(ok(1.0), ok(1.0), tokens=5),
    group(ok(1.0), Score("error", detail="x")),
    group(Score("truncated"), Score("truncated")),
]


def test_failures_leave_the_statistics_and_groups_without_spread_are_averaged_over() -> None:
    batch = batch_of(GROUPS, GRPOConfig(kl=NO_KL))
    outcomes = [advantage.outcome for advantage in batch.advantages]
    assert outcomes == ["signal", "zero_variance", "too_few_valid", "too_few_valid"]
    (trained,) = batch.train.groups
    assert trained.completion_ids == ((0, 2), (2, 2)) and trained.expanded_prompt_ids == (7, 8)
    expected = 0.5 / (math.sqrt(0.5) + 1e-4)  # two valid members, unbiased std
    assert trained.advantages == pytest.approx((expected, -expected))
    assert batch.advantages[0].advantages_G.tolist() == pytest.approx([expected, 0, -expected, 0])
    assert (batch.train.sequences, batch.train.tokens, batch.train.version) == (2 + 2 + 1, 4 + 10 + 2, 3)


def test_divergence_in_the_loss_is_trained_where_nothing_else_is() -> None:
    batch = batch_of(GROUPS, GRPOConfig(kl=KLConfig(coef=0.1)))
    assert [group.advantages[0] != 0 for group in batch.train.groups] == [True, False, False]
    assert [len(group.advantages) for group in batch.train.groups] == [2, 2, 1]
    in_reward = batch_of(GROUPS, GRPOConfig(kl=KLConfig(coef=0.1, place="reward")))
    assert len(in_reward.train.groups) == 1


def test_with_replacement_only_groups_with_a_signal_count() -> None:
    batch = batch_of(GROUPS, GRPOConfig(sampling_rounds=2))
    assert len(batch.train.groups) == 1 and (batch.train.sequences, batch.train.tokens) == (2, 4)
    assert len(batch.groups) == 4


def test_without_any_signal_there_is_nothing_to_train() -> None:
    assert batch_of(GROUPS[1:], GRPOConfig(kl=NO_KL)).train is None
    assert batch_of(GROUPS[3:], GRPOConfig()).train is None


def test_with_a_buffer_the_length_counts_and_a_truncated_member_is_the_worst() -> None:
    config = GRPOConfig(kl=NO_KL, overlong_buffer=2, sampling=SamplingConfig(max_new_tokens=3))
    scored = group(ok(1.0), ok(0.0), Score("error", detail="x"))  # two tokens: half the penalty
    cut = group(Score("truncated"), tokens=3)
    completions = (*scored.generation.completions, *cut.generation.completions)
    generation = Generation("r", (7, 8), completions, 0, "w0", 0.1)
    both = Group(scored.prompt, generation, (*scored.scores, *cut.scores))
    assert group_rewards(both, config) == (0.5, -0.5, None, -1.0)
    (trained,) = batch_of([both], config).train.groups
    assert len(trained.advantages) == 3 and min(trained.advantages) == trained.advantages[2]
    assert group_rewards(both, GRPOConfig()) == (1.0, 0.0, None, None)


def test_a_penalty_is_taken_off_the_members_that_have_a_reward() -> None:
    assert penalised((1.0, None, 0.5), [0.25, 0.5]) == (0.75, None, 0.0)


def test_members_take_along_which_weights_drew_which_tokens() -> None:
    scored = group(ok(1.0), Score("error", detail="x"), ok(0.0))
    spans = (((0, 2), (1, 3)), (), ())
    completions = tuple(map(lambda own, mine: replace(own, versions=mine), scored.generation.completions, spans))
    both = replace(scored, generation=replace(scored.generation, completions=completions, version=1))
    train = batch_of([both], GRPOConfig(kl=NO_KL)).train
    assert train.groups[0].versions == (((0, 2), (1, 3)), ((0, 1),)) and train.tokens_by_age() == [1, 1, 2]


def test_version_spans_begin_at_the_first_token_and_rise() -> None:
    for spans in (((1, 0),), ((0, 1), (1, 0)), ((0, 0), (0, 1)), ((0, 0), (1, 0))):
        with pytest.raises(ValueError, match="both rising"):
            Completion((3, 2), (-1.0, -1.0), "text", "stop", spans)
