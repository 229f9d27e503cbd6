"""The rows that one scene offers: its questions, and which of them are rows of which file and split.

What holds
    * A table is a function of scene, settings and generator; nothing is read or written here.
    * A question stands once, whatever rows are made of it: localisation asks for the boxes of a single-image question, a
      cold-start row explains either. So all of them follow when letters are dealt anew (`data.balance`).
    * Quotas count per room, or per frame of a scene with pictures of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from configs.data_schema import ConstructionConfig, RoomsConfig
from data.coordinates import Size
from data.facts import Question
from data.questions import round_robin, shuffled, single_image_rows
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE
from data.records import ObjectRecord
from data.scene_questions import multi_view_rows, video_rows
from data.scenes.types import Scene
from data.types import SPLITS

#: Share of the cold-start rows that ask for boxes.
COLDSTART_LOCALIZATION = 1 / 3

Records = Mapping[str, Sequence[ObjectRecord]]


@dataclass(frozen=True)
class Picture:
    """A picture of a scene: its path below `images/`, (width, height) in pixels, and its file; None: it is rendered."""

    path: str
    size: Size
    source: str | None


@dataclass(frozen=True)
class Row:
    """A row of `split` and `file`: question number `question` of its scene; `boxes`: asked for its objects' boxes."""

    split: str
    file: str
    question: int
    boxes: bool


@dataclass(frozen=True)
class SceneTable:
    """What a scene offers. `pictures` maps the names of all its frames; `rows` are in the order of the files."""

    scene: str
    pictures: dict[str, Picture]
    questions: tuple[Question, ...]
    rows: tuple[Row, ...]

    def shown(self) -> set[str]:
        """Names of the frames that some row shows."""
        return {frame for row in self.rows for frame in self.questions[row.question].frames}


def scene_table(scene: Scene, records: Records, rooms: RoomsConfig, config: ConstructionConfig, split: str | None,
                heldout_share: float, rng: np.random.Generator) -> SceneTable:
    """The table of a scene, all of whose rows belong to `split`.

    `split` None divides the questions themselves: `heldout_share` of each modality and type, at least one of two, are
    held out.
    """
    scale = 1 if all(frame.image is None for frame in scene.frames) else len(scene.frames)
    single = max(config.localization_per_room, config.single_image_per_room) * scale
    asked = single_image_rows(scene, records, single, config, rng)
    several = [*multi_view_rows(scene, records, rooms.views, config.multi_view_per_room * scale, config, rng),
               *video_rows(scene, records, rooms.video_frames, config.video_per_room * scale, config, rng)]
    questions, first = (*asked, *several), len(asked)
    numbers = range(first), range(first, len(questions))
    if split is None:
        parts = dict(zip(SPLITS, _divided(questions, numbers, heldout_share, rng)))
    else:
        parts = {split: numbers}
    rows = [row for name, (one, many) in parts.items() for row in _rows(name, questions, one, many, config, scale, rng)]
    return SceneTable(scene.id, _pictures(scene), questions, tuple(rows))


def _rows(split: str, questions: Sequence[Question], single: Sequence[int], several: Sequence[int],
          config: ConstructionConfig, scale: int, rng: np.random.Generator) -> list[Row]:
    located = list(single[: config.localization_per_room * scale])
    spatial = [*single[: config.single_image_per_room * scale], *several]
    traced = _coldstart_choice(questions, located, spatial, config.coldstart_per_room * scale, rng)
    return ([Row(split, GROUNDING_FILE, number, True) for number in located]
            + [Row(split, SPATIAL_FILE, number, False) for number in spatial]
            + [Row(split, COLDSTART_FILE, number, boxes) for number, boxes in traced])


def _coldstart_choice(questions: Sequence[Question], located: Sequence[int], spatial: Sequence[int], quota: int,
                      rng: np.random.Generator) -> list[tuple[int, bool]]:
    """A third localisation rows, the rest spatial rows with question types in turn; either fills up for the other."""
    types = sorted({questions[number].question_type for number in spatial})
    mixed = list(round_robin([iter(shuffled([n for n in spatial if questions[n].question_type == kind], rng))
                              for kind in shuffled(types, rng)]))
    first = coldstart_boxes(quota, len(located), len(mixed))
    return ([(number, True) for number in shuffled(located, rng)[:first]]
            + [(number, False) for number in mixed[: quota - first]])


def coldstart_boxes(quota: int, located: int, spatial: int) -> int:
    """How many of `quota` cold-start rows ask for boxes, where there are so many localisation and spatial rows."""
    return min(located, max(round(quota * COLDSTART_LOCALIZATION), quota - spatial))


def _divided(questions: Sequence[Question], numbers: tuple[Sequence[int], Sequence[int]], share: float,
             rng: np.random.Generator) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
    """(single, several) numbers of the training questions, and of the held-out ones."""
    kept: tuple[list[int], list[int]] = ([], [])
    out: tuple[list[int], list[int]] = ([], [])
    for part, group in enumerate(numbers):
        for kind in sorted({(questions[n].data_type, questions[n].question_type) for n in group}):
            same = [n for n in group if (questions[n].data_type, questions[n].question_type) == kind]
            count = 0 if len(same) < 2 else max(1, round(share * len(same)))
            chosen = set(shuffled(same, rng)[:count])
            out[part].extend(n for n in same if n in chosen)
            kept[part].extend(n for n in same if n not in chosen)
    return kept, out


def _pictures(scene: Scene) -> dict[str, Picture]:
    suffixes = {frame.name: ".png" if frame.image is None else Path(frame.image).suffix.lower() for frame in scene.frames}
    return {frame.name: Picture(f"{scene.id}/{frame.name}{suffixes[frame.name]}", (frame.camera.width, frame.camera.height),
                                frame.image) for frame in scene.frames}
