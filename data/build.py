"""Builds a data folder: scenes in, released-layout rows and pictures out.

What holds
    * The result is a function of configuration, seed and processed sizes. Each room has its own generator, seeded by
      (seed, split, index), so neither the number of processes nor another room changes it.
    * Procedural rooms: training and held-out rooms are different rooms with different ids. Posed frames: split by
      scene; a single scene can only be split by question, and the manifest says so.
    * The folder appears whole or not at all: everything is written beside it and renamed at the end.
    * Only pictures that a row shows are written. `question_id` is unique over all files of a split.

Layout: DIR/{train,heldout}/{spld_*_data.jsonl, images/<scene>/<frame>.<ext>}, DIR/manifest.json.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from configs.schema import ConstructionConfig, DataConfig, RoomsConfig
from data.coordinates import Size
from data.facts import Question
from data.prompts import Preset, user_text
from data.questions import localization_rows, round_robin, shuffled, single_image_rows
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, DataError
from data.records import frame_records
from data.scene_questions import multi_view_rows, video_rows
from data.scenes.posed_frames import read_posed_frames
from data.scenes.rooms import frame_picture, make_room
from data.scenes.types import Scene
from data.traces import solution
from data.types import LOCALIZATION, Example

SPLITS = ("train", "heldout")
FILES = (GROUNDING_FILE, SPATIAL_FILE, COLDSTART_FILE)
MANIFEST = "manifest.json"
#: Share of the cold-start rows that ask for boxes.
COLDSTART_LOCALIZATION = 1 / 3
_PROGRESS_SECONDS = 3.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuiltRow:
    """A row before numbering: its file, question type, data type, and released fields without `question_id`."""

    file: str
    question_type: str
    data_type: str
    fields: Mapping[str, object]


@dataclass(frozen=True)
class _RoomTask:
    split: str
    index: int
    seed: int
    folder: str
    rooms: RoomsConfig
    construction: ConstructionConfig
    preset: Preset
    processed_size: Size


def build_data(config: DataConfig, folder: str | Path, seed: int, processed_size_fn: Callable[[Size], Size],
               progress: Progress | None = None, *, workers: int = 2) -> dict:
    """Build `folder` and return its manifest.

    `processed_size_fn` maps the (width, height) of a picture to the size the model is given; cold-start boxes are
    written in that frame. `progress` receives a line every few seconds. `workers` = 1 builds in this process. Raises
    DataError when the folder is not empty or is being built by another process, when `config.path` already names data,
    or when a worker process died.
    """
    folder = Path(folder).absolute()
    if config.path is not None:
        raise DataError(f"data.path is {config.path!r}: there is nothing to build; set it to null to build")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; remove it or choose another folder")
    report = _Reporter(progress)
    with _partial_folder(folder) as partial:
        if config.source is None:
            how, sizes, rows, scenes = _from_rooms(config, partial, seed, processed_size_fn, report, workers)
        else:
            how, sizes, rows, scenes = _from_posed_frames(config, partial, seed, processed_size_fn, report)
        manifest = _write(partial, config, seed, how, sizes, rows, scenes)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    return manifest


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, locked while in use, gone afterwards unless it was renamed.

    What a killed build left behind is cleared; DataError while another process builds the same folder.
    """
    partial = folder.parent / f".{folder.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = partial.exists() and os.path.samestat(os.fstat(handle), partial.stat())
        except BlockingIOError:
            mine = False
        if not mine:
            raise DataError(f"another process is building {folder}; wait for it, or choose another folder")
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


# Rows of one scene ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneQuestions:
    """The questions of one scene: about one picture, and about several."""

    single: tuple[Question, ...]
    several: tuple[Question, ...]


def draw_questions(scene: Scene, rooms: RoomsConfig, config: ConstructionConfig, rng: np.random.Generator,
                   quota_scale: int = 1) -> SceneQuestions:
    """Questions of a scene within `quota_scale` times the per-room quotas."""
    records = {frame.name: frame_records(scene, frame) for frame in scene.frames}
    single = max(config.localization_per_room, config.single_image_per_room) * quota_scale
    return SceneQuestions(
        tuple(single_image_rows(scene, records, single, config, rng)),
        (*multi_view_rows(scene, records, rooms.views, config.multi_view_per_room * quota_scale, config, rng),
         *video_rows(scene, records, rooms.video_frames, config.video_per_room * quota_scale, config, rng)))


