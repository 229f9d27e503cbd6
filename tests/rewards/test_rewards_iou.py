"""Boxes as text and set IoU: exact values, limits, and the properties that make it hard to cheat."""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewards.boxes import MAX_CHARACTERS, MAX_ITEMS, PredictedBox, normalize_label, parse_boxes
from rewards.errors import GroundTruthError
from rewards.iou import best_matching, box_iou, iou_reward, pair_scores, set_iou

FRAME = (168, 112)


def item(label, *corners):
    return {"bbox_2d": list(corners), "label": label}


def score(items, targets, frame=FRAME):
    return iou_reward(json.dumps(items), targets, frame)


@st.composite
def boxes(draw, labels=("chair", "table"), **sizes):
    def one(label, x, y, w, h):
        return label, (float(x), float(y), float(x + w), float(y + h))

    side = st.integers(1, 40)
    left, top = st.integers(0, 120), st.integers(0, 70)
    return draw(st.lists(st.builds(one, st.sampled_from(labels), left, top, side, side), **sizes))


def predicted(targets):
    return tuple(PredictedBox(label, corners) for label, corners in targets)


# --- one pair -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # touching edges share nothing: no "+1" pixel
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((5, 5, 5, 9), (0, 0, 10, 10), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),
    ],
)
def test_box_iou(a, b, expected):
    assert box_iou(a, b) == pytest.approx(expected, abs=1e-12)
    assert box_iou(b, a) == pytest.approx(expected, abs=1e-12)


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["{}", "```json\n{}\n```", "```\n{}\n```", "  {}\n", "```JSON\n{}```"])
def test_a_list_is_read_with_or_without_a_fence(frame):
    text = frame.format(json.dumps([item("chair", 1, 2.5, 30, 40)]))
    assert parse_boxes(text) == (PredictedBox("chair", (1.0, 2.5, 30.0, 40.0)),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no boxes",
        "{}",
        '{"bbox_2d": [1, 2, 3, 4], "label": "chair"}',
        '"[]"',
        "null",
        "[",
        "[]]",
        "[] and more",
        "here: []",
        "```json\n[]",
        "[]\n```",
        "```json\n```json\n[]\n```\n```",
        "[{'bbox_2d': [1, 2, 3, 4], 'label': 'chair'}]",
        "[" * 4000,
        "[" + "1" * 5000 + "]",
        "[]" + " " * MAX_CHARACTERS + "x",
        json.dumps([0] * (MAX_ITEMS + 1)),
    ],
)
def test_what_is_no_list_of_boxes_is_no_prediction_and_scores_zero(text):
    assert parse_boxes(text) is None
    assert iou_reward(text, [], FRAME) == 0.0
    assert iou_reward(text, [("chair", (0, 0, 9, 9))], FRAME) == 0.0


def test_the_limits_themselves_are_allowed():
    assert len(parse_boxes(json.dumps([0] * MAX_ITEMS))) == MAX_ITEMS
    assert parse_boxes("[" + " " * (MAX_CHARACTERS - 2) + "]") == ()


@pytest.mark.parametrize(
    "bad",
    [
        item("chair", 9, 0, 0, 9),  # swapped corners
        item("chair", 0, 9, 9, 0),
        item("chair", 0, 0, 0, 9),
        item("chair", float("nan"), 0, 9, 9),
        item("chair", 0, 0, float("inf"), 9),
        item("chair", 0, 0, 10**400, 9),
        item("chair", 0, 0, 9),
        item("chair", 0, 0, 9, 9, 9),
        item("chair", "0", 0, 9, 9),
        item("chair", True, 0, 9, 9),
        item(None, 0, 0, 9, 9),
        {"bbox_2d": [0, 0, 9, 9]},
        {"bbox_2d": [0, 0, 9, 9], "label": "chair", "score": 1},
        {"bbox_2d": "0 0 9 9", "label": "chair"},
        [0, 0, 9, 9],
        None,
    ],
)
def test_a_malformed_item_matches_nothing_but_counts(bad):
    truth = [("chair", (0.0, 0.0, 9.0, 9.0))]
    assert score([bad], truth) == 0.0
    assert score([bad], []) == 0.0
    assert score([bad, item("chair", 0, 0, 9, 9)], truth) == 0.5


def test_a_repeated_key_is_malformed():
    text = '[{"bbox_2d": [50, 50, 60, 60], "bbox_2d": [0, 0, 9, 9], "label": "chair"}]'
    assert iou_reward(text, [("chair", (0.0, 0.0, 9.0, 9.0))], FRAME) == 0.0


@given(st.text(max_size=200))
def test_model_text_never_raises(text):
    assert iou_reward(text, [("chair", (0.0, 0.0, 9.0, 9.0))], FRAME) == 0.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.sampled_from(["bbox_2d", "label"]) | st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(json_values)
def test_model_json_never_raises_and_stays_in_range(value):
    assert 0.0 <= iou_reward(json.dumps(value), [("chair", (0.0, 0.0, 9.0, 9.0))], FRAME) <= 1.0


# --- sets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items, targets, expected",
    [
        ([], [], 1.0),
        ([], [("chair", (0, 0, 9, 9))], 0.0),
        ([item("chair", 0, 0, 9, 9)], [], 0.0),
        ([item("chair", 0, 0, 10, 10)], [("chair", (5, 0, 15, 10))], 1 / 3),
        ([item("table", 0, 0, 10, 10)], [("chair", (0, 0, 10, 10))], 0.0),
        ([item("Office_Chair ", 0, 0, 10, 10)], [("office-chair", (0, 0, 10, 10))], 1.0),
        ([item("chair", 0, 0, 10, 10)] * 2, [("chair", (0, 0, 10, 10))], 0.5),
        ([item("chair", 0, 0, 10, 10)], [("chair", (0, 0, 10, 10)), ("table", (20, 20, 30, 30))], 0.5),
        # What lies outside the picture is cut away: [-50, 10] x [0, 10] is the true box.
        ([item("chair", -50, 0, 10, 10)], [("chair", (0, 0, 10, 10))], 1.0),
        ([item("chair", 200, 0, 300, 10)], [("chair", (0, 0, 10, 10))], 0.0),
    ],
)
def test_exact_values(items, targets, expected):
    assert score(items, targets) == pytest.approx(expected, abs=1e-12)


