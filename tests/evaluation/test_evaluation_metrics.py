"""Bootstrap intervals against closed forms, exhaustive enumeration and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from evaluation.metrics import RowMismatch, bootstrap_means, by_group, mean_ci95, paired_record


def test_resampled_means_match_full_enumeration():
    values = (0.0, 1.0, 4.0)
    every = sorted(np.mean(draw) for draw in itertools.product(values, repeat=3))  # all 27 equally likely resamples
    drawn = bootstrap_means(values, seed=3, draws=40_000)
    for level in set(every):
        assert np.mean(np.isclose(drawn, level)) == pytest.approx(np.mean(np.isclose(every, level)), abs=0.01)


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).random(240)
    mean, (low, high) = mean_ci95(values, seed=1)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(9)).confidence_interval
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx(tuple(theirs), abs=2e-3)


@pytest.mark.parametrize("cells", [1, 301, 7 * 300])
def test_interval_does_not_depend_on_chunking_of_memory(monkeypatch, cells):
    values = list(np.linspace(0, 1, 300))
    whole = bootstrap_means(values, 0, draws=1000)
    monkeypatch.setattr("evaluation.metrics._CHUNK_CELLS", cells)
    assert np.array_equal(bootstrap_means(values, 0, draws=1000), whole)


def test_record_of_a_constant_gain_has_a_point_interval():
    before = {f"r{i}": i % 2 * 0.5 for i in range(200)}
    after = {row: value + 0.25 for row, value in before.items()}
    record = paired_record(before, after, seed=4)
    assert record["before"] == 0.25 and record["after"] == 0.5 and record["n"] == 200
    assert record["ci95"] == [0.25, 0.25]  # paired: the spread between rows does not blur the difference
    assert record["ci95_before"][0] < 0.25 < record["ci95_before"][1]
    assert record["ci95_after"][1] - record["ci95_after"][0] == pytest.approx(
        record["ci95_before"][1] - record["ci95_before"][0]
    )


def test_record_is_paired_by_row_id_not_by_position():
    before = {"a": 0.0, "b": 1.0, "c": 0.5}
    after = {"c": 0.5, "a": 0.0, "b": 1.0}
    record = paired_record(before, after, seed=0)
    assert record["ci95"] == [0.0, 0.0]
    assert paired_record(dict(reversed(before.items())), after, seed=0) == record


def test_gain_of_a_known_share_of_rows():
    """Difference is Bernoulli(0.3): its interval is that of a proportion, about 0.3 +- 1.96 sqrt(0.21 / n)."""
    before = {str(i): 0.0 for i in range(400)}
    after = {str(i): float(i < 120) for i in range(400)}
    low, high = paired_record(before, after, seed=2)["ci95"]
    half = 1.96 * (0.21 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.006)


def test_different_rows_are_refused():
    with pytest.raises(RowMismatch, match=r"1 only before \['b'\], 1 only after \['c'\]"):
        paired_record({"a": 0.0, "b": 1.0}, {"a": 0.0, "c": 1.0})
    with pytest.raises(RowMismatch):
        by_group({"a": 0.0}, {}, {"a": "x"})


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        mean_ci95([0.0, float("nan")])
    with pytest.raises(ValueError, match="at least one row"):
        mean_ci95([])


def test_groups():
    before, after = {"a": 0.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.0}
    assert by_group(before, after, {"a": "y", "b": "y", "c": "x"}) == {
        "x": {"before": 1.0, "after": 0.0, "n": 1},
        "y": {"before": 0.5, "after": 1.0, "n": 2},
    }
