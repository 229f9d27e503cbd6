"""Boxes as text and set IoU: exact values, limits, shapes. (What makes it hard to cheat: test_rewards_properties.py.)"""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.box_overlap import area, box_iou, clip_box, mapped_giou
from rewards.boxes import MAX_CHARACTERS, MAX_ITEMS, PredictedBox, leading_boxes, normalize_label, parse_boxes
from rewards.errors import GroundTruthError, RewardSettingsError
from rewards.extraction import extract_reasoning
from rewards.iou import best_matching, iou_reward, pair_scores, set_iou

FRAME = (168, 112)
SHAPES = ("plain", "squared", "thresholded", "soft_f1", "giou")


def item(label, *corners):
    return {"bbox_2d": list(corners), "label": label}


def score(items, targets, frame=FRAME):
    return iou_reward(json.dumps(items), targets, frame)


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


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        # Union 150 in an enclosing box of 150: GIoU = 1/3.
        ((0, 0, 10, 10), (5, 0, 15, 10), 2 / 3),
        # Union 175 in an enclosing box of 225: GIoU = 25/175 - 50/225 = -5/63.
        ((0, 0, 10, 10), (5, 5, 15, 15), 29 / 63),
        # One pixel of a 199x199 enclosing box is shared: 19999 are covered.
        ((0, 0, 100, 100), (99, 99, 199, 199), (1 / 19999 - 19602 / 39601 + 1) / 2),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # touching
        ((0, 0, 10, 10), (11, 0, 20, 10), 0.0),  # disjoint: unguarded this would be near a half
        ((5, 5, 5, 9), (0, 0, 10, 10), 0.0),
    ],
)
def test_mapped_giou(a, b, expected):
    assert mapped_giou(a, b) == pytest.approx(expected, abs=1e-12)
    assert mapped_giou(b, a) == pytest.approx(expected, abs=1e-12)


def test_a_box_is_cut_to_the_frame():
    assert clip_box((-5.0, -5.0, 200.0, 50.0), FRAME) == (0.0, 0.0, 168, 50.0)
    assert area(clip_box((170.0, 0.0, 180.0, 9.0), FRAME)) == 0.0


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


@pytest.mark.parametrize("text, labels", [
    ('[{"bbox_2d": [1, 2, 3, 4], "label": "chair"}] so it is near.', ["chair"]),
    ('\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "chair"}]\n``` and [{"bbox_2d": [1, 2, 3, 4], "label": "lamp"}]', ["chair"]),
    ("[] nothing", []),
    ("[1] is a number, not a box", [""]),
    ('I see [{"bbox_2d": [1, 2, 3, 4], "label": "chair"}]', None),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": "chair"}', None),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "chair"} here', None),
    ("3 chairs", None),
    ("[" * 100_000, None),
    ("[" + "0, " * MAX_CHARACTERS + "0]", None),
    ("[" + "0, " * MAX_ITEMS + "0]", None),
    ("", None),
])
def test_a_list_at_the_beginning_of_a_text(text, labels):
    boxes = leading_boxes(text)
    assert (boxes if boxes is None else [box.label for box in boxes]) == labels


@pytest.mark.parametrize("text, reasoning", [
    ("<think>a</think><answer>b</answer>", "a"), ("x<think></think>", ""), ("<think>a", None), ("a</think>", None), ("", None),
    ("</think><think>a<think>b</think>c</think>", "a<think>b"),
])
def test_the_reasoning_of_a_text(text, reasoning):
    assert extract_reasoning(text) == reasoning


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


#: Two chairs that overlap, and a box between them: its IoU with either is 90 x 100 / 110 x 100 = 9/11.
TWO = [("chair", (0, 0, 100, 100)), ("chair", (20, 0, 120, 100))]
BETWEEN = item("chair", 10, 0, 110, 100)


