"""The formulas of grpo/ written a second time: plain floats, loops over rows and tokens, nothing shared with the code.

Log-ratios are not limited here: batches stay far from the limit, whose effect has tests of its own.

Shapes: a `Table` is R rows of T numbers and may hold anything where its `Mask` is false.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

Table = list[list[float]]
Mask = list[list[bool]]

#: Bounds that differ, so that none can stand in for another; small for gspo, whose ratios are means.
OBJECTIVES = {
    "ppo": {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": None},
    "ppo_dual": {"kind": "ppo_clip", "clip_low": 0.3, "clip_high": 0.1, "dual_clip": 1.5},
    "gspo": {"kind": "gspo", "clip_low": 0.05, "clip_high": 0.12, "dual_clip": None},
    "gspo_dual": {"kind": "gspo", "clip_low": 0.12, "clip_high": 0.05, "dual_clip": 1.2},
    "cispo": {"kind": "cispo", "clip_low": 0.4, "clip_high": 0.2, "dual_clip": None},
}
IMPORTANCES = {
    "token_truncate": {"level": "token", "mode": "truncate", "floor": 0.9, "cap": 1.3},
    "token_mask": {"level": "token", "mode": "mask", "floor": 0.7, "cap": 1.5},
    "sequence_truncate": {"level": "sequence", "mode": "truncate", "floor": 0.9, "cap": 1.3},
    "sequence_mask": {"level": "sequence", "mode": "mask", "floor": 0.4, "cap": 2.0},
}


class Batch(NamedTuple):
    """Log-probs (R, T), advantages (R,), a weight per token (R, T) that tells tokens apart in gradients, the mask."""

    new: Table
    old: Table
    behaviour: Table
    reference: Table
    advantages: list[float]
    cotangent: Table
    mask: Mask


def random_batch(seed: int) -> Batch:
    """Ragged rows with holes, the first of one token, the second of none; NaN, infinities and 1e30 outside the mask."""
    draw = random.Random(seed)
    rows, length = draw.randint(4, 7), draw.randint(4, 8)
    sizes = [1, 0, length, *(draw.randint(2, length) for _ in range(rows - 3))]
    mask = [[t in kept for t in range(length)] for kept in (draw.sample(range(length), size) for size in sizes)]

    def near(table: Table) -> Table:
        # Whole rows move too, or the means over tokens would all stay inside the bounds.
        moved = [draw.gauss(0, 0.15) for _ in table]
        return [[value + moved[r] + draw.gauss(0, 0.4) for value in row] for r, row in enumerate(table)]

    def soiled(table: Table) -> Table:
        junk = (math.nan, math.inf, -math.inf, 1e30)
        return [[x if kept else draw.choice(junk) for x, kept in zip(*pair)] for pair in zip(table, mask)]

    new = [[-4 * draw.random() for _ in row] for row in mask]
    old = near(new)
    tables = [soiled(table) for table in (new, old, near(old), near(new))]
    advantages = [draw.uniform(0.2, 2) * (-1) ** r for r in range(rows)]
    return Batch(*tables, advantages, [[draw.uniform(-1, 2) for _ in row] for row in mask], mask)


def tokens(mask: Mask) -> Iterator[tuple[int, int]]:
    """Row and position of every sampled token."""
    return ((r, t) for r, row in enumerate(mask) for t, sampled in enumerate(row) if sampled)


def tokenwise(mask: Mask, formula: Callable[[int, int], float], outside: float = 0.0) -> Table:
    """`formula` of every sampled token, `outside` elsewhere."""
    table = [[outside] * len(row) for row in mask]
    for r, t in tokens(mask):
        table[r][t] = formula(r, t)
    return table


def weighted_sum(table: Table, weights: Table, mask: Mask) -> float:
    return math.fsum(table[r][t] * weights[r][t] for r, t in tokens(mask))


def gradient(function: Callable[[Table], float], at: Table, mask: Mask, step: float = 1e-5) -> Table:
    """Central differences of `function` in every sampled token, 0 elsewhere."""

    def moved(r: int, t: int, by: float) -> Table:
        copy = [list(row) for row in at]
        copy[r][t] += by
        return copy

    return tokenwise(mask, lambda r, t: (function(moved(r, t, step)) - function(moved(r, t, -step))) / (2 * step))


def ratios(numerator: Table, denominator: Table, mask: Mask) -> Table:
    """Quotient of probabilities per token, 1 outside the mask."""
    return tokenwise(mask, lambda r, t: math.exp(numerator[r][t]) / math.exp(denominator[r][t]), outside=1.0)


def sequence_ratios(numerator: Table, denominator: Table, mask: Mask, *, mean: bool) -> list[float]:
    """Product of a row's ratios, or with `mean` their geometric mean; 1 for a row without tokens."""
    quotients = ratios(numerator, denominator, mask)
    return [math.prod(row) ** (1 / sum(kept) if mean and any(kept) else 1) for row, kept in zip(quotients, mask)]