def test_missing_answer_scores_zero_even_with_nothing_to_find():
    assert iou_reward(None, [], FRAME) == 0.0


def test_labels_are_compared_without_case_spaces_and_hyphens():
    assert normalize_label("  Trash__Can-big ") == "trash can big" == normalize_label("trash can  BIG")


def test_the_best_matching_is_not_the_greedy_one():
    scores = np.array([[0.9, 0.8], [0.8, 0.1]])  # greedy takes 0.9 + 0.1, the best is 0.8 + 0.8
    assert best_matching(scores) == [(0, 1, 0.8), (1, 0, 0.8)]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_matching_equals_brute_force(p, g, seed):
    rng = np.random.default_rng(seed)
    scores = rng.random((p, g)) * (rng.random((p, g)) < 0.7)
    small = scores if p <= g else scores.T
    best = max(sum(small[i, j] for i, j in enumerate(order)) for order in permutations(range(max(p, g)), min(p, g)))
    matching = best_matching(scores)
    assert sum(value for *_, value in matching) == pytest.approx(best, abs=1e-12)
    assert len({i for i, *_ in matching}) == len({j for _, j, _ in matching}) == len(matching)


@given(boxes(max_size=6))
def test_identical_sets_score_one(targets):
    assert set_iou(predicted(targets), targets, FRAME) == pytest.approx(1.0, abs=1e-12)


@given(boxes(max_size=5), boxes(max_size=5), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_range_holds(found, targets, random):
    value = set_iou(predicted(found), targets, FRAME)
    shuffled, reordered = random.sample(found, len(found)), random.sample(targets, len(targets))
    assert 0.0 <= value <= 1.0
    assert set_iou(predicted(shuffled), reordered, FRAME) == pytest.approx(value, abs=1e-12)


def assert_never_pays(found, extra, targets):
    before = set_iou(predicted(found), targets, FRAME)
    after = set_iou(predicted([*found, extra]), targets, FRAME)
    assert after <= before + 1e-12
    if len(found) >= len(targets) and before > 0:
        assert after < before


@given(boxes(min_size=1, max_size=5), boxes(min_size=1, max_size=5))
def test_an_extra_far_box_never_pays(found, targets):
    assert_never_pays(found, ("chair", (164.0, 110.0, 166.0, 112.0)), targets)


@given(boxes(min_size=1, max_size=5), boxes(min_size=1, max_size=2, unique_by=lambda box: box[0]))
def test_repeating_a_box_never_pays_where_every_label_is_asked_for_once(found, targets):
    assert_never_pays(found, found[0], targets)


@given(boxes(min_size=1, max_size=5))
def test_repeating_a_right_box_costs(targets):
    assert set_iou(predicted([*targets, targets[0]]), targets, FRAME) < 1.0


@given(boxes(min_size=1, max_size=5, unique=True), st.integers(0, 4))
def test_leaving_out_a_right_box_costs(targets, place):
    kept = [box for number, box in enumerate(targets) if number != place % len(targets)]
    assert set_iou(predicted(kept), targets, FRAME) < set_iou(predicted(targets), targets, FRAME)


@given(st.integers(1, 59), st.integers(0, 58), boxes(labels=("table",), max_size=3))
def test_a_better_box_never_scores_less(width, less, others):
    assume(less < width)
    truth = [("chair", (0.0, 0.0, 60.0, 20.0)), *others]

    def with_width(value):
        return set_iou(predicted([("chair", (0.0, 0.0, float(value), 20.0)), *others]), truth, FRAME)

    assert with_width(width) >= with_width(max(less, 1))


@given(boxes(max_size=4), boxes(max_size=4), st.sampled_from([0.25, 0.5, 3.0, 17.0]))
def test_scaling_both_frames_changes_nothing(found, targets, factor):
    def scaled(group):
        return [(label, tuple(factor * value for value in corners)) for label, corners in group]

    frame = tuple(factor * side for side in FRAME)
    expected = set_iou(predicted(found), targets, FRAME)
    assert set_iou(predicted(scaled(found)), scaled(targets), frame) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "corners",
    [
        (9.0, 0.0, 0.0, 9.0),
        (0.0, 0.0, 0.0, 9.0),
        (0.0, 0.0, float("nan"), 9.0),
        (0.0, 0.0, 400.0, 9.0),
        (-2.0, 0.0, 9.0, 9.0),
        (168.5, 0.0, 169.0, 9.0),
    ],
)
@pytest.mark.parametrize("answer", ["[]", "no boxes", None])
def test_a_bad_true_box_raises_whatever_the_answer(corners, answer):
    with pytest.raises(GroundTruthError, match="processed frame 168x112"):
        iou_reward(answer, [("chair", corners)], FRAME)


def test_pair_scores_are_ious_of_equal_labels():
    targets = [("chair", (0.0, 0.0, 10.0, 10.0)), ("table", (0.0, 0.0, 10.0, 10.0))]
    found = predicted([("chair", (5.0, 0.0, 15.0, 10.0))]) + (PredictedBox("", None),)
    assert pair_scores(found, targets, FRAME) == pytest.approx(np.array([[1 / 3, 0.0], [0.0, 0.0]]))
