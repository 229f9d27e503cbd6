"""A data folder in the released layout, as small as it can be: rows that every stage could use."""

import json
from pathlib import Path

import pytest

SHARED = {"image": ["room/f.png"], "data_type": "single_image"}
SPATIAL = {
    "question_id": 0,
    **SHARED,
    "question": "How many chairs are there?",
    "options": None,
    "answer": "2",
    "question_type": "object count",
}
GROUNDING = {
    "question_id": 1,
    **SHARED,
    "question": "Where is the chair?",
    "answer": [{"bbox_2d": [4, 4, 40, 40], "label": "chair"}],
}


@pytest.fixture
def write_rows():
    """Writes the rows of both splits into a folder; the pictures they name are the caller's affair."""

    def write(folder: Path, grounding: bool = True) -> None:
        rows = {"spatial": SPATIAL} | ({"grounding": GROUNDING} if grounding else {})
        for split in ("train", "heldout"):
            (folder / split).mkdir(parents=True, exist_ok=True)
            for name in ("spatial", "grounding", "coldstart"):
                text = json.dumps(rows[name]) + "\n" if name in rows else ""
                (folder / split / f"spld_{name}_data.jsonl").write_text(text)

    return write
