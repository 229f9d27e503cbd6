"""The rows of a file as a Hugging Face dataset: memory-mapped, or streamed.

What holds
    * Rows come from `data.reading.scan_rows` and from nowhere else: the first bad row raises the same RowError, and
      `example_of(row)` is the Example that the strict reader gives.
    * The columns are those of Example, `media` paths of picture files; with `pictures` these are decoded when a row is
      taken (upright, as the model is given them), and never before.
    * A memory-mapped dataset is written once and found again; another content of the file, another place of the folder or
      another version of the reader makes another one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Iterator, Mapping

from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.exceptions import DatasetGenerationError

import data.reading
import data.types
from data.reading import RowError, scan_rows
from data.types import Box, Example

#: Column to type, in the order of Example's fields. Boxes: x1, y1, x2, y2 in pixels of the original picture. Metadata: JSON.
FEATURES = Features({
    "id": Value("string"),
    "question_id": Value("int64"),
    "data_type": Value("string"),
    "question": Value("string"),
    "question_type": Value("string"),
    "media": List(Value("string")),
    "options": List(Value("string")),
    "answer": Value("string"),
    "boxes": List({"label": Value("string"), "bbox": List(Value("float64"), length=4)}),
    "prompt_text": Value("string"),
    "solution": Value("string"),
    "metadata": Value("string"),
})


def mapped_rows(
    folder: str | Path, file_name: str, split: str, cache: str | Path | None = None, *, pictures: bool = False
) -> Dataset:
    """The rows of `folder/split/file_name`, memory-mapped from Arrow files in `cache` (None: the library's own).

    Raises RowError at the first bad row and DataError for an unknown or missing file; then nothing is kept.
    """
    asked = {"folder": str(Path(folder).absolute()), "file_name": file_name, "split": split}
    scan_rows(**asked)  # a missing file is to be told as such
    try:
        rows = Dataset.from_generator(
            _rows, FEATURES, gen_kwargs=asked, cache_dir=None if cache is None else str(cache), fingerprint=_identity(asked)
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, RowError) else error) from None
    return rows.cast_column("media", List(Image())) if pictures else rows


def streamed_rows(folder: str | Path, file_name: str, split: str, *, pictures: bool = False) -> IterableDataset:
    """The rows of `folder/split/file_name`, read while they are iterated; no row is kept.

    Raises DataError for an unknown or missing file; RowError where the iteration comes to a bad row.
    """
    asked = {"folder": str(Path(folder).absolute()), "file_name": file_name, "split": split}
    scan_rows(**asked)
    rows = IterableDataset.from_generator(_rows, FEATURES, gen_kwargs=asked)
    return rows.cast_column("media", List(Image())) if pictures else rows


def example_of(row: Mapping[str, Any]) -> Example:
    """The Example of a row whose pictures are not decoded."""
    boxes = tuple(Box(box["label"], tuple(map(_as_written, box["bbox"]))) for box in row["boxes"])
    options = None if row["options"] is None else tuple(row["options"])
    metadata = json.loads(row["metadata"])
    return Example(**{**row, "media": tuple(row["media"]), "options": options, "boxes": boxes, "metadata": metadata})


def _rows(folder: str, file_name: str, split: str) -> Iterator[dict[str, Any]]:
    for scanned in scan_rows(folder, file_name, split):
        if scanned.example is None:
            raise scanned.faults[0]
        row = scanned.example
        yield {name: getattr(row, name) for name in FEATURES} | {
            "media": list(row.media),
            "options": None if row.options is None else list(row.options),
            "boxes": [{"label": box.label, "bbox": list(box.bbox)} for box in row.boxes],
            "metadata": json.dumps(dict(row.metadata)),
        }


def _as_written(value: float) -> float | int:
    """Whole pixels are integers in the released files."""
    return int(value) if float(value).is_integer() else value


def _identity(asked: Mapping[str, str]) -> str:
    """Of what decides the rows: the file's bytes, where its pictures are looked for, and the code that reads it."""
    path = Path(asked["folder"]) / asked["split"] / asked["file_name"]
    digest = hashlib.sha256(repr((sorted(asked.items()), str(data.reading.picture_folder(path.parent)))).encode())
    for file in (path, Path(data.reading.__file__), Path(data.types.__file__), Path(__file__)):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:32]
