"""Boxes for single-image questions: the released localisation rows and single-image rows ask the same questions.

A single-image row is joined to the localisation row with the same picture and the same question, compared without regard to
case and spacing. What holds: a row gets boxes only from one truth; where two localisation rows of its
question draw different boxes it gets none. Rows keep their order, and all but `boxes` of what they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterable, Sequence

from data.types import Box, Example


@dataclass(frozen=True)
class Joined:
    """All question rows, in order, those that were `matched` with boxes. `single_image`: rows that could have been;
    `contradicted`: rows whose question has two different truths."""

    rows: tuple[Example, ...]
    single_image: int
    matched: int
    contradicted: int

    def __str__(self) -> str:
        rate = f" ({self.matched / self.single_image:.1%})" if self.single_image else ""
        told = f"{self.matched} of {self.single_image} single-image rows have the boxes of a localisation row{rate}"
        if not self.contradicted:
            return told
        return f"{told}, {self.contradicted} left out because their localisation rows contradict one another"


def normalized_question(question: str) -> str:
    """Lower case, single spaces, nothing at the ends: two questions are the same when this is."""
    return " ".join(question.casefold().split())


def join_boxes(questions: Sequence[Example], localization: Iterable[Example]) -> Joined:
    """`questions` with the boxes of the `localization` rows that ask the same about the same picture."""
    truths: dict[tuple[str, str], set[frozenset[Box]]] = {}
    boxes: dict[tuple[str, str], tuple[Box, ...]] = {}
    for row in localization:
        truths.setdefault(_key(row), set()).add(frozenset(row.boxes))
        boxes.setdefault(_key(row), row.boxes)
    rows, single, matched, contradicted = [], 0, 0, 0
    for row in questions:
        single += row.data_type == "single_image"
        found = truths.get(_key(row), ()) if row.data_type == "single_image" else ()
        matched += len(found) == 1
        contradicted += len(found) > 1
        rows.append(replace(row, boxes=boxes[_key(row)]) if len(found) == 1 else row)
    return Joined(tuple(rows), single, matched, contradicted)


def _key(row: Example) -> tuple[str, str]:
    return row.media[0], normalized_question(row.question)
