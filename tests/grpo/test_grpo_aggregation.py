"""Aggregation: exact numbers, and parts that add up however a step is cut."""

import pytest
import torch

from grpo.aggregation import aggregate, step_denominator

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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop_and_micro_batches_add_up_in_value_and_gradient(mode, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, length = 7, 11
    loss = torch.randn(rows, length, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    mask[0] = False  # a row whose tokens are all masked
    mask[1:, 0] = True
    sequences, tokens = int(mask.any(dim=1).sum()), int(mask.sum())
    denominator = step_denominator(mode, sequences, tokens, max_tokens=length)

    expected = 0.0
    for r in range(rows):
        kept = [float(loss.detach()[r, t]) for t in range(length) if mask[r, t]]
        if kept:
            weight = {"sequence_mean": len(kept) * sequences, "token_mean": tokens, "fixed_length": sequences * length}
            expected += sum(kept) / weight[mode]
    whole = aggregate(loss, mask, mode, denominator)
    assert whole.item() == pytest.approx(expected, abs=1e-6)

    whole.backward()
    whole_gradient, loss.grad = loss.grad.clone(), None
    parts = [aggregate(loss[cut], mask[cut], mode, denominator) for cut in (slice(0, 1), slice(1, 3), slice(3, 7))]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-12)
    sum(parts).backward()
    assert torch.allclose(loss.grad, whole_gradient, atol=1e-12)


def test_values_outside_the_mask_do_not_count():
    masked = torch.where(MASK, LOSS, torch.full_like(LOSS, float("nan")))
    assert aggregate(masked, MASK, "token_mean", 4.0).item() == pytest.approx(2.5)


def test_a_step_without_tokens_and_an_unknown_mode_are_refused():
    with pytest.raises(ValueError, match="nothing to average"):
        step_denominator("token_mean", 0, 0, 5)
    with pytest.raises(ValueError, match="choose one of sequence_mean, token_mean, fixed_length"):
        step_denominator("mean", 1, 1, 1)
    with pytest.raises(ValueError, match="choose one of"):
        aggregate(LOSS, MASK, "mean", 1.0)
