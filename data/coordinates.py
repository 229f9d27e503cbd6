"""Boxes between the original picture and the picture the model was given. One linear map, its inverse, one rounding.

Convention (SPATIALLADDER §4.3): the truth is the tensor the model received; its size is (Wp, Hp) = 14 x grid. Stored
boxes are in pixels of the original file. Everything the model reads or writes is in the processed frame (absolute
pixels, Qwen2.5-VL). Rewards compare floats; rounding happens only where a text target is written.
"""

from __future__ import annotations

Bbox = tuple[float, float, float, float]
Size = tuple[int, int]


def to_processed(bbox: Bbox, original_size: Size, processed_size: Size) -> Bbox:
    """(x1, y1, x2, y2) in pixels of the original (width, height) -> floats in pixels of the processed (width, height)."""
    sx, sy = processed_size[0] / original_size[0], processed_size[1] / original_size[1]
    return bbox[0] * sx, bbox[1] * sy, bbox[2] * sx, bbox[3] * sy


def to_original(bbox: Bbox, original_size: Size, processed_size: Size) -> Bbox:
    """Inverse of `to_processed`."""
    return to_processed(bbox, processed_size, original_size)


def as_text_target(bbox: Bbox, processed_size: Size) -> tuple[int, int, int, int]:
    """Integers inside [0, Wp] x [0, Hp] with x1 < x2 and y1 < y2; a side that rounding collapsed is widened by one."""
    (x1, x2), (y1, y2) = (_span(bbox[0], bbox[2], processed_size[0]), _span(bbox[1], bbox[3], processed_size[1]))
    return x1, y1, x2, y2


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    a, b = min(max(round(low), 0), limit), min(max(round(high), 0), limit)
    if a >= b:
        a, b = (a, a + 1) if a < limit else (limit - 1, limit)
    return a, b
