"""Cold-start traces written from geometry: short reasoning that states what was measured, then the answer.

What holds
    * `<think>...</think><answer>...</answer>`, exactly one of each, in `plain` wording at most `MAX_WORDS` words.
    * Every number is true of the scene: whole centimetres, degrees and picture numbers, written without a fraction;
      answers keep the form of the row (a letter, a decimal string, a JSON list).
    * `plain`: one fixed sentence per question type and few different words, so that a small model can learn the format.
      `varied`: several wordings with the steps of the calculation (`data.trace_wordings`).
    * Boxes are in the model's frame, the only one it knows.
"""

from __future__ import annotations

from configs.data_schema import TraceWording
from data.coordinates import Size, in_frame
from data.facts import (
    AreaFacts, CountFacts, Facts, GapFacts, NearestFacts, OffsetFacts, OrderFacts, Question, RoomFacts, SizeFacts, TurnFacts,
    centimetres,
)
from data.prompts import Preset, boxes_json
from data.trace_wordings import varied_reasoning
from data.types import LOCALIZATION, Box

#: Words of the longest trace, split at white space.
MAX_WORDS = 45


def solution(
    question: Question, original_size: Size, frame: Size, preset: Preset = "ladder", wording: TraceWording = "plain"
) -> str:
    """The assistant's text of a cold-start row. `original_size` (width, height) of the row's (first) picture in pixels,
    `frame` that of the model's boxes on it (`models.inputs.frame_size`)."""
    if question.question_type == LOCALIZATION:
        reasoning = _places(question.boxes, original_size, frame)
        answer = boxes_json(question.boxes, original_size, frame, preset)
    elif wording == "varied":
        reasoning, answer = varied_reasoning(question), question.answer
    else:
        reasoning, answer = _reasoning(question.facts, question.answer or ""), question.answer
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def _places(boxes: tuple[Box, ...], original_size: Size, frame: Size) -> str:
    """Which third of the picture holds the middle of each box: 'I see the sofa left, the lamp middle.'"""
    places = []
    for label, (x1, _, x2, _) in in_frame(boxes, original_size, frame):
        third = min(int(3 * (x1 + x2) / 2 / frame[0]), 2)
        places.append(f"the {label} {('left', 'middle', 'right')[third]}")
    return f"I see {', '.join(places)}."


def _reasoning(facts: Facts, answer: str) -> str:
    match facts:
        case SizeFacts():
            long, wide, high = map(centimetres, (facts.long, facts.wide, facts.high))
            sides = f"{long} cm long, {wide} cm wide and {high} cm high"
            return f"The {facts.label} is {sides}. The longest is {answer} cm."
        case GapFacts():
            x, y, z = map(centimetres, facts.along)
            gaps = f"{x} cm and {y} cm" + (f" and {z} cm up" if z else "")
            return f"Between the {facts.first} and the {facts.second} I see {gaps}. The distance is {answer} m."
        case NearestFacts():
            each = ", ".join(f"the {label} is {centimetres(distance)} cm away" for label, distance in facts.distances)
            return f"From the {facts.target}, {each}. The nearest is the {facts.nearest}, option {answer}."
        case OffsetFacts():
            side = f"{abs(centimetres(facts.right))} cm {'right' if facts.right > 0 else 'left'}"
            depth = f"{abs(centimetres(facts.farther))} cm {'farther' if facts.farther > 0 else 'nearer'}"
            return (f"From the {facts.anchor}, the {facts.subject} is {side} and {depth}. "
                    f"It is {facts.direction}, option {answer}.")
        case TurnFacts():
            turn = f"{abs(round(facts.degrees))} degrees {'left' if facts.degrees > 0 else 'right'}"
            return (f"From the {facts.stand} to the {facts.face}, the {facts.query} is {turn}. "
                    f"It is {facts.direction}, option {answer}.")
        case CountFacts():
            pictures = ", ".join(map(str, facts.first_pictures))
            return f"I see the {facts.label} in picture {pictures}. The count is {answer}."
        case RoomFacts():
            length, width = centimetres(facts.length), centimetres(facts.width)
            return f"The room is {length} cm long and {width} cm wide. The size is {answer} m2."
        case AreaFacts():
            return f"The floor covers about {round(facts.area)} m2. The size is {answer} m2."
        case OrderFacts():
            seen = ", ".join(f"the {label} in picture {picture}" for label, picture in facts.appearances)
            return f"I see {seen}. The order is option {answer}."
