"""Strict reader of the released files: JSON lines in, typed `Example`s out, or the exact place that is wrong.

What holds
    * A data folder holds `<split>/{spld_grounding_data,spld_spatial_data,spld_coldstart_data}.jsonl` and the pictures
      under `<split>/images/` (or, where that folder is missing, under `<split>/`).
    * No row is dropped or repaired in silence: the first bad row raises `RowError`; keys that the schema does not know
      are ignored with one counted warning per file.
    * Paths in rows are relative and stay inside the picture folder. Reading rows opens no picture: `check_media` does.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterable, Mapping, Sequence, get_args

from data.coordinates import Size
from data.media import PictureError, decoded_sizes
from data.types import LOCALIZATION, MULTIPLE_CHOICE_TYPES, NUMERIC_TYPES, QUESTION_TYPES, Box, DataType, Example

GROUNDING_FILE = "spld_grounding_data.jsonl"
SPATIAL_FILE = "spld_spatial_data.jsonl"
COLDSTART_FILE = "spld_coldstart_data.jsonl"
#: `question_type` of cold-start rows inside the system: the released file does not say what they ask.
COLD_START = "cold start"

_DATA_TYPES = get_args(DataType)
_SHARED_KEYS = frozenset({"question_id", "image", "data_type"})
_KEYS: Mapping[str, frozenset[str]] = {
    GROUNDING_FILE: _SHARED_KEYS | {"question", "answer"},
    SPATIAL_FILE: _SHARED_KEYS | {"question", "options", "answer", "question_type"},
    COLDSTART_FILE: _SHARED_KEYS | {"prompt", "solution"},
}
_DECIMAL = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_OPTION = re.compile(r"([A-Z])\. ?(.*\S.*)", re.DOTALL)
_INNER = r"(?:(?!</?(?:think|answer)>).)+"
_SOLUTION = re.compile(rf"\s*<think>{_INNER}</think>\s*<answer>{_INNER}</answer>\s*", re.DOTALL)
_MISSING = object()


class DataError(ValueError):
    """A data folder that cannot be used; the message says what, where and what is expected."""


class RowError(DataError):
    """One bad row: `file`, `line` (from 1), `field` (None for the whole line), `value` and what was expected."""

    def __init__(self, file: Path, line: int, field: str | None, value: object, reason: str):
        self.file, self.line, self.field, self.value, self.reason = file, line, field, value, reason
        where = f"{file}, line {line}" + (f", field {field!r}" if field else "")
        super().__init__(f"{where}: {reason}" + ("" if value is _MISSING else f"; found {_short(value)}"))


class MediaError(DataError):
    """Pictures that are missing, broken or smaller than a box on them; `problems` lists all of them."""

    def __init__(self, problems: Sequence[str], checked: int):
        self.problems = tuple(problems)
        shown = "\n  ".join(self.problems[:10])
        more = f"\n  and {len(self.problems) - 10} more" if len(self.problems) > 10 else ""
        super().__init__(f"{len(self.problems)} of {checked} media cannot be used:\n  {shown}{more}")


@dataclass(frozen=True)
class Split:
    """The rows of one split, in file order."""

    grounding: tuple[Example, ...]
    spatial: tuple[Example, ...]
    coldstart: tuple[Example, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.grounding + self.spatial + self.coldstart


def load_split(folder: str | Path, split: str) -> Split:
    """All rows of `folder/split`. Raises RowError, or DataError for a missing file or counts unlike the manifest's."""
    rows = {name: read_rows(folder, name, split) for name in _KEYS}
    manifest = Path(folder) / "manifest.json"
    if manifest.is_file():
        try:
            expected = json.loads(manifest.read_text())["counts"][split]["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{manifest}: expected counts.{split}.rows ({type(error).__name__}: {error}); "
                            "build the folder again or remove the manifest") from error
        for name, examples in rows.items():
            if expected.get(name) != len(examples):
                raise DataError(f"{Path(folder) / split / name}: {len(examples)} rows, but {manifest} counts "
                                f"{expected.get(name)}; the file was cut or edited, build the folder again")
    return Split(*(tuple(rows[name]) for name in (GROUNDING_FILE, SPATIAL_FILE, COLDSTART_FILE)))