@pytest.mark.parametrize(
    "items, expected",
    [
        ([BETWEEN], 9 / 22),
        ([BETWEEN] * 2, 9 / 22),  # matched twice it would score 9/11
        ([BETWEEN] * 3, 9 / 33),
        ([BETWEEN, item(" CHAIR", 10.0, 0, 110, 100)], 9 / 22),  # the label is compared as it is matched
        ([BETWEEN, item("table", 10, 0, 110, 100)], 9 / 22),
        ([BETWEEN, item("chair", 10, 0, 110, 100.5)], (9 / 11 + 9000 / 11050) / 2),  # another box, no repetition
        ([item("chair", 0, 0, 100, 100), BETWEEN, BETWEEN], (1 + 9 / 11) / 3),
    ],
)
def test_a_repeated_box_is_matched_once(items, expected):
    assert score(items, TWO) == pytest.approx(expected, abs=1e-12)
    assert score(items[::-1], TWO) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "shape, once, twice",
    [
        ("plain", 9 / 22, 9 / 22),
        ("squared", 81 / 242, 81 / 242),
        ("thresholded", 9 / 22, 9 / 22),
        ("soft_f1", 6 / 11, 9 / 22),
        ("giou", 5 / 11, 5 / 11),  # both boxes fill the one around them: (9/11 + 1) / 2 is the pair's score
    ],
)
def test_a_repeated_box_is_matched_once_in_every_shape(shape, once, twice):
    assert iou_reward(json.dumps([BETWEEN]), TWO, FRAME, shape) == pytest.approx(once, abs=1e-12)
    assert iou_reward(json.dumps([BETWEEN] * 2), TWO, FRAME, shape) == pytest.approx(twice, abs=1e-12)


def test_boxes_that_differ_outside_the_frame_only_are_one_box():
    """Within the frame both are [0, 110] x [0, 112]: IoU 100 x 100 / 110 x 112, and 90 x 100 / (12320 + 1000)."""
    found = [item("chair", -5, -1, 110, 112), item("chair", 0, 0, 110, 300)]
    assert score(found[:1], TWO) == score(found[1:], TWO) == pytest.approx(10000 / 12320 / 2, abs=1e-12)
    assert score(found, TWO) == pytest.approx(10000 / 12320 / 2, abs=1e-12)


@pytest.mark.parametrize("times, expected", [(1, 1 / 2), (2, 1.0), (3, 2 / 3)])
def test_a_true_box_given_twice_may_be_found_twice(times, expected):
    """Equal sets score 1; a box near it is still matched once."""
    truth = [("chair", (0, 0, 10, 10)), ("Chair", (-0.5, 0, 10, 10))]
    assert score([item("chair", 0, 0, 10, 10)] * times, truth) == pytest.approx(expected, abs=1e-12)
    assert score([item("chair", 0, 0, 10, 5)] * 2, truth) == pytest.approx(1 / 4, abs=1e-12)


def test_missing_answer_scores_zero_even_with_nothing_to_find():
    assert iou_reward(None, [], FRAME) == 0.0


def test_labels_are_compared_without_case_spaces_and_hyphens():
    assert normalize_label("  Trash__Can-big ") == "trash can big" == normalize_label("trash can  BIG")


def positive(scores_P_G):
    return [(p, g, float(score)) for (p, g), score in np.ndenumerate(scores_P_G) if score > 0]


def test_the_best_matching_is_not_the_greedy_one():
    scores = np.array([[0.9, 0.8], [0.8, 0.1]])  # greedy takes 0.9 + 0.1, the best is 0.8 + 0.8
    assert best_matching(positive(scores)) == [(0, 1, 0.8), (1, 0, 0.8)]


def test_pairs_that_do_not_compete_are_all_matched():
    pairs = [(0, 3, 0.5), (5, 0, 0.25), (2, 7, 1.0)]
    assert best_matching(pairs) == pairs
    assert best_matching([]) == []


def test_of_pairs_that_compete_for_one_box_the_best_is_matched():
    assert best_matching([(0, 4, 0.5), (1, 4, 0.75), (9, 4, 0.25)]) == [(1, 4, 0.75)]
    assert best_matching([(4, 0, 0.5), (4, 1, 0.75), (4, 9, 0.25)]) == [(4, 1, 0.75)]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_matching_equals_brute_force(p, g, seed):
    rng = np.random.default_rng(seed)
    scores = rng.random((p, g)) * (rng.random((p, g)) < 0.7)
    small = scores if p <= g else scores.T
    best = max(sum(small[i, j] for i, j in enumerate(order)) for order in permutations(range(max(p, g)), min(p, g)))
    matching = best_matching(positive(scores))
    assert sum(value for *_, value in matching) == pytest.approx(best, abs=1e-12)
    assert len({i for i, *_ in matching}) == len({j for _, j, _ in matching}) == len(matching)


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


def test_a_true_box_whose_area_underflows_raises():
    with pytest.raises(GroundTruthError, match="processed frame 168x112"):
        iou_reward("[]", [("chair", (0.0, 0.0, 1e-200, 1e-200))], FRAME)


def test_a_repetition_is_in_no_pair():
    found = predicted([("chair", (10.0, 0.0, 110.0, 100.0))] * 2)
    assert pair_scores(found, TWO, FRAME) == [(0, 0, pytest.approx(9 / 11)), (0, 1, pytest.approx(9 / 11))]


