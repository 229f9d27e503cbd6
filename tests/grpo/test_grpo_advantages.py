"""Group advantages: exact numbers, masked members, groups without signal."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.advantages import group_advantages


def of(rewards, valid=None, **options):
    valid = [True] * len(rewards) if valid is None else valid
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid), **options)


@pytest.mark.parametrize(
    "rewards, valid, expected",
    [
        ([1.0, 1.0, 0.0, 0.0], [True] * 4, [0.5, 0.5, -0.5, -0.5]),
        # One of the zeros has no reward: mean of [1, 1, 0] is 2/3.
        ([1.0, 1.0, 0.0, math.nan], [True, True, True, False], [1 / 3, 1 / 3, -2 / 3, 0.0]),
        # One of the ones has no reward: mean of [1, 0, 0] is 1/3.
        ([1.0, math.nan, 0.0, 0.0], [True, False, True, True], [2 / 3, 0.0, -1 / 3, -1 / 3]),
    ],
)
def test_mean_only_advantages_use_valid_members_alone(rewards, valid, expected):
    result = of(rewards, valid, std_normalization=False)
    assert result.outcome == "signal"
    assert result.advantages_G.tolist() == pytest.approx(expected, abs=1e-12)


def test_std_is_unbiased_and_gets_epsilon():
    # std of [1, 1, 0, 0] with n - 1: sqrt(1/3) = 0.5773502692; 0.5 / 0.5774502692
    result = of([1.0, 1.0, 0.0, 0.0])
    assert result.std == pytest.approx(0.5773502691896257, abs=1e-12)
    assert result.advantages_G.tolist() == pytest.approx([0.86587543, 0.86587543, -0.86587543, -0.86587543], abs=1e-7)


def test_a_masked_member_counts_in_neither_mean_nor_std():
    masked = of([2.0, 1.0, 0.0, 100.0], [True, True, True, False])
    alone = of([2.0, 1.0, 0.0])
    assert masked.advantages_G.tolist() == pytest.approx([*alone.advantages_G.tolist(), 0.0], abs=1e-12)
    assert (masked.mean, masked.std) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("normalize", [True, False])
def test_rewards_within_the_tolerance_give_exactly_zero_and_say_so(normalize):
    result = of([0.3, 0.3 + 1e-7, 0.3], std_normalization=normalize)
    assert result.outcome == "zero_variance"
    assert result.advantages_G.tolist() == [0.0, 0.0, 0.0]


def test_the_tolerance_is_the_callers():
    assert of([0.3, 0.3], tolerance=0.0).outcome == "zero_variance"
    assert of([0.3, 0.3 + 1e-7], tolerance=0.0).outcome == "signal"
    assert of([0.25, 0.75], tolerance=0.5).outcome == "zero_variance"
    assert of([0.25, 0.75], tolerance=0.49).outcome == "signal"


def test_the_tolerance_is_for_the_spread_of_valid_members_and_leaves_mean_and_std():
    result = of([0.25, 9.0, 0.75], [True, False, True], tolerance=0.5)
    assert result.outcome == "zero_variance"
    assert (result.mean, result.std) == pytest.approx((0.5, 0.125**0.5), abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_order_of_members_does_not_matter(normalize):
    rewards, valid = [1.5, math.nan, 0.0, 0.25, 1.0, -2.0], [True, False, True, True, False, True]
    order = [4, 2, 5, 0, 3, 1]
    straight = of(rewards, valid, std_normalization=normalize).advantages_G.tolist()
    shuffled = of([rewards[i] for i in order], [valid[i] for i in order], std_normalization=normalize)
    assert shuffled.advantages_G.tolist() == pytest.approx([straight[i] for i in order], abs=1e-12)


def test_rewards_of_single_precision_are_compared_in_double():
    rewards = torch.tensor([0.1, 0.7, 0.4])
    result = group_advantages(rewards, torch.tensor([True] * 3), std_normalization=False)
    mean = statistics.fmean(rewards.tolist())
    assert result.advantages_G.dtype == torch.float64
    assert result.advantages_G.tolist() == pytest.approx([reward - mean for reward in rewards.tolist()], abs=1e-12)


@pytest.mark.parametrize("valid", [[True, False, False], [False, False, False]])
def test_fewer_than_two_valid_members_carry_no_signal(valid):
    result = of([1.0, 0.0, 0.0], valid)
    assert result.outcome == "too_few_valid"
    assert result.advantages_G.tolist() == [0.0, 0.0, 0.0]
    assert result.std is None
    assert result.mean == (1.0 if any(valid) else None)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_member_without_a_finite_reward_is_refused_unless_it_is_masked(reward):
    with pytest.raises(ValueError, match="must be masked, not scored"):
        of([1.0, reward, 0.0])
    masked = of([1.0, reward, 0.0], [True, False, True], std_normalization=False)
    assert masked.advantages_G.tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    "rewards, valid",
    [([1.0, 0.0], [True]), ([1.0, 0.0], [1.0, 1.0]), ([[1.0, 0.0]], [[True, True]])],
)
def test_a_mask_of_another_shape_or_type_and_several_groups_are_refused(rewards, valid):
    with pytest.raises(ValueError, match=r"give a \(G,\) float and a \(G,\) bool tensor"):
        of(rewards, valid)


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=12), st.booleans())
def test_equals_a_plain_python_reference(members, normalize):
    rewards, valid = [r for r, _ in members], [v for _, v in members]
    kept = [r for r, v in members if v]
    result = of(rewards, valid, std_normalization=normalize, tolerance=1e-6)
    if len(kept) < 2 or max(kept) - min(kept) <= 1e-6:
        assert result.advantages_G.abs().sum() == 0 and result.outcome != "signal"
        return
    scale = statistics.stdev(kept) + 1e-4 if normalize else 1.0
    expected = [(r - statistics.fmean(kept)) / scale if v else 0.0 for r, v in members]
    assert result.advantages_G.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(result.advantages_G.sum()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_rewards_whose_statistics_are_no_numbers_are_refused(normalize):
    rewards = torch.tensor([-1.7e308, -1.7e308, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="no reward may be so large"):
        group_advantages(rewards, torch.ones(3, dtype=torch.bool), normalize)
