"""KL estimators: values and gradients, what each is unbiased for, the penalty on the reward."""

import math

import pytest
import torch
from reference import divergence, gradient, random_batch, weighted_sum
from torch.testing import assert_close

from grpo.kl import reward_penalty, token_kl

ESTIMATORS = ("k1", "k2", "k3")
LOGITS = [[0.3, -1.2, 0.8, 0.1, -0.4]]
REFERENCE = [0.1, 0.3, 0.25, 0.15, 0.2]
EVERY = [[True] * 5]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_and_gradients_equal_the_reference(estimator, seed):
    batch = random_batch(seed)
    new, reference = (
        torch.tensor(table, dtype=torch.float64, requires_grad=True) for table in (batch.new, batch.reference)
    )
    kl = token_kl(new, reference, torch.tensor(batch.mask), estimator)
    assert_close(kl.tolist(), divergence(batch.new, batch.reference, batch.mask, estimator))
    (kl * torch.tensor(batch.cotangent, dtype=torch.float64)).sum().backward()

    def total(moved):
        return weighted_sum(divergence(moved, batch.reference, batch.mask, estimator), batch.cotangent, batch.mask)

    assert_close(new.grad.tolist(), gradient(total, batch.new, batch.mask), rtol=1e-6, atol=1e-8)
    assert reference.grad is None


@pytest.mark.parametrize(
    "estimator, likelier, rarer",
    [
        ("k1", math.log(2), -math.log(2)),
        ("k2", math.log(2) ** 2 / 2, math.log(2) ** 2 / 2),
        ("k3", math.log(2) - 0.5, 1 - math.log(2)),
    ],
)
def test_a_token_that_became_twice_or_half_as_likely(estimator, likelier, rarer):
    new = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    kl = token_kl(new, new.flip(1), torch.ones(1, 2, dtype=torch.bool), estimator)
    assert kl[0].tolist() == pytest.approx([likelier, rarer], abs=1e-12)


def expectation(estimator):
    """Expected estimate over a vocabulary that the policy itself samples; gradient with respect to the logits."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    new, reference = logits.log_softmax(dim=1), torch.tensor([REFERENCE], dtype=torch.float64).log()
    expected = (new.detach().exp() * token_kl(new, reference, torch.tensor(EVERY), estimator)).sum()
    expected.backward()
    return expected.item(), logits.grad.tolist()


def true_divergence(logits):
    weights = [math.exp(logit) for logit in logits[0]]
    chances = [weight / sum(weights) for weight in weights]
    return math.fsum(p * math.log(p / q) for p, q in zip(chances, REFERENCE))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    assert expectation(estimator)[0] == pytest.approx(true_divergence(LOGITS), abs=1e-12)


def test_the_expected_gradient_of_k2_is_that_of_the_true_divergence():
    assert_close(expectation("k2")[1], gradient(true_divergence, LOGITS, EVERY), rtol=1e-6, atol=1e-9)


def test_the_expected_gradient_of_k1_is_zero():
    assert_close(expectation("k1")[1], [[0.0] * 5], rtol=0, atol=1e-12)


def test_k3_of_a_tiny_change_is_neither_negative_nor_rounded_away():
    d = torch.tensor([[1e-9, -1e-9, 1e-4, 0.0]], dtype=torch.float64)
    kl = token_kl(d, torch.zeros_like(d), torch.ones(1, 4, dtype=torch.bool), "k3")
    assert (kl >= 0).all()
    assert kl[0, 2].item() == pytest.approx(1e-8 / 2 - 1e-12 / 6 + 1e-16 / 24, rel=1e-10, abs=0)


@pytest.mark.parametrize("estimator, high, low", [("k1", 20, -20), ("k2", 200, 200), ("k3", 19, math.exp(20) - 21)])
def test_the_log_ratio_is_limited_and_then_has_no_gradient(estimator, high, low):
    new = torch.tensor([[-1.0, -900.0]], dtype=torch.float64, requires_grad=True)
    kl = token_kl(new, new.detach().flip(1), torch.ones(1, 2, dtype=torch.bool), estimator)
    kl.sum().backward()
    assert kl[0].tolist() == pytest.approx([high, low])
    assert new.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_rewards_penalty_is_the_sum_over_a_completion_and_a_constant(estimator, seed):
    batch = random_batch(seed)
    new, reference = (
        torch.tensor(table, dtype=torch.float64, requires_grad=True) for table in (batch.new, batch.reference)
    )
    penalty = reward_penalty(new, reference, torch.tensor(batch.mask), estimator, 0.3)
    per_token = divergence(batch.new, batch.reference, batch.mask, estimator)
    assert_close(penalty.tolist(), [0.3 * math.fsum(row) for row in per_token])
    assert not penalty.requires_grad


def test_an_unknown_estimator_is_refused():
    zeros, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    for function in (token_kl, lambda *given: reward_penalty(*given, 0.1)):
        with pytest.raises(ValueError, match="KL estimator 'k4': choose one of k1, k2, k3"):
            function(zeros, zeros, mask, "k4")