def divergence(new: Table, reference: Table, mask: Mask, estimator: str) -> Table:
    def estimate(r: int, t: int) -> float:
        odds = math.exp(reference[r][t]) / math.exp(new[r][t])
        return {"k1": -math.log(odds), "k2": math.log(odds) ** 2 / 2, "k3": odds - 1 - math.log(odds)}[estimator]

    return tokenwise(mask, estimate)


def importance(
    old: Table, behaviour: Table, mask: Mask, *, level: str, mode: str, floor: float, cap: float
) -> tuple[Table, Table]:
    """Weights as used, and ratios before cap or mask."""
    raw = ratios(old, behaviour, mask)
    if level == "sequence":
        whole = sequence_ratios(old, behaviour, mask, mean=False)
        raw = tokenwise(mask, lambda r, t: whole[r], outside=1.0)

    def weight(r: int, t: int) -> float:
        if raw[r][t] > cap:
            return cap if mode == "truncate" else 0.0
        return 0.0 if mode == "mask" and raw[r][t] < floor else raw[r][t]

    return tokenwise(mask, weight, outside=1.0), raw


def objective_ratios(new: Table, old: Table, mask: Mask, kind: str) -> Table:
    if kind != "gspo":
        return ratios(new, old, mask)
    whole = sequence_ratios(new, old, mask, mean=True)
    return tokenwise(mask, lambda r, t: whole[r], outside=1.0)


def held(
    ratio: float, advantage: float, kind: str, clip_low: float, clip_high: float, dual_clip: float | None
) -> float:
    """The ratio that stays in the loss once the clip has acted, case by case."""
    low, high = 1 - clip_low, 1 + clip_high
    if kind == "cispo":
        return low if ratio < low else high if ratio > high else ratio
    if advantage > 0:
        return high if ratio > high else ratio
    if ratio < low:
        return low
    return dual_clip if dual_clip is not None and ratio > dual_clip else ratio


def policy_loss(
    new: Table, old: Table, advantages: list[float], mask: Mask, *, frozen: Table | None = None, **objective
) -> Table:
    """`frozen` log-probs make the ratios of cispo, whose weight is a constant; `new` if they are not given."""
    cispo = objective["kind"] == "cispo"
    moving = objective_ratios(frozen if cispo and frozen else new, old, mask, objective["kind"])

    def term(r: int, t: int) -> float:
        return -held(moving[r][t], advantages[r], **objective) * advantages[r] * (new[r][t] if cispo else 1)

    return tokenwise(mask, term)


def token_loss(
    new: Table, batch: Batch, objective: dict, weighting: dict, estimator: str, coef: float, frozen: Table | None = None
) -> Table:
    """The loss with the log-probs `new` in place of those of the batch."""
    weights, _ = importance(batch.old, batch.behaviour, batch.mask, **weighting)
    policy = policy_loss(new, batch.old, batch.advantages, batch.mask, frozen=frozen, **objective)
    kl = divergence(new, batch.reference, batch.mask, estimator)
    return tokenwise(batch.mask, lambda r, t: weights[r][t] * policy[r][t] + coef * kl[r][t])


def aggregated(loss: Table, mask: Mask, mode: str, max_tokens: int) -> float:
    """The loss of a whole step; rows without tokens are no sequences."""
    rows = [[value for value, sampled in zip(*pair) if sampled] for pair in zip(loss, mask)]
    rows = [row for row in rows if row]
    if mode == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    total = sum(sum(row) for row in rows)
    return total / {"token_mean": sum(len(row) for row in rows), "fixed_length": len(rows) * max_tokens}[mode]
