"""Policy terms of the three objectives: values, gradients and clips against loops, and by hand around every bound."""

import math

import pytest
import torch
from reference import (
    OBJECTIVES,
    gradient,
    held,
    objective_ratios,
    policy_loss,
    random_batch,
    sequence_ratios,
    tokenwise,
    weighted_sum,
)
from torch.testing import assert_close

from grpo.objectives import Objective, policy_terms

SEEDS = range(6)


def backward(batch, name):
    """Terms of a batch, and the gradient of their sum, weighted by the batch's cotangent."""
    new, old, advantages, cotangent = (
        torch.tensor(part, dtype=torch.float64) for part in (batch.new, batch.old, batch.advantages, batch.cotangent)
    )
    new.requires_grad_()
    terms = policy_terms(new, old, advantages, torch.tensor(batch.mask), Objective(**OBJECTIVES[name]))
    (terms.loss_R_T * cotangent).sum().backward()
    return terms, new.grad.tolist()


def of(ratio_rows, advantages, objective, mask=None):
    """Loss, clips and gradient of rows of ratios to an old probability of 0.1."""
    old = torch.full((len(ratio_rows), len(ratio_rows[0])), 0.1, dtype=torch.float64).log()
    new = (torch.tensor(ratio_rows, dtype=torch.float64).log() + old).requires_grad_()
    mask = torch.ones_like(old, dtype=torch.bool) if mask is None else torch.tensor(mask)
    terms = policy_terms(new, old, torch.tensor(advantages, dtype=torch.float64), mask, objective)
    terms.loss_R_T.sum().backward()
    return terms.loss_R_T.tolist(), terms.clipped_R_T.tolist(), new.grad.tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_ratio_and_clip_equal_the_reference(name, seed):
    batch, objective = random_batch(seed), OBJECTIVES[name]
    terms, _ = backward(batch, name)
    assert_close(terms.loss_R_T.tolist(), policy_loss(batch.new, batch.old, batch.advantages, batch.mask, **objective))
    ratios = objective_ratios(batch.new, batch.old, batch.mask, objective["kind"])
    assert_close(terms.ratio_R_T.tolist(), ratios)
    kept = tokenwise(batch.mask, lambda r, t: held(ratios[r][t], batch.advantages[r], **objective), outside=1.0)
    assert terms.clipped_R_T.tolist() == [[x != y for x, y in zip(*rows)] for rows in zip(kept, ratios)]
    assert not terms.ratio_R_T.requires_grad


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_equals_finite_differences_in_which_the_weight_of_cispo_is_frozen(name, seed):
    batch = random_batch(seed)

    def total(moved):
        loss = policy_loss(moved, batch.old, batch.advantages, batch.mask, frozen=batch.new, **OBJECTIVES[name])
        return weighted_sum(loss, batch.cotangent, batch.mask)

    assert_close(backward(batch, name)[1], gradient(total, batch.new, batch.mask), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_of_cispo_is_the_clipped_weight_times_the_advantage(seed):
    batch, objective = random_batch(seed), OBJECTIVES["cispo"]
    ratios = objective_ratios(batch.new, batch.old, batch.mask, "cispo")
    expected = tokenwise(
        batch.mask,
        lambda r, t: -held(ratios[r][t], 1.0, **objective) * batch.advantages[r] * batch.cotangent[r][t],
    )
    assert_close(backward(batch, "cispo")[1], expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_of_gspo_reaches_all_tokens_of_a_completion_alike_or_none(seed):
    batch, objective = random_batch(seed), OBJECTIVES["gspo"]
    whole = sequence_ratios(batch.new, batch.old, batch.mask, mean=True)

    def slope(r, t):
        if held(whole[r], batch.advantages[r], **objective) != whole[r]:
            return 0.0
        weight = math.fsum(c for c, sampled in zip(batch.cotangent[r], batch.mask[r]) if sampled)
        return -batch.advantages[r] * whole[r] * weight / sum(batch.mask[r])

    assert_close(backward(batch, "gspo")[1], tokenwise(batch.mask, slope))


@pytest.mark.parametrize("kind", ["ppo_clip", "gspo"])
@pytest.mark.parametrize(
    "ratio, advantage, dual_clip, loss, slope",
    [
        (1.27, 2.0, None, -2.54, -2.0),  # inside: the plain policy gradient
        (1.29, 2.0, None, -2.56, 0.0),  # good and already much likelier: held at 1 + high
        (0.79, 2.0, None, -1.58, -2.0),  # good but less likely: free to come back
        (0.81, -2.0, None, 1.62, 2.0),
        (0.79, -2.0, None, 1.60, 0.0),  # bad and already much less likely: held at 1 - low
        (1.29, -2.0, None, 2.58, 2.0),  # bad but likelier: pushed down without limit
        (9.00, -2.0, None, 18.0, 2.0),
        (2.90, -2.0, 3.0, 5.8, 2.0),
        (3.10, -2.0, 3.0, 6.0, 0.0),  # bad and absurdly likelier: the dual clip
        (3.10, 2.0, 3.0, -2.56, 0.0),  # which does not concern the good,
        (0.79, -2.0, 3.0, 1.60, 0.0),  # nor replaces the other bound
        (1.20, -2.0, 1.1, 2.2, 0.0),  # and may lie below 1 + high,
        (1.20, 2.0, 1.1, -2.4, -2.0),  # where the good move on
        (1.50, 0.0, 3.0, 0.0, 0.0),
    ],
)
def test_one_token_around_every_bound(kind, ratio, advantage, dual_clip, loss, slope):
    losses, clipped, gradients = of([[ratio]], [advantage], Objective(kind, 0.2, 0.28, dual_clip))
    assert losses[0] == pytest.approx([loss], abs=1e-12)
    assert gradients[0] == pytest.approx([slope * ratio], abs=1e-12)  # d ratio / d log pi = ratio
    assert clipped == [[slope == 0 and advantage != 0]]


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio, weight", [(0.5, 0.6), (0.61, 0.61), (1.0, 1.0), (1.19, 1.19), (1.5, 1.2)])
def test_one_token_of_cispo_around_both_bounds(ratio, weight, advantage):
    losses, clipped, gradients = of([[ratio]], [advantage], Objective("cispo", 0.4, 0.2, None))
    assert losses[0] == pytest.approx([-weight * advantage * math.log(0.1 * ratio)], abs=1e-12)
    assert gradients[0] == pytest.approx([-weight * advantage], abs=1e-12)
    assert clipped == [[weight != ratio]]


def test_gspo_clips_completions_by_the_geometric_mean_of_their_sampled_tokens():
    rows = [[4.0, 0.25], [4.0, 1.0], [1.1, 9.0], [0.2, 0.8]]  # geometric means 1, 2, 1.1 (of one token) and 0.4
    mask = [[True, True], [True, True], [True, False], [True, True]]
    losses, clipped, gradients = of(rows, [1.0, 1.0, 1.0, -1.0], Objective("gspo", 0.2, 0.28, None), mask)
    assert_close(losses, [[-1.0, -1.0], [-1.28, -1.28], [-1.1, 0.0], [0.8, 0.8]])
    assert clipped == [[False, False], [True, True], [False, False], [True, True]]
    assert_close(gradients, [[-1.0, -1.0], [0.0, 0.0], [-1.1, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_old_policy_receives_no_gradient(name):
    new, old = (torch.zeros(1, 2, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[True, False]])
    policy_terms(new, old, torch.ones(1), mask, Objective(**OBJECTIVES[name])).loss_R_T.sum().backward()
    assert new.grad[0, 0] != 0 and old.grad is None


@pytest.mark.parametrize(
    "settings, message",
    [
        (("reinforce", 0.2, 0.2, None), "objective 'reinforce': choose one of ppo_clip, gspo, cispo"),
        (("ppo_clip", 0.0, 0.2, None), "clip_low 0.0 and clip_high 0.2 must be positive"),
        (("gspo", 0.2, -0.1, None), "clip_low 0.2 and clip_high -0.1 must be positive"),
        (("cispo", 0.2, 0.0, None), "must be positive"),
        (("ppo_clip", 0.2, 0.2, 1.0), "dual_clip 1.0 with ppo_clip: give more than 1"),
        (("gspo", 0.2, 0.2, 0.5), "dual_clip 0.5 with gspo: give more than 1"),
        (("cispo", 0.2, 0.2, 3.0), "dual_clip 3.0 with cispo: .* no cispo"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(*settings)
