"""Reading what a run left behind, in whatever state it is. Never raises on content; says what could not be read.

What holds: a missing file is an empty result; a torn or foreign line is left out and counted in `notes`.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

from PIL import Image, ImageOps, UnidentifiedImageError

STAGES = ("sft1", "sft2", "coldstart", "grpo")
PICTURE_PIXELS = 480  # longest side of an embedded picture


@dataclass
class RunFiles:
    """The files of one run folder; `notes` collects what was unreadable, for the reader of the report."""

    folder: Path
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict:
        path = self.folder / "summary.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.notes.append(f"summary.json could not be read: {error}")
            return {}
        if isinstance(content, dict):
            return content
        self.notes.append("summary.json does not hold an object")
        return {}

    def config_text(self) -> str:
        try:
            return (self.folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def rows(self, *parts: str) -> list[dict]:
        """All objects of a JSONL file below the run folder."""
        return list(self.lines(self.folder.joinpath(*parts)))

    def lines(self, path: Path) -> Iterator[dict]:
        """The objects of a JSONL file, one at a time; lines that hold none are counted in `notes`."""
        broken = 0
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    row = _object(line)
                    if row is None:
                        broken += bool(line.strip())
                    else:
                        yield row
        except FileNotFoundError:
            return
        except OSError as error:
            self.notes.append(f"{path.relative_to(self.folder)} could not be read: {error}")
        if broken:
            self.notes.append(f"{path.relative_to(self.folder)}: {broken} unreadable line(s) left out")

    def traces(self, count: int) -> list[dict]:
        """At most `count` groups of grpo/traces/*.jsonl, evenly spread over the run, first and last included."""
        paths = sorted((self.folder / "grpo" / "traces").glob("*.jsonl"))
        total = sum(_count_lines(path) for path in paths)
        if not total or count < 1:
            return []
        count = min(count, total)
        wanted = {round(i * (total - 1) / max(count - 1, 1)) for i in range(count)}
        found, index = [], 0
        for path in paths:
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    row = _object(line) if index in wanted else None
                    if row is not None:
                        found.append(row)
                    index += 1
        return found


def embed_picture(path: Path) -> tuple[str, tuple[int, int]] | None:
    """A picture file as (JPEG data URI, its (width, height) upright), re-encoded and at most PICTURE_PIXELS long.

    None when the file is gone or is no picture.
    """
    try:
        with Image.open(path) as source:
            upright = ImageOps.exif_transpose(source).convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    size = upright.size
    upright.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), size


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _object(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
