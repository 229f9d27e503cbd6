"""Boxes written as text: strict JSON in, labelled corners out, and what counts as a usable box.

What holds: the text is one JSON list of `{"bbox_2d": [x1, y1, x2, y2], "label": str}` (one code fence around it is
allowed), at most `MAX_CHARACTERS` long with at most `MAX_ITEMS` items; anything else is no prediction at all (None),
which is not the same as the explicit empty list. A malformed item stays in the list as an item that can match nothing:
leaving it out would make it free. Nothing is repaired; swapped corners are malformed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache

MAX_CHARACTERS = 8192
MAX_ITEMS = 64
Corners = tuple[float, float, float, float]

_FENCE = re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE)
_FENCE_OPEN = re.compile(r"```(?:json)?\s+", re.IGNORECASE)


@dataclass(frozen=True)
class PredictedBox:
    """One item of a prediction. `corners` (x1, y1, x2, y2), or None for an item that can match nothing."""

    label: str
    corners: Corners | None


def parse_boxes(text: str) -> tuple[PredictedBox, ...] | None:
    """The items of `text` in their order, or None when the text is not a list of boxes or beyond the limits."""
    plain = text.strip()
    if len(plain) > MAX_CHARACTERS:
        return None
    fenced = _FENCE.fullmatch(plain)
    try:
        items = json.loads(fenced[1] if fenced else plain, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):  # not JSON, an integer of thousands of digits, or nested too deep
        return None
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        return None
    return tuple(_predicted(item) for item in items)


def leading_boxes(text: str) -> tuple[PredictedBox, ...] | None:
    """The items of the list that `text` begins with, whatever follows it; None where it begins with none, or as `parse_boxes`."""
    plain = text.lstrip()
    opened = _FENCE_OPEN.match(plain)
    plain = plain[opened.end() if opened else 0 :][:MAX_CHARACTERS]
    try:
        _, end = json.JSONDecoder().raw_decode(plain)
    except (ValueError, RecursionError):
        return None
    return parse_boxes(plain[:end])


@lru_cache(1024)
def normalize_label(label: str) -> str:
    """Lower case, `_` and `-` as spaces, single spaces: labels are equal when this is."""
    return " ".join(label.lower().replace("_", " ").replace("-", " ").split())


def is_box(corners: Corners) -> bool:
    """Finite, and of positive width and height."""
    x1, y1, x2, y2 = corners
    return all(math.isfinite(value) for value in corners) and x1 < x2 and y1 < y2


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object] | None:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else None


def _predicted(item: object) -> PredictedBox:
    if not isinstance(item, dict) or set(item) != {"bbox_2d", "label"} or not isinstance(item["label"], str):
        return PredictedBox("", None)
    return PredictedBox(item["label"], _corners(item["bbox_2d"]))


def _corners(value: object) -> Corners | None:
    if not isinstance(value, list) or len(value) != 4 or any(type(number) not in (int, float) for number in value):
        return None
    try:
        x1, y1, x2, y2 = (float(number) for number in value)
    except OverflowError:  # an integer beyond float64
        return None
    return (x1, y1, x2, y2) if is_box((x1, y1, x2, y2)) else None
