"""`ladder data card`: the files it writes, and what it refuses."""

import json
import random

import pytest
from PIL import Image

from data.card import licences
from data.card_pictures import HEIGHT, MARGIN, WIDTH
from data.reading import FILES
from launch.cli import main

LETTERS = "ABCD"
THINGS = ["sofa", "lamp", "bin", "bed", "chair", "shelf"]


def rows(split: str, count: int, crooked: bool) -> list[dict]:
    """Choices of four by lot; or with the right one always the first that the question names."""
    rng = random.Random(split)
    own = []
    for number in range(count):
        names = rng.sample(THINGS, 4)
        named = [names[2], *names[:2], names[3]] if crooked else names
        options = [f"{letter}. {name}" for letter, name in zip(LETTERS, names)]
        own.append({"question_id": number, "image": [f"{split}{number % 10}/f.png"], "data_type": "single_image",
                    "question": f"Which of these ({', '.join(named)}) is nearest?", "options": options,
                    "answer": "C" if crooked else rng.choice(LETTERS), "question_type": "relative distance"})
    return own


def write(folder, crooked=False, splits=("train", "heldout"), count=120):
    for split in splits:
        own = folder / split
        for row in rows(split, count, crooked):
            path = own / "images" / row["image"][0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 24)).save(path)
        (own / "spld_spatial_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, count, crooked)))
        for name in ("grounding", "coldstart"):
            (own / f"spld_{name}_data.jsonl").write_text("")
    return folder


def test_a_card(tmp_path, capsys):
    write(tmp_path / "rooms")
    assert main(["data", "card", str(tmp_path / "rooms")]) == 0
    assert f"open {tmp_path}/rooms/card/card.md" in capsys.readouterr().out
    page = (tmp_path / "rooms/card/card.md").read_text()
    numbers = json.loads((tmp_path / "rooms/card/card.json").read_text())
    assert "| single_image | 120 | 120 | 5929 | 5928 |" in page and "no place is in both splits" in page
    assert "| 32 x 24 | 20 |" in page and "1. `train/spld_spatial_data/0` Which of these" in page
    assert "all 3 kinds with enough rows, no answerer is clearly above chance" in page and "ScanNet" in page
    assert numbers["rows"] == {"train": 120, "heldout": 120} and numbers["places_in_both"] == []
    assert all(score["above"] == [] and score["chance"] == 0.25 for score in numbers["text_only"]["scores"])
    with Image.open(tmp_path / "rooms/card/pictures.jpg") as sheet:
        assert sheet.width > sheet.height


def test_what_text_gives_away_is_said(tmp_path):
    write(tmp_path / "rooms", crooked=True)
    assert main(["data", "card", str(tmp_path / "rooms"), "--out", str(tmp_path / "own")]) == 0
    page = (tmp_path / "own/card.md").read_text()
    verdict = "text alone is clearly above chance (most frequent letter: 1.000, chance 0.250)"
    assert f"* single_image, relative distance: {verdict}" in page
    assert "| relative distance | 4 | 240 | A 0 B 0 C 240 D 0 | **75.0 points** | 5.6 |" in page
    assert not (tmp_path / "rooms/card").exists()


@pytest.mark.parametrize("count, letters, answered", [
    (4, "| 8 (too few) | A 0 B 0 C 8 D 0 | 75.0 points |", "| 4 (too few) | 0.250 | 1.000 |"),
    (15, "| 30 | A 0 B 0 C 30 D 0 | **75.0 points** |", "| 15 (too few) | 0.250 | 1.000 |"),
    (30, "| 60 | A 0 B 0 C 60 D 0 | **75.0 points** |", "| 30 | 0.250 | **1.000** |"),
])
def test_a_table_of_too_few_rows_is_marked_and_says_nothing(tmp_path, count, letters, answered):
    write(tmp_path / "rooms", crooked=True, count=count)
    assert main(["data", "card", str(tmp_path / "rooms")]) == 0
    page = (tmp_path / "rooms/card/card.md").read_text()
    assert f"| relative distance | 4 {letters}" in page and f"| single_image | relative distance {answered}" in page
    assert ("Too few: fewer than 30 rows" in page) == (count == 4)
    assert ("**Bold**: more than 2 points" in page) == (count > 4)


@pytest.mark.parametrize("source", ["procedural rooms", "scannet", None])
def test_licences_are_those_of_the_source_that_the_manifest_names(tmp_path, source):
    counts = {split: {"rows": dict(zip(FILES, (0, 2, 0)))} for split in ("train", "heldout")}
    write(tmp_path, count=2)
    if source:
        (tmp_path / "manifest.json").write_text(json.dumps({"source": source, "counts": counts}))
    assert main(["data", "card", str(tmp_path)]) == 0
    page = (tmp_path / "card/card.md").read_text()
    assert f"Source: {source or 'unknown'}." in page and f"* {licences(source or 'unknown')[0]}" in page


def test_pictures_that_cannot_be_read_are_counted_not_hidden(tmp_path):
    write(tmp_path / "rooms")
    (tmp_path / "rooms/train/images/train0/f.png").write_bytes(b"")
    assert main(["data", "card", str(tmp_path / "rooms")]) == 0
    assert "20 pictures, **1 of them missing or unreadable**" in (tmp_path / "rooms/card/card.md").read_text()
    with Image.open(tmp_path / "rooms/card/pictures.jpg") as sheet:
        grey = sheet.getpixel((60, 60))
    assert all(abs(value - 160) < 4 for value in grey)


def test_pictures_of_held_out_rows_are_shown_where_there_are_no_others(tmp_path):
    write(tmp_path, count=1)
    (tmp_path / "train/spld_spatial_data.jsonl").write_text("")
    assert main(["data", "card", str(tmp_path)]) == 0
    with Image.open(tmp_path / "card/pictures.jpg") as sheet:
        assert sheet.size == (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)
    assert "(pictures.jpg)" in (tmp_path / "card/card.md").read_text()


def test_rows_of_one_split_are_divided_by_place(tmp_path):
    write(tmp_path, splits=("train",))
    assert main(["data", "card", str(tmp_path / "train"), "--out", str(tmp_path / "card")]) == 0
    numbers = json.loads((tmp_path / "card/card.json").read_text())
    assert numbers["splits"] == ["train"] and "5 parts by place" in numbers["text_only"]["how"]
    assert {score["scored"] for score in numbers["text_only"]["scores"]} == {120}


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "train/spld_spatial_data.jsonl").write_text("{}\n"), "line 1, field 'question_id'"),
    (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is no JSON object"),
    (lambda folder: [file.write_text("") for file in folder.glob("*/*.jsonl")], "holds no rows"),
])
def test_refusals(tmp_path, capsys, damage, words):
    damage(write(tmp_path / "rooms"))
    assert main(["data", "card", str(tmp_path / "rooms")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "rooms/card/card.md").exists()
