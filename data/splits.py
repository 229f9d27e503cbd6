"""Which scenes belong to which split. Scenes of one place (scene0000_00, scene0000_01) never part."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from configs.data_schema import BuildConfig
from data.leakage import place_of
from data.questions import shuffled
from data.reading import DataError
from data.types import HELDOUT, SPLITS, TRAIN


def split_by_share(scene_ids: Sequence[str], share: float, seed: int) -> dict[str, str]:
    """Split of every scene: `share` of the places, at least one, are held out. DataError for a single place."""
    places = sorted({place_of(scene_id) for scene_id in scene_ids})
    if len(places) < 2:
        raise DataError(f"{', '.join(scene_ids)}: scenes of one place cannot be divided by place")
    order = shuffled(places, np.random.default_rng([seed, len(SPLITS)]))
    heldout = set(order[: min(max(1, round(share * len(places))), len(places) - 1)])
    return {scene_id: HELDOUT if place_of(scene_id) in heldout else TRAIN for scene_id in scene_ids}


def split_by_lists(scene_ids: Sequence[str], config: BuildConfig) -> dict[str, str]:
    """Split of every listed scene that the source has; others have none.

    DataError when a list cannot be read, when a place is in both lists, or when a list names scenes and the source has none
    of them.
    """
    listed = {TRAIN: _listed(config.train_list), HELDOUT: _listed(config.heldout_list)}
    both = {place_of(name) for name in listed[TRAIN]} & {place_of(name) for name in listed[HELDOUT]}
    if both:
        raise DataError(f"{config.train_list} and {config.heldout_list} share {len(both)} places, such as {min(both)}: what "
                        "is held out must be other places; take them out of one list")
    for file, names in zip((config.train_list, config.heldout_list), listed.values()):
        if names and not set(names) & set(scene_ids):
            raise DataError(f"none of the {len(names)} scenes of {file}, such as {names[0]}, is in the source, which has "
                            f"{len(scene_ids)}, such as {scene_ids[0]}")
    split_of = {name: split for split, names in listed.items() for name in names}
    if not split_of:
        raise DataError(f"{config.train_list} and {config.heldout_list} name no scene")
    return {scene_id: split_of[scene_id] for scene_id in scene_ids if scene_id in split_of}


def _listed(path: str) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of scenes {path} cannot be read ({error}); give a text file, one name a line") from error
