"""Token statistics: exact numbers, and sums that do not depend on the cut into micro-batches."""

import math

import pytest
import torch

from grpo.importance import Importance
from grpo.losses import LossSettings, token_loss
from grpo.objectives import Objective
from grpo.stats import TokenStats, token_stats

NEW = torch.log(torch.tensor([[0.9, 0.5], [0.2, 0.5]], dtype=torch.float64))
OLD = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64))
ENGINE = torch.log(torch.tensor([[0.5, 0.1], [0.25, 0.7]], dtype=torch.float64))
MASK = torch.tensor([[True, True], [True, False]])
ADVANTAGES = torch.tensor([1.0, -1.0], dtype=torch.float64)
SETTINGS = LossSettings(Objective("ppo_clip", 0.2, 0.2, None), Importance("token", "mask", 0.5, 3.0), "k3", 0.1)


ALL = torch.ones_like(MASK)


def stats(rows, fresh=ALL):
    parts = (NEW[rows], OLD[rows], ENGINE[rows], ADVANTAGES[rows], MASK[rows])
    terms = token_loss(*parts, SETTINGS, reference_logprobs_R_T=OLD[rows])
    return token_stats(terms, OLD[rows], ENGINE[rows], MASK[rows], fresh[rows])


def test_exact_numbers():
    metrics = stats(slice(None)).metrics()
    # Ratios 1.8 (A > 0), 1 and 0.4 (A < 0): two of three tokens clipped. Importance ratios 1, 5 and 2: one dropped.
    kl = (0.5 / 0.9 - math.log(0.5 / 0.9) - 1) + (0.5 / 0.2 - math.log(0.5 / 0.2) - 1)
    assert metrics == pytest.approx(
        {
            "kl": kl / 3,
            "clip_fraction": 2 / 3,
            "is_dropped_fraction": 1 / 3,
            "is_ratio_mean": 8 / 3,
            "is_ratio_max": 5.0,
            "logprob_gap_mean": (math.log(5) + math.log(2)) / 3,
            "logprob_gap_max": math.log(5),
        }
    )


def test_gaps_are_of_the_tokens_that_the_same_weights_drew_and_the_others_have_ratios_of_their_own():
    fresh = torch.tensor([[True, False], [False, True]])  # the last is no token
    whole, metrics = stats(slice(None)).metrics(), stats(slice(None), fresh).metrics()
    gaps = {"logprob_gap_mean": 0.0, "logprob_gap_max": 0.0}
    assert metrics == pytest.approx(whole | gaps | {"is_ratio_stale_mean": 3.5, "is_ratio_stale_max": 5.0})
    stale = stats(slice(None), ~ALL).metrics()
    assert "logprob_gap_max" not in stale
    assert stale["is_ratio_stale_mean"] == stale["is_ratio_mean"] == whole["is_ratio_mean"]


@pytest.mark.parametrize("fresh", [ALL, torch.tensor([[False, True], [False, False]])])
def test_micro_batches_merge_exactly(fresh):
    merged = stats(slice(0, 1), fresh).merge(stats(slice(1, 2), fresh))
    assert merged.metrics() == pytest.approx(stats(slice(None), fresh).metrics(), abs=1e-12)
    assert merged.tokens == 3


def test_no_tokens_no_numbers():
    assert TokenStats().metrics() == {}
    terms = token_loss(NEW, OLD, ENGINE, ADVANTAGES, torch.zeros_like(MASK), SETTINGS, OLD)
    assert token_stats(terms, OLD, ENGINE, torch.zeros_like(MASK), ALL) == TokenStats()


def test_a_nan_log_prob_of_a_sampled_token_is_not_hidden():
    broken = ENGINE.clone()
    broken[0, 1] = math.nan
    terms = token_loss(NEW, OLD, broken, ADVANTAGES, MASK, SETTINGS, OLD)
    with pytest.raises(ValueError, match="1 of 3 sampled tokens"):
        token_stats(terms, OLD, broken, MASK, ~ALL)