def scene_rows(questions: SceneQuestions, config: ConstructionConfig, pictures: Mapping[str, str],
               sizes: Mapping[str, tuple[Size, Size]], preset: Preset, rng: np.random.Generator,
               quota_scale: int = 1) -> list[BuiltRow]:
    """Released rows of one scene. `pictures` maps frame names to relative paths, `sizes` to (original, processed)."""
    localization = localization_rows(questions.single, config.localization_per_room * quota_scale)
    spatial = [*questions.single[: config.single_image_per_room * quota_scale], *questions.several]
    traced = _coldstart_choice(localization, spatial, config.coldstart_per_room * quota_scale, rng)
    rows = []
    for q in localization:
        answer = [{"bbox_2d": list(box.bbox), "label": box.label} for box in q.boxes]
        rows.append(BuiltRow(GROUNDING_FILE, q.question_type, q.data_type,
                             {**_shared(q, pictures), "question": q.question, "answer": answer}))
    for q in spatial:
        options = None if q.options is None else list(q.options)
        rows.append(BuiltRow(SPATIAL_FILE, q.question_type, q.data_type, {
            **_shared(q, pictures), "question": q.question, "options": options, "answer": q.answer,
            "question_type": q.question_type}))
    for q in traced:
        original, processed = sizes[q.frames[0]]
        example = Example("", 0, q.data_type, q.question, q.question_type, q.frames, q.options, q.answer, q.boxes)
        rows.append(BuiltRow(COLDSTART_FILE, q.question_type, q.data_type, {
            **_shared(q, pictures), "prompt": user_text(example, "think", preset),
            "solution": solution(q, original, processed, preset)}))
    return rows


def _shared(question: Question, pictures: Mapping[str, str]) -> dict:
    return {"image": [pictures[frame] for frame in question.frames], "data_type": question.data_type}


def _coldstart_choice(localization: Sequence[Question], spatial: Sequence[Question], quota: int,
                      rng: np.random.Generator) -> list[Question]:
    """A third localisation rows, the rest spatial rows with question types in turn; either fills up for the other."""
    types = sorted({q.question_type for q in spatial})
    mixed = list(round_robin([iter(shuffled([q for q in spatial if q.question_type == kind], rng))
                              for kind in shuffled(types, rng)]))
    boxes = shuffled(localization, rng)
    first = min(len(boxes), max(round(quota * COLDSTART_LOCALIZATION), quota - len(mixed)))
    return boxes[:first] + mixed[: quota - first]


# Procedural rooms -------------------------------------------------------------------------------------------------


def _from_rooms(config, partial, seed, processed_size_fn, report, workers):
    rooms = config.rooms
    size = (rooms.image_size, rooms.image_size)
    processed = tuple(map(int, processed_size_fn(size)))
    tasks = [_RoomTask(split, index, seed, str(partial / split), rooms, config.construction, config.preset, processed)
             for split, count in zip(SPLITS, (rooms.train_rooms, rooms.heldout_rooms)) for index in range(count)]
    rows: dict[str, list[BuiltRow]] = {split: [] for split in SPLITS}
    for done, (task, built) in enumerate(zip(tasks, _run(tasks, workers)), start=1):
        rows[task.split] += built
        report.count(f"{done}/{len(tasks)} rooms", sum(map(len, rows.values())), last=done == len(tasks))
    scenes = {split: [_room_id(split, task.index) for task in tasks if task.split == split] for split in SPLITS}
    return "by room", {size: processed}, rows, scenes


