"""Strict reader of the released files: JSON lines in, typed `Example`s out, or every place that is wrong.

What holds
    * A data folder holds `<split>/{spld_grounding_data,spld_spatial_data,spld_coldstart_data}.jsonl` and the pictures
      under `<split>/images/` (or, where that folder is missing, under `<split>/`).
    * This is the only place that knows the schema. `scan_rows` finds all faults of every line (`data.checking` lists
      them), `read_rows` stops at the first, `data.arrow_rows` makes Hugging Face datasets of what was read here.
    * No row is dropped or repaired in silence; keys that the schema does not know become the row's `metadata`, which rewards
      of one's own may read, with one counted warning per file.
    * Paths in rows are relative and stay inside the picture folder. No picture is opened here (`data.checking_media`).
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterator, Mapping, TypeVar, get_args

from data.types import LOCALIZATION, MULTIPLE_CHOICE_TYPES, NUMERIC_TYPES, QUESTION_TYPES, Box, DataType, Example

GROUNDING_FILE = "spld_grounding_data.jsonl"
SPATIAL_FILE = "spld_spatial_data.jsonl"
COLDSTART_FILE = "spld_coldstart_data.jsonl"
#: `question_type` of cold-start rows inside the system: the released file does not say what they ask.
COLD_START = "cold start"

FILES = (GROUNDING_FILE, SPATIAL_FILE, COLDSTART_FILE)
MANIFEST = "manifest.json"

_DATA_TYPES = get_args(DataType)
_SHARED_KEYS = frozenset({"question_id", "image", "data_type"})
_KEYS: Mapping[str, frozenset[str]] = {
    GROUNDING_FILE: _SHARED_KEYS | {"question", "answer"},
    SPATIAL_FILE: _SHARED_KEYS | {"question", "options", "answer", "question_type"},
    COLDSTART_FILE: _SHARED_KEYS | {"prompt", "solution"},
}
_DECIMAL = re.compile(r"\d+(\.\d+)?", re.ASCII)
_OPTION = re.compile(r"([A-Z])\. ?(.*\S.*)", re.DOTALL)
_INNER = r"(?:(?!</?(?:think|answer)>).)+"
_SOLUTION = re.compile(rf"\s*<think>{_INNER}</think>\s*<answer>{_INNER}</answer>\s*", re.DOTALL)
_MISSING = object()
Value = TypeVar("Value")


class DataError(ValueError):
    """A data folder that cannot be used; the message says what, where and what is expected."""


class RowError(DataError):
    """One bad row: `file`, `line` (from 1), `field` (None for the whole line), `value` and what was expected."""

    def __init__(self, file: Path, line: int, field: str | None, value: object, reason: str):
        self.file, self.line, self.field, self.value, self.reason = file, line, field, value, reason
        where = f"{file}, line {line}" + (f", field {field!r}" if field else "")
        super().__init__(f"{where}: {self.told}")

    @property
    def told(self) -> str:
        """What was expected, and what there is instead."""
        return self.reason + ("" if self.value is _MISSING else f"; found {_short(self.value)}")


@dataclass(frozen=True)
class Split:
    """The rows of one split, in file order."""

    grounding: tuple[Example, ...]
    spatial: tuple[Example, ...]
    coldstart: tuple[Example, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.grounding + self.spatial + self.coldstart


@dataclass(frozen=True)
class ScannedRow:
    """One line of a file: its `example`, or None and everything that is wrong with it. `unknown`: keys that only `metadata`
    holds."""

    line: int
    example: Example | None
    faults: tuple[RowError, ...]
    unknown: tuple[str, ...]


def load_split(folder: str | Path, split: str) -> Split:
    """All rows of `folder/split`. Raises RowError, or DataError for a missing file or counts unlike the manifest's."""
    rows = {name: read_rows(folder, name, split) for name in FILES}
    for problem in count_problems(folder, split, {name: len(examples) for name, examples in rows.items()}):
        raise problem
    return Split(*(tuple(rows[name]) for name in FILES))


