"""What a model has written for traces, on disk: one line of JSON per draft, only ever added to.

What holds
    * A draft that was appended survives a crash; a line that was cut by one is removed at the next start.
    * Drafts hold what the model wrote, not what was thought of it: whatever decides only which of them are kept may change
      between two starts. What decides the texts may not: the folder says what they were drawn with, and is refused then.
    * The drafts of a row are numbered from 0 without gaps, so that a start goes on where the last one ended.
    * One process at a time: the file is locked.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from data.stage_files import write_text

DRAFTS, IDENTITY = "drafts.jsonl", "drawn_with.json"


class TraceError(RuntimeError):
    """Traces could not be written; says why and what to do. What was drawn so far is kept."""


class TracesRefused(TraceError):
    """Nothing was begun: the folder is in use, or holds drafts of another model, data or sampling."""


@dataclass(frozen=True)
class Draft:
    """The text of one completion of a row, number `sample` from 0. `finish_reason`: as engine or server named it."""

    row: str
    sample: int
    text: str
    finish_reason: str
    tokens: int | None = None


class Drafts:
    """All drafts of a folder by row. Made by `opened`."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._rows: dict[str, list[Draft]] = {}
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            self._add(_parsed(line, path, number))

    def of(self, row: str) -> tuple[Draft, ...]:
        return tuple(self._rows.get(row, ()))

    def append(self, drafts: Sequence[Draft]) -> None:
        """On disk when this returns. TraceError unless they are the next ones of their row."""
        for draft in drafts:
            self._add(draft)
        self._file.write("".join(json.dumps(asdict(draft)) + "\n" for draft in drafts).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _add(self, draft: Draft) -> None:
        rows = self._rows.setdefault(draft.row, [])
        if draft.sample != len(rows):
            raise TraceError(f"{self._path}: draft {draft.sample} of row {draft.row} follows {len(rows)} others; the file "
                             "was edited: remove its folder to begin again")
        rows.append(draft)


@contextmanager
def opened(folder: Path, drawn_with: Mapping[str, Any]) -> Iterator[Drafts]:
    """The drafts of `folder`, made when missing. `drawn_with`: what decides the texts, flat JSON data.

    TracesRefused when it cannot be written, another process draws here, or the folder was begun with something else.
    """
    path, identity = folder / DRAFTS, folder / IDENTITY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise TracesRefused(f"{folder} cannot be written ({error}): choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TracesRefused(f"another process draws into {folder}: wait for it, or choose another folder") from None
        if identity.is_file():
            _check(json.loads(identity.read_text(encoding="utf-8")), json.loads(json.dumps(drawn_with)), folder)
        else:
            write_text(identity, json.dumps(drawn_with, indent=1) + "\n")
        whole = path.read_bytes()
        file.truncate(whole.rfind(b"\n") + 1)
        yield Drafts(file, path)


def _check(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        listed = "\n".join(f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
        raise TracesRefused(f"{folder} holds drafts that were drawn with other settings:\n{listed}\n"
                            "take these back, choose another --out, or remove the folder")


def _parsed(line: bytes, path: Path, number: int) -> Draft:
    try:
        return Draft(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise TraceError(f"{path}, line {number}: no draft ({error}); remove the folder to begin again") from error
