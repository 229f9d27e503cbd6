"""Which held-out rows a metric is measured on.

What holds
    * The choice is a function of (row ids, n, seed) alone: the order in which rows were read, the process and the
      machine do not matter, so every stage, before and after, answers the same prompts.
    * Strata are (question type, data type). Every stratum gets its proportional share (largest remainder), and at
      least one row where n allows it, so the mean over the selection estimates the mean over the split.
    * Rows come back in hash order: strata are mixed, and any prefix is itself a random sample.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Iterable, Sequence

from data.types import Example

Stratum = tuple[str, str]


def heldout_rows(examples: Iterable[Example], n: int, seed: int) -> tuple[Example, ...]:
    """A seeded, stratified sample of `n` rows without replacement; all rows where there are fewer than `n`.

    Raises ValueError on n < 1, on no rows and on repeated row ids.
    """
    if n < 1:
        raise ValueError(f"held-out selection of {n} rows: ask for at least one (evaluation.rows)")
    strata: dict[Stratum, list[tuple[str, Example]]] = defaultdict(list)
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise ValueError(f"row id {example.id!r} occurs twice among the held-out rows: ids must be unique")
        seen.add(example.id)
        strata[(example.question_type, example.data_type)].append((_rank(example.id, seed), example))
    if not seen:
        raise ValueError("no held-out rows to choose from: build the held-out split or widen the filter")
    shares = allocate({stratum: len(rows) for stratum, rows in strata.items()}, n)
    chosen: list[tuple[str, Example]] = []
    for stratum, rows in strata.items():
        chosen += sorted(rows, key=lambda ranked: ranked[0])[: shares[stratum]]
    return tuple(example for _, example in sorted(chosen, key=lambda ranked: ranked[0]))


def allocate(sizes: dict[Stratum, int], n: int) -> dict[Stratum, int]:
    """Rows per stratum: proportional by largest remainder, one at least per stratum if n >= number of strata.

    The shares add up to min(n, sum of sizes) and never exceed the stratum.
    """
    total = sum(sizes.values())
    n = min(n, total)
    floor = 1 if n >= len(sizes) else 0
    exact = {stratum: n * size / total for stratum, size in sizes.items()}
    shares = {stratum: max(floor, int(exact[stratum])) for stratum in sizes}
    by_remainder = sorted(sizes, key=lambda stratum: (shares[stratum] - exact[stratum], stratum))
    while sum(shares.values()) < n:  # give to whoever lacks most of its exact share
        stratum = next(s for s in by_remainder if shares[s] < sizes[s])
        shares[stratum] += 1
        by_remainder.sort(key=lambda s: (shares[s] - exact[s], s))
    while sum(shares.values()) > n:  # the guaranteed single rows overran: take from whoever has most above its share
        stratum = next(s for s in reversed(by_remainder) if shares[s] > floor)
        shares[stratum] -= 1
        by_remainder.sort(key=lambda s: (shares[s] - exact[s], s))
    return shares


def selection_hash(ids: Sequence[str]) -> str:
    """SHA-256 of the row ids in order, hex: two evaluations with the same hash asked the same rows."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _rank(row_id: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest()
