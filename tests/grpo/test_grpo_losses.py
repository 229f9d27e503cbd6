"""Token loss: every combination against loops, the first update, what is masked or dropped, what is refused."""

import math

import pytest
import torch
from reference import (
    IMPORTANCES,
    OBJECTIVES,
    divergence,
    gradient,
    importance,
    random_batch,
    tokens,
    tokenwise,
    weighted_sum,
)
from reference import token_loss as reference_loss
from torch.testing import assert_close

from grpo.aggregation import aggregate, step_denominator
from grpo.importance import Importance
from grpo.losses import LossSettings, token_loss
from grpo.objectives import Objective

ROW = torch.ones(1, 2, dtype=torch.bool)
#: All but the one that is refused.
COMBINATIONS = [
    (objective, weighting)
    for objective in OBJECTIVES
    for weighting in IMPORTANCES
    if not (OBJECTIVES[objective]["kind"] == "gspo" and weighting == "token_mask")
]


def settings(objective="ppo", importance="token_truncate", estimator="k3", coef=0.3):
    return LossSettings(Objective(**OBJECTIVES[objective]), Importance(**IMPORTANCES[importance]), estimator, coef)


def inputs(batch, dtype=torch.float64):
    """New, old, behaviour, advantages, mask and reference as `token_loss` takes them, the first with a gradient."""
    parts = (batch.new, batch.old, batch.behaviour, batch.advantages, batch.reference)
    new, old, behaviour, advantages, reference = (torch.tensor(part, dtype=dtype) for part in parts)
    return (new.requires_grad_(), old, behaviour, advantages, torch.tensor(batch.mask)), reference


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("objective, weighting", COMBINATIONS)
def test_every_combination_equals_the_reference_in_value_and_gradient(objective, weighting, estimator, seed):
    batch = random_batch(seed)
    given, reference = inputs(batch)
    terms = token_loss(*given, settings(objective, weighting, estimator), reference)
    formula = (batch, OBJECTIVES[objective], IMPORTANCES[weighting], estimator, 0.3)
    assert_close(terms.loss_R_T.tolist(), reference_loss(batch.new, *formula))
    (terms.loss_R_T * torch.tensor(batch.cotangent, dtype=torch.float64)).sum().backward()

    def total(moved):
        return weighted_sum(reference_loss(moved, *formula, frozen=batch.new), batch.cotangent, batch.mask)

    assert_close(given[0].grad.tolist(), gradient(total, batch.new, batch.mask), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighting", IMPORTANCES)
def test_the_other_terms_equal_the_reference(weighting):
    batch = random_batch(1)
    given, reference = inputs(batch)
    terms = token_loss(*given, settings(importance=weighting), reference)
    weights, raw = importance(batch.old, batch.behaviour, batch.mask, **IMPORTANCES[weighting])
    assert_close(terms.importance_R_T.tolist(), raw)
    assert_close(terms.kl_R_T.tolist(), divergence(batch.new, batch.reference, batch.mask, "k3"))
    dropped = {(r, t) for r, t in tokens(batch.mask) if weights[r][t] == 0}
    assert {tuple(place) for place in terms.dropped_R_T.nonzero().tolist()} == dropped
    assert bool(dropped) == weighting.endswith("mask")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_single_precision_stays_close_to_the_reference(objective):
    batch = random_batch(2)
    given, reference = inputs(batch, torch.float32)
    loss = token_loss(*given, settings(objective), reference).loss_R_T
    expected = reference_loss(batch.new, batch, OBJECTIVES[objective], IMPORTANCES["token_truncate"], "k3", 0.3)
    assert loss.dtype == torch.float32
    assert_close(loss.tolist(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mode", ["sequence_mean", "token_mean", "fixed_length"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_update_is_the_same_policy_gradient_under_every_objective(objective, mode):
    batch = random_batch(3)
    (new, _, _, advantages, mask), _ = inputs(batch)
    old = new.detach().clone()
    terms = token_loss(new, old, old, advantages, mask, settings(objective), old)
    for ones in (terms.ratio_R_T, terms.importance_R_T):
        assert torch.equal(ones, torch.ones_like(old))
    assert torch.equal(terms.kl_R_T, torch.zeros_like(old))
    assert not terms.clipped_R_T.any() and not terms.dropped_R_T.any()

    sizes = [sum(row) for row in batch.mask]
    sequences = sum(size > 0 for size in sizes)
    aggregate(terms.loss_R_T, mask, mode, step_denominator(mode, sequences, sum(sizes), 13)).backward()

    def slope(r, t):
        totals = {"sequence_mean": sequences * sizes[r], "token_mean": sum(sizes), "fixed_length": sequences * 13}
        return -batch.advantages[r] / totals[mode]

    assert_close(new.grad.tolist(), tokenwise(batch.mask, slope))


@pytest.mark.parametrize("weighting, weights", [("token_truncate", [1.3, 1.25]), ("token_mask", [0.0, 1.25])])
def test_the_weight_scales_the_policy_and_spares_the_kl(weighting, weights):
    new = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    engine = torch.tensor([[0.1, 0.4]], dtype=torch.float64).log()  # ratios 5 and 1.25
    ref = torch.tensor([[0.25, 0.5]], dtype=torch.float64).log()
    terms = token_loss(new, new, engine, torch.tensor([3.0]), ROW, settings(importance=weighting, coef=0.05), ref)
    kl = 0.5 - math.log(0.5) - 1
    assert terms.loss_R_T[0].tolist() == pytest.approx([-3 * weights[0] + 0.05 * kl, -3 * weights[1]], abs=1e-12)
    assert terms.importance_R_T[0].tolist() == pytest.approx([5.0, 1.25])
    assert terms.dropped_R_T.tolist() == [[weights[0] == 0, False]]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_without_a_coefficient_the_divergence_is_measured_and_not_trained(estimator):
    batch = random_batch(4)
    given, reference = inputs(batch)
    measured = token_loss(*given, settings(estimator=estimator, coef=0.0), reference)
    alone = token_loss(*given, settings(estimator=estimator, coef=0.0))
    assert_close(measured.kl_R_T.tolist(), divergence(batch.new, batch.reference, batch.mask, estimator))
    assert torch.equal(alone.kl_R_T, torch.zeros_like(given[0]))
    assert torch.equal(measured.loss_R_T, alone.loss_R_T)
    gradients = [torch.autograd.grad(terms.loss_R_T.sum(), given[0])[0] for terms in (measured, alone)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_loss_carries_a_gradient_and_only_to_the_policy(objective):
    given, reference = inputs(random_batch(5))
    new, old, behaviour, *_ = given
    for constant in (old, behaviour, reference):
        constant.requires_grad_()
    terms = token_loss(*given, settings(objective), reference)
    assert not any(part.requires_grad for part in (terms.ratio_R_T, terms.kl_R_T, terms.importance_R_T))
    terms.loss_R_T.sum().backward()
    assert new.grad.any() and old.grad is None and behaviour.grad is None and reference.grad is None


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("objective, weighting", COMBINATIONS)
def test_a_token_outside_the_mask_changes_nothing(objective, weighting, junk):
    results = []
    for outside in (-1.0, junk):
        (new, old, behaviour, advantages, mask), reference = inputs(random_batch(6))
        new, old, behaviour, reference = (
            tensor.detach().masked_fill(~mask, outside) for tensor in (new, old, behaviour, reference)
        )
        given = (new.requires_grad_(), old, behaviour, advantages, mask)
        terms = token_loss(*given, settings(objective, weighting), reference)
        terms.loss_R_T.sum().backward()
        results.append((new.grad, *vars(terms).values()))
    for clean, dirty in zip(*results):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_absurd_log_ratios_stay_finite_in_value_and_gradient(objective, advantage):
    new = torch.tensor([[-0.1, -900.0]], requires_grad=True)
    old = torch.tensor([[-900.0, -0.1]])
    loss = token_loss(new, old, new.detach(), torch.tensor([advantage]), ROW, settings(objective), old).loss_R_T
    loss.sum().backward()
    assert loss.isfinite().all() and new.grad.isfinite().all()


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="expectation is zero: take k2 or k3, or k1 in the reward"):
        settings(estimator="k1", coef=0.1)


def test_a_coefficient_without_a_reference_is_refused():
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="coefficient of 0.3 needs the reference's log-probs"):
        token_loss(zeros, zeros, zeros, torch.zeros(1), ROW, settings())


@pytest.mark.parametrize("argument", range(6))
def test_a_wrong_shape_is_refused_whichever_input_has_it(argument):
    given = [torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), ROW, torch.zeros(1, 2)]
    given[argument] = given[argument].repeat(2, *[1] * (given[argument].dim() - 1))
    with pytest.raises(ValueError, match=r"give \(R, T\) tensors of one shape and \(R,\) advantages"):
        token_loss(*given[:5], settings(), given[5])


def test_log_probs_that_are_no_table_and_a_mask_that_is_no_bool_are_refused():
    flat, zeros = torch.zeros(2), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="one shape"):
        token_loss(flat, flat, flat, torch.zeros(2), ROW[0], settings(coef=0.0))
    with pytest.raises(ValueError, match="the mask is torch.float32: give a bool tensor"):
        token_loss(zeros, zeros, zeros, torch.zeros(1), ROW.float(), settings(coef=0.0))


def test_settings_that_do_not_do_what_they_say_are_refused():
    with pytest.raises(ValueError, match="gspo has one ratio for all tokens"):
        settings("gspo", "token_mask")
    with pytest.raises(ValueError, match="give 0 or more, of k1, k2 or k3"):
        settings(coef=-1.0)
    with pytest.raises(ValueError, match="give 0 or more, of k1, k2 or k3"):
        settings(estimator="k4")


def test_a_reference_that_is_only_measured_cannot_break_the_loss():
    (new, old, behaviour, advantages, mask), reference = inputs(random_batch(4))
    broken = torch.full_like(reference, math.nan)
    terms = token_loss(new, old, behaviour, advantages, mask, settings(coef=0.0), broken)
    assert_close(terms.loss_R_T, token_loss(new, old, behaviour, advantages, mask, settings(coef=0.0)).loss_R_T)
