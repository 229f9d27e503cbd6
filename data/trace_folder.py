"""Traces as a data folder in the released layout that a run can be given: the rows of another folder, with other cold-start
rows.

What holds: the other folder is only read; its pictures are linked, not copied, so it has to stay where it is. Files are
replaced whole. Cold-start rows to be measured on stay, in the words of the preset and with boxes in the model's frame. What a
manifest said of the cold-start rows is said anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.coordinates import Size
from data.prompts import PRESETS, Preset, boxes_json, user_text
from data.reading import COLDSTART_FILE, FILES, GROUNDING_FILE, MANIFEST, SPATIAL_FILE, DataError, picture_folder, scan_rows
from data.stage_files import write_text
from data.trace_selection import Trace
from data.types import HELDOUT, SPLITS, TRAIN, Example
from models.inputs import image_size

PICTURES = "images"


def write_folder(
    source: Path, out: Path, traces: Sequence[Trace], preset: Preset, frame: Callable[[Size], Size], notes: Mapping[str, Any]
) -> Path:
    """`out` with the rows of `source` and `traces` as its cold-start rows of training; returns the file with these.

    `frame`: from the (width, height) of a picture to that of the model's frame of boxes. `notes` go into the manifest.
    """
    for split in SPLITS:
        if (source / split).is_dir():
            _copy_split(source / split, out / split)
    heldout = None
    if (source / HELDOUT / COLDSTART_FILE).is_file():
        heldout = "".join(_measured(source / HELDOUT, preset, frame))
        write_text(out / HELDOUT / COLDSTART_FILE, heldout)
    rows = _released(source / TRAIN, traces, preset)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = out / TRAIN / COLDSTART_FILE
    write_text(path, text)
    if (source / MANIFEST).is_file():
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        kinds = Counter(f"{trace.example.data_type}: {trace.example.question_type}" for trace in traces)
        counts = manifest["counts"][TRAIN]
        counts["rows"][COLDSTART_FILE] = len(rows)
        counts.setdefault("question_types", {})[COLDSTART_FILE] = dict(sorted(kinds.items()))
        hashes = manifest.setdefault("sha256", {})
        for split, own in ((TRAIN, text), (HELDOUT, heldout)):
            if own is not None:
                hashes[f"{split}/{COLDSTART_FILE}"] = hashlib.sha256(own.encode()).hexdigest()
        manifest.setdefault("config", {})["preset"] = preset
        for size in manifest.get("processed_sizes", ()):
            size["processed"] = list(frame(tuple(size["original"])))
        write_text(out / MANIFEST, json.dumps(manifest | {"traces": dict(notes)}, indent=1) + "\n")
    return path


def _copy_split(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            write_text(out / name, (source / name).read_text(encoding="utf-8"))
    link = out / PICTURES
    link.unlink(missing_ok=True)
    link.symlink_to(picture_folder(source).resolve(), target_is_directory=True)


def _measured(split: Path, preset: Preset, frame: Callable[[Size], Size]) -> Iterator[str]:
    """The lines of a split's cold-start rows, those that ask what another row of it asks with prompt and boxes written anew.

    A row from elsewhere, with a prompt of its own, has neither and stays as it is.
    """
    asked = asked_rows(split)
    lines = (split / COLDSTART_FILE).read_bytes().split(b"\n")
    for row in scan_rows(split.parent, COLDSTART_FILE, split.name):
        example = asked.get((row.example.media, row.example.prompt_text or "")) if row.example else None
        if example is None:
            yield lines[row.line - 1].decode() + "\n"
            continue
        fields = json.loads(lines[row.line - 1]) | {"prompt": user_text(example, "think", preset)}
        if example.is_localization:
            original = image_size(example.media[0])
            boxes = boxes_json(example.boxes, original, frame(original), preset)
            fields["solution"] = f"{fields['solution'].partition('<answer>')[0]}<answer>{boxes}</answer>"
        yield json.dumps(fields, ensure_ascii=False) + "\n"


def asked_rows(split: Path) -> dict[tuple[tuple[str, ...], str], Example]:
    """The rows whose questions the cold-start rows of `split` ask, by pictures and prompt, in the words of any preset.

    DataError where two of them draw different boxes: which of them a trace is to be measured by, nobody can say.
    """
    wanted = {(row.example.media, row.example.prompt_text or "")
              for row in scan_rows(split.parent, COLDSTART_FILE, split.name) if row.example is not None}
    asked: dict[tuple[tuple[str, ...], str], Example] = {}
    for name in (GROUNDING_FILE, SPATIAL_FILE):
        for row in scan_rows(split.parent, name, split.name) if (split / name).is_file() else ():
            for key in [(row.example.media, user_text(row.example, "think", own)) for own in PRESETS] if row.example else ():
                if key in wanted and set(asked.setdefault(key, row.example).boxes) != set(row.example.boxes):
                    raise DataError(f"{split / name}: rows {asked[key].id} and {row.example.id} draw different boxes for a "
                                    f"question that a row of {COLDSTART_FILE} asks: remove the wrong one")
    return asked


def _released(split: Path, traces: Sequence[Trace], preset: Preset) -> list[dict[str, Any]]:
    """Rows in the released schema, numbered behind all others of the split."""
    root = picture_folder(split)
    ids = [json.loads(line)["question_id"] for name in (GROUNDING_FILE, SPATIAL_FILE) if (split / name).is_file()
           for line in (split / name).read_text(encoding="utf-8").split("\n") if line.strip()]
    return [
        {
            "question_id": number,
            "image": [Path(path).relative_to(root).as_posix() for path in trace.example.media],
            "data_type": trace.example.data_type,
            "prompt": user_text(trace.example, "think", preset),
            "solution": trace.solution,
        }
        for number, trace in enumerate(traces, start=max(ids, default=-1) + 1)
    ]
