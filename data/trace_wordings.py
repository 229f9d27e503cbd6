"""Longer reasoning for traces from geometry: several wordings with the steps of the calculation.

What holds
    * The wording is drawn from the question and its answer alone (a checksum), so that it is the same in every process,
      and depends on no generator.
    * Every number is true of the scene to the digits written; what follows from rounded numbers is said to be about so much.
    * At most `MAX_WORDS` words.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

from data.facts import (
    AreaFacts, CountFacts, Facts, GapFacts, NearestFacts, OffsetFacts, OrderFacts, Question, RoomFacts, SizeFacts, TurnFacts,
    centimetres,
)

#: Words of the longest reasoning in these wordings, split at white space.
MAX_WORDS = 110

_OPENINGS = ("", "Let me think step by step. ", "First I look for what the question names. ",
             "Let me take the measurements one by one. ")
_CLOSINGS = {
    "letter": ("So the answer is {a}.", "That is option {a}.", "Therefore I choose {a}."),
    "number": ("So the answer is {a}{unit}.", "That makes {a}{unit}.", "I answer {a}{unit}."),
}
_UNITS = {SizeFacts: " cm", GapFacts: " m", RoomFacts: " square meters", AreaFacts: " square meters", CountFacts: ""}


def varied_reasoning(question: Question) -> str:
    """The reasoning of a spatial question. ValueError for one without an answer."""
    if question.answer is None:
        raise ValueError(f"a {question.question_type!r} question has no answer to reason towards")
    drawn = zlib.crc32("\0".join((question.question, *question.frames, question.answer)).encode())
    kind = "letter" if question.options else "number"
    opening, drawn = _OPENINGS[drawn % len(_OPENINGS)], drawn // len(_OPENINGS)
    closings = _CLOSINGS[kind]
    closing, drawn = closings[drawn % len(closings)], drawn // len(closings)
    bodies = _bodies(question.facts)
    unit = _UNITS.get(type(question.facts), "")
    return f"{opening}{bodies[drawn % len(bodies)]} {closing.format(a=question.answer, unit=unit)}"


def _bodies(facts: Facts) -> Sequence[str]:
    match facts:
        case SizeFacts():
            return _size(facts)
        case GapFacts():
            return _gap(facts)
        case NearestFacts():
            return _nearest(facts)
        case OffsetFacts():
            return _offset(facts)
        case TurnFacts():
            return _turn(facts)
        case CountFacts():
            return _count(facts)
        case RoomFacts():
            return _room(facts)
        case AreaFacts():
            return _area(facts)
        case OrderFacts():
            return _order(facts)


def _size(facts: SizeFacts) -> Sequence[str]:
    sides = {"length": centimetres(facts.long), "width": centimetres(facts.wide), "height": centimetres(facts.high)}
    longest = max(sides, key=sides.get)
    listed = ", ".join(f"its {name} is {value} cm" for name, value in sides.items())
    return (
        f"For the {facts.label}, {listed}. No side is longer than the {longest}.",
        f"The {facts.label} measures {sides['length']} by {sides['width']} by {sides['height']} cm. "
        f"Nothing is longer than the {longest} of {sides[longest]} cm.",
    )


def _gap(facts: GapFacts) -> Sequence[str]:
    gaps = [centimetres(gap) for gap in facts.along if centimetres(gap) > 0]
    names = f"the {facts.first} and the {facts.second}"
    whole = centimetres(facts.distance)
    if len(gaps) < 2:
        return (f"Between the closest points of {names} there are {whole} cm along one direction, and nothing else.",
                f"The free space between {names} runs in one direction only. It is {whole} cm.")
    squares = " + ".join(f"{gap}^2" for gap in gaps)
    parts = ", ".join(f"{gap} cm" for gap in gaps[:-1]) + f" and {gaps[-1]} cm"
    return (
        f"Between the closest points of {names} I see {parts} along the axes of the room. "
        f"Straight across that is the root of {squares}, about {whole} cm.",
        f"From the closest point of the {facts.first} to that of the {facts.second} one goes {parts}, at right angles. "
        f"The direct way is shorter than their sum: about {whole} cm.",
    )


def _nearest(facts: NearestFacts) -> Sequence[str]:
    ranked = sorted(facts.distances, key=lambda pair: pair[1])
    given = ", ".join(f"to the {label} {centimetres(distance)} cm" for label, distance in facts.distances)
    order = ", then ".join(f"the {label} ({centimetres(distance)} cm)" for label, distance in ranked)
    (_, near), (second, far) = ranked[:2]
    return (
        f"I measure from the closest point of the {facts.target}: {given}. "
        f"The smallest of these belongs to the {facts.nearest}.",
        f"Seen from the {facts.target}, the nearest comes first: {order}.",
        f"Which is nearest to the {facts.target}? The {facts.nearest} is {centimetres(near)} cm away. "
        f"The {second} comes next with {centimetres(far)} cm. So it is the {facts.nearest}.",
    )


def _offset(facts: OffsetFacts) -> Sequence[str]:
    side = "right" if facts.right > 0 else "left"
    depth, meaning = ("farther from", "front") if facts.farther > 0 else ("nearer to", "back")
    across, along = abs(centimetres(facts.right)), abs(centimetres(facts.farther))
    return (
        f"In the picture I compare the {facts.subject} with the {facts.anchor}. It lies {across} cm to the {side}. "
        f"It is also {along} cm {depth} the camera, which counts as {meaning}. Together that is {facts.direction}.",
        f"Left or right? The {facts.subject} is {across} cm to the {side} of the {facts.anchor}. "
        f"Front or back? It is {along} cm {depth} the camera, so {meaning}. That gives {facts.direction}.",
    )


def _turn(facts: TurnFacts) -> Sequence[str]:
    turn, side = abs(round(facts.degrees)), "left" if facts.degrees > 0 else "right"
    return (
        f"I stand by the {facts.stand} and look at the {facts.face}. To face the {facts.query} I would turn {turn} "
        f"degrees to the {side}. That direction is {facts.direction}.",
        f"The line from the {facts.stand} to the {facts.face} is straight ahead. The {facts.query} lies {turn} degrees "
        f"to the {side} of it, which is {facts.direction}.",
    )


def _count(facts: CountFacts) -> Sequence[str]:
    new = sorted(Counter(facts.first_pictures).items())
    told = ", ".join(f"picture {picture} shows {count} {'for the first time' if place == 0 else 'more'}"
                     for place, (picture, count) in enumerate(new))
    total = " + ".join(str(count) for _, count in new)
    summed = f"{total} = {len(facts.first_pictures)}" if len(new) > 1 else f"That is all: {total}"
    return (
        f"I count each {facts.label} once. {told[0].upper() + told[1:]}. {summed}.",
        f"Some pictures may show the same {facts.label} again, so I count new ones only: {told}. {summed}.",
    )


def _room(facts: RoomFacts) -> Sequence[str]:
    sides = f"{facts.length:.2f} m by {facts.width:.2f} m"
    return (
        f"The floor of the room is {sides}. Length times width is about {facts.length * facts.width:.1f} square meters.",
        f"I estimate the room at {sides}. A floor of these sides has about {facts.length * facts.width:.1f} square meters.",
    )


def _area(facts: AreaFacts) -> Sequence[str]:
    return (
        f"I add up the parts of the floor. Together they have about {facts.area:.1f} square meters.",
        f"I follow the walls all around. The floor between them has about {facts.area:.1f} square meters.",
    )


def _order(facts: OrderFacts) -> Sequence[str]:
    seen = ", ".join(f"the {label} in picture {picture}" for label, picture in facts.appearances)
    names = ", ".join(label for label, _ in facts.appearances)
    first, last = facts.appearances[0][0], facts.appearances[-1][0]
    return (
        f"I go through the pictures and note when each thing first appears: {seen}. The order is {names}.",
        f"The {first} comes first and the {last} last. In detail, I first see {seen}. So: {names}.",
    )
