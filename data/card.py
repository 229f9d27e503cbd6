"""What is in a data folder, counted: composition beside the paper's, letters, pictures, places.

What holds: functions of rows alone, but for the headers of picture files; the same rows in another order count the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Iterable, Mapping, Sequence
from zlib import crc32

from data.leakage import place_of, scene_of
from data.reading import Split
from data.types import LOCALIZATION, Example
from models.inputs import MediaError, image_size

#: Category, rows by the paper's table, rows of the released files.
PAPER = (
    ("object localization", 5929, 5928),
    ("single_image", 5929, 5928),
    ("multi_view", 5752, 5752),
    ("video", 9000, 9000),
)
COLD_START_ROWS = "cold start"
#: Points by which the share of an answer letter may differ from 1 / options.
LETTER_TOLERANCE = 0.02
#: Parts that rows without an evaluation split are divided into, by place.
PARTS = 5

#: What the card says of a folder whose manifest names no known source.
UNKNOWN = "unknown"
_SCANNET = ("ScanNet has terms of use of its own, which bind what derives from it: read them before you pass on its frames, "
            "this card's pictures included, or what was made of its annotations.")
_NOT_SHIPPED = ("This project ships none of these rows, pictures or weights made of them; it reads the folder that you "
                "provide.")
#: Source, as `data.build` writes it into the manifest, to notes on licences.
LICENCES: Mapping[str, tuple[str, ...]] = {
    "procedural rooms": (
        "Scenes and pictures are drawn by this project's renderer; no material of others is in them. They carry the licence "
        "of this project (Apache-2.0).",
    ),
    "layouts": (
        "The pictures are drawn by this project's renderer; boxes, room sizes and names are VSI-Bench's meta-information, "
        "whose ScanNet part derives from ScanNet's annotations. " + _SCANNET,
        _NOT_SHIPPED,
    ),
    "posed_frames": (
        "Pictures, poses and boxes were given as posed frames: they stay under the terms of whoever captured and annotated "
        "them, which no scene.json says. Find out which before you pass on rows, frames or this card's pictures.",
        "If they were converted from ScanNet: " + _SCANNET,
        _NOT_SHIPPED,
    ),
    "scannet": ("Pictures, geometry and labels are ScanNet's. " + _SCANNET, _NOT_SHIPPED),
    UNKNOWN: (
        "Unknown: no manifest says what these rows were made of. Pictures and geometry stay under the terms of the scenes "
        "they come from; find out which before you pass anything on.",
        "If these are the files of SpatialLadder-26k: its card says Apache-2.0. But its 9,000 video questions come from "
        "SR-91k (CC BY-NC 4.0: no commercial use), and all of its pictures from ScanNet, which has terms of use of its own. "
        "Find out whether models trained on it are bound by both.",
        _NOT_SHIPPED,
    ),
}


@dataclass(frozen=True)
class LetterBalance:
    """Answer letters of the rows of one type with `options` options: `counts` of A, B, ..., the largest distance of a share
    from 1 / options, and two standard errors of a share, which letters drawn by lot would rarely exceed."""

    question_type: str
    options: int
    counts: tuple[int, ...]
    deviation: float
    two_errors: float

    @property
    def balanced(self) -> bool:
        return self.deviation <= LETTER_TOLERANCE


def licences(source: str) -> tuple[str, ...]:
    """Notes on the licences of a folder made from `source`, as a manifest calls it; any other name is unknown."""
    return LICENCES.get(source, LICENCES[UNKNOWN])


def category(row: Example) -> str:
    """The row's line in the paper's table."""
    if row.solution is not None:
        return COLD_START_ROWS
    return LOCALIZATION if row.is_localization else row.data_type


def categories(splits: Mapping[str, Split]) -> dict[str, dict[str, int]]:
    """Category (the paper's, and the cold start) to rows by split."""
    names = (*(name for name, _, _ in PAPER), COLD_START_ROWS)
    counts = {split: Counter(map(category, rows.examples)) for split, rows in splits.items()}
    return {name: {split: counts[split][name] for split in splits} for name in names}


def question_types(splits: Mapping[str, Split]) -> dict[tuple[str, str], dict[str, int]]:
    """(modality, question type) of the question rows to rows by split, sorted."""
    counts = {split: Counter((row.data_type, row.question_type) for row in rows.spatial) for split, rows in splits.items()}
    kinds = sorted({kind for own in counts.values() for kind in own})
    return {kind: {split: counts[split][kind] for split in splits} for kind in kinds}


def letter_balance(rows: Iterable[Example]) -> list[LetterBalance]:
    """By question type and number of options, and over all types ("all") by number of options."""
    groups: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.options:
            for kind in (row.question_type, "all"):
                groups[kind, len(row.options)][row.answer or ""] += 1
    balances = []
    for (kind, options), counts in sorted(groups.items(), key=lambda item: (item[0][0] == "all", item[0])):
        letters = tuple(counts[chr(ord("A") + place)] for place in range(options))
        rows_of_kind, even = sum(letters), 1 / options
        deviation = max(abs(n / rows_of_kind - even) for n in letters)
        balances.append(LetterBalance(kind, options, letters, deviation, 2 * sqrt(even * (1 - even) / rows_of_kind)))
    return balances


def picture_sizes(rows: Iterable[Example]) -> tuple[list[tuple[str, int]], int]:
    """("width x height", pictures) of the pictures that rows show, the most frequent first, by the headers of the files; and
    how many cannot be read."""
    sizes: Counter[str] = Counter()
    broken = 0
    for path in dict.fromkeys(path for row in rows for path in row.media):
        try:
            sizes["{} x {}".format(*image_size(path))] += 1
        except MediaError:
            broken += 1
    return sizes.most_common(), broken


def pictures_per_row(rows: Iterable[Example]) -> dict[str, tuple[int, float, int]]:
    """Modality to fewest, median and most pictures of a row."""
    counts: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        counts[row.data_type].append(len(row.media))
    return {kind: (min(own), float(median(own)), max(own)) for kind, own in sorted(counts.items())}


def by_place(rows: Sequence[Example], root: Path, parts: int = PARTS) -> list[list[Example]]:
    """The rows in `parts` parts, all that begin with a picture of one place in the same part, whatever their order."""
    divided: list[list[Example]] = [[] for _ in range(parts)]
    for row in rows:
        scene = scene_of(row.media[0], root)
        place = Path(row.media[0]).name if scene is None else place_of(scene)
        divided[crc32(place.encode()) % parts].append(row)
    return divided


def shown_rows(rows: Sequence[Example], root: Path, count: int) -> list[Example]:
    """At most `count` rows for pictures of a card, evenly spaced, of as many scenes as there are."""
    first_of_scene = list({scene_of(row.media[0], root): row for row in reversed(rows)}.values())[::-1]
    others = [row for row in rows if row not in first_of_scene] if len(first_of_scene) < count else []
    chosen = _spaced(first_of_scene, count)
    return chosen + _spaced(others, count - len(chosen))


def _spaced(rows: Sequence[Example], count: int) -> list[Example]:
    step = max(1.0, len(rows) / count) if count else 1.0
    return [rows[int(place * step)] for place in range(min(count, len(rows)))]
