"""Set IoU: how well a set of labelled boxes covers the true set. (The paper has no IoU reward; this one is ours.)

    R = sum over matched pairs of s(p, g) [label p = label g]  /  max(|P|, |G|)

with s the IoU (or another of rewards.box_overlap's shapes; `soft_f1` divides by (|P| + |G|) / 2 instead) and the
matching of greatest sum of s (Hungarian). What holds: R is in [0, 1]; 1 exactly for equal sets; a prediction that is
malformed, overlaps nothing, or repeats an earlier one (label and box within the frame) only enlarges the denominator;
both sets empty score 1, one empty 0; an answer that cannot be read scores 0, even when there is nothing to find. (Should
the true set itself hold one box n times, n predictions of that very box are no repetition.) Everything is in pixels of
the *processed* frame.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from rewards.box_overlap import IouShape, area, check_shape, clip_box, pair_score
from rewards.boxes import Corners, PredictedBox, is_box, normalize_label, parse_boxes
from rewards.errors import GroundTruthError

#: Pixels by which a true box may leave the frame (rounding); more means that it is in another frame.
FRAME_SLACK = 1.0
#: Index of the prediction, index of the true box, score.
ScoredPair = tuple[int, int, float]


def best_matching(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """Those of `pairs` that make the one-to-one matching with the greatest sum, in the given order.

    Scores are positive, and no (p, g) comes twice; pairs that are not given score 0.
    """
    rows = {p: row for row, p in enumerate(dict.fromkeys(p for p, _, _ in pairs))}
    columns = {g: column for column, g in enumerate(dict.fromkeys(g for _, g, _ in pairs))}
    if len(rows) == len(columns) == len(pairs):  # no two pairs compete: the usual case, and no solver to start
        return list(pairs)
    scores_R_C = np.zeros((len(rows), len(columns)))
    for p, g, score in pairs:
        scores_R_C[rows[p], columns[g]] = score
    chosen_rows, chosen_columns = linear_sum_assignment(scores_R_C, maximize=True)
    column_of = dict(zip(chosen_rows.tolist(), chosen_columns.tolist(), strict=True))
    return [(p, g, score) for p, g, score in pairs if column_of.get(rows[p]) == columns[g]]


def pair_scores(
    predictions: Sequence[PredictedBox],
    targets: Sequence[tuple[str, Corners]],
    frame: tuple[int, int],
    shape: IouShape = "plain",
    threshold: float = 0.5,
) -> list[ScoredPair]:
    """Every pair of equal labels that scores above 0; a repetition is in none. Predictions are clipped to `frame` (width,
    height), and compared as clipped.

    Raises GroundTruthError for a true box that is degenerate, not finite, or outside the frame, and
    RewardSettingsError as `check_shape` does.
    """
    check_shape(shape, threshold)
    wanted: dict[str, list[tuple[int, Corners]]] = {}
    for g, (label, corners) in enumerate(targets):
        wanted.setdefault(normalize_label(label), []).append((g, _in_frame(label, tuple(corners), tuple(frame))))
    pairs = []
    times: Counter[tuple[str, Corners]] = Counter()
    for p, prediction in enumerate(predictions):
        if prediction.corners is None:
            continue
        label = normalize_label(prediction.label)
        same_label = wanted.get(label, ())
        clipped = clip_box(prediction.corners, frame)
        times[label, clipped] += 1
        repeats = times[label, clipped]
        if repeats > 1 and repeats > sum(target == clipped for _, target in same_label):
            continue
        for g, target in same_label:
            score = pair_score(clipped, target, shape, threshold)
            if score > 0:
                pairs.append((p, g, score))
    return pairs


def set_iou(
    predictions: Sequence[PredictedBox],
    targets: Sequence[tuple[str, Corners]],
    frame: tuple[int, int],
    shape: IouShape = "plain",
    threshold: float = 0.5,
) -> float:
    """R of the module's formula, in [0, 1], for parsed predictions. Raises as `pair_scores` does."""
    matched = best_matching(pair_scores(predictions, targets, frame, shape, threshold))
    if not predictions and not targets:
        return 1.0
    total = math.fsum(score for _, _, score in matched)  # exact, so that the order of the boxes changes nothing
    if shape == "soft_f1":
        return 2 * total / (len(predictions) + len(targets))
    return total / max(len(predictions), len(targets))


def iou_reward(
    answer: str | None,
    targets: Sequence[tuple[str, Corners]],
    frame: tuple[int, int],
    shape: IouShape = "plain",
    threshold: float = 0.5,
) -> float:
    """R for the text of an answer; 0.0 for a missing answer or one that is not a list of boxes (see rewards.boxes).

    Raises as `pair_scores` does, whatever the answer.
    """
    return boxes_reward(None if answer is None else parse_boxes(answer), targets, frame, shape, threshold)


def boxes_reward(
    predictions: Sequence[PredictedBox] | None,
    targets: Sequence[tuple[str, Corners]],
    frame: tuple[int, int],
    shape: IouShape = "plain",
    threshold: float = 0.5,
) -> float:
    """R for boxes that were read; 0.0 for None, where none could be.

    Raises as `pair_scores` does, whatever the predictions.
    """
    if predictions is None:
        pair_scores((), targets, frame, shape, threshold)  # a bad row is reported even so
        return 0.0
    return set_iou(predictions, targets, frame, shape, threshold)


@lru_cache(1024)  # the same for every completion of a group
def _in_frame(label: str, corners: Corners, frame: tuple[int, int]) -> Corners:
    """A true box clipped to the frame; GroundTruthError when it is no box there, or further out than the slack."""
    width, height = frame
    x1, y1, x2, y2 = corners
    clipped = clip_box(corners, frame)
    inside = min(x1, y1) >= -FRAME_SLACK and x2 <= width + FRAME_SLACK and y2 <= height + FRAME_SLACK
    if not is_box(corners) or not inside or not is_box(clipped) or area(clipped) <= 0:  # an area may underflow to 0
        raise GroundTruthError(
            f"true box {tuple(corners)} of {label!r} is no box inside the processed frame {width}x{height}: "
            "convert boxes to the processed frame and fix degenerate ones"
        )
    return clipped
