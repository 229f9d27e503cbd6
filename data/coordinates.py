"""Boxes between the original picture and the frame in which a model reads and writes them: one linear map, one rounding.

What holds
    * Stored boxes are in pixels of the original file, upright. A frame is given by its size (width, height): that of the
      picture the model received (absolute pixels, Qwen2.5-VL), or 1000 x 1000 (Qwen3-VL). Which of the two is a setting
      of the model; `models.inputs.frame_size` turns it into a size, for every picture and pixel limit.
    * Supervised targets, traces, rewards, evaluation and the report all go through `rescaled`. It is exact in both
      directions up to floating point; rounding happens only where a text is written (`as_text_target`).
    * IoU does not depend on the frame: both sides of a comparison must only be in the same one.
"""

from __future__ import annotations

from typing import Sequence

from data.types import Box

Bbox = tuple[float, float, float, float]
Size = tuple[int, int]


def rescaled(bbox: Bbox, size: tuple[float, float], other: tuple[float, float]) -> Bbox:
    """(x1, y1, x2, y2) in a frame of `size` (width, height) -> the same place in a frame of size `other`, as floats."""
    sx, sy = other[0] / size[0], other[1] / size[1]
    return bbox[0] * sx, bbox[1] * sy, bbox[2] * sx, bbox[3] * sy


def in_frame(boxes: Sequence[Box], original_size: Size, frame: Size) -> tuple[tuple[str, Bbox], ...]:
    """Label and corners of each box of a picture, in the model's frame."""
    return tuple((box.label, rescaled(box.bbox, original_size, frame)) for box in boxes)


def as_text_target(bbox: Bbox, frame: Size) -> tuple[int, int, int, int]:
    """Integers inside [0, width] x [0, height] of the frame with x1 < x2 and y1 < y2; a side that rounding collapsed is
    widened by one."""
    (x1, x2), (y1, y2) = (_span(bbox[0], bbox[2], frame[0]), _span(bbox[1], bbox[3], frame[1]))
    return x1, y1, x2, y2


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    a, b = min(max(round(low), 0), limit), min(max(round(high), 0), limit)
    if a >= b:
        a, b = (a, a + 1) if a < limit else (limit - 1, limit)
    return a, b
