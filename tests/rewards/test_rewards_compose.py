"""The Score of a completion: components, weights, gates, outcomes."""

import json
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import types as data_types
from rewards import compose
from rewards.compose import BuiltIn, applicable, built_in, composed, score_completion
from rewards.errors import GroundTruthError, RewardSettingsError
from rewards.settings import RewardSettings


@dataclass(frozen=True)
class Row:
    question_type: str
    options: tuple | None = None
    answer: str | None = None
    target_boxes: tuple = ()
    processed_size: tuple | None = None


CHOICE = Row("relative direction", ("A. left", "B. right"), "A")
NUMBER = Row("absolute distance", None, "101")
BOXES = Row("object localization", None, None, (("chair", (0.0, 0.0, 10.0, 10.0)),), (168, 168))
BOTH = replace(CHOICE, target_boxes=BOXES.target_boxes, processed_size=BOXES.processed_size)
CHAIR = '[{"bbox_2d": [5, 0, 15, 10], "label": "chair"}]'
DEFAULT = RewardSettings()


def wrap(answer):
    return f"<think>look</think><answer>{answer}</answer>"


def located(boxes, answer):
    return f"<think> {boxes} so look</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    "text, row, components, total",
    [
        (wrap("A"), CHOICE, {"format": 1.0, "answer": 1.0}, 2.0),
        (wrap("B"), CHOICE, {"format": 1.0, "answer": 0.0}, 1.0),
        (wrap("62"), NUMBER, {"format": 1.0, "answer": 0.3}, 1.3),  # the figure of the paper
        ("<answer>(A)</answer>", CHOICE, {"format": 0.0, "answer": 1.0}, 1.0),
        ("A", CHOICE, {"format": 0.0, "answer": 0.0}, 0.0),  # no tags, no answer
        (wrap(CHAIR), BOXES, {"format": 1.0, "iou": 1 / 3}, 4 / 3),
        (wrap("[]"), replace(BOXES, target_boxes=()), {"format": 1.0, "iou": 1.0}, 2.0),
        (wrap("A"), BOTH, {"format": 1.0, "answer": 1.0, "iou": 0.0}, 2.0),
        (located(CHAIR, "A"), BOTH, {"format": 1.0, "answer": 1.0, "iou": 1 / 3}, 7 / 3),
        (located(f"```json\n{CHAIR}\n```", "B"), BOTH, {"format": 1.0, "answer": 0.0, "iou": 1 / 3}, 4 / 3),
        (wrap(CHAIR), BOTH, {"format": 1.0, "answer": 0.0, "iou": 0.0}, 1.0),  # a question's answer is no place for boxes
        (located(CHAIR, "[]"), BOXES, {"format": 1.0, "iou": 0.0}, 1.0),  # nor is the reasoning of a localisation row
    ],
)
def test_components_and_total(text, row, components, total):
    score = score_completion(text, "stop", row, DEFAULT)
    assert score.outcome == "ok"
    assert dict(score.components) == pytest.approx(components)
    assert score.total == pytest.approx(total)


def test_weights_scale_the_total_and_zero_removes_the_component():
    settings = RewardSettings(format=0.5, answer=2.0, iou=0.0)
    assert score_completion(wrap("62"), "stop", NUMBER, settings).total == pytest.approx(0.5 + 0.6)
    score = score_completion(wrap(CHAIR), "stop", BOXES, settings)
    assert (dict(score.components), score.total) == ({"format": 1.0}, 0.5)


def test_a_truncated_completion_has_an_outcome_and_no_number():
    score = score_completion(wrap("A"), "length", CHOICE, DEFAULT)
    assert (score.outcome, score.total, dict(score.components)) == ("truncated", None, {})


def test_an_aborted_completion_is_an_error():
    score = score_completion(wrap("A"), "abort", CHOICE, DEFAULT)
    assert (score.outcome, score.total) == ("error", None)
    assert "abort" in score.detail


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_format_gate_lets_only_format_count(weight):
    settings = RewardSettings(format=weight, gate="format")
    gated = score_completion("<answer>A</answer>", "stop", CHOICE, settings)
    assert gated.components["answer"] == 1.0 and gated.total == 0.0
    assert score_completion(wrap("A"), "stop", CHOICE, settings).total == weight + 1.0


def test_accuracy_gate_holds_the_boxes_back_until_the_answer_is_fully_right():
    row = replace(NUMBER, target_boxes=BOXES.target_boxes, processed_size=BOXES.processed_size)
    settings = RewardSettings(gate="accuracy", answer=0.0)
    boxes_only = score_completion(located(CHAIR, "62"), "stop", row, settings)
    assert boxes_only.components["iou"] == pytest.approx(1 / 3) and boxes_only.total == 1.0
    assert score_completion(wrap(CHAIR), "stop", BOXES, settings).total == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "row, settings, names",
    [
        (CHOICE, DEFAULT, ("format", "answer")),
        (BOXES, DEFAULT, ("format", "iou")),
        (BOTH, DEFAULT, ("format", "answer", "iou")),
        (BOXES, RewardSettings(format=0, iou=0), ()),
    ],
)
def test_what_applies_is_known_from_the_row(row, settings, names):
    assert applicable(row, settings) == names


@given(st.text(max_size=80), st.sampled_from([CHOICE, NUMBER, BOXES, BOTH]), st.booleans())
def test_model_text_never_raises_and_never_changes_what_applies(text, row, wrapped):
    score = score_completion(wrap(text) if wrapped else text, "stop", row, DEFAULT)
    assert tuple(score.components) == applicable(row, DEFAULT)
    assert all(0.0 <= value <= 1.0 for value in score.components.values())
    assert score.total == pytest.approx(sum(score.components.values()))


