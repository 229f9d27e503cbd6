"""The edge cases of the reward rules and the reward defects of the original that no other file holds.

Where each rule is tested (files of this folder, without test_rewards_ and .py; "here": below):

    original: cleaning, format, choice, number, MRA in float64, target 0 and below   paper
    MRA(62, 101) = 0.3                                         number, paper, compose
    MRA at the boundaries, three modes; 0.35 twice; t = 0, t < 0; inf, nan          number
    extraction: last complete block, nested, unclosed          format; one extractor for reward and evaluation: here
    format: each tag once, in order, nothing outside, contents, media tokens, end   format; each listed case: here
    choice: accepted forms, letters of the row, two letters, the article            choice, properties
    number: one number, separators, units, words, ranges, fractions, scripts        number; every word, every unit: here
    boxes: strict JSON, fence, length, count, malformed items  iou; what other parsers would take: here
    set IoU: labels, clipping, both or one set empty, garbage beside an empty set, shapes        iou
    set IoU: order, duplicates, far and missing boxes, monotone, scale, brute force              properties
    set IoU: wrong label beside the right one, spam, recall, other scales of coordinates         here
    components, weights, gate, applicability, place in the batch, truncation        compose
    custom rewards: loading, limits, processes                 contract, loading, worker, scoring
    no network at import; nothing is read or written while scoring (R7)             here
    R1 (untagged answer), R2 (forms and units), R3-4 (zero and negative target, boundaries), R5 (closing tags, empty
    blocks), R6 (one extractor), R8 (boxes have a reward)      here, the authors' reward beside ours
"""

import builtins
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import evaluation.scoring
import rewards.compose
from rewards.accuracy import number_reward
from rewards.boxes import MAX_ITEMS, parse_boxes
from rewards.choice import parse_choice
from rewards.compose import NUMBER_UNITS, applicable, score_completion
from rewards.extraction import extract_answer
from rewards.format import format_reward
from rewards.iou import iou_reward
from rewards.number import NUMBER_WORDS, parse_number
from rewards.paper import paper_choice_reward, paper_clean, paper_format_reward, paper_number_reward
from rewards.repetition import repetition_reward
from rewards.settings import RewardSettings

FRAME = (336, 252)
SHAPES = ("plain", "squared", "thresholded", "soft_f1", "giou")
DEFAULT = RewardSettings()


@dataclass(frozen=True)
class Row:
    question_type: str
    options: tuple | None = None
    answer: str | None = None
    target_boxes: tuple = ()
    processed_size: tuple | None = None


CHOICE = Row("relative direction", ("A. left", "B. right"), "A")
NUMBER = Row("absolute distance", None, "3")
BOXES = Row("object localization", None, None, (("chair", (10.0, 10.0, 60.0, 60.0)),), FRAME)


def wrap(answer, thought="look"):
    return f"<think>{thought}</think><answer>{answer}</answer>"


def item(label, *corners):
    return {"bbox_2d": list(corners), "label": label}


def parts(text, row):
    return dict(score_completion(text, "stop", row, DEFAULT).components)


# --- R1 to R6: the authors' reward beside ours ------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["A", "A.", "a"])
def test_r1_an_answer_without_tags_earns_nothing(answer):
    assert paper_choice_reward(answer, "A") == 1.0
    assert parts(answer, CHOICE) == {"format": 0.0, "answer": 0.0}
    assert parts(wrap(answer), CHOICE) == {"format": 1.0, "answer": 1.0}


def test_r1_nor_does_a_number_without_tags():
    assert paper_number_reward("3", "3") == 1.0
    assert parts("3", NUMBER) == parts("<answer>3", NUMBER) == parts("3</answer>", NUMBER)
    assert parts("3", NUMBER) == {"format": 0.0, "answer": 0.0}


@pytest.mark.parametrize("answer", ["(A)", "[A]", "A)", "A. left", "A: left", "option A", "left"])
def test_r2_forms_of_a_letter_count(answer):
    assert paper_choice_reward(wrap(answer), "A") == 0.0
    assert parts(wrap(answer), CHOICE)["answer"] == 1.0


@pytest.mark.parametrize("answer", ["3 m", "3 meters", "3.0m.", "about 3 m", "three", "6/2", "3,000e-3 m"])
def test_r2_numbers_count_as_people_write_them(answer):
    assert paper_number_reward(wrap(answer), "3") == 0.0
    assert parts(wrap(answer), NUMBER)["answer"] == 1.0


