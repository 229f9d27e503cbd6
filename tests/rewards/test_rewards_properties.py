"""Properties of the set IoU and of the parsers, on generated cases that are the same in every run.

Set IoU is judged by an oracle of its own: exact rational overlaps, and every matching tried.
"""

import json
import math
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rewards.accuracy import number_reward
from rewards.boxes import PredictedBox, parse_boxes
from rewards.choice import choice_reward, parse_choice
from rewards.extraction import extract_answer
from rewards.format import format_reward
from rewards.iou import best_matching, iou_reward, set_iou
from rewards.number import parse_number
from rewards.paper import paper_choice_reward, paper_clean, paper_format_reward, paper_number_reward
from rewards.repetition import repetition_reward

FRAME = (168, 168)
SHAPES = ("plain", "squared", "thresholded", "soft_f1", "giou")
CLOSE = 1e-12


def cases(number):
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
    )


# --- the oracle -----------------------------------------------------------------------------------------------------


def size(box):
    return Fraction(box[2] - box[0]) * Fraction(box[3] - box[1])


def exact_pair(a, b, shape):
    """Score of two boxes of whole numbers, as a Fraction."""
    common = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    if common[0] >= common[2] or common[1] >= common[3]:
        return Fraction(0)
    union = size(a) + size(b) - size(common)
    iou = size(common) / union
    if shape == "squared":
        return iou**2
    if shape == "thresholded":
        return iou if iou >= Fraction(1, 2) else Fraction(0)
    if shape == "giou":
        hull = size((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
        return (iou - (hull - union) / hull + 1) / 2
    return iou


def exact_set(found, targets, shape):
    """R by trying every one-to-one assignment of the larger set's boxes, the smaller one padded with nothing.

    A box that comes more often than the true set holds it is a row of zeros from then on."""
    if not found and not targets:
        return 1.0
    size_both = max(len(found), len(targets))
    table = [[0.0] * size_both for _ in range(size_both)]
    for p, (found_label, a) in enumerate(found):
        if found[:p].count((found_label, a)) >= max(1, targets.count((found_label, a))):
            continue
        for g, (label, b) in enumerate(targets):
            if found_label == label:
                table[p][g] = float(exact_pair(a, b, shape))
    best = max(sum(table[p][g] for p, g in enumerate(order)) for order in permutations(range(size_both)))
    return best / ((len(found) + len(targets)) / 2 if shape == "soft_f1" else size_both)


# --- generated sets of boxes ----------------------------------------------------------------------------------------


def box_lists(labels=("chair", "table"), **sizes):
    """(label, corners) of whole numbers, left and above (140, 140)."""

    def one(label, x, y, w, h):
        return label, (float(x), float(y), float(x + w), float(y + h))

    start, side = st.integers(0, 60), st.integers(1, 80)
    return st.lists(st.builds(one, st.sampled_from(labels), start, start, side, side), **sizes)


@st.composite
def apart(draw, min_found=0, max_found=6):
    """Predictions and true boxes of which each has a cell of the picture to itself: a prediction overlaps at most the
    true box of its cell, and is the part of it that is `width` wide."""
    cells = [(float(40 * column), float(40 * row)) for row in range(3) for column in range(3)]
    target_cells = draw(st.lists(st.sampled_from(cells), min_size=1, max_size=6, unique=True))
    targets = [("chair", (x, y, x + 30, y + 20)) for x, y in target_cells]
    found_cells = draw(st.lists(st.sampled_from(cells), min_size=min_found, max_size=max_found, unique=True))
    found = [("chair", (x, y, x + draw(st.integers(1, 30)), y + 20)) for x, y in found_cells]
    return found, targets


def scored(found, targets, shape="plain", frame=FRAME):
    return set_iou([PredictedBox(label, corners) for label, corners in found], targets, frame, shape)


# --- set IoU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@cases(80)
@given(box_lists(max_size=6), box_lists(max_size=6))
def test_iou_equals_brute_force_on_exact_overlaps(shape, found, targets):
    value = scored(found, targets, shape)
    assert value == pytest.approx(exact_set(found, targets, shape), abs=CLOSE)
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("shape", SHAPES)
@cases(50)
@given(box_lists(max_size=6), box_lists(max_size=6), st.randoms(use_true_random=False))
def test_iou_does_not_depend_on_the_order(shape, found, targets, random):
    shuffled, reordered = random.sample(found, len(found)), random.sample(targets, len(targets))
    assert scored(shuffled, reordered, shape) == pytest.approx(scored(found, targets, shape), abs=CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
@cases(30)
@given(box_lists(max_size=6))
def test_iou_of_equal_sets_is_one(shape, targets):
    assert scored(targets, targets, shape) == 1.0


@cases(200)
@given(st.lists(st.integers(0, 20), min_size=36, max_size=36), st.integers(0, 5), st.integers(1, 20))
def test_raising_one_matched_score_never_lowers_the_sum(values, place, more):
    pairs = [(cell // 6, cell % 6, value / 40) for cell, value in enumerate(values) if value > 0]
    matched = best_matching(pairs)
    assume(matched)
    p, g, score = matched[place % len(matched)]
    raised = [(p, g, score + more / 40) if pair[:2] == (p, g) else pair for pair in pairs]
    after = math.fsum(value for *_, value in best_matching(raised))
    assert after == pytest.approx(math.fsum(value for *_, value in matched) + more / 40, abs=CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
@cases(50)
@given(apart(min_found=1), st.integers(0, 5), st.integers(1, 29))
def test_a_better_overlap_never_lowers_iou(shape, sets, place, wider):
    found, targets = sets
    label, (x1, y1, x2, y2) = found[place % len(found)]
    better = list(found)
    better[place % len(found)] = label, (x1, y1, min(x2 + wider, x1 + 30), y2)
    before, after = scored(found, targets, shape), scored(better, targets, shape)
    assert after >= before
    is_matched = any((x1, y1) == corners[:2] for _, corners in targets)
    if is_matched and x2 < x1 + 30 and shape != "thresholded":
        assert after > before


@pytest.mark.parametrize("shape", SHAPES)
@cases(50)
@given(box_lists(max_size=6), box_lists(min_size=1, max_size=6), st.sampled_from(["chair", "table", "lamp"]))
def test_a_far_box_never_pays(shape, found, targets, label):
    before = scored(found, targets, shape)
    after = scored([*found, (label, (150.0, 150.0, 160.0, 160.0))], targets, shape)
    assert after <= before
    if before > 0 and (len(found) >= len(targets) or shape == "soft_f1"):
        assert after < before


@pytest.mark.parametrize("shape", SHAPES)
@cases(50)
@given(
    box_lists(labels=("chair",), min_size=1, max_size=5),
    box_lists(labels=("chair",), min_size=1, max_size=6, unique=True),
    st.integers(0, 4),
    st.integers(0, 5),
    st.booleans(),
)
def test_a_duplicate_never_pays(shape, found, targets, place, at, outside):
    """Wherever it is inserted, however the boxes overlap, and also where it goes on outside the frame."""
    label, (x1, y1, x2, y2) = found[place % len(found)]
    found = [*found, (label, (x1, y1, 168.0, y2))]  # this one ends at the frame's edge
    copy = (label, (x1, y1, 500.0, y2)) if outside else (label, (x1, y1, x2, y2))
    before = scored(found, targets, shape)
    after = scored([*found[:at], copy, *found[at:]], targets, shape)
    assert after <= before
    if before > 0 and (len(found) >= len(targets) or shape == "soft_f1"):
        assert after < before


@pytest.mark.parametrize("shape", SHAPES)
@cases(30)
@given(box_lists(min_size=1, max_size=6))
def test_a_duplicate_beside_an_exact_set_costs(shape, targets):
    assert scored([*targets, targets[0]], targets, shape) < 1.0


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "soft_f1"])
@cases(50)
@given(box_lists(min_size=1, max_size=6, unique=True), box_lists(max_size=5), st.integers(0, 5))
def test_leaving_out_an_exact_match_costs(shape, targets, others, place):
    exact = targets[place % len(targets)]
    kept = [box for number, box in enumerate(others) if box != exact and box not in others[:number]][: len(targets) - 1]
    assert scored(kept, targets, shape) < scored([*kept, exact], targets, shape)


@pytest.mark.parametrize("shape", SHAPES)
@cases(30)
@given(apart(), st.integers(0, 5))
def test_leaving_out_an_exact_match_costs_where_boxes_lie_apart(shape, sets, place):
    found, targets = sets
    exact = targets[place % len(targets)]
    kept = [box for box in found if box[1][:2] != exact[1][:2]][: len(targets) - 1]
    assert scored(kept, targets, shape) < scored([*kept, exact], targets, shape)


@pytest.mark.parametrize("shape", SHAPES)
@cases(30)
@given(box_lists(max_size=6), box_lists(max_size=6), st.sampled_from([0.25, 0.5, 2.0, 16.0]))
def test_scaling_by_a_power_of_two_changes_no_bit(shape, found, targets, factor):
    found_scaled, targets_scaled = (
        [(label, tuple(factor * value for value in corners)) for label, corners in boxes] for boxes in (found, targets)
    )
    frame = tuple(factor * side for side in FRAME)
    assert scored(found_scaled, targets_scaled, shape, frame) == scored(found, targets, shape)


@pytest.mark.parametrize("shape", ["plain", "squared", "soft_f1", "giou"])  # a threshold may be met by rounding
@cases(30)
@given(box_lists(max_size=6), box_lists(max_size=6), st.floats(0.1, 30))
def test_scaling_changes_nothing(shape, found, targets, factor):
    found_scaled, targets_scaled = (
        [(label, tuple(factor * value for value in corners)) for label, corners in boxes] for boxes in (found, targets)
    )
    frame = tuple(factor * side for side in FRAME)
    assert scored(found_scaled, targets_scaled, shape, frame) == pytest.approx(scored(found, targets, shape), abs=1e-9)


# --- parsers never raise --------------------------------------------------------------------------------------------

OPTIONS = ["A. chair", "B. round table", "C. a lamp", "D. left-front"]
TRUTH = [("chair", (0.0, 0.0, 9.0, 9.0))]
TENTHS = {k / 10 for k in range(11)}


def is_number_or_none(value):
    return value is None or math.isfinite(value)


def check_every_parser(text):
    """Each reads `text` and keeps its range."""
    assert parse_choice(text, OPTIONS) in (None, "A", "B", "C", "D")
    assert choice_reward(text, "A", OPTIONS) in (0.0, 1.0)
    assert is_number_or_none(parse_number(text, "m")) and is_number_or_none(parse_number(text, None))
    assert number_reward(text, "3", "m2") in TENTHS
    boxes = parse_boxes(text)
    assert boxes is None or all(isinstance(box, PredictedBox) for box in boxes)
    assert 0.0 <= iou_reward(text, TRUTH, FRAME, "giou") <= 1.0
    answer = extract_answer(text)
    assert answer is None or answer in text
    assert format_reward(text, ended=True) in (0.0, 1.0)
    assert isinstance(paper_clean(text), str)
    assert paper_format_reward(text) in (0.0, 1.0)
    assert paper_choice_reward(text, "A") in (0.0, 1.0)
    assert paper_number_reward(text, "3") in TENTHS
    assert -1.0 <= repetition_reward(text, 2) <= 0.0


@cases(10_000)
@given(st.text(st.characters(), max_size=60))
def test_no_parser_raises_on_any_unicode(text):
    """Surrogates without a partner are among the characters."""
    check_every_parser(text)


#: What the parsers look for, and what comes close to it; a generated text is a string of these.
PIECES = (
    "<think> </think> <answer> </answer> ```json\n ``` [ ] { } ( ) \"bbox_2d\" \"label\" : , \"chair\" \"\\ud800\" "
    "A B a option or . 0 1 2 34 1e 99999999999999999999 -1 +  1/2 / 1_0 ½ ٣ ² \u2044 - NaN Infinity inf null true m cm m^2 "
    "sq square feet three half \u017f \ud800 \u202e \x00 İ ß <|image_pad|>"
).split(" ") + [" ", "\n", "\u00a0", "[0, 0, 9, 9]", '{"bbox_2d": [0, 0, 9, 9], "label": "chair"}']
CODES = {chr(ord("!") + place): piece for place, piece in enumerate(PIECES)}


@cases(10_000)
@given(st.text("".join(CODES), max_size=14))
def test_no_parser_raises_on_what_looks_like_an_answer(codes):
    check_every_parser("".join(CODES[code] for code in codes))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.fixed_dictionaries({"bbox_2d": inner, "label": st.text(max_size=3)})
    | st.dictionaries(st.sampled_from(["bbox_2d", "label", "x"]), inner, max_size=3),
    max_leaves=10,
)


@cases(200)
@given(json_values)
def test_no_parser_raises_on_json(value):
    check_every_parser(json.dumps(value))


# --- a letter is what the answer names ------------------------------------------------------------------------------

TEXTS = ["chair", "the round table", "left-front", "3 m", "wall, near", "x-ray", "back-right", "a lamp", "it's new"]
FORMS = [
    "{0}", "{0}.", "({0})", "[{0}]", "({0}).", "[{0}]:", "{0})", "{0}:", "{0}: {1}", "{0}. {1}", "{0}) {1}", "{0}.{1}",
    "({0}) {1}", "[{0}] {1}", "{0}. {1}.", "option {0}", "option ({0})", "Option {0}: {1}", "OPTION\n[{0}]", "{1}", "{1}.",
]  # fmt: skip
rows = st.lists(st.sampled_from(TEXTS), min_size=2, max_size=6, unique=True)


def lettered(texts):
    return [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(texts)]


@cases(400)
@given(rows, st.integers(0, 5), st.sampled_from(FORMS), st.booleans(), st.sampled_from(["", " ", "\n", "\u00a0 "]))
def test_an_accepted_form_names_its_own_letter_and_no_other(texts, place, form, lower, space):
    place %= len(texts)
    letter = chr(ord("A") + place)
    answer = space + form.format(letter.lower() if lower else letter, texts[place]) + space
    assert parse_choice(answer, lettered(texts)) == letter
    rewards = [choice_reward(answer, option[0], lettered(texts)) for option in lettered(texts)]
    assert rewards == [float(option[0] == letter) for option in lettered(texts)]


@cases(400)
@given(
    rows,
    st.tuples(st.integers(0, 5), st.integers(1, 5)),
    st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
    st.sampled_from([" ", ", ", " or ", " and ", "/", "\n", "; ", ". ", " | ", " not "]),
    st.tuples(st.booleans(), st.booleans()),
)
def test_an_answer_that_names_two_letters_names_none(texts, places, forms, joint, lower):
    """In any two accepted forms, in any order; the second by its letter (its text may be prose about the first)."""
    first = places[0] % len(texts)
    second = (first + 1 + places[1] % (len(texts) - 1)) % len(texts)
    assume("{0}" in forms[1])
    parts = []
    for place, form, low in zip((first, second), forms, lower, strict=True):
        letter = chr(ord("A") + place)
        parts.append(form.format(letter.lower() if low else letter, texts[place]))
    assert parse_choice(joint.join(parts), lettered(texts)) is None


@cases(400)
@given(
    rows,
    st.tuples(st.integers(0, 5), st.integers(1, 5)),
    st.sampled_from(["{0}: {1}", "{0}. {1}", "{0}) {1}", "({0}) {1}", "[{0}]: {1}", "option {0}. {1}"]),
    st.sampled_from(["the {}", "{}!", '"{}"', "_{}_", "'{}'", "{}, I think", "wrong, it is {}", "no:\n{}", "some {}; yes"]),
    st.booleans(),
)
def test_a_letter_with_the_text_of_another_somewhere_behind_it_names_none(texts, places, form, prose, by_letter):
    """Its text, or its letter, in prose: another letter earns nothing by being named as well."""
    first = places[0] % len(texts)
    second = (first + 1 + places[1] % (len(texts) - 1)) % len(texts)
    named = chr(ord("A") + second) if by_letter else texts[second]
    answer = form.format(chr(ord("A") + first), prose.format(named))
    assert parse_choice(answer, lettered(texts)) is None


@cases(200)
@given(rows, st.integers(0, 5), st.sampled_from(FORMS[:-2]), st.integers(6, 25))
def test_a_letter_outside_the_options_is_never_accepted(texts, place, form, outside):
    answer = form.format(chr(ord("A") + outside), texts[place % len(texts)])
    assert parse_choice(answer, lettered(texts)) is None


@cases(200)
@given(rows, st.tuples(st.integers(0, 5), st.integers(1, 5)), st.sampled_from(["{0}: {1}", "{0}. {1}", "({0}) {1}"]))
def test_the_letter_of_one_option_with_the_text_of_another_names_none(texts, places, form):
    first = places[0] % len(texts)
    second = (first + 1 + places[1] % (len(texts) - 1)) % len(texts)
    assert parse_choice(form.format(chr(ord("A") + first), texts[second]), lettered(texts)) is None
