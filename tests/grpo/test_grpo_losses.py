"""Token loss against a float64 loop written from the formulas, gradients of the clip, invariants of the first step."""

import math
import random

import pytest
import torch

from grpo.losses import clipped_policy_loss, k3_kl, token_loss

OPTIONS = dict(clip_low=0.2, clip_high=0.28, importance_cap=2.0, kl_coef=0.05)


def reference_loss(new, old, engine, ref, advantage, clip_low, clip_high, importance_cap, kl_coef):
    """One token, in Python floats: case by case instead of min and clamp."""
    rho = math.exp(new) / math.exp(old)
    if advantage >= 0:
        surrogate = advantage * (rho if rho < 1 + clip_high else 1 + clip_high)
    else:
        surrogate = advantage * (rho if rho > 1 - clip_low else 1 - clip_low)
    weight = math.exp(old) / math.exp(engine)
    weight = importance_cap if weight > importance_cap else weight
    kl = math.exp(ref) / math.exp(new) - (ref - new) - 1
    return kl_coef * kl - weight * surrogate


def random_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, length = random.Random(seed).randint(1, 6), random.Random(seed + 1).randint(1, 9)
    logprobs = -torch.rand(rows, length, generator=generator, dtype=torch.float64) * 4
    near = [logprobs + 0.4 * torch.randn(rows, length, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(rows, length, generator=generator) < 0.7
    return logprobs, *near, torch.randn(rows, generator=generator, dtype=torch.float64), mask


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_loop_reference(seed, dtype):
    new, old, engine, ref, advantages, mask = random_batch(seed)
    parts = [part.to(dtype) for part in (new, old, engine, advantages)]
    terms = token_loss(*parts, mask, reference_logprobs_R_T=ref.to(dtype), **OPTIONS)
    tolerance = 1e-6 if dtype == torch.float64 else 2e-5
    for r in range(new.shape[0]):
        for t in range(new.shape[1]):
            token = [float(tensor[r, t]) for tensor in (new, old, engine, ref)]
            expected = reference_loss(*token, float(advantages[r]), **OPTIONS) if mask[r, t] else 0.0
            assert float(terms.loss_R_T[r, t]) == pytest.approx(expected, abs=tolerance)
            ratio, weight = math.exp(token[0] - token[1]), math.exp(token[1] - token[2])
            assert float(terms.ratio_R_T[r, t]) == pytest.approx(ratio if mask[r, t] else 1.0, rel=1e-5)
            assert float(terms.importance_R_T[r, t]) == pytest.approx(weight if mask[r, t] else 1.0, rel=1e-5)
            a = float(advantages[r])
            clipped = bool(mask[r, t]) and ((a > 0 and ratio > 1.28) or (a < 0 and ratio < 0.8))
            assert bool(terms.clipped_R_T[r, t]) == clipped


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient",
    [
        (1.1, 1.0, -1.1, -1.0),  # inside: the plain policy gradient
        (1.5, 1.0, -1.28, 0.0),  # good and already much likelier: held at 1 + high
        (0.5, 1.0, -0.5, -1.0),  # good but less likely: free to come back
        (0.5, -1.0, 0.8, 0.0),  # bad and already much less likely: held at 1 - low
        (1.5, -1.0, 1.5, 1.0),  # bad but likelier: pushed down without limit
    ],
)
def test_clip_value_and_gradient(ratio, advantage, loss, gradient):
    rho = torch.tensor([[ratio]], dtype=torch.float64, requires_grad=True)
    value = clipped_policy_loss(rho, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.28)
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert rho.grad.item() == pytest.approx(gradient)


def test_first_update_has_ratio_one_no_kl_no_clip_and_the_policy_gradient():
    logprobs, _, _, _, advantages, mask = random_batch(3)
    logprobs.requires_grad_()
    old = logprobs.detach()
    terms = token_loss(logprobs, old, old, advantages, mask, reference_logprobs_R_T=old, **OPTIONS)
    assert torch.equal(terms.ratio_R_T, torch.ones_like(old))
    assert torch.equal(terms.kl_R_T, torch.zeros_like(old))
    assert not terms.clipped_R_T.any()
    assert torch.equal(terms.importance_R_T, torch.ones_like(old))
    terms.loss_R_T.sum().backward()
    assert torch.allclose(logprobs.grad, -advantages[:, None] * mask, atol=1e-12)


def test_importance_weight_is_capped_and_spares_the_kl():
    new = torch.log(torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    engine = torch.log(torch.tensor([[0.1, 0.4]], dtype=torch.float64))  # weights 5 (capped to 2) and 1.25
    ref = torch.log(torch.tensor([[0.25, 0.5]], dtype=torch.float64))
    mask = torch.ones(1, 2, dtype=torch.bool)
    terms = token_loss(new, new, engine, torch.tensor([3.0]), mask, reference_logprobs_R_T=ref, **OPTIONS)
    kl = 0.5 - math.log(0.5) - 1
    assert terms.loss_R_T[0].tolist() == pytest.approx([-6.0 + 0.05 * kl, -3.75], abs=1e-12)
    assert terms.importance_R_T[0].tolist() == pytest.approx([5.0, 1.25])


def test_k3_is_exact_and_never_negative():
    new, _, _, ref, _, mask = random_batch(5)
    kl = k3_kl(new, ref, mask)
    assert (kl >= 0).all()
    expected = torch.exp(ref - new) - (ref - new) - 1
    assert torch.allclose(kl[mask], expected[mask], atol=1e-12)


def test_gradient_reaches_the_policy_only():
    new, old, engine, ref, advantages, mask = random_batch(7)
    for tensor in (new, old, engine, ref):
        tensor.requires_grad_()
    token_loss(new, old, engine, advantages, mask, reference_logprobs_R_T=ref, **OPTIONS).loss_R_T.sum().backward()
    assert new.grad is not None and old.grad is None and engine.grad is None and ref.grad is None


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_whatever_stands_outside_the_mask_changes_neither_loss_nor_gradient(junk):
    new, old, engine, ref, advantages, mask = random_batch(11)
    clean = new.clone().requires_grad_()
    expected = token_loss(clean, old, engine, advantages, mask, reference_logprobs_R_T=ref, **OPTIONS).loss_R_T
    expected.sum().backward()
    dirty = [part.masked_fill(~mask, junk) for part in (new, old, engine, ref)]
    dirty[0].requires_grad_()
    loss = token_loss(*dirty[:3], advantages, mask, reference_logprobs_R_T=dirty[3], **OPTIONS).loss_R_T
    loss.sum().backward()
    assert not mask.all()
    assert torch.equal(loss, expected)
    assert torch.equal(dirty[0].grad, clean.grad)


def test_absurd_log_ratios_stay_finite_in_value_and_gradient():
    new = torch.tensor([[-0.1, -900.0]], requires_grad=True)
    old, mask = torch.tensor([[-900.0, -0.1]]), torch.ones(1, 2, dtype=torch.bool)
    loss = token_loss(new, old, old, torch.tensor([1.0]), mask, reference_logprobs_R_T=old, **OPTIONS).loss_R_T
    loss.sum().backward()
    assert loss.isfinite().all() and new.grad.isfinite().all()


def test_kl_without_a_reference_and_wrong_shapes_are_refused():
    new, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs the reference"):
        token_loss(new, new, new, torch.zeros(2), mask, **OPTIONS)
    with pytest.raises(ValueError, match="one shape"):
        token_loss(new, new[:, :1], new, torch.zeros(2), mask, **{**OPTIONS, "kl_coef": 0.0})
    with pytest.raises(ValueError, match="one shape"):
        token_loss(new, new, new, torch.zeros(3), mask, **{**OPTIONS, "kl_coef": 0.0})
    with pytest.raises(ValueError, match="bool tensor"):
        token_loss(new, new, new, torch.zeros(2), mask.float(), **{**OPTIONS, "kl_coef": 0.0})
