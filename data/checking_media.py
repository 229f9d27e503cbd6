"""Whether the pictures that rows show are there, can be decoded whole, and hold the boxes that are drawn on them.

What holds: every picture is decoded once, whatever the number of rows that show it; all that is wrong is one table, reported
once, before anything is trained. Sizes are upright ones (`data.media`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Literal, Sequence

from data.coordinates import Size
from data.media import PictureError, decoded_sizes
from data.reading import DataError
from data.types import Example

#: Pixels by which a box may leave its picture: half-open and closed conventions differ by one.
SLACK = 1.0
#: Lines of the table in an error message.
SHOWN = 10

Fault = Literal["missing", "empty", "unreadable", "box outside"]
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class MediaProblem:
    """A picture that cannot be used. `rows`: ids of the rows that show it, or whose box leaves it, in file order."""

    path: str
    fault: Fault
    detail: str
    rows: tuple[str, ...]


class MediaError(DataError):
    """Pictures that are missing, broken or smaller than a box on them; `problems` holds all of them, the message a table."""

    def __init__(self, problems: Sequence[MediaProblem], checked: int):
        self.problems = tuple(problems)
        bad = len({problem.path for problem in problems})
        super().__init__(f"{bad} of {checked} media cannot be used:\n{_table(self.problems)}")


def check_media(examples: Iterable[Example]) -> int:
    """The number of pictures, all of which can be used. One MediaError for all faults."""
    sizes, problems = media_problems(examples)
    if problems:
        raise MediaError(problems, len(sizes))
    return len(sizes)


def media_problems(
    examples: Iterable[Example], report: Report = lambda done, total: None
) -> tuple[dict[str, Size | None], list[MediaProblem]]:
    """Every picture's (width, height), None where it cannot be decoded, and what is wrong, in the order rows show them.

    `report(done, total)` is called after every picture.
    """
    shown: dict[str, list[Example]] = {}
    for example in examples:
        for path in dict.fromkeys(example.media):
            shown.setdefault(path, []).append(example)
    sizes: dict[str, Size | None] = {}
    problems: list[MediaProblem] = []
    for path, size in zip(shown, decoded_sizes(list(shown)), strict=True):
        sizes[path] = None if isinstance(size, PictureError) else size
        problems += _problems(path, size, shown[path])
        report(len(sizes), len(shown))
    return sizes, problems


def _table(problems: Sequence[MediaProblem]) -> str:
    """One line for each of the first `SHOWN`: what is wrong, where, how many rows show it, and the first of these."""
    kept = problems[:SHOWN]
    lines = [("fault", "picture", "rows", "first row", "")]
    lines += [(p.fault, p.path, str(len(p.rows)), p.rows[0], p.detail) for p in kept]
    widths = [max(len(line[column]) for line in lines) for column in range(4)] + [0]
    text = ["  " + "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    more = [f"  and {len(problems) - len(kept)} more"] if len(problems) > len(kept) else []
    return "\n".join(text + more)


def _problems(path: str, size: Size | PictureError, rows: Sequence[Example]) -> list[MediaProblem]:
    if isinstance(size, PictureError):
        fault, detail = _reason(path, size)
        return [MediaProblem(path, fault, detail, tuple(row.id for row in rows))]
    width, height = size
    frame = f"the {width} x {height} picture"
    return [
        MediaProblem(path, "box outside", f"box {list(box.bbox)} of {box.label!r} outside {frame}", (row.id,))
        for row in rows for box in row.boxes
        if min(box.bbox[:2]) < -SLACK or box.bbox[2] > width + SLACK or box.bbox[3] > height + SLACK
    ]


def _reason(path: str, error: PictureError) -> tuple[Fault, str]:
    file = Path(path)
    if not file.is_file():
        return ("unreadable", "it is a folder") if file.is_dir() else ("missing", "no such file")
    return ("empty", "the file has 0 bytes") if file.stat().st_size == 0 else ("unreadable", str(error))
