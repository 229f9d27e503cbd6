"""The authors' rewards: every rule and every quirk that the description of the original names."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.accuracy import mean_relative_accuracy, number_reward
from rewards.choice import choice_reward
from rewards.errors import GroundTruthError
from rewards.extraction import extract_answer
from rewards.format import format_reward
from rewards.paper import paper_choice_reward, paper_clean, paper_format_reward, paper_number_reward


def wrap(answer, thought="look"):
    return f"<think>{thought}</think><answer>{answer}</answer>"


# --- cleaning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, cleaned",
    [
        (wrap("A"), "a"),
        ("<answer>A</answer> then <answer>B</answer>", "b"),  # the last block
        ("<answer>A</answer> then <answer>B", "a"),  # an open one is none
        ("A", "a"),  # no tags: the whole completion
        ("The Answer\nis A.", "the answer is a"),
        ("<think>t</think>A", "<think>t</think>a"),
        ("<answer>A", "<answer>a"),
        (wrap(" A. "), "a"),
        (wrap("A..."), "a"),
        (wrap("A ."), "a "),  # the space before the dots stays
        (wrap("A. ."), "a. "),
        (wrap("3.10"), "3.10"),
        (wrap("two\nlines"), "two lines"),
        (wrap("\n\nA\n"), "a"),
        (wrap(""), ""),
        (wrap("..."), ""),
        ("<answer>A<answer>B</answer>", "a<answer>b"),  # from the first opening to the first closing tag
        ("<answer>A</answer>B</answer>", "a"),
        ("</answer><answer>A</answer>", "a"),
        ("<ANSWER>A</ANSWER>", "<answer>a</answer>"),  # tags are read as they are written
        ("", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert paper_clean(text) == cleaned


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "A", ".", "\n", " "]), max_size=12).map("".join))
def test_cleaning_equals_a_regular_expression(text):
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    content = blocks[-1] if blocks else text
    assert paper_clean(text) == re.sub(r"\.+\Z", "", content.replace("\n", " ").strip()).lower()


# --- format ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        (wrap("A"), 1.0),
        (f" \n{wrap('A')}\n", 1.0),
        ("<think>a\nb</think>\n \n<answer>A\nB</answer>", 1.0),
        # Closing tags are not counted …
        ("<think>t</think> so </think><answer>A</answer>", 1.0),
        ("<think>t</think><answer>A</answer></answer>", 1.0),
        ("<think>t</think><answer>A</answer> that is it </answer>", 1.0),
        # … and empty blocks pass.
        ("<think></think><answer></answer>", 1.0),
        ("<think> </think> <answer>\n</answer>", 1.0),
        ("<think>t</think><answer></think></answer>", 1.0),
        # Opening tags are counted.
        ("<think>t<think>u</think><answer>A</answer>", 0.0),
        ("<think>t</think><answer>A</answer><answer>B</answer>", 0.0),
        ("<think>t<answer></think><answer>A</answer>", 0.0),
        ("<think>t</think> so <answer>A</answer>", 0.0),
        ("well <think>t</think><answer>A</answer>", 0.0),
        ("<think>t</think><answer>A</answer>.", 0.0),
        ("<answer>A</answer><think>t</think>", 0.0),
        ("<answer>A</answer>", 0.0),
        ("<think>t</think>", 0.0),
        ("<think><answer>A</answer></think>", 0.0),
        ("<think>t</think><answer>A", 0.0),
        ("<THINK>t</THINK><answer>A</answer>", 0.0),
        ("A", 0.0),
        ("", 0.0),
    ],
)
def test_format(text, expected):
    assert paper_format_reward(text) == expected


tag_soup = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x"]), max_size=9
).map("".join)
NEARLY = ["<think>", "</think>", "<answer>", "</answer>"]


@given(tag_soup | st.lists(tag_soup, min_size=5, max_size=5).map(lambda gaps: "".join(map("".join, zip(NEARLY, gaps)))))
def test_format_equals_a_regular_expression(text):
    whole = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text.strip(), re.DOTALL)
    expected = whole is not None and len(re.findall("<think>", text)) == 1 == len(re.findall("<answer>", text))
    assert paper_format_reward(text) == float(expected)


# --- choice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, truth, expected",
    [
        (wrap("A"), "A", 1.0),
        (wrap("a."), "A", 1.0),
        (wrap(" A\n"), "A", 1.0),
        (wrap("B"), "A", 0.0),
        ("A", "A", 1.0),  # bare, without tags
        (wrap("(A)"), "A", 0.0),
        (wrap("A. chair"), "A", 0.0),
        (wrap("A)"), "A", 0.0),
        (wrap("A: chair"), "A", 0.0),
        (wrap("option A"), "A", 0.0),
        ("<answer>B</answer><answer>A</answer>", "A", 1.0),
        ("<answer>A</answer><answer>B</answer>", "A", 0.0),
        ("the answer is A", "A", 0.0),
        (wrap(""), "A", 0.0),
        ("", "A", 0.0),
    ],
)
def test_choice(text, truth, expected):
    assert paper_choice_reward(text, truth) == expected


@pytest.mark.parametrize("truth", ["", " ", "...", "<answer></answer>"])
def test_an_empty_choice_truth_raises(truth):
    with pytest.raises(GroundTruthError, match="is empty"):
        paper_choice_reward("", truth)


# --- number ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, truth, expected",
    [
        (wrap("62"), "101", 0.3),  # the figure of the paper
        (wrap("101"), "101", 1.0),
        ("101", "101", 1.0),  # bare, without tags
        (wrap("101."), "101", 1.0),
        (wrap("1.01e2"), "101", 1.0),
        (wrap("+101"), "101", 1.0),
        (wrap("3 m"), "3", 0.0),
        (wrap("1,000"), "1000", 0.0),
        (wrap("1_000"), "1000", 1.0),
        (wrap("١٢"), "12", 1.0),  # Arabic-Indic digits
        (wrap("１２"), "12", 1.0),  # full width
        (wrap("three"), "3", 0.0),
        (wrap("1/2"), "0.5", 0.0),
        (wrap("3 4"), "3", 0.0),
        (wrap(""), "3", 0.0),
        ("no number", "3", 0.0),
        # A relative error of exactly 0.35, twice: rounding decides.
        (wrap("1.35"), "1", 0.3),
        (wrap("13.5"), "10", 0.4),
        # A target below zero makes every relative error negative or zero.
        (wrap("-3"), "-3", 1.0),
        (wrap("12345"), "-3", 1.0),
        (wrap("-9999"), "-3", 1.0),
        (wrap("inf"), "-3", 1.0),
        (wrap("nan"), "-3", 0.0),
        (wrap("no number"), "-3", 0.0),
        # Infinities and NaN against a target above zero.
        (wrap("inf"), "3", 0.0),
        (wrap("-Infinity"), "3", 0.0),
        (wrap("nan"), "3", 0.0),
        (wrap("1e999"), "3", 0.0),
        (wrap("9" * 5000), "3", 0.0),
        (wrap("1e308"), "-1e308", 1.0),  # the error overflows: minus infinity
        (wrap("1e308"), "1e-308", 0.0),
    ],
)
def test_number(text, truth, expected):
    assert paper_number_reward(text, truth) == expected


@pytest.mark.parametrize("text", [wrap("0"), wrap("1"), wrap("no number"), ""])
@pytest.mark.parametrize("truth", ["0", "0.0", "-0", "0."])
def test_a_target_of_zero_raises_whatever_the_completion(text, truth):
    with pytest.raises(GroundTruthError, match="divides by the target and crashes on 0"):
        paper_number_reward(text, truth)


@pytest.mark.parametrize("truth", ["", "A", "3 m", "nan", "inf", "1e999"])
def test_a_target_that_is_no_finite_number_raises(truth):
    for text in (wrap("3"), "nothing"):
        with pytest.raises(GroundTruthError, match="not a finite number"):
            paper_number_reward(text, truth)


@pytest.mark.parametrize("step", range(1, 11))
def test_between_the_boundaries_the_score_is_the_count_of_tolerances_met(step):
    """A relative error 1 % below 5 %, 10 %, … 50 % meets all tolerances from there up."""
    error = Fraction(5 * step - 1, 100)
    for prediction in (100 * (1 + error), 100 * (1 - error)):
        assert paper_number_reward(wrap(str(float(prediction))), "100") == (11 - step) / 10


@given(st.floats(0.001, 1e6), st.floats(-1e6, 1e6))
def test_a_positive_target_scores_as_the_public_scorers_do(target, prediction):
    expected = mean_relative_accuracy(prediction, target, "float_compat")
    assert paper_number_reward(wrap(repr(prediction)), repr(target)) == expected


# --- what the rewards of this package do instead ----------------------------------------------------------------------


def test_where_the_paper_and_this_package_differ():
    options = ["A. chair", "B. table"]
    for text, paper, own in (("A", 1.0, 0.0), (wrap("(A)"), 0.0, 1.0), (wrap("A. chair"), 0.0, 1.0)):
        assert paper_choice_reward(text, "A") == paper
        assert choice_reward(extract_answer(text), "A", options) == own
    for answer, paper, own in (("3 m", 0.0, 1.0), ("6/2", 0.0, 1.0), ("٣", 1.0, 0.0), ("0_3", 1.0, 0.0)):
        assert paper_number_reward(wrap(answer), "3") == paper
        assert number_reward(answer, "3", "m") == own
    for text in ("<think></think><answer></answer>", "<think>t</think><answer>A</answer></answer>"):
        assert (paper_format_reward(text), format_reward(text, ended=True)) == (1.0, 0.0)


@given(st.text(max_size=80))
def test_model_text_never_raises(text):
    for completion in (text, wrap(text)):
        assert isinstance(paper_clean(completion), str)
        assert paper_format_reward(completion) in (0.0, 1.0)
        assert paper_choice_reward(completion, "A") in (0.0, 1.0)
        assert paper_number_reward(completion, "3") in {k / 10 for k in range(11)}