def _run(tasks: Sequence[_RoomTask], workers: int) -> Iterator[list[BuiltRow]]:
    """Results in the order of the tasks."""
    if workers <= 1:
        yield from map(_build_room, tasks)
        return
    with _single_threaded_children(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_build_room, tasks, chunksize=max(1, min(4, len(tasks) // workers)))
        except BrokenProcessPool as error:
            raise DataError("a process that builds rooms died (killed, or out of memory); build again, with fewer "
                            "workers if memory is short") from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _single_threaded_children():
    """Processes started inside use one numeric thread each; the environment is restored afterwards."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update({name: "1" for name in _THREAD_VARIABLES})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _room_id(split: str, index: int) -> str:
    return f"{split}{index:05d}"


def _build_room(task: _RoomTask) -> list[BuiltRow]:
    """One room: its pictures are written, its rows returned."""
    rng = np.random.default_rng([task.seed, SPLITS.index(task.split), task.index])
    scene = make_room(_room_id(task.split, task.index), task.rooms, rng)
    questions = draw_questions(scene, task.rooms, task.construction, rng)
    size = (task.rooms.image_size, task.rooms.image_size)
    rows = scene_rows(questions, task.construction, {f.name: f"{scene.id}/{f.name}.png" for f in scene.frames},
                      {f.name: (size, task.processed_size) for f in scene.frames}, task.preset, rng)
    used = {path for row in rows for path in row.fields["image"]}
    for frame in scene.frames:
        name = f"{scene.id}/{frame.name}.png"
        if name in used:
            path = Path(task.folder) / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame_picture(scene, frame).rgb).save(path, compress_level=1)
    return rows


# Posed frames -----------------------------------------------------------------------------------------------------


def _from_posed_frames(config, partial, seed, processed_size_fn, report):
    """Rows from real frames; the quotas of `ConstructionConfig` count per frame here."""
    construction, rooms = config.construction, config.rooms
    share = rooms.heldout_rooms / (rooms.train_rooms + rooms.heldout_rooms)
    scenes = sorted(read_posed_frames(config.source), key=lambda scene: scene.id)
    order = shuffled(range(len(scenes)), np.random.default_rng([seed, len(SPLITS)]))
    heldout = set(order[: max(1, round(share * len(scenes)))]) if len(scenes) > 1 else set()
    rows: dict[str, list[BuiltRow]] = {split: [] for split in SPLITS}
    members: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes: dict[Size, Size] = {}
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, index])
        questions = draw_questions(scene, rooms, construction, rng, quota_scale=len(scene.frames))
        if len(scenes) > 1:
            parts = {"heldout" if index in heldout else "train": questions}
        else:
            parts = dict(zip(SPLITS, _split_by_question(questions, share, rng)))
        pictures = {f.name: f"{scene.id}/{f.name}{Path(f.image).suffix.lower()}" for f in scene.frames}
        frame_sizes = {f.name: (f.camera.width, f.camera.height) for f in scene.frames}
        sizes |= {size: tuple(map(int, processed_size_fn(size))) for size in frame_sizes.values() if size not in sizes}
        for split, part in parts.items():
            built = scene_rows(part, construction, pictures, {name: (s, sizes[s]) for name, s in frame_sizes.items()},
                               config.preset, rng, quota_scale=len(scene.frames))
            rows[split] += built
            members[split].append(scene.id)
            _copy_pictures(scene, pictures, built, partial / split / "images")
        report.count(f"{index + 1}/{len(scenes)} scenes", sum(map(len, rows.values())), last=index + 1 == len(scenes))
    return ("by scene" if len(scenes) > 1 else "by row; one scene only"), sizes, rows, members


def _split_by_question(questions: SceneQuestions, share: float, rng) -> tuple[SceneQuestions, SceneQuestions]:
    """(train, heldout): the given share of the questions of each modality and type is held out, at least one of two."""
    kept: list[list[Question]] = [[], []]
    out: list[list[Question]] = [[], []]
    for part, group in enumerate((questions.single, questions.several)):
        for kind in sorted({(q.data_type, q.question_type) for q in group}):
            same = [q for q in group if (q.data_type, q.question_type) == kind]
            count = 0 if len(same) < 2 else max(1, round(share * len(same)))
            chosen = {q.key for q in shuffled(same, rng)[:count]}
            out[part] += [q for q in same if q.key in chosen]
            kept[part] += [q for q in same if q.key not in chosen]
    return tuple(SceneQuestions(tuple(single), tuple(several)) for single, several in (kept, out))


def _copy_pictures(scene: Scene, pictures: Mapping[str, str], rows: Sequence[BuiltRow], folder: Path) -> None:
    used = {path for row in rows for path in row.fields["image"]}
    for frame in scene.frames:
        if pictures[frame.name] in used:
            target = folder / pictures[frame.name]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(frame.image, target)


# Writing ----------------------------------------------------------------------------------------------------------


def _write(partial: Path, config: DataConfig, seed: int, how: str, sizes: Mapping[Size, Size],
           rows: Mapping[str, Sequence[BuiltRow]], scenes: Mapping[str, Sequence[str]]) -> dict:
    """The JSONL files and the manifest; returns the manifest."""
    hashes, counts = {}, {}
    for split in SPLITS:
        (partial / split).mkdir(exist_ok=True)
        numbered = list(enumerate(sorted(rows[split], key=lambda row: FILES.index(row.file))))
        for name in FILES:
            lines = [json.dumps({"question_id": number, **row.fields}, ensure_ascii=False) + "\n"
                     for number, row in numbered if row.file == name]
            data = "".join(lines).encode()
            (partial / split / name).write_bytes(data)
            hashes[f"{split}/{name}"] = hashlib.sha256(data).hexdigest()
        counts[split] = _counts(rows[split], scenes[split])
    manifest = {"format": 1, "seed": seed, "source": "procedural rooms" if config.source is None else "posed frames",
                "split": how, "config": config.model_dump(mode="json"),
                "processed_sizes": [{"original": list(a), "processed": list(b)} for a, b in sorted(sizes.items())],
                "counts": counts, "sha256": hashes}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _counts(rows: Sequence[BuiltRow], scenes: Sequence[str]) -> dict:
    by_file: dict[str, Counter] = {name: Counter() for name in FILES}
    for row in rows:
        by_file[row.file][f"{row.data_type}: {row.question_type}"] += 1
    return {"scenes": len(scenes), "pictures": len({path for row in rows for path in row.fields["image"]}),
            "rows": {name: sum(by_file[name].values()) for name in FILES},
            "localization": sum(row.question_type == LOCALIZATION and row.file == GROUNDING_FILE for row in rows),
            "question_types": {name: dict(sorted(by_file[name].items())) for name in FILES}}


class _Reporter:
    """Progress lines, at most one every few seconds, and always the last."""

    def __init__(self, progress: Progress | None):
        self._progress, self._start, self._said = progress, time.monotonic(), time.monotonic()

    def count(self, done: str, rows: int, last: bool) -> None:
        now = time.monotonic()
        if self._progress is not None and (last or now - self._said >= _PROGRESS_SECONDS):
            self._said = now
            self._progress(f"data: {done}, {rows} rows, {now - self._start:.0f} s")
