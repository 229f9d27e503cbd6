"""The unfinished folder of a build: one builder at a time, finished scenes kept, other settings refused.

What holds
    * A build of FOLDER works in .FOLDER.partial beside it, locked while somebody does (a file in it is: locks of folders
      stay on their machine where the file system is shared). FOLDER appears by renaming it.
    * An interrupted build leaves the partial folder with its finished scenes, and the next build of FOLDER with the same
      settings goes on from there. With other settings it is refused with the differences; nothing is deleted that
      somebody waited for. A partial folder without a finished scene is nobody's loss and goes.
    * Pictures and annotations of the source are taken as they were when their scene was built.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping

from configs.load import flatten
from data.reading import DataError

#: What the scenes of a partial folder were built with.
SETTINGS = "settings.json"
SCENES = "scenes"
LOCK = "lock"


class BuildRefused(DataError):
    """Nothing was begun: somebody builds the folder, or it was begun with other settings."""


@contextmanager
def partial_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """The partial folder of `folder`, for a build with `settings` (plain JSON data); `SCENES` in it exists.

    BuildRefused where it cannot be written, while another process builds the same folder, and when finished scenes of other
    settings are in it.
    """
    partial = folder.parent / f".{folder.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BuildRefused(f"{folder} cannot be written ({error}); choose another folder") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = (partial / LOCK).exists() and os.path.samestat(os.fstat(handle), (partial / LOCK).stat())
        except BlockingIOError:
            mine = False
        if not mine:
            raise BuildRefused(f"another process is building {folder}; wait for it, or choose another folder")
        _prepare(partial, settings)
        try:
            yield partial
        finally:
            if partial.exists() and not finished_scenes(partial):
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


def finished_scenes(partial: Path) -> set[str]:
    """Names of the scenes that an earlier build, or this one, has finished."""
    return {path.name for path in (partial / SCENES).iterdir() if not path.name.startswith(".")}


def _prepare(partial: Path, settings: Mapping[str, Any]) -> None:
    """Clears what a killed build has not finished; keeps its finished scenes, if they are of these settings."""
    known = partial / SETTINGS
    if known.is_file() and (partial / SCENES).is_dir() and finished_scenes(partial):
        before = json.loads(known.read_text(encoding="utf-8"))
        if before != settings:
            raise BuildRefused(_refusal(partial, before, settings))
        for entry in (partial / SCENES).iterdir():
            if entry.name.startswith("."):
                shutil.rmtree(entry)
        return
    for entry in [own for own in partial.iterdir() if own.name != LOCK]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (partial / SCENES).mkdir()
    known.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _refusal(partial: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = dict(flatten(before)), dict(flatten(now))
    differences = [f"  {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)]
    return "\n".join([f"{partial} holds {len(finished_scenes(partial))} scenes of an unfinished build with other settings:",
                      *differences, "go on with the settings from before, choose another folder, or remove that one"])
