"""The learner's checkpoints of stage 3: whole or not there, the last two kept.

    CHECKPOINTS/step-N/…            what the learner ranks wrote after N steps
    CHECKPOINTS/step-N/state.json   written last: {"state": …, "files": {name: [bytes, CRC-32]}}

What holds: a checkpoint without its state.json, or of which a file is missing or another than it was, is never loaded; then
the one before it is, and the caller is told. Nothing is unpickled that has not been compared.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.stage_files import write_text

KEPT = 2
STATE = "state.json"
_CHUNK = 1 << 22
#: By file: [bytes, CRC-32].
Stamps = Mapping[str, list[int]]


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint (None: there is none); what is wrong with newer ones, and those that were finished once."""

    folder: Path | None
    state: Mapping[str, Any]
    problems: tuple[str, ...] = ()
    broken: tuple[Path, ...] = ()


class Checkpoints:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, step: int) -> Path:
        """Where the learner writes its state after `step` steps; made empty."""
        folder = self.folder / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, step: int, state: Mapping[str, Any], files: Stamps) -> None:
        """What was begun for `step` is complete; `state` is plain JSON data, `files` what `stamps` says of the folder. Only
        the last ones stay."""
        folder = self.folder / f"step-{step}"
        write_text(folder / STATE, json.dumps({"state": state, "files": files}) + "\n")
        whole = [own for own in self._newest_first() if (own / STATE).is_file()]
        for old in [own for own in self._newest_first() if own not in whole[:KEPT]]:
            shutil.rmtree(old)

    def newest(self) -> Found:
        """Reads every byte of the newest checkpoint. OSError for what cannot be read: it may be whole."""
        problems: list[str] = []
        broken: list[Path] = []
        for folder in self._newest_first():
            try:
                return Found(folder, _verified(folder), tuple(problems), tuple(broken))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"checkpoint {folder.name} is not whole: {error}")
                broken += [folder] if (folder / STATE).is_file() else []
        return Found(None, {}, tuple(problems), tuple(broken))

    def steps(self) -> int:
        """Of the newest one that was finished, whether or not it is whole; 0 where there is none."""
        finished = [own for own in self._newest_first() if (own / STATE).is_file()]
        return int(finished[0].name.removeprefix("step-")) if finished else 0

    def set_aside(self, folder: Path) -> None:
        """It is not whole, and shall not be taken for a checkpoint later."""
        aside = folder.with_name(f"broken-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)

    def _newest_first(self) -> list[Path]:
        named = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in self.folder.glob("step-*")]
        return [path for _, path in sorted(((int(found[1]), path) for found, path in named if found), reverse=True)]


def _verified(folder: Path) -> Mapping[str, Any]:
    """The state of a checkpoint all of whose files are what they were; ValueError and others that say what is wrong."""
    if not (folder / STATE).is_file():
        raise ValueError("it was not finished")
    written = json.loads((folder / STATE).read_text())
    for name, stamp in written["files"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _stamp(folder / name) != list(stamp):
            raise ValueError(f"{name} is not what was written")
    return written["state"]


def stamps(folder: Path) -> Stamps:
    """Of every file below the folder; reads every byte."""
    return {str(path.relative_to(folder)): _stamp(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _stamp(path: Path) -> list[int]:
    """[bytes, CRC-32]."""
    size = check = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, check = size + len(chunk), zlib.crc32(chunk, check)
    return [size, check]