@pytest.mark.parametrize("answer, paper, own", [("1_000", 1.0, 0.0), ("١٠٠٠", 1.0, 0.0), ("1,000", 0.0, 1.0)])
def test_r2_but_not_as_python_does(answer, paper, own):
    assert paper_number_reward(wrap(answer), "1000") == paper
    assert number_reward(answer, "1000", "cm") == own


@pytest.mark.parametrize(
    "prediction, target, expected",
    [("0", "0", 1.0), ("0.0 m", "0", 1.0), ("0/7", "0", 1.0), ("0.001", "0", 0.0), ("-2", "-2", 1.0), ("2", "-2", 0.0)],
)
def test_r3_every_target_has_a_score(prediction, target, expected):
    assert number_reward(prediction, target, "m") == expected


@pytest.mark.parametrize("scale", ["1", "10", "0.1", "7", "1000"])
def test_r4_equal_errors_score_equally_at_every_scale(scale):
    """An error of exactly 35 % meets the tolerances 0.35, 0.40, 0.45 and 0.50."""
    assert number_reward(repr(1.35 * float(scale)), scale, "m") == 0.4
    assert number_reward(repr(0.65 * float(scale)), scale, "m") == 0.4


@pytest.mark.parametrize(
    "text",
    [
        "<think>t</think> so </think><answer>A</answer>",
        "<think>t</think><answer>A</answer></answer>",
        "<think>t</think><answer>A</answer> that is it </answer>",
        "<think></think><answer></answer>",
        "<think>t</think><answer> </answer>",
        "<think>\n</think><answer>A</answer>",
    ],
)
def test_r5_closing_tags_are_counted_and_blocks_are_not_empty(text):
    assert paper_format_reward(text) == 1.0
    assert format_reward(text, ended=True) == 0.0


def test_r6_reward_and_evaluation_share_one_extractor():
    assert rewards.compose.extract_answer is evaluation.scoring.extract_answer is extract_answer
    both = "<answer>A</answer> no, <answer>B</answer>"
    assert extract_answer(both) == "B" and paper_clean(both) == "b"


# --- R7: scoring is pure ----------------------------------------------------------------------------------------------


def test_r7_scoring_reads_no_variable_and_opens_no_file(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("scoring went outside")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", forbidden)
        patch.setattr(os, "open", forbidden)
        patch.setattr(type(os.environ), "__getitem__", forbidden)  # os.getenv and .get go through it
        scores = [
            score_completion(wrap("A"), "stop", row, RewardSettings(repetition=weight))
            for row in (CHOICE, NUMBER, BOXES)
            for weight in (0.0, 1.0)
        ]
    assert {score.outcome for score in scores} == {"ok"}


def test_importing_the_rewards_opens_no_connection():
    """No client of a network service comes along, and nothing connects."""
    source = (
        "import socket, sys\n"
        "def refuse(*args): raise SystemExit('connected')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import rewards.compose, rewards.contract, rewards.paper\n"
        "print(sorted({'requests', 'httpx', 'openai', 'aiohttp', 'urllib3', 'torch', 'ray'} & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", source], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- R8: boxes have a reward ------------------------------------------------------------------------------------------


def test_r8_the_reward_of_a_row_with_boxes_grows_with_the_overlap():
    answers = ["[]"] + [json.dumps([item("chair", 10, 10, right, 60)]) for right in (20, 35, 50, 60)]
    scores = [parts(wrap(answer), BOXES)["iou"] for answer in answers]
    assert scores == pytest.approx([0.0, 0.2, 0.5, 0.8, 1.0], abs=1e-12)


@pytest.mark.parametrize("row", [CHOICE, NUMBER, BOXES])
def test_what_applies_is_the_same_for_every_completion_of_a_row(row):
    texts = ["", "A", wrap("A"), wrap("3 m"), wrap("[]"), wrap(json.dumps([item("chair", 1, 2, 3, 4)])), "<answer>"]
    assert {tuple(parts(text, row)) for text in texts} == {applicable(row, DEFAULT)}


# --- format: the form in every order of its parts ---------------------------------------------------------------------


@pytest.mark.parametrize("missing", range(4))
def test_a_form_without_one_of_its_tags_scores_zero(missing):
    pieces = ["<think>", "t", "</think>", "<answer>", "A", "</answer>"]
    tag = ["<think>", "</think>", "<answer>", "</answer>"][missing]
    assert format_reward("".join(pieces), ended=True) == 1.0
    assert format_reward("".join(piece for piece in pieces if piece != tag), ended=True) == 0.0
    assert format_reward("".join(piece * (1 + (piece == tag)) for piece in pieces), ended=True) == 0.0


@pytest.mark.parametrize("place", range(7))
def test_text_may_stand_inside_the_blocks_only(place):
    pieces = ["<think>", "t", "</think>", "<answer>", "A", "</answer>"]
    inside = place in (1, 2, 4, 5)
    assert format_reward("".join([*pieces[:place], "x", *pieces[place:]]), ended=True) == float(inside)
    assert format_reward("".join([*pieces[:place], " \n", *pieces[place:]]), ended=True) == 1.0


# --- numbers: every word and every unit -------------------------------------------------------------------------------


def test_every_number_word_counts_alone_and_never_in_prose():
    words = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty"
    )
    assert NUMBER_WORDS == {word: value for value, word in enumerate(words.split())}
    for word, value in NUMBER_WORDS.items():
        assert parse_number(word, None) == parse_number(f" {word.upper()}. ", None) == float(value)
        for prose in (f"{word} chairs", f"about {word}", f"{word} or 3", f"3 or {word}", f"{word} {word}"):
            assert parse_number(prose, None) is None


