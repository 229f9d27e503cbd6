"""One scene of a build: loaded, its rows drawn, its pictures made, and all of it put in place at once.

What holds
    * A scene's folder, FOLDER/<scene>/{table.json, images/<frame>.png}, appears whole or not at all: it is written beside
      its place and renamed. What is there is finished. Pictures that exist are not copied: few of them may be chosen.
    * Nothing but job and scene decides what is written: the generator is seeded by the scene's name, so neither the
      number of workers nor their order changes anything.
    * A scene that cannot be read or built from is an outcome with a reason, not an exception: other scenes go on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Mapping

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from configs.data_schema import ConstructionConfig, RoomsConfig
from data.records import frame_records
from data.scene_tables import Picture, SceneTable, scene_table
from data.scenes.rooms import Rooms, frame_picture
from data.scenes.types import Frame, Scene, SceneError, SceneSource

TABLE = "table.json"
IMAGES = "images"
_ADAPTER = TypeAdapter(SceneTable)


@dataclass(frozen=True)
class SceneJob:
    """What every scene of a build has in common. `split_of` maps scenes to splits, None: each is divided by question."""

    source: SceneSource
    split_of: Mapping[str, str] | None
    heldout_share: float
    seed: int
    rooms: RoomsConfig
    construction: ConstructionConfig
    folder: str


@dataclass(frozen=True)
class SceneOutcome:
    """What became of a scene: how many rows it offers and what they took, seconds by kind of work; or why it has none."""

    scene: str
    rows: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    trace: str | None = None


def build_scene(job: SceneJob, scene_id: str) -> SceneOutcome:
    """Builds one scene into `job.folder`. Raises nothing that a scene can cause."""
    place = Path(job.folder) / scene_id
    if place.exists():  # its worker died after this, before it could say so
        return SceneOutcome(scene_id, len(read_table(Path(job.folder), scene_id).rows))
    partial = place.with_name(f".{scene_id}.{os.getpid()}")
    try:
        seconds: dict[str, float] = {}
        table = _write(job, scene_id, partial, seconds)
        os.replace(partial, place)
        return SceneOutcome(scene_id, len(table.rows), seconds)
    except SceneError as error:
        return SceneOutcome(scene_id, reason=str(error))
    except Exception as error:  # the boundary of a scene: what is wrong with one must not end the build of the others
        reason = f"{type(error).__name__}: {error}"
        return SceneOutcome(scene_id, reason=reason, trace=traceback.format_exc())
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_table(folder: Path, scene_id: str) -> SceneTable:
    """The table of a finished scene."""
    return _ADAPTER.validate_json((folder / scene_id / TABLE).read_bytes())


def _write(job: SceneJob, scene_id: str, folder: Path, seconds: dict[str, float]) -> SceneTable:
    with _timed(seconds, "scene"):
        scene, rng = _loaded(job, scene_id)
    with _timed(seconds, "records"):
        records = {frame.name: frame_records(scene, frame, job.construction) for frame in scene.frames}
    with _timed(seconds, "questions"):
        split = None if job.split_of is None else job.split_of[scene_id]
        table = scene_table(scene, records, job.rooms, job.construction, split, job.heldout_share, rng)
    (folder / IMAGES).mkdir(parents=True)
    shown = table.shown()
    for frame in scene.frames:
        if frame.name in shown and frame.image is None:
            _render(scene, frame, table.pictures[frame.name], folder / IMAGES, seconds)
    (folder / TABLE).write_bytes(_ADAPTER.dump_json(table))
    return table


def _loaded(job: SceneJob, scene_id: str) -> tuple[Scene, np.random.Generator]:
    """The scene and the generator of its questions. A room is furnished and asked about by one generator."""
    if isinstance(job.source, Rooms):
        return job.source.draw(scene_id)
    digest = hashlib.sha256(scene_id.encode()).digest()
    return job.source.load(scene_id), np.random.default_rng([job.seed, *np.frombuffer(digest, np.uint32)])


def _render(scene: Scene, frame: Frame, picture: Picture, folder: Path, seconds: dict[str, float]) -> None:
    with _timed(seconds, "rendering"):
        rgb = frame_picture(scene, frame).rgb
    with _timed(seconds, "encoding"):
        Image.fromarray(rgb).save(folder / Path(picture.path).name, compress_level=1)


@contextmanager
def _timed(seconds: dict[str, float], work: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[work] = seconds.get(work, 0.0) + time.perf_counter() - begun
