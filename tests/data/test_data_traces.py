"""Cold-start traces: exact text by hand, and form, length and truth over generated rows."""

import json
import re

import pytest

from data.facts import (
    CountFacts, GapFacts, NearestFacts, OffsetFacts, OrderFacts, Question, RoomFacts, SizeFacts, TurnFacts,
)
from data.traces import MAX_WORDS, solution
from data.types import LOCALIZATION, Box


def question(kind, facts, answer, boxes=()):
    return Question("single_image", kind, "?", ("f0",), None, answer, facts, (), boxes)


CASES = [
    ("object size", SizeFacts("sofa", 2.004, 0.9, 0.75), "200",
     "The sofa is 200 cm long, 90 cm wide and 75 cm high. The longest is 200 cm."),
    ("absolute distance", GapFacts("sofa", "lamp", (1.3, 0.35, 0.0), 1.346), "1.3",
     "Between the sofa and the lamp I see 130 cm and 35 cm. The distance is 1.3 m."),
    ("absolute distance", GapFacts("tv", "bin", (0.4, 0.0, 0.3), 0.5), "0.5",
     "Between the tv and the bin I see 40 cm and 0 cm and 30 cm up. The distance is 0.5 m."),
    ("relative distance", NearestFacts("bed", (("lamp", 1.8), ("sofa", 0.585)), "sofa"), "B",
     "From the bed, the lamp is 180 cm away, the sofa is 58 cm away. The nearest is the sofa, option B."),
    ("relative direction", OffsetFacts("sofa", "lamp", -2.5, 1.0, "left-front"), "C",
     "From the lamp, the sofa is 250 cm left and 100 cm farther. It is left-front, option C."),
    ("relative direction", OffsetFacts("lamp", "sofa", 2.5, -1.0, "right-back"), "A",
     "From the sofa, the lamp is 250 cm right and 100 cm nearer. It is right-back, option A."),
    ("relative direction", TurnFacts("sofa", "bed", "lamp", -66.8, "front-right"), "D",
     "From the sofa to the bed, the lamp is 67 degrees right. It is front-right, option D."),
    ("object count", CountFacts("chair", (1, 1, 4)), "3", "I see the chair in picture 1, 1, 4. The count is 3."),
    ("room size", RoomFacts(6.0, 4.5), "27.0", "The room is 600 cm long and 450 cm wide. The size is 27.0 m2."),
    ("appearance order", OrderFacts((("lamp", 1), ("bed", 3), ("tv", 8))), "B",
     "I see the lamp in picture 1, the bed in picture 3, the tv in picture 8. The order is option B."),
]


@pytest.mark.parametrize("kind, facts, answer, reasoning", CASES)
def test_traces_state_the_geometry_and_then_the_answer(kind, facts, answer, reasoning):
    text = solution(question(kind, facts, answer), (168, 168), (112, 112))
    assert text == f"<think>{reasoning}</think><answer>{answer}</answer>"
    assert len(text.split()) <= MAX_WORDS


def test_localization_traces_use_the_processed_frame():
    boxes = (Box("sofa", (30, 60, 90, 120)), Box("lamp", (130, 10, 150, 168)), Box("bed", (60, 60, 100, 90)))
    text = solution(question(LOCALIZATION, SizeFacts("sofa", 1, 1, 1), None, boxes), (168, 168), (112, 56))
    think, answer = re.fullmatch(r"<think>(.*)</think><answer>(.*)</answer>", text).groups()
    assert think == "I see the sofa middle, the lamp right, the bed middle."
    assert json.loads(answer) == [{"bbox_2d": [20, 20, 60, 40], "label": "sofa"},
                                  {"bbox_2d": [87, 3, 100, 56], "label": "lamp"},
                                  {"bbox_2d": [40, 20, 67, 30], "label": "bed"}]


def test_the_paper_preset_keeps_its_fence():
    text = solution(question(LOCALIZATION, SizeFacts("sofa", 1, 1, 1), None, (Box("sofa", (0, 0, 28, 28)),)),
                    (56, 56), (56, 56), "paper")
    assert text.startswith("<think>I see the sofa left.</think><answer>```json\n[") and text.endswith("]\n```</answer>")


def test_no_number_in_the_reasoning_has_a_fraction_except_the_answer():
    for kind, facts, answer, _ in CASES:
        think = re.search("<think>(.*)</think>", solution(question(kind, facts, answer), (1, 1), (1, 1))).group(1)
        assert set(re.findall(r"\d+\.\d+", think)) <= {answer}
