"""How much two boxes overlap: IoU, generalised IoU (GIoU), and the forms in which a pair may be scored.

    IoU  = |A and B| / |A or B|
    GIoU = IoU - (|C| - |A or B|) / |C|,    C the smallest box around both       (Rezatofighi et al., CVPR 2019)

What holds: every score is in [0, 1], exactly 1.0 for equal boxes that have an area, and 0.0 for boxes that do not
overlap, GIoU included: mapped from [-1, 1] to [0, 1] it would pay about a half for a disjoint box. Areas are those of
continuous widths, no "+1". A box is (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2.
"""

from __future__ import annotations

from typing import Literal, get_args

from rewards.boxes import Corners
from rewards.errors import RewardSettingsError

#: plain        IoU
#: squared      IoU^2 (as Perception-R1)
#: thresholded  IoU where it reaches the threshold, else 0 (as Visual-RFT, with 0.5)
#: soft_f1      IoU; the set's sum is divided by the mean of both counts, not by the larger
#: giou         (GIoU + 1) / 2 where the boxes overlap, else 0
IouShape = Literal["plain", "squared", "thresholded", "soft_f1", "giou"]


def check_shape(shape: IouShape, threshold: float) -> None:
    """RewardSettingsError for an unknown shape or a threshold outside [0, 1]."""
    if shape not in get_args(IouShape):
        raise RewardSettingsError(f"IoU shape {shape!r}: choose one of {', '.join(get_args(IouShape))}")
    if not 0 <= threshold <= 1:  # NaN too
        raise RewardSettingsError(f"IoU threshold is {threshold!r}: it must be from 0 to 1")


def pair_score(a: Corners, b: Corners, shape: IouShape = "plain", threshold: float = 0.5) -> float:
    """Score of two boxes in [0, 1] by `shape` (see IouShape); `threshold` is for "thresholded" and counts as reached
    when the float64 IoU equals it."""
    if shape == "giou":
        return mapped_giou(a, b)
    iou = box_iou(a, b)
    if shape == "squared":
        return iou * iou
    if shape == "thresholded":
        return iou if iou >= threshold else 0.0
    return iou


def box_iou(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes in [0, 1], 0.0 when either has no area."""
    intersection, union = _shared(a, b)
    return intersection / union if intersection > 0 else 0.0


def mapped_giou(a: Corners, b: Corners) -> float:
    """(GIoU + 1) / 2 in [0, 1] for boxes that overlap, else 0.0."""
    intersection, union = _shared(a, b)
    if intersection <= 0:
        return 0.0
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    uncovered = max(enclosing - union, 0.0) / enclosing  # rounding may leave it just below 0
    return (intersection / union - uncovered + 1) / 2


def area(corners: Corners) -> float:
    """Width times height."""
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def clip_box(corners: Corners, frame: tuple[int, int]) -> Corners:
    """`corners` cut to the frame (width, height); a box outside it becomes one without area."""
    width, height = frame
    x1, y1, x2, y2 = corners
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)


def _shared(a: Corners, b: Corners) -> tuple[float, float]:
    """Areas of the intersection and of the union; both 0.0 when the boxes do not overlap.

    Written out, without `min`, `max` and `area`: this runs once per pair of boxes, and calls would be most of its time.
    """
    left_a, top_a, right_a, bottom_a = a
    left_b, top_b, right_b, bottom_b = b
    width = (right_a if right_a < right_b else right_b) - (left_a if left_a > left_b else left_b)
    if width <= 0:
        return 0.0, 0.0
    height = (bottom_a if bottom_a < bottom_b else bottom_b) - (top_a if top_a > top_b else top_b)
    if height <= 0:
        return 0.0, 0.0
    intersection = width * height
    area_a, area_b = (right_a - left_a) * (bottom_a - top_a), (right_b - left_b) * (bottom_b - top_b)
    return intersection, area_a + area_b - intersection