def read_rows(folder: str | Path, file_name: str, split: str) -> list[Example]:
    """Rows of `folder/split/file_name` (one of the three released names), in file order.

    Raises RowError at the first bad row and DataError for an unknown or missing file.
    """
    if file_name not in _KEYS:
        raise DataError(f"{file_name!r} is no file of the released layout; expected one of {', '.join(_KEYS)}")
    path = Path(folder) / split / file_name
    if not path.is_file():
        raise DataError(f"{path} is missing; a split holds {', '.join(_KEYS)}")
    root = path.parent / "images"
    root = root if root.is_dir() else path.parent
    make = {GROUNDING_FILE: _grounding, SPATIAL_FILE: _spatial, COLDSTART_FILE: _coldstart}[file_name]
    examples: list[Example] = []
    seen: dict[int, int] = {}
    unknown: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            row = _Row(path, number, _parse(path, number, raw))
            for key in row.values.keys() - _KEYS[file_name]:
                unknown[key] = unknown.get(key, 0) + 1
            example = make(row, _common(row, root, split))
            if example.question_id in seen:
                row.fail("question_id", f"expected a new id; line {seen[example.question_id]} has the same")
            seen[example.question_id] = number
            examples.append(example)
    if unknown:
        counts = ", ".join(f"{key} ({count})" for key, count in sorted(unknown.items()))
        warnings.warn(f"{path}: ignored keys that the schema does not know, with the number of rows: {counts}",
                      stacklevel=2)
    return examples


def check_media(examples: Iterable[Example]) -> int:
    """Decode every picture once, whole, and check that boxes lie on it, upright; the number of pictures.

    One MediaError for all faults.
    """
    boxes: dict[str, list[tuple[str, Box]]] = {}
    for example in examples:
        for path in example.media:
            boxes.setdefault(path, []).extend((example.id, box) for box in example.boxes)
    sizes = decoded_sizes(list(boxes))
    problems = [problem for (path, asked), size in zip(boxes.items(), sizes)
                for problem in _picture_problems(path, asked, size)]
    if problems:
        raise MediaError(problems, len(boxes))
    return len(boxes)


def _picture_problems(path: str, boxes: Sequence[tuple[str, Box]], size: Size | PictureError) -> list[str]:
    if not Path(path).is_file():
        return [f"{path}: no such file"]
    if isinstance(size, PictureError):
        return [f"{path}: not a readable picture ({size})"]
    width, height = size
    return [f"{path}: row {row} has a box {list(box.bbox)} outside the {width} x {height} picture" for row, box in boxes
            if min(box.bbox[:2]) < -1 or box.bbox[2] > width + 1 or box.bbox[3] > height + 1]


# Rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A parsed line that knows where it stands."""

    file: Path
    line: int
    values: Mapping[str, Any]

    def fail(self, field: str | None, reason: str, value: object = _MISSING):
        value = self.values.get(field, _MISSING) if value is _MISSING and field else value
        raise RowError(self.file, self.line, field, value, reason)

    def take(self, field: str, accept: Callable[[Any], bool], expected: str) -> Any:
        if field not in self.values:
            self.fail(field, f"the field is missing, expected {expected}")
        value = self.values[field]
        if not accept(value):
            self.fail(field, f"expected {expected}")
        return value

    def text(self, field: str, expected: str = "a non-empty string") -> str:
        return self.take(field, lambda v: isinstance(v, str) and bool(v.strip()), expected)


def _parse(path: Path, number: int, raw: bytes) -> dict:
    try:
        values = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise RowError(path, number, None, _MISSING, f"expected one JSON object in UTF-8 per line ({error})") from error
    if not isinstance(values, dict):
        raise RowError(path, number, None, values, "expected one JSON object per line")
    return values


def _common(row: _Row, root: Path, split: str) -> dict:
    """The fields that all files share, as keyword arguments of Example."""
    question_id = row.take("question_id", lambda v: type(v) is int and abs(v) < 2**63, "a 64-bit integer")
    data_type = row.take("data_type", lambda v: v in _DATA_TYPES, f"one of {', '.join(_DATA_TYPES)}")
    names = row.take("image", lambda v: isinstance(v, (str, list)) and bool(v), "a path or a non-empty list of paths")
    names = [names] if isinstance(names, str) else names
    media = tuple(str(root / _relative(row, name)) for name in names)
    if row.file.name != GROUNDING_FILE:
        if data_type == "single_image" and len(media) != 1:
            row.fail("image", f"expected 1 picture for single_image, got {len(media)}")
        if data_type != "single_image" and len(media) < 2:
            row.fail("image", f"expected at least 2 pictures for {data_type}, got {len(media)}")
    return {"id": f"{split}/{row.file.stem}/{question_id}", "question_id": question_id, "data_type": data_type,
            "media": media}


