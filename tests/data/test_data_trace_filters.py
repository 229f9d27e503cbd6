"""What becomes a cold-start trace: each rule by a text that breaks it alone, and the counts of a selection."""

from dataclasses import replace

import pytest

from configs.schema import TracesConfig
from data import trace_filters as rules
from data.trace_drafts import Draft
from data.trace_filters import Scored, concluded, latin_share, rejection, sameness, solution
from data.trace_selection import Trace, row_traces, selected
from data.types import LOCALIZATION, Box, Example

CHOICE = Example("r/0", 0, "single_image", "Which is nearer?", "relative distance", ("a.png",), ("A. sofa", "B. bed"), "B")
NUMBER = Example("r/1", 1, "single_image", "How many chairs?", "object count", ("a.png",), None, "3")
BOXES = Example("r/2", 2, "single_image", "Where?", LOCALIZATION, ("a.png",), boxes=(Box("sofa", (0, 0, 9, 9)),))
CONFIG = TracesConfig(words=(3, 20), keep=2)
GOOD = "The bed is two steps away, the sofa four. So the answer is B."


def draft(thought=GOOD, answer="B", sample=0, finish_reason="stop", row="r/0"):
    return Draft(row, sample, f"<think> {thought}\n</think>\n<answer>{answer}</answer>", finish_reason, 9)


RIGHT = Scored(1.0, 1.0, "B")


@pytest.mark.parametrize(
    "example, own, scored, reason",
    [
        (CHOICE, draft(), RIGHT, None),
        (CHOICE, draft(finish_reason="length"), RIGHT, rules.CUT),
        (CHOICE, draft(finish_reason="content_filter"), RIGHT, rules.STOPPED),
        (CHOICE, draft(), Scored(0.0, 1.0, "B"), rules.FORMAT),
        (CHOICE, draft(), Scored(1.0, 0.0, "A"), rules.WRONG),
        (NUMBER, draft(answer="2.8"), Scored(1.0, 0.9, "2.8"), rules.WRONG),
        (BOXES, draft(), Scored(1.0, 0.69, "[]"), rules.WRONG),
        (BOXES, draft(), Scored(1.0, 0.7, "[]"), None),
        (CHOICE, draft(GOOD + " <|im_start|>"), RIGHT, rules.SPECIAL),
        (CHOICE, draft(GOOD + " \ufffd"), RIGHT, rules.SPECIAL),
        (CHOICE, draft(GOOD + " \ud83d"), RIGHT, rules.SPECIAL),
        (CHOICE, draft("Clearly B."), RIGHT, rules.LENGTH),
        (CHOICE, draft("very " * 20 + "near"), RIGHT, rules.LENGTH),
        (CHOICE, draft("床离得更近, so it is the bed, which is nearer 我认为是床"), RIGHT, rules.SCRIPT),
        (CHOICE, draft("The sofa is nearer, so the answer is A."), RIGHT, rules.CONTRADICTION),
        (NUMBER, draft("I count one, two, three: the answer is B."), Scored(1.0, 1.0, "3"), None),
    ],
)
def test_a_draft_is_kept_or_has_the_reason_that_it_breaks(example, own, scored, reason):
    assert rejection(own, scored, example, CONFIG) == reason


def test_other_scripts_can_be_kept():
    own = draft("Комната больше, чем кажется, поэтому кровать ближе")
    assert rejection(own, RIGHT, CHOICE, CONFIG) == rules.SCRIPT
    assert rejection(own, RIGHT, CHOICE, CONFIG.model_copy(update={"min_latin": 0.0})) is None
    assert latin_share("Größe, naïve, 3.5 m²") == 1.0 and latin_share("123") == 1.0


@pytest.mark.parametrize(
    "thought, letter",
    [
        ("The nearest is the sofa, option B.", "B"),
        ("Option A is the bed, option B is the sofa. The bed is nearer.", None),
        ("Maybe the answer is A. Wait, no: the answer must be (C).", "C"),
        ("I would pick D", "D"),
        ('So the correct option is "B"', "B"),
        ("The answer is a sofa, I think.", None),
        ("The answer is left-back.", None),
        ("A bed is near.", None),
    ],
)
def test_what_a_reasoning_concludes(thought, letter):
    assert concluded(thought, 4) == letter


def test_the_letter_beyond_the_options_is_no_conclusion():
    assert concluded("The answer is C.", 2) is None


def test_a_trace_is_the_reasoning_and_the_bare_answer():
    own = draft(answer="(B) bed")
    assert solution(own, RIGHT) == f"<think>{GOOD}</think><answer>B</answer>"
    assert sameness("<think>It is  B!</think>") == sameness("<think>it is b.</think>") != sameness("<think>It is C.</think>")


def score(example, own):
    right = float("right" in own.text)
    return Scored(float("<answer>" in own.text), right, "B" if example.options else "3")


def test_a_row_keeps_its_first_ones_that_differ():
    thoughts = ["this is wrong here", "right as it is", "right, As it is!", "right in another way", "right the third way"]
    results = row_traces(CHOICE, [draft(text, sample=index) for index, text in enumerate(thoughts)], score, CONFIG)
    kept = [index for index, result in enumerate(results) if isinstance(result, Trace)]
    assert kept == [1, 3]
    assert [result for result in results if isinstance(result, str)] == [rules.WRONG, rules.DUPLICATE, rules.SURPLUS]


def test_the_counts_of_a_selection_add_up_and_no_text_comes_twice():
    other = replace(CHOICE, id="r/9")
    drafts = {
        CHOICE.id: [draft("right as it is"), draft("wrong as it is", sample=1)],
        other.id: [draft("right, as it is", row=other.id), draft("right but new here", sample=1, row=other.id)],
        NUMBER.id: [draft("this is wrong", row=NUMBER.id)],
    }
    one = selected([CHOICE, other, NUMBER], lambda row: drafts[row], score, CONFIG)
    assert [(trace.example.id, trace.solution) for trace in one.traces] == [
        ("r/0", "<think>right as it is</think><answer>B</answer>"),
        ("r/9", "<think>right but new here</think><answer>B</answer>"),
    ]
    near, count = one.counts["relative distance"], one.counts["object count"]
    assert (near.rows, near.solved, near.drafts, near.kept) == (2, 2, 4, 2)
    assert +near.reasons == {rules.WRONG: 1, rules.DUPLICATE: 1}
    assert (count.rows, count.solved, count.drafts, count.kept, +count.reasons) == (1, 0, 1, 0, {rules.WRONG: 1})
    for own in one.counts.values():
        assert own.drafts == own.kept + sum(own.reasons.values())
    table = one.table().splitlines()
    assert table[3].split() == ["all", "3", "2", "5", "2"]
    assert [line.rsplit(maxsplit=1) for line in table[6:]] == [[rules.WRONG, "2"], [rules.DUPLICATE, "1"]]
