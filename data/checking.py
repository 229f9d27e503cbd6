"""Everything that is wrong with a data folder, found in one pass: what `ladder data check` tells.

What holds
    * All problems of all files are found, never only the first. Rows are judged by `data.reading` alone; what only shows
      across rows (duplicates, leakage, counts) and on the disk (pictures) is looked for here.
    * A fault is what training would refuse, or what makes a number measured on the folder mean something else: a
      contradiction, or training and evaluation rows that show the same place. A remark is worth knowing, no more.
    * DIR is a data folder (train/, heldout/) or one split alone, as the released files come: the JSONL files in DIR itself.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Iterator, Literal, Mapping, Sequence

from data.checking_media import MediaProblem, media_problems
from data.coordinates import Size
from data.joining import Joined, join_boxes, normalized_question
from data.leakage import scenes_of, shared_places
from data.reading import (
    FILES, GROUNDING_FILE, SPATIAL_FILE, DataError, RowError, count_problems, picture_folder, scan_rows,
)
from data.types import NUMERIC_TYPES, SPLITS, Example

#: Places that a message names before it says how many more there are.
NAMED = 5
PROGRESS_SECONDS = 3.0

Kind = Literal["row", "file", "duplicate", "leakage", "pictures", "keys", "scenes"]
Report = Callable[[str], None]

_REMEDIES: Mapping[str | None, str] = {
    None: "write one JSON object per line; a torn line means that the file was cut: get or build it again",
    "question_id": "give every row of a file an integer of its own",
    "image": "write paths relative to the picture folder, as many as data_type asks for",
    "data_type": "write one of the names that are expected, exactly",
    "question_type": "write one of the names that are expected, exactly; rows of other types must be taken out",
    "options": "write the options as ['A. ...', 'B. ...'], or null where a number is asked",
    "answer": "correct the answer, or take the row out",
    "solution": "write the two blocks once each, or take the row out",
}
_MEDIA_REMEDY = "unpack the pictures again, or take the rows out that show them; a box is given in its picture's own pixels"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`fault`) or worth knowing, where, and what to do. `file` None: the folder."""

    kind: Kind
    file: Path | None
    line: int | None
    field: str | None
    what: str
    remedy: str
    fault: bool = True

    def __str__(self) -> str:
        where = [str(self.file)] if self.file else []
        where += [f"line {self.line}"] if self.line else []
        where += [f"field {self.field!r}"] if self.field else []
        return (", ".join(where) + ": " if where else "") + self.what


@dataclass(frozen=True)
class SplitRows:
    """The good rows of a split with the file and line of each; `counts`: lines of every file that is there."""

    name: str
    folder: Path
    rows: tuple[tuple[Path, int, Example], ...]
    counts: Mapping[str, int]

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(example for _, _, example in self.rows)

    def of(self, file_name: str) -> tuple[Example, ...]:
        return tuple(example for file, _, example in self.rows if file.name == file_name)


@dataclass(frozen=True)
class Checked:
    """What a check found. `sizes`: pictures that rows show, with (width, height) where they can be decoded."""

    splits: tuple[SplitRows, ...]
    findings: tuple[Finding, ...]
    media: tuple[MediaProblem, ...] = ()
    sizes: Mapping[str, Size | None] = field(default_factory=dict)

    @property
    def undecoded(self) -> int:
        """Pictures that are missing or cannot be decoded."""
        return sum(size is None for size in self.sizes.values())

    @property
    def too_small(self) -> int:
        """Pictures that can be decoded and have a box outside."""
        return len({problem.path for problem in self.media if self.sizes[problem.path] is not None})

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.fault)

    def joined(self) -> Mapping[str, Joined]:
        """Split to what the join of its localisation rows to its questions gives."""
        return {split.name: join_boxes(split.of(SPATIAL_FILE), split.of(GROUNDING_FILE)) for split in self.splits}


def split_folders(folder: Path) -> dict[str, Path]:
    """Name to folder of the splits of a data folder; the folder itself where the files lie in it. DataError for neither."""
    found = {name: folder.absolute() / name for name in SPLITS if (folder / name).is_dir()}
    if found:
        return found
    if any((folder / name).is_file() for name in FILES):
        return {folder.absolute().name: folder.absolute()}
    raise DataError(f"{folder} is no data folder: it holds neither {' and '.join(f'{name}/' for name in SPLITS)} nor the "
                    f"released files ({', '.join(FILES)})")


def check_folder(folder: Path, other_scenes: Iterable[str] = (), report: Report = lambda line: None) -> Checked:
    """Check all of `folder`. `other_scenes`: scenes that nothing may be trained on, such as a benchmark's. DataError when it
    is no data folder; everything else is a finding."""
    findings: list[Finding] = []
    splits = []
    folders = split_folders(folder)
    for name, own in folders.items():
        splits.append(_scan_split(own, name, findings))
        report(f"{own}: {sum(splits[-1].counts.values())} rows read")
    alone = folder.absolute() in folders.values()  # one split, which has no manifest of its own
    for name in () if alone else SPLITS:
        if name not in folders:
            what = f"{folder / name} is missing: a run needs rows to train on and rows to be measured on"
            findings.append(Finding("file", None, None, None, what, "divide the rows by place into train/ and heldout/"))
    for split in splits:
        findings += duplicates(split.rows)
        findings += equal_options(split.rows)
        if not alone:
            findings += [Finding("file", None, None, None, str(problem), "build the folder again, or remove the manifest")
                         for problem in count_problems(folder, split.name, split.counts)]
    findings += leaks(splits, frozenset(other_scenes))
    sizes, media = media_problems((row for split in splits for row in split.examples), _told(report))
    findings += _media_findings(media, splits)
    return Checked(tuple(splits), tuple(findings), tuple(media), sizes)