def test_pair_scores_are_ious_of_equal_labels():
    targets = [("chair", (0.0, 0.0, 10.0, 10.0)), ("table", (0.0, 0.0, 10.0, 10.0))]
    found = (PredictedBox("", None),) + predicted([("chair", (5.0, 0.0, 15.0, 10.0)), ("lamp", (0.0, 0.0, 9.0, 9.0))])
    assert pair_scores(found, targets, FRAME) == [(1, 0, pytest.approx(1 / 3))]


# --- shapes ---------------------------------------------------------------------------------------------------------

#: Two of three true boxes are found, with IoU 1/3 and 3/5; one prediction is far off, so |P| = |G| = 3.
FOUND = [item("chair", 5, 0, 15, 10), item("table", 20, 20, 28, 30), item("lamp", 100, 100, 110, 110)]
TRUE = [("chair", (0, 0, 10, 10)), ("table", (22, 20, 30, 30)), ("lamp", (50, 50, 60, 60))]


@pytest.mark.parametrize(
    "shape, threshold, expected",
    [
        ("plain", 0.5, (1 / 3 + 3 / 5) / 3),
        ("squared", 0.5, (1 / 9 + 9 / 25) / 3),
        ("thresholded", 0.5, (3 / 5) / 3),
        ("thresholded", 0.0, (1 / 3 + 3 / 5) / 3),
        ("thresholded", 0.61, 0.0),
        ("soft_f1", 0.5, (1 / 3 + 3 / 5) / 3),
        ("giou", 0.5, (4 / 6 + 8 / 10) / 3),  # both pairs fill their enclosing box: GIoU = IoU
    ],
)
def test_shapes_of_the_pair_score(shape, threshold, expected):
    assert iou_reward(json.dumps(FOUND), TRUE, FRAME, shape, threshold) == pytest.approx(expected, abs=1e-12)


def test_a_threshold_that_is_met_exactly_counts():
    half = json.dumps([item("chair", 0, 0, 5, 10)])
    assert iou_reward(half, [("chair", (0, 0, 10, 10))], FRAME, "thresholded", 0.5) == 0.5
    assert iou_reward(half, [("chair", (0, 0, 10, 10))], FRAME, "thresholded", 0.501) == 0.0


def test_soft_f1_divides_by_the_mean_of_the_counts():
    three = json.dumps([item("chair", 0, 0, 10, 10), item("chair", 50, 50, 60, 60), item("chair", 70, 70, 80, 80)])
    assert iou_reward(three, [("chair", (0, 0, 10, 10))], FRAME, "soft_f1") == pytest.approx(2 / 4, abs=1e-12)
    assert iou_reward(three, [("chair", (0, 0, 10, 10))], FRAME, "plain") == pytest.approx(1 / 3, abs=1e-12)


def test_the_matching_is_that_of_the_shaped_scores():
    """Plain scores sum to more across (0.50 + 0.51), squares along (0.36 + 0.16); a threshold of 0.55 leaves one pair."""
    plain = [(0, 0, 0.6), (0, 1, 0.5), (1, 0, 0.51), (1, 1, 0.4)]
    squares = [(p, g, score * score) for p, g, score in plain]
    assert [pair[:2] for pair in best_matching(plain)] == [(0, 1), (1, 0)]
    assert [pair[:2] for pair in best_matching(squares)] == [(0, 0), (1, 1)]
    assert [pair[:2] for pair in best_matching([pair for pair in plain if pair[2] >= 0.55])] == [(0, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_sets_and_unreadable_answers_score_alike_in_every_shape(shape):
    truth = [("chair", (0, 0, 10, 10))]
    assert iou_reward("[]", [], FRAME, shape) == 1.0
    assert iou_reward("[]", truth, FRAME, shape) == 0.0
    assert iou_reward(json.dumps([item("chair", 0, 0, 10, 10)]), [], FRAME, shape) == 0.0
    assert iou_reward("no boxes", [], FRAME, shape) == iou_reward(None, [], FRAME, shape) == 0.0


@pytest.mark.parametrize("answer", ["[]", "no boxes", None])
@pytest.mark.parametrize(
    "shape, threshold, message",
    [
        ("ciou", 0.5, "IoU shape 'ciou': choose one of plain, squared, thresholded, soft_f1, giou"),
        ("thresholded", 1.5, "IoU threshold is 1.5: it must be from 0 to 1"),
        ("thresholded", -0.1, "from 0 to 1"),
        ("plain", float("nan"), "from 0 to 1"),
    ],
)
def test_an_unknown_shape_or_threshold_raises_whatever_the_answer(answer, shape, threshold, message):
    with pytest.raises(RewardSettingsError, match=message):
        iou_reward(answer, [], FRAME, shape, threshold)
