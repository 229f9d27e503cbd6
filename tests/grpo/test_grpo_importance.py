"""Importance weights: both levels and modes, every bound from both sides, constants only."""

import math

import pytest
import torch
from reference import IMPORTANCES, importance, random_batch
from torch.testing import assert_close

from grpo.importance import Importance, importance_weights


def of(old, behaviour, mask, *settings):
    """The weights of a batch of probabilities."""
    logs = (torch.tensor(table, dtype=torch.float64).log() for table in (old, behaviour))
    return importance_weights(*logs, torch.tensor(mask), Importance(*settings))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", IMPORTANCES)
def test_weights_and_ratios_equal_the_reference(name, seed):
    batch = random_batch(seed)
    old, behaviour = (torch.tensor(table, dtype=torch.float64) for table in (batch.old, batch.behaviour))
    result = importance_weights(old, behaviour, torch.tensor(batch.mask), Importance(**IMPORTANCES[name]))
    weights, raw = importance(batch.old, batch.behaviour, batch.mask, **IMPORTANCES[name])
    assert_close(result.weights_R_T.tolist(), weights)
    assert_close(result.ratios_R_T.tolist(), raw)


@pytest.mark.parametrize(
    "mode, expected",
    [("truncate", [0.1, 0.41, 0.39, 1.0, 1.9, 2.0, 2.0]), ("mask", [0.0, 0.41, 0.0, 1.0, 1.9, 0.0, 0.0])],
)
def test_a_tokens_ratio_on_either_side_of_floor_and_cap(mode, expected):
    ratios = [0.1, 0.41, 0.39, 1.0, 1.9, 2.1, 9.0]
    result = of([[0.1 * ratio for ratio in ratios]], [[0.1] * 7], [[True] * 7], "token", mode, 0.4, 2.0)
    assert result.weights_R_T[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert result.ratios_R_T[0].tolist() == pytest.approx(ratios, abs=1e-12)


@pytest.mark.parametrize("mode, low, high", [("truncate", 0.3, 2.0), ("mask", 0.0, 0.0)])
def test_a_completions_tokens_share_one_ratio_and_one_fate(mode, low, high):
    old, mask = [[0.6, 0.5], [0.6, 0.9], [0.4, 0.9]], [[True, True], [True, True], [True, False]]
    behaviour = [[0.1, 0.9], [0.9, 0.4], [0.5, 0.1]]  # products 3.33 and 1.5; alone 0.8
    result = of(old, behaviour, mask, "sequence", mode, 0.4, 2.0)
    expected = [[high, high], [1.5, 1.5], [0.8, 1.0]]
    assert_close(result.weights_R_T.tolist(), expected)
    assert_close(result.ratios_R_T.tolist(), [[10 / 3, 10 / 3], *expected[1:]])
    below = of([[0.6, 0.2]], [[0.4, 1.0]], [[True, True]], "sequence", mode, 0.4, 2.0)
    assert_close(below.weights_R_T.tolist(), [[low, low]])


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_equal_log_probs_weigh_exactly_one_even_without_any_leeway(level, mode):
    batch = random_batch(3)
    old = torch.tensor(batch.old, dtype=torch.float64)
    result = importance_weights(old, old.clone(), torch.tensor(batch.mask), Importance(level, mode, 1.0, 1.0))
    assert torch.equal(result.weights_R_T, torch.ones_like(old))
    assert torch.equal(result.ratios_R_T, torch.ones_like(old))


@pytest.mark.parametrize("name", IMPORTANCES)
def test_weights_and_ratios_are_constants(name):
    tensors = [torch.zeros(1, 2, requires_grad=True) for _ in range(2)]
    result = importance_weights(*tensors, torch.tensor([[True, False]]), Importance(**IMPORTANCES[name]))
    assert not result.weights_R_T.requires_grad and not result.ratios_R_T.requires_grad


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("gap, truncated", [(900.0, 2.0), (-900.0, math.exp(-20))])
def test_an_absurd_ratio_stays_finite(level, gap, truncated):
    pair = torch.tensor([[gap]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    mask = torch.tensor([[True]])
    result = importance_weights(*pair, mask, Importance(level, "truncate", 0.5, 2.0))
    assert result.ratios_R_T.item() == pytest.approx(math.exp(math.copysign(20, gap)))
    assert result.weights_R_T.item() == pytest.approx(truncated)
    assert importance_weights(*pair, mask, Importance(level, "mask", 0.5, 2.0)).weights_R_T.item() == 0


@pytest.mark.parametrize("floor, cap", [(-0.1, 2.0), (1.1, 2.0), (0.5, 0.9), (math.nan, 2.0), (0.5, math.nan)])
def test_bounds_that_do_not_enclose_one_are_refused(floor, cap):
    with pytest.raises(ValueError, match=f"floor {floor} and cap {cap}: give 0 <= floor <= 1 <= cap"):
        Importance("token", "mask", floor, cap)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_log_prob_that_is_no_number_shows_also_where_a_mask_drops(level: str) -> None:
    behaviour = torch.tensor([[math.nan, 0.0]], dtype=torch.float64)
    old, mask = torch.zeros_like(behaviour), torch.ones(1, 2, dtype=torch.bool)
    weights = importance_weights(old, behaviour, mask, Importance(level, "mask", 0.5, 2.0)).weights_R_T
    assert weights.isnan().tolist() == [[True, level == "sequence"]]


def test_an_unknown_level_or_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="token or sequence, truncate or mask"):
        Importance("seq", "mask", 0.5, 2.0)
    with pytest.raises(ValueError, match="token or sequence, truncate or mask"):
        Importance("token", "trunc", 0.5, 2.0)
