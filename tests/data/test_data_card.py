"""What a card counts, by hand; and its contact sheet."""

from collections import Counter
from typing import get_args

import pytest
from PIL import Image

from configs.data_schema import DataConfig
from data.card import (
    LICENCES, UNKNOWN, by_place, categories, letter_balance, licences, picture_sizes, pictures_per_row, question_types,
    shown_rows,
)
from data.card_pictures import HEIGHT, MARGIN, WIDTH, contact_sheet
from data.reading import load_split
from data.types import LOCALIZATION, Box, Example
from data_folders import write_folder


def question(number, answer="A", options=2, kind="relative distance", media=("/r/s/0.jpg",)):
    lettered = tuple(f"{chr(ord('A') + place)}. {place}" for place in range(options))
    return Example(f"train/q/{number}", number, "video", "?", kind, media, lettered, answer)


def test_composition(tmp_path):
    splits = {name: load_split(write_folder(tmp_path), name) for name in ("train", "heldout")}
    twice = {name: {"train": count, "heldout": count} for name, count in
             (("object localization", 2), ("single_image", 2), ("multi_view", 0), ("video", 1), ("cold start", 2))}
    assert categories(splits) == twice
    assert question_types(splits) == {kind: {"train": 1, "heldout": 1} for kind in (
        ("single_image", "object size"), ("single_image", "relative direction"), ("video", "room size"))}
    assert pictures_per_row(splits["train"].spatial) == {"single_image": (1, 1.0, 1), "video": (3, 3.0, 3)}


@pytest.mark.parametrize("source, told, not_told", [
    ("procedural rooms", "Apache-2.0", "ScanNet"),
    ("posed_frames", "whoever captured and annotated", "SpatialLadder"),
    ("layouts", "VSI-Bench's meta-information", "SpatialLadder"),
    ("scannet", "are ScanNet's. ScanNet has terms of use", "Apache-2.0"),
    (UNKNOWN, "Unknown: no manifest says", "are ScanNet's."),
    ("something else", "Unknown: no manifest says", "are ScanNet's."),
])
def test_licences_are_those_of_the_source(source, told, not_told):
    lines = licences(source)
    assert told in " ".join(lines) and not_told not in " ".join(lines)


def test_every_source_that_can_be_built_has_its_licences():
    formats = get_args(DataConfig.model_fields["source_format"].annotation)
    assert set(LICENCES) == {"procedural rooms", *formats, UNKNOWN}


def test_letters():
    rows = [question(0, "A"), question(1, "A"), question(2, "A"), question(3, "B"), question(4, "C", 4),
            question(5, "B", kind="relative direction")]
    two, four, direction, all_two, all_four = (
        {(own.question_type, own.options): own for own in letter_balance(rows)}[key]
        for key in (("relative distance", 2), ("relative distance", 4), ("relative direction", 2), ("all", 2), ("all", 4)))
    assert (two.counts, two.deviation, two.two_errors, two.balanced) == ((3, 1), 0.25, 0.5, False)
    assert (four.counts, four.deviation) == ((0, 0, 1, 0), 0.75) and (direction.counts, direction.deviation) == ((0, 1), 0.5)
    assert (all_two.counts, all_two.deviation) == ((3, 2), pytest.approx(0.1)) and all_four.counts == four.counts
    (even,) = {own.balanced for own in letter_balance([question(n, "AB"[n % 2]) for n in range(50)])}
    assert even


def test_pictures_are_counted_once_by_their_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    Image.new("RGB", (48, 64)).save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGB", (10, 10)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"")
    names = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.png", "d.png", "e.png")]
    rows = [question(0, media=tuple(names)), question(1, media=(names[2],))]
    assert picture_sizes(rows) == ([("64 x 48", 2), ("10 x 10", 1)], 2)


def test_parts_keep_a_place_together():
    rows = [question(scan * 100 + place, media=(f"/r/scene{place:04d}_{scan:02d}/0.jpg",))
            for place in range(40) for scan in (0, 1)]
    parts = by_place(rows, "/r")
    assert sorted(row.question_id for part in parts for row in part) == sorted(row.question_id for row in rows)
    places = [{row.question_id % 100 for row in part} for part in parts]
    assert Counter(place for own in places for place in own) == Counter(range(40)) and all(places)
    assert [{row.question_id % 100 for row in part} for part in by_place(rows[::-1], "/r")] == places


def test_rows_to_show_are_of_as_many_scenes_as_there_are():
    rows = [question(n, media=(f"/r/{'abc'[n // 10]}/0.jpg",)) for n in range(30)]
    assert [row.question_id for row in shown_rows(rows, "/r", 2)] == [0, 10]
    assert [row.question_id for row in shown_rows(rows, "/r", 5)] == [0, 10, 20, 1, 15]
    assert len({row.id for row in shown_rows(rows, "/r", 40)}) == 30 and shown_rows([], "/r", 5) == []


def test_the_contact_sheet(tmp_path):
    Image.new("RGB", (480, 200), (0, 0, 255)).save(tmp_path / "a.png")
    boxes = (Box("x", (200, 100, 400, 180)),)
    row = Example("a", 0, "single_image", "?", LOCALIZATION, (str(tmp_path / "a.png"),), boxes=boxes)
    sheet = contact_sheet([row] * 5)
    assert sheet.size == (4 * (WIDTH + MARGIN) + MARGIN, 2 * (HEIGHT + MARGIN) + MARGIN)
    for left, top in ((MARGIN, MARGIN), (MARGIN, 2 * MARGIN + HEIGHT)):  # the first and the fifth; shown at half size
        assert sheet.getpixel((left + 20, top + 20)) == sheet.getpixel((left + 150, top + 75)) == (0, 0, 255)
        assert sheet.getpixel((left + 100, top + 70)) == sheet.getpixel((left + 200, top + 60)) == (226, 60, 40)
        assert sheet.getpixel((left + 20, top + 150)) == (250, 250, 248)
    assert contact_sheet([row]).size == (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
