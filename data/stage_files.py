"""Files that a training stage keeps while it runs, and the identity that says whether they may be continued.

What holds: a file is replaced whole or not at all; records are lines of JSON with a `step`, and after `keep_steps` none
of a later step and no torn line is left; two stages with one fingerprint were asked for the same work.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.types import Example

_SAMPLE_BYTES = 1 << 20


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """The whole text or the old file: written beside it, flushed to the disk (`durable`), renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)


def flush(path: Path) -> None:
    """What was written to the file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def keep_steps(path: Path, steps: int) -> None:
    """Keep the whole lines of the first `steps` steps of a records file (made empty when missing)."""
    *lines, _torn = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] < steps))


def fingerprint(settings: object, examples: Sequence[Example], model_folder: Path) -> str:
    """Twelve hex digits of what decides a stage's result: settings (by repr), rows, and the weights it starts from.

    Pictures count by the last two parts of their paths, weights by size and their first and last MiB: a copy of the
    data or of the model is the same work.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for example in examples:
        digest.update(
            repr(replace(example, media=tuple("/".join(Path(path).parts[-2:]) for path in example.media))).encode()
        )
    for path in sorted(model_folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name}:{size}".encode() + file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:12]