def test_a_score_does_not_depend_on_the_place_in_the_batch():
    texts = [wrap(answer) for answer in ("A", "B", "(A)", "[]", "7")] + ["A", ""]
    alone = {text: score_completion(text, "stop", CHOICE, DEFAULT) for text in texts}
    shuffled = Random(0).sample(texts * 2, len(texts) * 2)
    assert [score_completion(text, "stop", CHOICE, DEFAULT) for text in shuffled] == [alone[text] for text in shuffled]


@pytest.mark.parametrize(
    "row, message",
    [
        (replace(CHOICE, question_type="route planning"), "question_type 'route planning'"),
        (replace(CHOICE, options=None), "has options None"),
        (replace(NUMBER, options=("A. 1", "B. 2")), "has options"),
        (replace(NUMBER, answer=None), "has no answer"),
        (replace(CHOICE, answer="C"), "not the letter"),
        (replace(BOXES, processed_size=None), "no processed_size"),
        (replace(BOXES, processed_size=(5, 5)), "processed frame 5x5"),
    ],
)
def test_a_row_that_cannot_be_scored_raises_whatever_the_text(row, message):
    for text in (wrap("A"), "nothing"):
        with pytest.raises(GroundTruthError, match=message):
            score_completion(text, "stop", row, DEFAULT)


def test_a_row_without_any_component_is_a_settings_error():
    with pytest.raises(RewardSettingsError, match="object localization"):
        score_completion(wrap("[]"), "stop", BOXES, RewardSettings(format=0, iou=0))


@pytest.mark.parametrize("bad", [{"format": -1.0}, {"iou": float("nan")}, {"gate": "all"}, {"mra_mode": "loose"}])
def test_settings_check_themselves(bad):
    with pytest.raises(RewardSettingsError):
        RewardSettings(**bad)


def test_components_of_ones_own_join_with_their_weights():
    own = built_in(wrap("A"), CHOICE, DEFAULT)
    others = {"brief": 0.25, "parts/a": 1.0, "parts/b": 0.5}
    score = composed(CHOICE, own, others, DEFAULT, {"brief": 2.0, "parts/a": -1.0, "parts/b": 1.0})
    assert dict(score.components) == {"format": 1.0, "answer": 1.0} | others
    assert score.total == pytest.approx(2.0 + 0.5 - 1.0 + 0.5)


@pytest.mark.parametrize("value, weight, outcome", [(1e6, 999.0, "ok"), (1e6, -1001.0, "error"), (1.0, 1e308, "error")])
def test_a_total_out_of_all_proportion_is_an_error(value, weight, outcome):
    score = composed(CHOICE, BuiltIn({"format": 1.0}, ("format",)), {"mine": value}, RewardSettings(), {"mine": weight})
    assert score.outcome == outcome and ("at most 1e+09 can be compared" in score.detail) == (outcome == "error")


def test_the_format_gate_holds_back_components_of_ones_own():
    settings = RewardSettings(gate="format")
    assert composed(CHOICE, built_in("A", CHOICE, settings), {"brief": 0.25}, settings, {"brief": 1.0}).total == 0.0
    assert composed(CHOICE, built_in(wrap("B"), CHOICE, settings), {"brief": 0.25}, settings, {"brief": 1.0}).total == 1.25


def test_a_row_without_any_component_is_refused_unless_one_of_ones_own_applies():
    settings = RewardSettings(format=0, iou=0)
    own = built_in(wrap("[]"), BOXES, settings)
    assert composed(BOXES, own, {"mine": 0.5}, settings, {"mine": 1.0}).total == 0.5
    with pytest.raises(RewardSettingsError, match="no reward applies"):
        composed(BOXES, own, {}, settings, {})


def test_the_forms_of_the_settings_reach_the_components():
    box = [{"bbox_2d": [0, 0, 10, 10], "label": "chair"}]
    near = [{"bbox_2d": [0, 0, 10, 5], "label": "chair"}]
    example = replace(BOXES, target_boxes=(("chair", (0.0, 0.0, 10.0, 10.0)),), processed_size=(28, 28))
    half = {"plain": 0.5, "squared": 0.25, "thresholded": 0.0, "soft_f1": 0.5}
    for shape, value in half.items():
        settings = RewardSettings(iou_shape=shape, iou_threshold=0.6)
        assert built_in(wrap(json.dumps(near)), example, settings).components["iou"] == pytest.approx(value)
        assert built_in(wrap(json.dumps(box)), example, settings).components["iou"] == 1.0
    repeated = built_in(wrap("a b a b a b"), CHOICE, RewardSettings(repetition=1.0, repetition_ngram=2))
    assert -1 < repeated.components["repetition"] < 0


def test_the_paper_preset_scores_like_the_authors_and_has_no_boxes():
    paper = RewardSettings(preset="paper")
    assert applicable(BOXES, paper) == ("format",)
    assert score_completion("A", "stop", CHOICE, paper).components == {"format": 0.0, "answer": 1.0}  # no tags needed
    cut = score_completion("A", "length", CHOICE, paper)  # a truncated completion is scored
    assert (cut.outcome, cut.total) == ("ok", 1.0)


def test_question_types_and_units_are_those_of_the_data():
    assert set(compose.CHOICE_TYPES) == set(data_types.MULTIPLE_CHOICE_TYPES)
    assert dict(compose.NUMBER_UNITS) == dict(data_types.UNITS)
    assert set(compose.NUMBER_UNITS) == set(data_types.NUMERIC_TYPES)
    assert compose.LOCALIZATION == data_types.LOCALIZATION
