"""Extraction and the strict form: every case the original's rule let through is here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.extraction import extract_answer
from rewards.format import MEDIA_TOKENS, TAGS, format_reward

GOOD = "<think>the chair is left</think><answer>A</answer>"


@pytest.mark.parametrize(
    "text, answer",
    [
        (GOOD, "A"),
        ("<answer> A\n</answer> and <answer>B</answer>", "B"),
        ("<answer>A</answer> <answer>unfinished", "A"),
        ("<answer>A</answer></answer>", "A"),
        ("<answer>A<answer>B</answer>", "B"),
        ("<answer></answer>", ""),
        ("</answer><answer>", None),
        ("<answer>A", None),
        ("A</answer>", None),
        ("A", None),
        ("", None),
        ("<ANSWER>A</ANSWER>", None),
    ],
)
def test_the_last_complete_block_is_the_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", [GOOD, f"\n {GOOD}\n", "<think>a\nb</think>\n\n<answer>\n[]\n</answer>"])
def test_the_strict_form_scores_one(text):
    assert format_reward(text, ended=True) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "<answer>A</answer>",
        "<think>t</think>",
        "<think>t</think> so <answer>A</answer>",
        "well <think>t</think><answer>A</answer>",
        "<think>t</think><answer>A</answer>.",
        "<answer>A</answer><think>t</think>",
        "<think>t</think>text</think><answer>A</answer>",
        "<think>t</think><answer>A</answer></answer>",
        "<think></think><answer>A</answer>",
        "<think>t</think><answer> \n</answer>",
        "<think>t<answer>A</answer></think>",
        "<think>t<think></think><answer>A</answer>",
        "<think>t</think><answer>A</answer><answer>A</answer>",
        "<think>t</think><answer>A",
        "<Think>t</Think><answer>A</answer>",
    ],
)
def test_anything_else_scores_zero(text):
    assert format_reward(text, ended=True) == 0.0


@pytest.mark.parametrize("token", MEDIA_TOKENS)
def test_a_media_token_breaks_the_form(token):
    assert format_reward(GOOD.replace("chair", token), ended=True) == 0.0


def test_a_completion_that_was_cut_off_breaks_the_form():
    assert format_reward(GOOD, ended=False) == 0.0


@given(st.lists(st.sampled_from([*TAGS, " ", "\n", "x", "A", MEDIA_TOKENS[0]]), max_size=9).map("".join))
def test_a_form_that_holds_has_exactly_the_extracted_answer_after_one_thought(text):
    score = format_reward(text, ended=True)
    assert score in (0.0, 1.0)
    thought = text.partition("<think>")[2].partition("</think>")[0]
    answer = extract_answer(text)
    whole = f"<think>{thought}</think><answer>{answer}</answer>"
    holds = (
        bool(thought.strip())
        and bool(answer)
        and "".join(whole.split()) == "".join(text.split())
        and not any(part in thought + str(answer) for part in (*TAGS, *MEDIA_TOKENS))
    )
    assert score == float(holds)
