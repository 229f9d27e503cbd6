"""The final folder of a build: JSON lines in the released layout, pictures, manifest.

What holds
    * Rows stand in the order of files, scenes, and rows of a scene; `question_id` counts through all files of a split.
      Nothing else decides their bytes.
    * Only pictures that a row shows are there: copies of existing ones; rendered ones are linked where that is possible.

Layout: FOLDER/{train,heldout}/{spld_*_data.jsonl, images/<scene>/<frame>.<ext>}, FOLDER/manifest.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from configs.data_schema import TraceWording
from data.composition import Choice
from data.coordinates import Size
from data.facts import Question
from data.prompts import Preset, user_text
from data.questions import localization_rows
from data.reading import COLDSTART_FILE, FILES, GROUNDING_FILE
from data.scene_build import IMAGES, read_table
from data.scene_tables import Picture, Row, SceneTable
from data.traces import solution
from data.types import LOCALIZATION, Example

Sizes = Mapping[Size, Size]


class SceneTables:
    """The finished scenes of a build, in the order of `scene_ids`; read from the disk whenever they are asked for."""

    def __init__(self, scenes: Path, scene_ids: Sequence[str]):
        self.folder = scenes
        #: Sizes of all pictures, and the splits that each scene has rows for.
        self.sizes: set[Size] = set()
        self.splits: dict[str, frozenset[str]] = {}
        for scene_id in scene_ids:
            table = read_table(scenes, scene_id)
            self.sizes |= {picture.size for picture in table.pictures.values()}
            self.splits[scene_id] = frozenset(row.split for row in table.rows)

    def of(self, split: str) -> Iterator[SceneTable]:
        """The tables that have rows for `split`."""
        for scene_id, splits in self.splits.items():
            if split in splits:
                yield read_table(self.folder, scene_id)


def write_split(tables: SceneTables, folder: Path, split: str, choice: Choice, sizes: Sizes, preset: Preset,
                wording: TraceWording) -> tuple[dict, dict[str, str]]:
    """Writes FOLDER/SPLIT and returns its counts, and SHA-256 by file.

    `sizes` maps the sizes of pictures to processed sizes.
    """
    (folder / split / IMAGES).mkdir(parents=True)
    totals = Counter(row.file for rows in choice.rows.values() for row in rows)
    numbers = {name: sum(totals[earlier] for earlier in FILES[:place]) for place, name in enumerate(FILES)}
    hashes = {name: hashlib.sha256() for name in FILES}
    kinds: dict[str, Counter] = {name: Counter() for name in FILES}
    scenes, pictures = 0, 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / split / name).open("wb")) for name in FILES}
        for table in tables.of(split):
            rows = choice.rows[table.scene]
            for row in rows:
                question = _question(table, row, choice)
                fields = released_fields(question, row, table.pictures, sizes, preset, wording)
                line = json.dumps({"question_id": numbers[row.file], **fields}, ensure_ascii=False).encode() + b"\n"
                files[row.file].write(line)
                hashes[row.file].update(line)
                kinds[row.file][f"{question.data_type}: {question.question_type}"] += 1
                numbers[row.file] += 1
            scenes += bool(rows)
            pictures += _link(table, rows, tables.folder / table.scene / IMAGES, folder / split / IMAGES)
    counts = {"scenes": scenes, "pictures": pictures, "rows": {name: totals[name] for name in FILES},
              "localization": totals[GROUNDING_FILE],
              "question_types": {name: dict(sorted(kinds[name].items())) for name in FILES}}
    return counts, {f"{split}/{name}": digest.hexdigest() for name, digest in hashes.items()}


def _question(table: SceneTable, row: Row, choice: Choice) -> Question:
    question = choice.relettered.get((table.scene, row.question), table.questions[row.question])
    return localization_rows([question], 1)[0] if row.boxes else question


def _link(table: SceneTable, rows: Sequence[Row], source: Path, target: Path) -> int:
    """Puts the pictures of the rows into place below `target`, rendered ones from `source`; returns their number."""
    frames = {frame for row in rows for frame in table.questions[row.question].frames}
    if frames:
        (target / table.scene).mkdir()
    for frame in frames:
        picture = table.pictures[frame]
        if picture.source is not None:
            shutil.copyfile(picture.source, target / picture.path)
            continue
        rendered = source / Path(picture.path).name
        try:
            os.link(rendered, target / picture.path)
        except OSError:  # a file system without links
            shutil.copyfile(rendered, target / picture.path)
    return len(frames)


def released_fields(question: Question, row: Row, pictures: Mapping[str, Picture], sizes: Sizes, preset: Preset,
                    wording: TraceWording) -> dict:
    """The fields of a row as released, without `question_id`; `question` is that of localisation if `row.boxes`."""
    shared = {"image": [pictures[frame].path for frame in question.frames], "data_type": question.data_type}
    if row.file == COLDSTART_FILE:
        original = pictures[question.frames[0]].size
        example = Example("", 0, question.data_type, question.question, question.question_type, question.frames,
                          question.options, question.answer, question.boxes)
        return {**shared, "prompt": user_text(example, "think", preset),
                "solution": solution(question, original, sizes[original], preset, wording)}
    if question.question_type == LOCALIZATION:
        answer = [{"bbox_2d": list(map(int, box.bbox)), "label": box.label} for box in question.boxes]
        return {**shared, "question": question.question, "answer": answer}
    options = None if question.options is None else list(question.options)
    return {**shared, "question": question.question, "options": options, "answer": question.answer,
            "question_type": question.question_type}