def _scan_split(folder: Path, name: str, findings: list[Finding]) -> SplitRows:
    rows, counts = [], {}
    for file_name in FILES:
        file = folder / file_name
        unknown: Counter[str] = Counter()
        try:
            for row in scan_rows(folder.parent, file_name, folder.name):
                counts[file_name] = counts.get(file_name, 0) + 1
                findings += map(_row_finding, row.faults)
                unknown.update(row.unknown)
                rows += [(file, row.line, row.example)] if row.example is not None else []
        except DataError as error:
            findings.append(Finding("file", None, None, None, str(error), "a file may be empty, but must be there"))
            continue
        if not counts.setdefault(file_name, 0):
            findings.append(Finding("file", file, None, None, "no rows: the stage that trains on them cannot run",
                                    "leave the stage out of `stages`", fault=False))
        for key, count in sorted(unknown.items()):
            findings.append(Finding("keys", file, None, key, f"a key that the schema does not know, in {_rows(count)}",
                                    "nothing: only rewards of your own read it, as metadata", fault=False))
    return SplitRows(name, folder, tuple(rows), counts)


def _row_finding(error: RowError) -> Finding:
    remedy = _REMEDIES.get(error.field, "correct it, or take the row out")
    return Finding("row", error.file, error.line, error.field, error.told, remedy)


# Across rows ------------------------------------------------------------------------------------------------------


def duplicates(rows: Sequence[tuple[Path, int, Example]]) -> Iterator[Finding]:
    """Rows that ask what an earlier row of their file asks about the same media; faults where the answers differ."""
    first: dict[tuple, tuple[int, object]] = {}
    for file, line, row in rows:
        key = (file, row.data_type, row.media, normalized_question(row.question))
        truth = _truth(row)
        before, answer = first.setdefault(key, (line, truth))
        what = f"the same question about the same media as in line {before}"
        if before != line and (truth is None or answer == truth):
            yield Finding("duplicate", file, line, "question", what, "nothing, or take it out: it counts twice", fault=False)
        elif before != line:
            yield Finding("duplicate", file, line, "answer", f"{what}, and another answer",
                          "find out which is right and take the other out")


def equal_options(rows: Sequence[tuple[Path, int, Example]]) -> Iterator[Finding]:
    """Rows that offer one thing under two letters: where it is right, the other letter is counted as wrong."""
    for file, line, row in rows:
        texts = Counter(option.partition(".")[2].strip() for option in row.options or ())
        if equal := [text for text, count in texts.items() if count > 1]:
            yield Finding("options", file, line, "options", f"{equal[0]!r} stands under {texts[equal[0]]} letters",
                          "take the row out, or write another option")


def _truth(row: Example) -> object:
    """What two answers to one question must agree in; None where there is nothing to compare (traces may differ)."""
    if row.is_localization:
        return frozenset(row.boxes)
    if row.answer is None:
        return None
    if row.question_type in NUMERIC_TYPES:
        return float(row.answer)
    return next(option[1:] for option in row.options or () if option.startswith(row.answer))


def leaks(splits: Sequence[SplitRows], others: frozenset[str]) -> Iterator[Finding]:
    """Places that are shown both in rows to train on and in rows, or scenes of others, to be measured on."""
    scenes = {split.name: scenes_of(split.examples, picture_folder(split.folder)) for split in splits}
    for split in splits:
        known = {row for rows in scenes[split.name].values() for row in rows}
        if unknown := len(split.rows) - len(known):
            what = (f"rows whose pictures lie outside of any scene folder: {unknown}; whether they show a place of another "
                    "split cannot be said")
            yield Finding("scenes", split.folder, None, "image", what, "keep pictures in <scene>/<picture>", fault=False)
    train, *measured = splits
    for split in measured:
        yield from _leak(train, scenes[train.name], f"{split.name}/", scenes[split.name],
                         "divide the rows by scene, all scans of a place on one side")
    if others:
        yield from _leak(train, scenes[train.name], "the other scenes", others, "take the rows of these scenes out")


def _leak(
    train: SplitRows, ours: Mapping[str, Sequence[str]], name: str, theirs: Iterable[str], remedy: str
) -> Iterator[Finding]:
    place_of_row = {row.id: (file, line) for file, line, row in train.rows}
    for place, (own, other) in shared_places(ours, theirs).items():
        rows = {row for scene in own for row in ours[scene]}
        file, line = place_of_row[ours[own[0]][0]]
        what = f"place {place} ({_named(own)}), shown by {_rows(len(rows))}, is in {name} too ({_named(other)})"
        yield Finding("leakage", file, line, "image", what, remedy)


def _rows(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


# Pictures ---------------------------------------------------------------------------------------------------------


def _media_findings(media: Sequence[MediaProblem], splits: Sequence[SplitRows]) -> Iterator[Finding]:
    place = {row.id: (file, line) for split in splits for file, line, row in split.rows}
    for problem in media:
        file, line = place[problem.rows[0]]
        more = f" (and {len(problem.rows) - 1} more rows)" if len(problem.rows) > 1 else ""
        yield Finding("pictures", file, line, "answer" if problem.fault == "box outside" else "image",
                      f"{problem.path}: {problem.fault}, {problem.detail}{more}", _MEDIA_REMEDY)


def _told(report: Report) -> Callable[[int, int], None]:
    """Tells of pictures that are looked at, whatever was found, every few seconds, and of the last."""
    told = [time.monotonic()]

    def tell(done: int, total: int) -> None:
        if done == total or time.monotonic() - told[0] >= PROGRESS_SECONDS:
            told[0] = time.monotonic()
            report(f"{done} of {total} pictures looked at")

    return tell
