"""Aggregation: exact numbers, and parts that add up however a step is cut."""

import pytest
import torch
from reference import IMPORTANCES, OBJECTIVES, aggregated, gradient, random_batch
from reference import token_loss as reference_loss
from torch.testing import assert_close

from grpo.aggregation import aggregate, step_denominator
from grpo.importance import Importance
from grpo.losses import LossSettings, token_loss
from grpo.objectives import Objective

MODES = ("sequence_mean", "token_mean", "fixed_length")
LOSS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    "mode, expected",
    [("sequence_mean", (2.0 + 4.0) / 2), ("token_mean", 10.0 / 4), ("fixed_length", 10.0 / (2 * 5))],
)
def test_exact_values(mode, expected):
    denominator = step_denominator(mode, sequences=2, tokens=4, max_tokens=5)
    assert aggregate(LOSS, MASK, mode, denominator).item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_equals_the_reference_and_is_the_sum_of_its_micro_batches_in_value_and_gradient(objective, mode, seed):
    batch, limit = random_batch(seed), 13
    new, old, behaviour, advantages, ref = (
        torch.tensor(part, dtype=torch.float64)
        for part in (batch.new, batch.old, batch.behaviour, batch.advantages, batch.reference)
    )
    mask = torch.tensor(batch.mask)
    weighting = IMPORTANCES["token_truncate"]
    settings = LossSettings(Objective(**OBJECTIVES[objective]), Importance(**weighting), "k3", 0.3)
    denominator = step_denominator(mode, int(mask.any(dim=1).sum()), int(mask.sum()), limit)
    new.requires_grad_()

    def part(rows: slice) -> torch.Tensor:
        given = (tensor[rows] for tensor in (new, old, behaviour, advantages, mask))
        return aggregate(token_loss(*given, settings, ref[rows]).loss_R_T, mask[rows], mode, denominator)

    def whole(moved):
        loss = reference_loss(moved, batch, OBJECTIVES[objective], weighting, "k3", 0.3, frozen=batch.new)
        return aggregated(loss, batch.mask, mode, limit)

    # The second row has no token: a micro-batch without any must add exactly nothing.
    parts = [part(rows) for rows in (slice(0, 1), slice(1, 2), slice(2, 4), slice(4, None))]
    assert parts[1].item() == 0
    expected = gradient(whole, batch.new, batch.mask)
    for step in (part(slice(None)), sum(parts)):
        assert step.item() == pytest.approx(whole(batch.new), abs=1e-9)
        assert_close(torch.autograd.grad(step, new)[0].tolist(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_values_outside_the_mask_do_not_count(mode):
    dirty = LOSS.masked_fill(~MASK, float("nan")).requires_grad_()
    result = aggregate(dirty, MASK, mode, 4.0)
    result.backward()
    assert result.item() == aggregate(LOSS, MASK, mode, 4.0).item()
    assert dirty.grad[~MASK].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "mode, sequences, tokens, limit",
    [("token_mean", 0, 4, 5), ("sequence_mean", 0, 0, 5), ("sequence_mean", 2, 0, 5), ("fixed_length", 2, 4, 0)],
)
def test_a_step_with_nothing_to_average_is_refused(mode, sequences, tokens, limit):
    with pytest.raises(ValueError, match=f"{sequences} sequences, {tokens} tokens of at most {limit}: nothing to"):
        step_denominator(mode, sequences, tokens, limit)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'mean': choose one of sequence_mean, token_mean, fixed_length"):
        step_denominator("mean", 1, 1, 1)
    with pytest.raises(ValueError, match="'mean': choose one of sequence_mean, token_mean, fixed_length"):
        aggregate(LOSS, MASK, "mean", 1.0)
