"""Means, paired differences and their bootstrap intervals. Pure numpy, seeded.

What holds
    * ci95 is the percentile bootstrap over rows (2.5 % and 97.5 % quantiles of the resampled mean).
    * A before/after record compares the same rows: the difference is taken row by row and rows are resampled as
      pairs. Different row ids are refused, never intersected.
    * The same values and seed give the same interval, whatever the order of the rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Mapping, Sequence

import numpy as np

DRAWS = 10_000
_CHUNK_CELLS = 2_000_000  # resampled values held in memory at once


class RowMismatch(ValueError):
    """Two evaluations that answer different rows cannot be compared."""


def bootstrap_means(values: Sequence[float], seed: int, draws: int = DRAWS) -> np.ndarray:
    """(draws,) means of resamples with replacement of `values` (n,), n >= 1, all finite."""
    array = _checked(values)
    rng = np.random.default_rng(seed)
    chunk = max(1, min(draws, _CHUNK_CELLS // len(array)))
    means = [
        array[rng.integers(len(array), size=(min(chunk, draws - start), len(array)))].mean(axis=1)
        for start in range(0, draws, chunk)
    ]
    return np.concatenate(means)


def mean_ci95(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> tuple[float, list[float]]:
    """Mean of `values` and its ci95 [lo, hi]. Raises ValueError on no values or values that are not finite."""
    array = _checked(values)
    low, high = np.quantile(bootstrap_means(array, seed, draws), (0.025, 0.975))
    return float(array.mean()), [float(low), float(high)]


def paired_record(
    before: Mapping[str, float], after: Mapping[str, float], seed: int = 0, draws: int = DRAWS
) -> dict[str, float | int | list[float]]:
    """The record of one metric in summary.json, from row id -> score before and after.

    Keys: before, after (means), n (rows), ci95 (of the mean paired difference after - before), ci95_before,
    ci95_after. Raises RowMismatch when the two sides hold different row ids.
    """
    _same_rows(before, after)
    ids = sorted(before)  # the interval must not depend on the order in which rows were answered
    first, second = [before[i] for i in ids], [after[i] for i in ids]
    mean_before, ci_before = mean_ci95(first, seed, draws)
    mean_after, ci_after = mean_ci95(second, seed, draws)
    _, ci = mean_ci95(np.subtract(second, first), seed, draws)
    return {
        "before": mean_before,
        "after": mean_after,
        "n": len(ids),
        "ci95": ci,
        "ci95_before": ci_before,
        "ci95_after": ci_after,
    }


def by_group(
    before: Mapping[str, float], after: Mapping[str, float], group_of: Mapping[str, str]
) -> dict[str, dict[str, float | int]]:
    """Group name (question type, ...) -> {before, after, n}, means over the rows of the group, sorted by name."""
    _same_rows(before, after)
    rows: dict[str, list[str]] = defaultdict(list)
    for row_id in before:
        rows[group_of[row_id]].append(row_id)
    return {
        name: {
            "before": float(np.mean([before[i] for i in rows[name]])),
            "after": float(np.mean([after[i] for i in rows[name]])),
            "n": len(rows[name]),
        }
        for name in sorted(rows)
    }


def _checked(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"a mean needs at least one row, got values of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {len(array)} scores are not finite")
    return array


def _same_rows(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    if before.keys() == after.keys():
        return
    lost, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    raise RowMismatch(
        f"before and after answer different rows: {len(lost)} only before {lost[:3]}, {len(new)} only after {new[:3]}; "
        "evaluate both with the same selection (seed, evaluation.rows, data folder)"
    )
