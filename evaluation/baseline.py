"""What one fixed answer per question type would score: the accuracy that takes no looking. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from data.types import MULTIPLE_CHOICE_TYPES
from rewards.accuracy import MraMode, mean_relative_accuracy


def best_constants(rows: Sequence[Mapping[str, Any]], mra_mode: MraMode = "inclusive") -> dict[str, float]:
    """Question type -> accuracy of the best single answer, chosen among the true ones in hindsight.

    `rows` are lines of an evaluation file (`question_type`, `truth`); localisation rows are left out.
    """
    truths: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if isinstance(row["truth"], str):
            truths[row["question_type"]].append(row["truth"])
    return {kind: max(_accuracy(kind, answer, own, mra_mode) for answer in set(own)) for kind, own in truths.items()}


def _accuracy(kind: str, answer: str, truths: Sequence[str], mra_mode: MraMode) -> float:
    if kind in MULTIPLE_CHOICE_TYPES:
        return truths.count(answer) / len(truths)
    return sum(mean_relative_accuracy(float(answer), float(truth), mra_mode) for truth in truths) / len(truths)
