"""A whole data folder in the released layout, generated: a few rows of each file, shown by real picture files."""

import json
from pathlib import Path

from PIL import Image

from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE

SIDE = "From the camera's perspective, is the bowl to the laptop's left-front, left-back, right-front, or right-back?"
BOXES = [{"bbox_2d": [10, 20, 40, 44], "label": "bowl"}, {"bbox_2d": [1, 2, 30, 40], "label": "laptop"}]
OPTIONS = ["A. left-front", "B. left-back", "C. right-front", "D. right-back"]


def rows_of(scene: str) -> dict[str, list[dict]]:
    """The rows of one split, all of one scene: file name to rows."""
    one = {"image": [f"{scene}/0.jpg"], "data_type": "single_image"}
    many = {"image": [f"{scene}/{number}.jpg" for number in range(3)], "data_type": "video"}
    return {
        GROUNDING_FILE: [
            {"question_id": 0, **one, "question": f"<image>{SIDE}", "answer": BOXES},
            {"question_id": 1, **one, "question": "Where is the bowl?", "answer": BOXES[:1]},
        ],
        SPATIAL_FILE: [
            {"question_id": 2, **one, "question": SIDE, "options": OPTIONS, "answer": "A",
             "question_type": "relative direction"},
            {"question_id": 3, **one, "question": "How long is the bowl, in centimeters?", "options": None, "answer": "30",
             "question_type": "object size"},
            {"question_id": 4, **many, "question": "What is the size of this room?", "options": None, "answer": "27.5",
             "question_type": "room size"},
        ],
        COLDSTART_FILE: [
            {"question_id": 5, **one, "prompt": SIDE, "solution": "<think>It is left.</think><answer>A</answer>"},
            {"question_id": 6, **many, "prompt": "How large?", "solution": "<think>Large.</think><answer>27.5</answer>"},
        ],
    }


def write_split(folder: Path, rows: dict[str, list[dict | str]]) -> None:
    """The files of a split and every picture they name; a row that is text is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in own]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
        for picture in {path for row in own if isinstance(row, dict) for path in row["image"]}:
            path = folder / "images" / picture
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.new("RGB", (64, 48), (90, 120, 150)).save(path)


def write_folder(folder: Path) -> Path:
    """train/ and heldout/ of different places; nothing is wrong with them."""
    write_split(folder / "train", rows_of("scene0000_00"))
    write_split(folder / "heldout", rows_of("scene0007_00"))
    return folder


def change(folder: Path, file: str, line: int, **fields: object) -> None:
    """Other fields in a line (from 1) of `split/file`; `...` takes the field out."""
    path = folder / file
    lines = path.read_text().splitlines()
    row = json.loads(lines[line - 1]) | fields
    lines[line - 1] = json.dumps({key: value for key, value in row.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")
