"""Which places rows show, and whether rows to train on and rows to be measured on show the same place.

What holds: scenes are told apart by the folder of the picture (`scene0000_00/820.jpg`); several scans of one place
(`scene0000_00`, `scene0000_01`: ScanNet numbers them so) are one place. A picture outside of any scene folder is of no
known place, and nothing is concluded from it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Iterable, Mapping

from data.types import Example

_SCANNET = re.compile(r"(scene\d{4})_\d{2}")


def scene_of(picture: str | Path, root: str | Path) -> str | None:
    """The scene of a picture below `root`: the nearest folder named as ScanNet names scans, else the picture's own folder.

    None where the picture lies in `root` itself.
    """
    folders = PurePosixPath(Path(picture).relative_to(root).as_posix()).parts[:-1]
    named = [folder for folder in reversed(folders) if _SCANNET.fullmatch(folder)]
    return named[0] if named else "/".join(folders) or None


def place_of(scene: str) -> str:
    """What all scans of one place have in common: `scene0000` of `scene0000_00`; another scene is its own place."""
    match = _SCANNET.fullmatch(scene)
    return match[1] if match else scene


def scenes_of(examples: Iterable[Example], root: str | Path) -> dict[str, list[str]]:
    """Scene to the ids of the rows that show it, in order. Scenes of pictures without one are left out."""
    rows: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        for scene in dict.fromkeys(scene_of(picture, root) for picture in example.media):
            if scene is not None:
                rows[scene].append(example.id)
    return dict(rows)


def shared_places(train: Iterable[str], other: Iterable[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Place to its scenes among those of `train` and those of `other`, for places that are in both, sorted."""
    ours, theirs = _by_place(train), _by_place(other)
    return {place: (ours[place], theirs[place]) for place in sorted(ours.keys() & theirs.keys())}


def _by_place(scenes: Iterable[str]) -> Mapping[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for scene in sorted(set(scenes)):
        places[place_of(scene)].append(scene)
    return places