WRITTEN = {
    "m": ["m", "meter", "meters", "metre", "metres", "M"],
    "cm": ["cm", "centimeter", "centimeters", "centimetre", "centimetres"],
    "m2": ["m2", "m^2", "m²", "sqm", "sq m", "sq. m", "square meter", "square meters", "square-metres"],
    None: [""],
}


@pytest.mark.parametrize("unit", WRITTEN)
@pytest.mark.parametrize("other", WRITTEN)
def test_a_number_counts_in_its_own_unit_only(unit, other):
    assert set(WRITTEN) == set(NUMBER_UNITS.values())
    for name in WRITTEN[other]:
        expected = 2.5 if other in (unit, None) else None  # a number without a unit is in the one that was asked for
        assert parse_number(f"2.5 {name}", unit) == expected
        assert parse_number(f"2 1/2 {name}", unit) == expected
        assert number_reward(f"2.5 {name}", "2.5", unit) == float(expected is not None)


# --- boxes: what other readers would take -----------------------------------------------------------------------------

ONE = (("chair", (10.0, 10.0, 60.0, 60.0)),)


@pytest.mark.parametrize(
    "answer",
    [
        "[10, 10, 60, 60]",  # the first list of four numbers
        "The chair is at [10, 10, 60, 60].",
        '[{"bbox_2d": [10, 10, 60, 60], "label": "chair"}] and that is all',
        '```json\n[{"bbox_2d": [10, 10, 60, 60], "label": "chair"}]',  # the fence stays open
        '[{"bbox_2d": [10, 10, 60, 60], "label": "chair"}, ]',
        '[{"bbox": [10, 10, 60, 60], "label": "chair"}]',
        '[{"bbox_2d": [10, 10, 60, 60], "label": "chair", "confidence": 0.9}]',
        '[{"bbox_2d": [[10, 10], [60, 60]], "label": "chair"}]',
        '[[{"bbox_2d": [10, 10, 60, 60], "label": "chair"}]]',
        json.dumps(json.dumps([item("chair", 10, 10, 60, 60)])),  # encoded twice
        json.dumps([item("chair", 60, 60, 10, 10)]),  # swapped corners
        json.dumps([item("chair", 10 / 336, 10 / 252, 60 / 336, 60 / 252)]),  # on a scale of 0 to 1
        "[" + "[" * 100_000,
        "[" + "9" * 8_000 + "]",
        '[{"bbox_2d": [1e999, 10, 60, 60], "label": "chair"}]',
    ],
)
def test_nothing_is_repaired(answer):
    assert iou_reward(answer, ONE, FRAME) < 0.001


def test_coordinates_of_another_scale_are_not_converted():
    """The true box on a scale of 0 to 1000: [30, 40, 179, 238]; it shares 30 x 20 pixels with the true one."""
    answer = json.dumps([item("chair", 30, 40, 179, 238)])
    assert iou_reward(answer, ONE, FRAME) == pytest.approx(600 / (2500 + 149 * 198 - 600), abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [1, -1])
