"""What a generated question is made of: its text, its answer, and the geometry that makes the answer true.

`facts` is what a cold-start trace may state: everything in it is visible from, or measured in, the scene. Lengths are
metres unless a name says otherwise; pictures are numbered from 1 in the order the row shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.types import Box, DataType


@dataclass(frozen=True)
class SizeFacts:
    """Extents of one object in metres: the longer and the shorter side on the floor, and the height."""

    label: str
    long: float
    wide: float
    high: float


@dataclass(frozen=True)
class GapFacts:
    """Two objects and the shortest line between their boxes, metres: its extent along world x, y, z, and its length."""

    first: str
    second: str
    along: tuple[float, float, float]
    distance: float


@dataclass(frozen=True)
class NearestFacts:
    """Distances in metres from `target` to each candidate, in option order."""

    target: str
    distances: tuple[tuple[str, float], ...]
    nearest: str


@dataclass(frozen=True)
class OffsetFacts:
    """Where `subject` lies from `anchor` in the camera frame: metres to the right and metres farther away."""

    subject: str
    anchor: str
    right: float
    farther: float
    direction: str


@dataclass(frozen=True)
class TurnFacts:
    """Standing at `stand`, facing `face`: the turn towards `query` in degrees, left positive, and its sector."""

    stand: str
    face: str
    query: str
    degrees: float
    direction: str


@dataclass(frozen=True)
class CountFacts:
    """Every instance of a category by the first picture that shows it."""

    label: str
    first_pictures: tuple[int, ...]


@dataclass(frozen=True)
class RoomFacts:
    """Sides of the room on the floor, metres."""

    length: float
    width: float


@dataclass(frozen=True)
class AreaFacts:
    """Area of a floor of any shape, square metres."""

    area: float


@dataclass(frozen=True)
class OrderFacts:
    """Categories with the first picture that shows them, in order of appearance."""

    appearances: tuple[tuple[str, int], ...]


def centimetres(metres: float) -> int:
    """The nearest whole number of centimetres: how questions, answers and traces round every length."""
    return int(round(100 * metres))


Facts = (SizeFacts | GapFacts | NearestFacts | OffsetFacts | TurnFacts | CountFacts | RoomFacts | AreaFacts
         | OrderFacts)


@dataclass(frozen=True)
class Question:
    """One generated row before it is written.

    `frames` are frame names of the scene in temporal order. `boxes` are the objects the question mentions, in integer
    pixels of the original picture (single-image questions only). `key` is equal for two wordings of one question.
    """

    data_type: DataType
    question_type: str
    question: str
    frames: tuple[str, ...]
    options: tuple[str, ...] | None
    answer: str | None
    facts: Facts
    key: tuple
    boxes: tuple[Box, ...] = ()
