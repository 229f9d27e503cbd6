"""What one text earns at evaluation: exact scores, computed by hand; every row counts."""

from __future__ import annotations

import json

import pytest

from actors.reward import reward_settings
from configs.schema import RewardConfig
from data.types import LOCALIZATION, Box, Example
from evaluation.scoring import EvaluationError, RowView, Scoring, score_rows

CHOICE = RowView(
    Example("h/c", 0, "single_image", "Which?", "relative distance", ("a.png",), ("A. bed", "B. lamp"), "B")
)
NUMBER = RowView(Example("h/n", 1, "video", "How far?", "absolute distance", ("a.png", "b.png"), answer="2.0"))
#: Two boxes of a 400 x 200 picture that the model sees as 100 x 100: x / 4, y / 2.
BOXES = RowView(
    Example(
        "h/b",
        2,
        "single_image",
        "Where?",
        LOCALIZATION,
        ("a.png",),
        boxes=(Box("bed", (40, 20, 120, 60)), Box("lamp", (200, 100, 400, 200))),
    ),
    (400, 200),
    (100, 100),
)
RIGHT_BOXES = [{"bbox_2d": [10, 10, 30, 30], "label": "bed"}, {"bbox_2d": [50, 50, 100, 100], "label": "lamp"}]


def _one(row, text, metric, finish="stop", **reward):
    return score_rows([row], [text], [finish], Scoring(metric, reward_settings(RewardConfig(**reward))))[0]


def _think(answer):
    return f"<think>so</think><answer>{answer}</answer>"


def test_true_boxes_are_in_the_processed_frame():
    assert BOXES.target_boxes == (("bed", (10, 10, 30, 30)), ("lamp", (50, 50, 100, 100)))
    assert CHOICE.target_boxes == ()


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", "  {} \n"])
def test_localisation_reads_the_whole_text(wrap):
    score = _one(BOXES, wrap.format(json.dumps(RIGHT_BOXES)), "localization_iou")
    assert score.scores == {"iou": 1.0} and score.flag is None
    assert score.boxes[1].corners == (50, 50, 100, 100)


def test_localisation_partly_right():
    """Half the bed (IoU 1/2), no lamp: 0.5 / 2. A third box makes it 0.5 / 3."""
    half = {"bbox_2d": [10, 10, 30, 20], "label": "Bed"}
    extra = {"bbox_2d": [0, 0, 5, 5], "label": "sofa"}
    assert _one(BOXES, json.dumps([half]), "localization_iou").scores["iou"] == pytest.approx(0.25)
    assert _one(BOXES, json.dumps([half, extra, extra]), "localization_iou").scores["iou"] == pytest.approx(0.5 / 3)


def test_unreadable_boxes_are_wrong_and_flagged():
    for text, flag in (("the bed is left", "unparsable"), ('[{"bbox_2d": [1,', "unparsable"), ("", "no answer")):
        score = _one(BOXES, text, "localization_iou")
        assert (score.scores, score.flag, score.boxes) == ({"iou": 0.0}, flag, None)
    assert _one(BOXES, "[]", "localization_iou").flag is None  # read, and wrong


@pytest.mark.parametrize(
    "row, text, accuracy, flag",
    [
        (CHOICE, "B", 1.0, None),
        (CHOICE, " (b) ", 1.0, None),
        (CHOICE, "A", 0.0, None),
        (CHOICE, "C", 0.0, "unparsable"),
        (CHOICE, "it is near the lamp", 0.0, "unparsable"),
        (CHOICE, "", 0.0, "no answer"),
        (NUMBER, "2", 1.0, None),
        (NUMBER, "2.7 m", 0.4, None),
        (NUMBER, "9", 0.0, None),
        (NUMBER, "2 or 3", 0.0, "unparsable"),
    ],
)  # relative error 0.35 meets the tolerances 0.50, 0.45, 0.40, 0.35: 4 of 10
def test_direct_accuracy(row, text, accuracy, flag):
    score = _one(row, text, "accuracy")
    assert score.scores == {"accuracy": pytest.approx(accuracy)} and score.flag == flag


def test_thinking_rows_have_format_accuracy_and_the_weighted_reward():
    assert _one(CHOICE, _think("B"), "think", format=0.5, answer=2).scores == {
        "format": 1,
        "accuracy": 1,
        "reward": 2.5,
    }
    assert _one(NUMBER, _think("2.7"), "think").scores == {"format": 1, "accuracy": 0.4, "reward": pytest.approx(1.4)}
    score = _one(CHOICE, "B", "think")  # no tags: no answer, although the letter is right
    assert score.scores == {"format": 0, "accuracy": 0, "reward": 0} and (score.flag, score.answer) == (
        "no answer",
        None,
    )
    assert _one(CHOICE, "<answer>B</answer>", "think").scores == {"format": 0, "accuracy": 1, "reward": 1}


def test_thinking_localisation_has_iou_instead_of_accuracy():
    score = _one(BOXES, _think(json.dumps(RIGHT_BOXES[:1])), "think", iou=3)
    assert score.scores == {"format": 1, "iou": 0.5, "reward": 2.5}


def test_the_gate_acts_on_the_reward_only():
    score = _one(CHOICE, "x <think>so</think><answer>B</answer>", "think", gate="format")
    assert score.scores == {"format": 0, "accuracy": 1, "reward": 0}


def test_components_are_measured_whatever_their_weight():
    assert _one(CHOICE, _think("B"), "think", format=0, answer=0).scores == {"format": 1, "accuracy": 1}


@pytest.mark.parametrize(
    "row, text, metric",
    [(CHOICE, "B", "accuracy"), (CHOICE, _think("B"), "think"), (BOXES, json.dumps(RIGHT_BOXES), "localization_iou")],
)
def test_a_cut_off_answer_is_wrong_even_if_it_reads_well(row, text, metric):
    score = _one(row, text, metric, finish="length")
    assert set(score.scores.values()) == {0.0} and score.flag == "truncated"


def test_every_row_counts():
    rows = [CHOICE, NUMBER, CHOICE]
    scores = score_rows(rows, ["B", "", "…"], ["stop", "length", "stop"], Scoring("accuracy"))
    assert [s.scores["accuracy"] for s in scores] == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError):
        score_rows(rows, ["B"], ["stop"], Scoring("accuracy"))


def test_what_is_not_the_models_fault_is_no_score():
    with pytest.raises(EvaluationError, match="h/c: generation ended with 'abort'"):
        _one(CHOICE, "B", "accuracy", finish="abort")
    outside = RowView(
        Example("h/x", 0, "single_image", "?", LOCALIZATION, ("a",), boxes=(Box("bed", (0, 0, 900, 9)),)),
        (400, 200),
        (100, 100),
    )
    with pytest.raises(EvaluationError, match="h/x cannot be scored.*processed frame"):
        _one(outside, "[]", "localization_iou")
    with pytest.raises(EvaluationError, match="cannot be evaluated by 'accuracy'"):
        _one(BOXES, "[]", "accuracy")
    with pytest.raises(EvaluationError, match="cannot be evaluated by 'localization_iou'"):
        _one(CHOICE, "B", "localization_iou")
