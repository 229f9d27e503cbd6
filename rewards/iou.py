"""Set IoU: how well a set of labelled boxes covers the true set. (The paper has no IoU reward; this one is ours.)

    R = sum over matched pairs of IoU(p, g) [label p = label g]  /  max(|P|, |G|)

with the matching of greatest sum (Hungarian). What holds: R is in [0, 1]; 1 exactly for equal sets; an extra, repeated
or malformed prediction only enlarges the denominator; both sets empty score 1, one empty 0; an answer that cannot be
read scores 0, even when there is nothing to find. Everything is in pixels of the *processed* frame, continuous
widths, no "+1".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from rewards.boxes import Corners, PredictedBox, is_box, normalize_label, parse_boxes
from rewards.errors import GroundTruthError

#: Pixels by which a true box may leave the frame (rounding); more means that it is in another frame.
FRAME_SLACK = 1.0


def box_iou(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes, 0.0 when either has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def clip_box(corners: Corners, frame: tuple[int, int]) -> Corners:
    """`corners` cut to the frame (width, height); a box outside it becomes one without area."""
    width, height = frame
    x1, y1, x2, y2 = corners
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)


def best_matching(scores_P_G: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs (p, g, score) of the one-to-one matching with the greatest sum; pairs that score 0 are left out."""
    rows, columns = linear_sum_assignment(scores_P_G, maximize=True)
    return [(int(p), int(g), float(scores_P_G[p, g])) for p, g in zip(rows, columns) if scores_P_G[p, g] > 0]


def pair_scores(
    predictions: Sequence[PredictedBox], targets: Sequence[tuple[str, Corners]], frame: tuple[int, int]
) -> np.ndarray:
    """(|P|, |G|) float64: IoU where the labels agree, 0 elsewhere. Predictions are clipped to `frame` (width, height).

    Raises GroundTruthError for a true box that is degenerate, not finite, or outside the frame.
    """
    _check_targets(targets, frame)
    scores_P_G = np.zeros((len(predictions), len(targets)))
    for p, prediction in enumerate(predictions):
        if prediction.corners is None:
            continue
        clipped = clip_box(prediction.corners, frame)
        for g, (label, corners) in enumerate(targets):
            if normalize_label(prediction.label) == normalize_label(label):
                scores_P_G[p, g] = box_iou(clipped, clip_box(corners, frame))
    return scores_P_G


def set_iou(
    predictions: Sequence[PredictedBox], targets: Sequence[tuple[str, Corners]], frame: tuple[int, int]
) -> float:
    """R of the module's formula, in [0, 1], for parsed predictions."""
    scores_P_G = pair_scores(predictions, targets, frame)
    if not predictions and not targets:
        return 1.0
    return sum(score for _, _, score in best_matching(scores_P_G)) / max(scores_P_G.shape)


def iou_reward(answer: str | None, targets: Sequence[tuple[str, Corners]], frame: tuple[int, int]) -> float:
    """R for the text of an answer; 0.0 for a missing answer or one that is not a list of boxes (see rewards.boxes)."""
    predictions = None if answer is None else parse_boxes(answer)
    if predictions is None:
        _check_targets(targets, frame)
        return 0.0
    return set_iou(predictions, targets, frame)


def _check_targets(targets: Sequence[tuple[str, Corners]], frame: tuple[int, int]) -> None:
    width, height = frame
    for label, corners in targets:
        x1, y1, x2, y2 = corners
        inside = min(x1, y1) >= -FRAME_SLACK and x2 <= width + FRAME_SLACK and y2 <= height + FRAME_SLACK
        if not is_box(corners) or not is_box(clip_box(corners, frame)) or not inside:
            raise GroundTruthError(
                f"true box {tuple(corners)} of {label!r} is no box inside the processed frame {width}x{height}: "
                "convert boxes to the processed frame and fix degenerate ones"
            )
