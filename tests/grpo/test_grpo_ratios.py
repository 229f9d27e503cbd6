"""Log-ratios per token and per completion: values, gradients, the limit."""

import math

import pytest
import torch
from reference import Batch, random_batch, ratios, sequence_ratios, tokenwise
from torch import Tensor
from torch.testing import assert_close

from grpo.ratios import log_ratio, masked_difference, sequence_log_ratio

SEEDS = range(6)


def inputs(batch: Batch) -> tuple[Tensor, ...]:
    new, old = (torch.tensor(table, dtype=torch.float64, requires_grad=True) for table in (batch.new, batch.old))
    return new, old, torch.tensor(batch.mask)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("function", [log_ratio, masked_difference])
def test_a_tokens_log_ratio_is_its_own_and_0_outside_the_mask(function, seed):
    batch = random_batch(seed)
    new, old, mask = inputs(batch)
    result = function(new, old, mask)
    expected = [[math.log(ratio) for ratio in row] for row in ratios(batch.new, batch.old, batch.mask)]
    assert_close(result.tolist(), expected)
    (result * torch.tensor(batch.cotangent, dtype=torch.float64)).sum().backward()
    assert_close(new.grad.tolist(), tokenwise(batch.mask, lambda r, t: batch.cotangent[r][t]))
    assert_close(old.grad.tolist(), tokenwise(batch.mask, lambda r, t: -batch.cotangent[r][t]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mean", [False, True])
def test_a_completions_log_ratio_is_the_sum_or_mean_over_its_sampled_tokens(mean, seed):
    batch = random_batch(seed)
    new, old, mask = inputs(batch)
    result = sequence_log_ratio(new, old, mask, mean=mean)
    assert_close(result.tolist(), [math.log(r) for r in sequence_ratios(batch.new, batch.old, batch.mask, mean=mean)])
    (result * torch.tensor(batch.advantages, dtype=torch.float64)).sum().backward()
    share = [a / sum(kept) if mean and any(kept) else a for a, kept in zip(batch.advantages, batch.mask)]
    assert_close(new.grad.tolist(), tokenwise(batch.mask, lambda r, t: share[r]))
    assert_close(old.grad.tolist(), tokenwise(batch.mask, lambda r, t: -share[r]))


def test_a_log_ratio_beyond_the_limit_is_held_there_and_receives_no_gradient():
    new = torch.tensor([[-1.0, -90.0, -19.0]], requires_grad=True)
    old = torch.tensor([[-90.0, -1.0, -0.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    result = log_ratio(new, old, mask)
    result.sum().backward()
    assert result.tolist() == [[20.0, -20.0, -18.5]]
    assert new.grad.tolist() == [[0.0, 0.0, 1.0]]
    assert masked_difference(new, old, mask).tolist() == [[89.0, -89.0, -18.5]]


@pytest.mark.parametrize(
    "gaps, total, mean",
    [
        ([30.0, -25.0], 5.0, 2.5),  # each token beyond the limit, the completion within
        ([15.0, 15.0], 20.0, 15.0),  # each token within, the completion's product beyond
        ([-15.0, -15.0], -20.0, -15.0),
        ([30.0, 30.0], 20.0, 20.0),
        ([-30.0, -30.0], -20.0, -20.0),
    ],
)
def test_a_completion_is_limited_as_a_whole_not_token_by_token(gaps, total, mean):
    old, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for averaged, expected in ((False, total), (True, mean)):
        new = torch.tensor([gaps], requires_grad=True)
        result = sequence_log_ratio(new, old, mask, mean=averaged)
        result.sum().backward()
        assert result.tolist() == [expected]
        slope = 0.0 if abs(expected) == 20 else 0.5 if averaged else 1.0
        assert new.grad.tolist() == [[slope, slope]]
