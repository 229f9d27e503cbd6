"""Varied traces from geometry: every number is one of the scene's, the end is the answer, and there is variety."""

import re

import numpy as np
import pytest

from data.facts import (
    AreaFacts, CountFacts, GapFacts, NearestFacts, OffsetFacts, OrderFacts, Question, RoomFacts, SizeFacts, TurnFacts,
)
from data.trace_filters import concluded
from data.trace_wordings import MAX_WORDS, varied_reasoning
from data.traces import solution

LABELS = ("sofa", "lamp", "coffee table", "tv", "bed")
OPTIONS = ("A. a", "B. b", "C. c", "D. d")
SECTORS = ("left-front", "right-back")


def cm(metres):
    return f"{round(100 * metres)}"


def case(kind, index):
    """(facts, answer, options, numbers that may be said) of a random scene."""
    rng = np.random.default_rng([index, len(kind)])
    a, b, c = rng.permutation(LABELS)[:3]
    letter = "ABCD"[int(rng.integers(4))]
    x, y, z = (float(value) for value in rng.uniform(0.3, 4.0, 3))
    if kind == "size":
        x, y = max(x, y), min(x, y)
        return SizeFacts(a, x, y, z), cm(max(x, z)), None, {cm(x), cm(y), cm(z)}
    if kind == "gap":
        along = tuple(float(gap) for gap in np.array([x, y, z]) * (rng.random(3) < 0.6))
        whole = float(np.linalg.norm(along))
        return GapFacts(a, b, along, whole), f"{whole:.1f}", None, {*map(cm, along), cm(whole), "2", f"{whole:.1f}"}
    if kind == "nearest":
        near = min((a, x), (b, x + y), key=lambda pair: pair[1])[0]
        return NearestFacts(c, ((b, x + y), (a, x)), near), letter, OPTIONS, {cm(x), cm(x + y)}
    if kind == "offset":
        return OffsetFacts(a, b, x, -y, "right-back"), letter, OPTIONS, {cm(x), cm(y)}
    if kind == "turn":
        degrees = float(rng.uniform(-170, 170))
        return TurnFacts(a, b, c, degrees, "left"), letter, OPTIONS, {str(abs(round(degrees)))}
    if kind == "count":
        first = tuple(sorted(int(value) for value in rng.integers(1, 9, int(rng.integers(1, 6)))))
        said = {str(first.count(picture)) for picture in first} | {str(picture) for picture in first} | {str(len(first))}
        return CountFacts(a, first), str(len(first)), None, said
    if kind == "room":
        return RoomFacts(x, y), f"{x * y:.1f}", None, {f"{x:.2f}", f"{y:.2f}", f"{x * y:.1f}"}
    if kind == "area":
        return AreaFacts(x * y), f"{x * y:.1f}", None, {f"{x * y:.1f}"}
    return OrderFacts(((a, 1), (b, 3), (c, 8))), letter, OPTIONS, {"1", "3", "8"}


KINDS = ("size", "gap", "nearest", "offset", "turn", "count", "room", "area", "order")


def asked(kind, index):
    facts, answer, options, numbers = case(kind, index)
    return Question("video", kind, f"What about {index}?", ("f0",), options, answer, facts, ()), numbers


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_the_scenes_and_the_end_is_the_answer(kind):
    shapes = set()
    for index in range(60):
        question, numbers = asked(kind, index)
        text = varied_reasoning(question)
        assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= numbers | {question.answer}, text
        assert len(text.split()) <= MAX_WORDS and text.isascii() and "  " not in text
        end = text.rsplit(".", 2)[-2] if question.options else text
        assert question.answer in end
        if question.options:
            assert concluded(text, 4) == question.answer
        shapes.add(re.sub("|".join((r"\d+(\.\d+)?", *LABELS, r"\b[A-D]\b")), "_", text))
    assert len(shapes) >= 12


def test_two_wordings_by_hand():
    facts = GapFacts("sofa", "lamp", (1.3, 0.35, 0.0), 1.346)
    texts = {varied_reasoning(Question("video", "", f"{i}", (), None, "1.3", facts, ())) for i in range(100)}
    assert ("Between the closest points of the sofa and the lamp I see 130 cm and 35 cm along the axes of the room. "
            "Straight across that is the root of 130^2 + 35^2, about 135 cm. So the answer is 1.3 m.") in texts
    facts = CountFacts("chair", (1, 1, 4))
    texts = {varied_reasoning(Question("video", "", f"{i}", (), None, "3", facts, ())) for i in range(100)}
    assert ("I count each chair once. Picture 1 shows 2 for the first time, picture 4 shows 1 more. 2 + 1 = 3. "
            "I answer 3.") in texts


def test_wording_is_a_setting_and_the_same_every_time():
    question, _ = asked("turn", 7)
    plain, varied = (solution(question, (1, 1), (1, 1), wording=wording) for wording in ("plain", "varied"))
    assert plain == solution(question, (1, 1), (1, 1)) != varied
    assert varied == f"<think>{varied_reasoning(question)}</think><answer>{question.answer}</answer>"