def read_rows(folder: str | Path, file_name: str, split: str) -> list[Example]:
    """Rows of `folder/split/file_name` (one of the three released names), in file order.

    Raises RowError at the first bad row and DataError for an unknown or missing file.
    """
    examples: list[Example] = []
    unknown: Counter[str] = Counter()
    for row in scan_rows(folder, file_name, split):
        if row.example is None:
            raise row.faults[0]
        examples.append(row.example)
        unknown.update(row.unknown)
    if unknown:
        counts = ", ".join(f"{key} ({count})" for key, count in sorted(unknown.items()))
        warnings.warn(f"{Path(folder) / split / file_name}: keys that the schema does not know are metadata; with the "
                      f"number of rows: {counts}", stacklevel=2)
    return examples


def scan_rows(folder: str | Path, file_name: str, split: str) -> Iterator[ScannedRow]:
    """Every line of `folder/split/file_name` that is not blank, in order; never stops at a bad one.

    Raises DataError for an unknown or missing file.
    """
    if file_name not in FILES:
        raise DataError(f"{file_name!r} is no file of the released layout; expected one of {', '.join(FILES)}")
    path = Path(folder) / split / file_name
    if not path.is_file():
        raise DataError(f"{path} is missing; a split holds {', '.join(FILES)}")
    return _scan(path, split)


def _scan(path: Path, split: str) -> Iterator[ScannedRow]:
    make = {GROUNDING_FILE: _grounding, SPATIAL_FILE: _spatial, COLDSTART_FILE: _coldstart}[path.name]
    root = picture_folder(path.parent)
    seen: dict[int, int] = {}
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                row = _Row(path, number, _parse(path, number, raw))
            except RowError as error:
                yield ScannedRow(number, None, (error,), ())
                continue
            common = _common(row, root, split)
            question_id = common["question_id"]
            if question_id in seen:
                row.attempt(_Row.fail, "question_id", f"expected a new id; line {seen[question_id]} has the same")
            elif question_id is not None:
                seen[question_id] = number
            fields = make(row, common)
            unknown = tuple(sorted(row.values.keys() - _KEYS[path.name]))
            metadata = {key: row.values[key] for key in unknown}
            example = None if row.faults else Example(**common, **fields, metadata=metadata)
            yield ScannedRow(number, example, tuple(row.faults), unknown)


def picture_folder(split_folder: Path) -> Path:
    """Where the relative paths of a split's rows begin."""
    return split_folder / "images" if (split_folder / "images").is_dir() else split_folder


def count_problems(folder: str | Path, split: str, counts: Mapping[str, int]) -> Iterator[DataError]:
    """What is wrong with the numbers of rows of a split (file name -> rows), where a manifest says how many there were."""
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        return
    try:
        expected = dict(json.loads(manifest.read_text(encoding="utf-8"))["counts"][split]["rows"])
    except (ValueError, KeyError, TypeError) as error:
        yield DataError(f"{manifest}: expected counts.{split}.rows ({type(error).__name__}: {error}); "
                        "build the folder again or remove the manifest")
        return
    for name, count in counts.items():
        if expected.get(name) != count:
            yield DataError(f"{Path(folder) / split / name}: {count} rows, but {manifest} counts {expected.get(name)}; "
                            "the file was cut or edited, build the folder again")


# Rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A parsed line that knows where it stands, and collects what is wrong with it."""

    file: Path
    line: int
    values: Mapping[str, Any]
    faults: list[RowError] = field(default_factory=list)

    def fail(self, field: str | None, reason: str, value: object = _MISSING):
        value = self.values.get(field, _MISSING) if value is _MISSING and field else value
        raise RowError(self.file, self.line, field, value, reason)

    def attempt(self, read: Callable[..., Value], *arguments: object) -> Value | None:
        """`read(self, ...)`, or None and one more fault: what else is in the row is still to be looked at."""
        try:
            return read(self, *arguments)
        except RowError as error:
            self.faults.append(error)
            return None

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
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys)
        if b"\\ud" in raw.lower():  # half of a surrogate pair is no text: neither tokenizer nor Arrow takes it
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise RowError(path, number, None, _MISSING, f"expected one JSON object in UTF-8 per line ({error})") from error
    if not isinstance(values, dict):
        raise RowError(path, number, None, values, "expected one JSON object per line")
    return values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def _common(row: _Row, root: Path, split: str) -> dict:
    """The fields that all files share, as keyword arguments of Example; None for each that is bad."""
    number = row.attempt(_Row.take, "question_id", lambda v: type(v) is int and -(2**63) <= v < 2**63, "a 64-bit integer")
    kind = row.attempt(_Row.take, "data_type", lambda v: v in _DATA_TYPES, f"one of {', '.join(_DATA_TYPES)}")
    media = row.attempt(_media, root, kind)
    return {"id": f"{split}/{row.file.stem}/{number}", "question_id": number, "data_type": kind, "media": media}