def _relative(row: _Row, name: object) -> PurePosixPath:
    expected = "a relative path below the picture folder, without '..'"
    if not isinstance(name, str) or not name.strip() or "\\" in name or "\0" in name:
        row.fail("image", f"expected {expected}", name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        row.fail("image", f"expected {expected}", name)
    parts = path.parts[1:] if path.parts[0] == "images" else path.parts
    if not parts:
        row.fail("image", f"expected {expected}", name)
    return PurePosixPath(*parts)


def _without_placeholder(row: _Row, field: str) -> str:
    text = row.text(field).replace("<image>", "").strip()
    if not text:
        row.fail(field, "expected text beside the <image> placeholder")
    return text


def _grounding(row: _Row, common: dict) -> Example:
    if common["data_type"] != "single_image":
        row.fail("data_type", "expected single_image: localisation rows show one picture")
    question = _without_placeholder(row, "question")
    answer = row.take("answer", lambda v: isinstance(v, list) and bool(v), "a non-empty list of {bbox_2d, label}")
    boxes = tuple(_box(row, item) for item in answer)
    common["media"] = common["media"][:1]  # the released schema: only item 0 is used
    return Example(question=question, question_type=LOCALIZATION, boxes=boxes, **common)


def _box(row: _Row, item: object) -> Box:
    if not isinstance(item, dict) or not {"bbox_2d", "label"} <= item.keys():
        row.fail("answer", "expected {bbox_2d, label} in every item", item)
    label, corners = item["label"], item["bbox_2d"]
    if not isinstance(label, str) or not label.strip():
        row.fail("answer", "expected a non-empty label", label)
    if not isinstance(corners, list) or len(corners) != 4 or any(type(v) not in (int, float) for v in corners):
        row.fail("answer", "expected bbox_2d as four numbers x1, y1, x2, y2", corners)
    x1, y1, x2, y2 = corners
    if not (0 <= x1 < x2 < float("inf") and 0 <= y1 < y2 < float("inf")):
        row.fail("answer", "expected 0 <= x1 < x2 and 0 <= y1 < y2 in bbox_2d", corners)
    return Box(label.strip(), (x1, y1, x2, y2))


def _spatial(row: _Row, common: dict) -> Example:
    question = _without_placeholder(row, "question")
    kind = row.take("question_type", lambda v: v in QUESTION_TYPES, f"one of {', '.join(QUESTION_TYPES)}")
    options = row.take("options", lambda v: v is None or isinstance(v, list), "a list of lettered strings, or null")
    answer = row.text("answer", "a string: an option letter or a decimal number").strip()
    if kind in NUMERIC_TYPES and options is not None:
        row.fail("options", f"expected null for {kind!r}, which is answered with a number")
    if kind in NUMERIC_TYPES and not _DECIMAL.fullmatch(answer):
        row.fail("answer", f"expected a decimal number for {kind!r}, such as 42 or 3.1")
    if kind in MULTIPLE_CHOICE_TYPES:
        letters = _letters(row, kind, options)
        if answer not in letters:
            row.fail("answer", f"expected one of the option letters {', '.join(letters)}")
    return Example(question=question, question_type=kind, options=None if options is None else tuple(options),
                   answer=answer, **common)


def _letters(row: _Row, kind: str, options: list | None) -> list[str]:
    if options is None or len(options) < 2:
        row.fail("options", f"expected at least two options for {kind!r}, which is answered with a letter")
    matches = [_OPTION.fullmatch(option) if isinstance(option, str) else None for option in options]
    letters = [match.group(1) if match else None for match in matches]
    if letters != [chr(ord("A") + i) for i in range(len(options))]:
        row.fail("options", "expected options lettered in order: 'A. first', 'B. second', ...")
    return letters


def _coldstart(row: _Row, common: dict) -> Example:
    prompt = _without_placeholder(row, "prompt")
    solution = row.text("solution")
    if not _SOLUTION.fullmatch(solution):
        row.fail("solution", "expected <think>reasoning</think><answer>answer</answer>, each once and not empty")
    return Example(question=prompt, question_type=COLD_START, prompt_text=prompt, solution=solution, **common)


def _short(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
