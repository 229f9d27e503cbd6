"""Records that continue where a checkpoint is, and the identity of a stage's work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.stage_files import fingerprint, keep_steps, write_text
from data.types import Example

ROW = Example(
    id="train/a",
    question_id=1,
    data_type="single_image",
    question="?",
    question_type="object count",
    media=("/first/train/images/scene/1.png",),
    answer="2",
)


def test_records_beyond_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_steps(path, 3)
    assert path.read_text() == ""
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    keep_steps(path, 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    path.write_text('{"step": 0, "text": "a\u2028b\x85c"}\n{"step": 1}\n')  # what some take for the end of a line
    keep_steps(path, 1)
    assert path.read_text() == '{"step": 0, "text": "a\u2028b\x85c"}\n'
    write_text(path, "new\n")
    assert path.read_text() == "new\n" and list(tmp_path.iterdir()) == [path]


def test_a_copy_is_the_same_work_and_every_change_is_another(tmp_path: Path) -> None:
    for name, content in (("one", b"weights"), ("copy", b"weights"), ("other", b"weight5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    work = fingerprint(("lr", 1e-5), [ROW], tmp_path / "one")
    moved = replace(ROW, media=("/second/train/images/scene/1.png",))
    assert fingerprint(("lr", 1e-5), [moved], tmp_path / "copy") == work
    assert work not in {
        fingerprint(("lr", 2e-5), [ROW], tmp_path / "one"),
        fingerprint(("lr", 1e-5), [ROW], tmp_path / "other"),
        fingerprint(("lr", 1e-5), [replace(ROW, answer="3")], tmp_path / "one"),
        fingerprint(("lr", 1e-5), [ROW, ROW], tmp_path / "one"),
    }


@pytest.mark.parametrize("size", [10, 1 << 20, (1 << 20) + 5, 3 << 20])
def test_weights_that_differ_at_an_end_differ(tmp_path: Path, size: int) -> None:
    seen = set()
    for place in (None, 0, size - 1):
        content = bytearray(size)
        if place is not None:
            content[place] = 1
        (tmp_path / "model.safetensors").write_bytes(content)
        seen.add(fingerprint((), [], tmp_path))
    assert len(seen) == 3
