"""Builds a data folder: scenes in, released-layout rows and pictures out.

What holds
    * The result is a function of configuration, source and processed sizes. Scenes are built one by one, each with a
      generator seeded by its name (`data.scene_build`); then rows are chosen over all of them (`data.composition`) and
      written in the order in which the source names the scenes (`data.tables`). So the number of workers changes no byte.
    * Training and held-out scenes are different places: rooms drawn for one or the other, real scenes divided by place or
      by the lists that are given. Where there is one place only, its questions are divided, and the manifest says so.
    * The folder appears whole or not at all. An interrupted build goes on with the scenes it has not finished
      (`data.build_folder`).
    * A scene that cannot be read or built from is named at once and at the end, and left out; too many of them end the
      build.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Callable, Sequence

from configs.data_schema import DataConfig
from data.build_folder import SCENES, finished_scenes, partial_folder
from data.build_progress import ONE_PLACE, BuildProgress, Say, written_lines
from data.composition import choose, take_all
from data.coordinates import Size
from data.leakage import place_of
from data.reading import MANIFEST, DataError
from data.scene_build import SceneJob, SceneOutcome
from data.scene_runs import run_here, run_on_ray
from data.scenes.rooms import Rooms
from data.scenes.sources import open_source
from data.scenes.types import SceneError, SceneSource, SourceError
from data.splits import split_by_lists, split_by_share
from data.tables import SceneTables, write_split
from data.types import HELDOUT, SPLITS, TRAIN

#: Scenes that were left out, each with its reason; only there if there are any.
SKIPPED = "skipped.json"
_FOLDER = "folder"
#: Fewest scenes for which starting worker processes is worth it.
MANY_SCENES = 400


def build_data(config: DataConfig, folder: str | Path, seed: int, processed_size_fn: Callable[[Size], Size],
               progress: Say | None = None, *, workers: int = 1) -> dict:
    """Build `folder` and return its manifest.

    `processed_size_fn` maps the (width, height) of a picture to the size the model is given; cold-start boxes are
    written in that frame. `progress` receives a line every few seconds. `workers` > 1 builds on the Ray cluster that
    this process is connected to, else in this process. Raises DataError when the folder is not empty or is being built
    by another process, when `config.path` already names data, when an unfinished build had other settings, when the
    source has nothing to offer or the lists do not fit it, and when too many scenes are bad.
    """
    folder, say = Path(folder).absolute(), progress or (lambda line: None)
    if config.path is not None:
        raise DataError(f"data.path is {config.path!r}: there is nothing to build; set it to null to build")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; remove it or choose another folder")
    with partial_folder(folder, {"format": 2, "seed": seed, "data": config.model_dump(mode="json")}) as partial:
        source, scene_ids = _source(config, seed)
        how, split_of = _splits(config, source, scene_ids, seed)
        if isinstance(source, Rooms):  # known before anything is drawn: a processor that refuses does so now
            processed_size_fn((config.rooms.image_size,) * 2)
        job = SceneJob(source, split_of, config.build.heldout_share, seed, config.rooms, config.construction,
                       str(partial / SCENES))
        wanted = [scene_id for scene_id in scene_ids if split_of is None or scene_id in split_of]
        say(f"data: {len(wanted)} scenes of {_origin(config)}, divided {how}")
        skipped = _build_scenes(job, wanted, finished_scenes(partial), config.build.max_bad_share, workers, say)
        out = _clean(partial / _FOLDER)
        manifest = _write(partial, out, config, seed, how, wanted, skipped, processed_size_fn, say)
        if folder.exists():
            folder.rmdir()
        out.rename(folder)
        shutil.rmtree(partial)
    for line in written_lines(folder, manifest):
        say(line)
    return manifest


def scenes_to_build(config: DataConfig, seed: int) -> int:
    """How many scenes the source offers: whether worker processes are worth it. DataError as in `build_data`."""
    return len(_source(config, seed)[1])


def _source(config: DataConfig, seed: int) -> tuple[SceneSource, Sequence[str]]:
    try:
        source = open_source(config, seed)
        return source, source.scene_ids()
    except (SourceError, SceneError) as error:
        raise DataError(str(error)) from error


def _origin(config: DataConfig) -> str:
    return "procedural rooms" if config.source is None else f"{config.source} ({config.source_format})"


def _splits(config: DataConfig, source: SceneSource, scene_ids: Sequence[str],
            seed: int) -> tuple[str, dict[str, str] | None]:
    """How the splits came about, and the split of every scene that is built; None: each scene is divided by question."""
    build = config.build
    if isinstance(source, Rooms):
        if build.train_list is not None:
            raise DataError(f"data.build.train_list is {build.train_list!r}, but there is no data.source: "
                            "rooms are drawn for one split or the other; leave both lists out")
        return "by room", {scene_id: TRAIN if scene_id.startswith(TRAIN) else HELDOUT for scene_id in scene_ids}
    if build.train_list is not None:
        return "by list", split_by_lists(scene_ids, build)
    if len({place_of(scene_id) for scene_id in scene_ids}) > 1:
        return "by place", split_by_share(scene_ids, build.heldout_share, seed)
    return ONE_PLACE, None


def _build_scenes(job: SceneJob, wanted: Sequence[str], finished: set[str], max_bad_share: float, workers: int,
                  say: Say) -> list[SceneOutcome]:
    """Builds what is not finished; returns the scenes that are left out, in order. DataError when they are too many."""
    left = [scene_id for scene_id in wanted if scene_id not in finished]
    report = BuildProgress(len(wanted), len(wanted) - len(left), say)
    allowed = max(1, int(max_bad_share * len(wanted)))
    bad: dict[str, SceneOutcome] = {}
    with closing(run_on_ray(job, left, workers) if workers > 1 and left else run_here(job, left)) as outcomes:
        for outcome in outcomes:
            report.scene(outcome)
            if outcome.reason is not None:
                bad[outcome.scene] = outcome
                if len(bad) > allowed or len(bad) == len(wanted):
                    break
    skipped = [bad[scene_id] for scene_id in wanted if scene_id in bad]
    report.end(skipped)
    if len(bad) > allowed or len(bad) == len(wanted):
        named = "\n".join(f"  {outcome.scene}: {outcome.reason}" for outcome in skipped)
        raise DataError(f"{len(bad)} of {len(wanted)} scenes cannot be built, {allowed} may be left out "
                        f"(data.build.max_bad_share):\n{named}\ncorrect the source or the settings; what is built is kept")
    return skipped


def _write(partial: Path, folder: Path, config: DataConfig, seed: int, how: str, wanted: Sequence[str],
           skipped: Sequence[SceneOutcome], processed_size_fn: Callable[[Size], Size], say: Say) -> dict:
    """Chooses the rows and writes the final folder; returns the manifest."""
    left_out = {outcome.scene for outcome in skipped}
    scenes = [scene_id for scene_id in wanted if scene_id not in left_out]
    say(f"data: choosing and writing the rows of {len(scenes)} scenes")
    tables = SceneTables(partial / SCENES, scenes)
    wishes = {TRAIN: config.build.train, HELDOUT: config.build.heldout}
    choices = {split: take_all(tables.of(split), split, seed) if wish is None else choose(tables.of(split), split, wish, seed)
               for split, wish in wishes.items()}
    shortfalls = [short for choice in choices.values() for short in choice.shortfalls]
    for short in shortfalls:
        say(f"data: {short.split} has {short.found} {short.kind} rows, {short.wanted} were asked for: the scenes offer no "
            "more")
    sizes = {size: tuple(map(int, processed_size_fn(size))) for size in sorted(tables.sizes)}
    counts, hashes = {}, {}
    for split in SPLITS:
        counts[split], of_files = write_split(tables, folder, split, choices[split], sizes, config.preset,
                                              config.construction.trace_wording)
        hashes |= of_files
    manifest = {"format": 2, "seed": seed, "source": "procedural rooms" if config.source is None else config.source_format,
                "split": how, "config": config.model_dump(mode="json"),
                "processed_sizes": [{"original": list(a), "processed": list(b)} for a, b in sizes.items()],
                "counts": counts, "skipped": len(skipped), "shortfalls": [vars(short) for short in shortfalls],
                "sha256": hashes}
    if skipped:
        reasons = [{"scene": outcome.scene, "reason": outcome.reason, "trace": outcome.trace} for outcome in skipped]
        (folder / SKIPPED).write_text(json.dumps(reasons, indent=1) + "\n", encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _clean(folder: Path) -> Path:
    """The folder, empty: what a build that was killed while writing has left in it is written again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