def test_a_wrong_label_does_not_use_up_the_true_box(shape, order):
    found = [item("table", 10, 10, 60, 60), item("chair", 10, 10, 60, 60)][::order]
    expected = 2 / 3 if shape == "soft_f1" else 1 / 2
    assert iou_reward(json.dumps(found), ONE, FRAME, shape) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_rewards_recall_alone(shape):
    """The exact box among more and more others is worth less and less; a grid of guesses is worth next to nothing."""
    right = item("chair", 10, 10, 60, 60)
    others = [item("chair", 100 + 3 * number, 100, 102 + 3 * number, 102) for number in range(MAX_ITEMS - 1)]
    scores = [iou_reward(json.dumps([right, *others[:count]]), ONE, FRAME, shape) for count in (0, 1, 2, 10, 63)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    assert scores[0] == 1.0 and scores[-1] <= 2 / 65
    assert iou_reward(json.dumps([right] * MAX_ITEMS), ONE, FRAME, shape) == pytest.approx(scores[-1], abs=1e-12)
    assert iou_reward(json.dumps([right, *others, others[0]]), ONE, FRAME, shape) == 0.0  # one item too many


@pytest.mark.parametrize("shape", SHAPES)
def test_a_disjoint_box_earns_nothing_however_near(shape):
    assert iou_reward(json.dumps([item("chair", 60, 10, 110, 60)]), ONE, FRAME, shape) == 0.0
    assert iou_reward(json.dumps([item("chair", 60.001, 10, 110, 60)]), ONE, FRAME, shape) == 0.0


def test_greedy_matching_would_earn_less():
    """IoUs of the first prediction: 90/110 and 80/120; of the second: 80/100 and 50/130. Greedy takes 90/110, 50/130."""
    truth = [("chair", (0.0, 0.0, 100.0, 10.0)), ("chair", (30.0, 0.0, 130.0, 10.0))]
    found = [item("chair", 10, 0, 110, 10), item("chair", 0, 0, 80, 10)]
    assert iou_reward(json.dumps(found), truth, FRAME) == pytest.approx((80 / 120 + 80 / 100) / 2, abs=1e-12)


# --- nothing takes more than linear time ------------------------------------------------------------------------------

LONG = 200_000
LONG_TEXTS = [
    "<answer>" * LONG,
    "</answer>" * LONG,
    "<think>" * LONG,
    "<answer></answer>" * LONG,
    "<think>" + "</think> " * LONG + "<answer>",
    "<think>" + "</think>" + " " * LONG + "x<answer></answer>",
    "9" * LONG,
    "1/" * LONG,
    "1 " * LONG,
    "1," * LONG,
    "1,000" + ",000" * LONG + "x",
    "0." + "0" * LONG + "x",
    "sq " + " -" * LONG,
    "(A" * LONG,
    "A." + " " * LONG + "B",
    "[" * LONG,
    "```json\n" + "```" * LONG,
    '"\\' * LONG,
    "a " * LONG,
]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=lambda text: text[:12])
def test_a_completion_of_a_million_characters_is_scored_at_once(text):
    """Quadratic work on any of these would take hours: the test's time limit is the assertion."""
    assert extract_answer(text) in (None, "")
    assert format_reward(text, ended=True) == 0.0
    assert parse_boxes(text) is None
    assert parse_number(text, "m") is None
    assert parse_choice(text, ["A. x", "B. y"]) is None
    assert -1.0 <= repetition_reward(text, 4) <= 0.0
    assert paper_format_reward(text) == paper_choice_reward(text, "A") == paper_number_reward(text, "3") == 0.0


#: Of the short ones those that hold an answer after all: zero with many decimals, a number of a thousand digits, letters.
NUMBERS = {"0." + "0" * 1022: 0.0, "0" * 1024: 0.0, "9" * 1024: None}
LETTERS = {"(A" * 512: None, "A." + " " * 1022: "A", " " * 1023 + "B": "B"}


@pytest.mark.parametrize("text", [text[:1024] for text in LONG_TEXTS] + [text[-1024:] for text in LONG_TEXTS])
def test_what_is_short_enough_to_be_read_is_read_at_once(text):
    for unit in ("m", "m2", None):
        assert parse_number(text, unit) == NUMBERS.get(text)
    assert parse_choice(text, ["A. x", "B. y"]) == LETTERS.get(text)