def _media(row: _Row, root: Path, kind: str | None) -> tuple[str, ...]:
    names = row.take("image", lambda v: isinstance(v, (str, list)) and bool(v), "a path or a non-empty list of paths")
    names = [names] if isinstance(names, str) else names
    media = tuple(str(root / _relative(row, name)) for name in names)
    if row.file.name == GROUNDING_FILE:
        return media[:1]  # the released schema: only item 0 is used
    if kind == "single_image" and len(media) != 1:
        row.fail("image", f"expected 1 picture for single_image, got {len(media)}")
    if kind in _DATA_TYPES and kind != "single_image" and len(media) < 2:
        row.fail("image", f"expected at least 2 pictures for {kind}, got {len(media)}")
    return media


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


def _grounding(row: _Row, common: Mapping[str, Any]) -> dict:
    """What a localisation row has beside the shared fields, as keyword arguments of Example; likewise below."""
    if common["data_type"] not in (None, "single_image"):
        row.attempt(_Row.fail, "data_type", "expected single_image: localisation rows show one picture")
    question = row.attempt(_without_placeholder, "question")
    answer = row.attempt(_Row.take, "answer", lambda v: isinstance(v, list) and bool(v),
                         "a non-empty list of {bbox_2d, label}")
    boxes = tuple(row.attempt(_box, item) for item in answer or ())
    return {"question": question, "question_type": LOCALIZATION, "boxes": boxes}


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


def _spatial(row: _Row, common: Mapping[str, Any]) -> dict:
    question = row.attempt(_without_placeholder, "question")
    kind = row.attempt(_Row.take, "question_type", lambda v: v in QUESTION_TYPES, f"one of {', '.join(QUESTION_TYPES)}")
    answer = row.attempt(_Row.text, "answer", "a string: an option letter or a decimal number")
    options = row.attempt(_options, kind)
    if answer is not None and (options is not None or kind in NUMERIC_TYPES):
        row.attempt(_fitting, kind, options, answer.strip())
    return {"question": question, "question_type": kind, "options": options, "answer": answer and answer.strip()}


def _options(row: _Row, kind: str | None) -> tuple[str, ...] | None:
    options = row.take("options", lambda v: v is None or isinstance(v, list), "a list of lettered strings, or null")
    if kind in NUMERIC_TYPES and options is not None:
        row.fail("options", f"expected null for {kind!r}, which is answered with a number")
    if kind not in MULTIPLE_CHOICE_TYPES:
        return None
    if options is None or len(options) < 2:
        row.fail("options", f"expected at least two options for {kind!r}, which is answered with a letter")
    matches = [_OPTION.fullmatch(option) if isinstance(option, str) else None for option in options]
    if [match and match.group(1) for match in matches] != [chr(ord("A") + i) for i in range(len(options))]:
        row.fail("options", "expected options lettered in order: 'A. first', 'B. second', ...")
    return tuple(options)


def _fitting(row: _Row, kind: str, options: tuple[str, ...] | None, answer: str) -> None:
    """Whether the answer is one that the row could have."""
    if kind in NUMERIC_TYPES and not _DECIMAL.fullmatch(answer):
        row.fail("answer", f"expected a decimal number for {kind!r} that is not negative, such as 42 or 3.1")
    if options is not None and answer not in (letters := [option[0] for option in options]):
        row.fail("answer", f"expected one of the option letters {', '.join(letters)}")


def _coldstart(row: _Row, common: Mapping[str, Any]) -> dict:
    prompt = row.attempt(_without_placeholder, "prompt")
    solution = row.attempt(_solution)
    return {"question": prompt, "question_type": COLD_START, "prompt_text": prompt, "solution": solution}


def _solution(row: _Row) -> str:
    solution = row.text("solution")
    if not _SOLUTION.fullmatch(solution):
        row.fail("solution", "expected <think>reasoning</think><answer>answer</answer>, each once and not empty")
    return solution


def _short(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
