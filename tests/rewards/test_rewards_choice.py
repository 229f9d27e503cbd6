"""Multiple-choice answers: the accepted forms, and everything that only looks like one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.choice import choice_reward, option_texts, parse_choice
from rewards.errors import GroundTruthError
from rewards.number import MAX_CHARACTERS

OPTIONS = ["A. chair", "B. round table", "C. a lamp", "D. left-front"]


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("A", "A"),
        ("b", "B"),
        ("a", "A"),
        (" C ", "C"),
        ("A.", "A"),
        ("(A)", "A"),
        ("[D]", "D"),
        ("A)", "A"),
        ("(b).", "B"),
        ("A: chair", "A"),
        ("A. chair", "A"),
        ("A. chair.", "A"),
        ("(A) chair", "A"),
        ("a. chair", "A"),
        ("B: the round one", "B"),
        ("A. it's a chair", "A"),
        ("option A", "A"),
        ("Option (B)", "B"),
        ("option c: a lamp", "C"),
        ("OPTION [B]", "B"),
        ("B: it is a table", "B"),  # an article is no letter
        ("B: a round one or a square one", "B"),
        ("chair", "A"),
        ("Round  Table", "B"),
        ("a lamp", "C"),
        ("left-front", "D"),
        ("B: a glass one", "B"),
        ("B: a bus, isn't it", "B"),
        ("(B), a round one", "B"),
    ],
)
def test_accepted_forms(answer, letter):
    assert parse_choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "E",
        "(E)",
        "A B",
        "A, B",
        "A or B",
        "A. B",
        "a. b",
        "B. a",
        "(A) (B)",
        "A) B)",
        "A: round table",
        "A. chair or B. round table",
        "a chair",
        "it is a table",
        "The answer is B",
        "A]",
        "(A",
        "AB",
        "chair table",
        "option",
        "b) a)",
        "(B) (a)",
        "B. chair or a",
        "B. a or b",
        "B: table, option a",
        "[b] a, b",
        "А",  # Cyrillic
        "\uff21",  # full width
        "1",
    ],
)
def test_refused_forms(answer):
    assert parse_choice(answer, OPTIONS) is None


@pytest.mark.parametrize(
    "answer",
    [
        "A. the table",
        "A: table!",
        'A. "table"',
        "A. _table_",
        "A. chair. No: table",
        "A. chair,\ntable",
        "(A) is wrong, it is the table",
        "A. B'",
        "A. not 'B'",
        "A. _B_",
        "A. B's",
        "B. no, a is correct",
        "B. no, a IS correct",
        "B. no, a fits better",
        "B. no, a isn't wrong",
        "B. rather a than this",
        "B. no, 'a' is correct",
        "B. the answer a wins",
        "B. no, Choice a wins",
        "B. A table",
        "[A]bc",
        "(A)1",
        "(A)chair",
        "(A)_",
    ],
)
def test_an_answer_that_names_a_second_option_in_passing_names_none(answer):
    assert parse_choice(answer, ["A. chair", "B. table"]) is None


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("A. chair", "A"),
        ("A: a chair", "A"),
        ("A. armchair", "A"),
        ("A. arm chair", None),
        ("A. chair, no arm  chair", None),
        ("B. arm chair", "B"),
        ("B: the arm chair!", "B"),
        ("B. arm chair, an Arm Chair", "B"),
        ("B. arm chair, not the chair", None),
        ("B. the chair", None),
        ("C. chair lamp", "C"),
        ("C: it is chair lamp.", "C"),
        ("C: an arm chair lamp", None),  # `arm chair` reaches out of `chair lamp`
        ("C. lamp", "C"),
    ],
)
def test_a_text_within_the_own_text_is_no_second_option(answer, letter):
    assert parse_choice(answer, ["A. chair", "B. arm chair", "C. chair lamp", "D."]) == letter


def test_only_the_rows_own_letters_count():
    assert parse_choice("C", ["A. left", "B. right"]) is None
    assert choice_reward("C", "A", ["A. left", "B. right"]) == 0.0


def test_a_text_that_two_options_share_names_neither():
    assert parse_choice("left", ["A. left", "B. left"]) is None
    assert parse_choice("A. left", ["A. left", "B. left"]) == "A"


def test_an_option_text_that_holds_another_letter_is_no_contradiction():
    assert parse_choice("A. lamp B", ["A. lamp B", "B. chair"]) == "A"


def test_a_letter_that_is_the_text_of_another_option_names_neither():
    """`A` is the letter of one option and the text of the other."""
    assert parse_choice("A", ["A. B", "B. A"]) is None
    assert parse_choice("A. B", ["A. B", "B. A"]) == "A"
    assert parse_choice("A", ["A. A", "B. B"]) == "A"


@pytest.mark.parametrize("letter", ["\u017f", "\u0131", "\u212a", "(\u017f)", "[\u0131]"])
def test_letters_that_only_fold_to_ascii_are_no_letters(letter):
    """The long s, the dotless i and the Kelvin sign equal S, I and K without regard to case."""
    options = [f"{chr(ord('A') + place)}. thing {place}" for place in range(26)]
    assert parse_choice(letter, options) is None


@pytest.mark.parametrize("answer", ["A" * 5000, "A. " + "x" * 5000, " " * MAX_CHARACTERS + "A", "(" * 100_000])
def test_an_answer_beyond_the_limit_is_refused(answer):
    assert parse_choice(answer, OPTIONS) is None


def test_an_answer_at_the_limit_is_read():
    assert parse_choice("A" + " " * (MAX_CHARACTERS - 1), OPTIONS) == "A"
    assert parse_choice("A" + " " * MAX_CHARACTERS, OPTIONS) is None


def test_spaces_around_an_options_text_do_not_count():
    assert option_texts([" A.  chair  ", "B)\ttable\n", "C:"]) == {"A": "chair", "B": "table", "C": ""}


def test_reward_is_one_for_the_truth_and_zero_for_the_rest():
    assert choice_reward("(B)", "B", OPTIONS) == 1.0
    assert choice_reward("A", "B", OPTIONS) == 0.0
    assert choice_reward(None, "B", OPTIONS) == 0.0


@pytest.mark.parametrize("truth, options", [("E", OPTIONS), ("b", OPTIONS), ("A", ["chair"]), ("A", ["A. x", "A. y"])])
def test_bad_ground_truth_raises(truth, options):
    with pytest.raises(GroundTruthError):
        choice_reward("A", truth, options)
    with pytest.raises(GroundTruthError):
        choice_reward("x" * 5000, truth, options)


@given(st.text(max_size=60))
def test_model_text_never_raises_and_never_leaves_the_options(answer):
    assert parse_choice(answer, OPTIONS) in (None, *option_texts(OPTIONS))
