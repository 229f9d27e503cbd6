"""Mean relative accuracy (MRA), the score of a numeric answer: how many of ten tolerances it meets.

    MRA(p, t) = mean over k = 0…9 of [ |p - t| / |t|  within  theta_k ],    theta_k = (50 - 5k) / 100

Source: SpatialLadder, eq. of the accuracy reward, after VSI-Bench. The papers print `<`, the public scorers compute
`<=` on a float64 linspace, where a ratio that equals a tolerance passes or fails by rounding; hence three modes:

    inclusive     `<=`; ratios equal up to 1e-9 are equal, so (1.35, 1) and (13.5, 10) score the same
    strict        `<`, with the same idea of equal
    float_compat  the public scorers digit for digit, rounding included
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from rewards.errors import GroundTruthError, RewardSettingsError
from rewards.number import parse_number

MraMode = Literal["inclusive", "strict", "float_compat"]
TOLERANCES = tuple((50 - 5 * k) / 100 for k in range(10))
_SAME_RATIO = 1e-9
_PUBLIC_CONFIDENCES = np.linspace(0.5, 0.95, 10)


def mean_relative_accuracy(prediction: float, target: float, mode: MraMode = "inclusive") -> float:
    """MRA in {0, 0.1, …, 1}; for a target of 0: 1 for exactly 0, else 0.

    A prediction that is not finite scores 0; GroundTruthError for a target that is not.
    """
    if not math.isfinite(target):
        raise GroundTruthError(f"numeric target {target!r} is not finite")
    if not math.isfinite(prediction):
        return 0.0
    if target == 0:
        return float(prediction == 0)
    ratio = abs(prediction - target) / abs(target)
    if mode == "inclusive":
        return sum(ratio <= tolerance * (1 + _SAME_RATIO) for tolerance in TOLERANCES) / 10
    if mode == "strict":
        return sum(ratio < tolerance * (1 - _SAME_RATIO) for tolerance in TOLERANCES) / 10
    if mode == "float_compat":
        return int(np.sum(ratio <= 1 - _PUBLIC_CONFIDENCES)) / 10
    raise RewardSettingsError(f"mra_mode {mode!r}: choose one of {', '.join(get_args(MraMode))}")


def number_reward(answer: str | None, truth: str, unit: str | None, mode: MraMode = "inclusive") -> float:
    """MRA of the number in `answer` (None or unreadable: 0.0) against the decimal string `truth`, in `unit`."""
    target = parse_number(truth, unit)
    if target is None:
        raise GroundTruthError(f"answer {truth!r} is not a number (unit {unit or 'none'}): fix the row")
    prediction = None if answer is None else parse_number(answer, unit)
    return 0.0 if prediction is None else mean_relative_accuracy(prediction, target, mode)
