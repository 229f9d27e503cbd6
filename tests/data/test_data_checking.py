"""The checker on a folder without faults, and on the same folder broken in one place: it names that place alone."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data.checking import check_folder
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, DataError
from data_folders import BOXES, SIDE, change, rows_of, write_folder, write_split

GROUNDING, SPATIAL, COLDSTART = (f"train/{name}" for name in (GROUNDING_FILE, SPATIAL_FILE, COLDSTART_FILE))
PICTURE = "train/images/scene0000_00/1.jpg"


def found(checked):
    return [(finding.file, finding.line, finding.field) for finding in checked.faults]


def test_a_whole_folder_has_no_fault(tmp_path):
    checked = check_folder(write_folder(tmp_path))
    assert checked.findings == () and checked.media == ()
    assert [split.counts for split in checked.splits] == [{GROUNDING_FILE: 2, SPATIAL_FILE: 3, COLDSTART_FILE: 2}] * 2
    assert len(checked.sizes) == 6 and set(checked.sizes.values()) == {(64, 48)}
    assert {name: (own.matched, own.single_image) for name, own in checked.joined().items()} == dict.fromkeys(
        ("train", "heldout"), (1, 2))


def sets(*place, **fields):
    return lambda folder: change(folder, *place, **fields)


def cut(folder):
    path = folder / SPATIAL
    path.write_text(path.read_text()[:-20])


def damaged(folder):
    path = folder / PICTURE
    path.write_bytes(path.read_bytes()[:-40])


def repeated(folder, **fields):
    with (folder / SPATIAL).open("a") as file:
        file.write(json.dumps(rows_of("scene0000_00")[SPATIAL_FILE][0] | {"question_id": 9} | fields) + "\n")


def contradicted(folder):
    path = folder / GROUNDING
    first = json.loads(path.read_text().splitlines()[1])
    moved = [{**box, "bbox_2d": [value + 1 for value in box["bbox_2d"]]} for box in first["answer"]]
    path.write_text(path.read_text() + json.dumps(first | {"question_id": 77, "answer": moved}) + "\n")


def moved(folder):
    for name, rows in rows_of("scene0000_01").items():
        (folder / "heldout" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_split(folder / "heldout", rows_of("scene0000_01"))


def counted(folder):
    counts = {split: {"rows": {GROUNDING_FILE: 2, SPATIAL_FILE: 3, COLDSTART_FILE: 2}} for split in ("train", "heldout")}
    counts["train"]["rows"][SPATIAL_FILE] = 4
    (folder / "manifest.json").write_text(json.dumps({"counts": counts}))


SWAPPED = [{"bbox_2d": [40, 20, 10, 44], "label": "bowl"}]
OUTSIDE = [{"bbox_2d": [10, 20, 40, 60], "label": "bowl"}]
#: What is broken, how, and how it is to be named: (file, line, field), words.
BROKEN = {
    "a torn line": (cut, (SPATIAL, 3, None), "one JSON object"),
    "an array for a row": (lambda folder: (folder / COLDSTART).write_text("[1]\n"), (COLDSTART, 1, None), "one JSON object"),
    "a missing question": (sets(SPATIAL, 2, question=...), (SPATIAL, 2, "question"), "missing"),
    "a missing option list": (sets(SPATIAL, 1, options=...), (SPATIAL, 1, "options"), "missing"),
    "options without letters": (sets(SPATIAL, 1, options=["left", "right"]), (SPATIAL, 1, "options"), "lettered"),
    "two equal options": (sets(SPATIAL, 1, options=["A. left", "B. right", "C. left", "D. back"]),
                          (SPATIAL, 1, "options"), "'left' stands under 2 letters"),
    "a letter of no option": (sets(SPATIAL, 1, answer="E"), (SPATIAL, 1, "answer"), "A, B, C, D"),
    "a number in words": (sets(SPATIAL, 2, answer="thirty"), (SPATIAL, 2, "answer"), "decimal"),
    "an unknown type": (sets(SPATIAL, 3, question_type="route planning"), (SPATIAL, 3, "question_type"), "room size"),
    "an unknown modality": (sets(SPATIAL, 3, data_type="film"), (SPATIAL, 3, "data_type"), "multi_view"),
    "one picture for a video": (sets(SPATIAL, 3, image=["a/0.jpg"]), (SPATIAL, 3, "image"), "at least 2"),
    "a path that leads out": (sets(SPATIAL, 2, image=["../0.jpg"]), (SPATIAL, 2, "image"), "relative"),
    "a repeated id": (sets(SPATIAL, 3, question_id=2), (SPATIAL, 3, "question_id"), "line 1"),
    "swapped corners": (sets(GROUNDING, 2, answer=SWAPPED), (GROUNDING, 2, "answer"), "x1 < x2"),
    "boxes as text": (sets(GROUNDING, 2, answer=json.dumps(BOXES)), (GROUNDING, 2, "answer"), "list"),
    "a box outside its picture": (sets(GROUNDING, 2, answer=OUTSIDE), (GROUNDING, 2, "answer"), "64 x 48"),
    "a trace without an answer": (sets(COLDSTART, 1, solution="<think>It is left.</think>"),
                                  (COLDSTART, 1, "solution"), "<answer>"),
    "an empty picture": (lambda folder: (folder / PICTURE).write_bytes(b""), (SPATIAL, 3, "image"), "0 bytes"),
    "a cut picture": (damaged, (SPATIAL, 3, "image"), "unreadable"),
    "a missing picture": (lambda folder: (folder / PICTURE).unlink(), (SPATIAL, 3, "image"), "no such file"),
    "a contradiction": (lambda folder: repeated(folder, answer="B"), (SPATIAL, 4, "answer"), "line 1"),
    "boxes that contradict": (contradicted, (GROUNDING, 3, "answer"), "line 2"),
    "one place in both splits": (moved, (GROUNDING, 1, "image"), "place scene0000 (scene0000_00)"),
    "a count unlike the manifest's": (counted, (None, None, None), "manifest.json counts 4"),
    "a missing file": (lambda folder: (folder / COLDSTART).unlink(), (None, None, None), f"{COLDSTART} is missing"),
    "no rows to be measured on": (lambda folder: (folder / "heldout").rename(folder / "eval"), (None, None, None),
                                  "heldout is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(tmp_path, name):
    breaks, (file, line, field), words = BROKEN[name]
    breaks(write_folder(tmp_path))
    checked = check_folder(tmp_path)
    assert found(checked) == [(file and tmp_path / file, line, field)]
    (finding,) = checked.faults
    told = str(finding)
    assert words in told and finding.remedy
    assert str(tmp_path) in told and (line is None or f"line {line}" in told) and (field is None or repr(field) in told)


def test_all_that_is_broken_is_named_in_one_pass(tmp_path):
    write_folder(tmp_path)
    change(tmp_path, SPATIAL, 1, options=..., data_type="film")
    change(tmp_path, SPATIAL, 3, question_type="route planning")
    change(tmp_path, GROUNDING, 2, answer=[*SWAPPED, *SWAPPED])
    (tmp_path / "heldout/images/scene0007_00/2.jpg").write_bytes(b"")
    assert found(check_folder(tmp_path)) == [
        (tmp_path / GROUNDING, 2, "answer"), (tmp_path / GROUNDING, 2, "answer"),
        (tmp_path / SPATIAL, 1, "data_type"), (tmp_path / SPATIAL, 1, "options"),
        (tmp_path / SPATIAL, 3, "question_type"), (tmp_path / "heldout" / SPATIAL_FILE, 3, "image"),
    ]


def test_what_is_only_worth_knowing_is_no_fault(tmp_path):
    turned = ["A. right-back", "B. right-front", "C. left-back", "D. left-front"]
    repeated(write_folder(tmp_path), options=turned, answer="D", question=f"{SIDE.upper()} ", extra=1)
    (tmp_path / "heldout" / COLDSTART_FILE).write_text("")
    checked = check_folder(tmp_path)
    assert checked.faults == ()
    assert [(finding.kind, finding.line, finding.field) for finding in checked.findings] == [
        ("keys", None, "extra"), ("file", None, None), ("duplicate", 4, "question")]
    assert checked.findings[0].what.endswith(", in 1 row")


def test_the_released_files_alone(tmp_path):
    """As they are unpacked: no splits, no manifest of theirs; scenes of others must not be among theirs."""
    write_split(tmp_path / "data", rows_of("scene0000_00"))
    (tmp_path / "manifest.json").write_text("of something else")
    assert check_folder(tmp_path / "data").findings == ()
    checked = check_folder(tmp_path / "data", ["scene0000_02", "scene0001_00"])
    (leak,) = checked.faults
    assert (leak.kind, leak.line, leak.field) == ("leakage", 1, "image") and "scene0000_02" in leak.what
    with pytest.raises(DataError, match="is no data folder"):
        check_folder(tmp_path)


def test_pictures_without_a_scene_are_not_judged(tmp_path):
    write_folder(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "train/images/0.jpg")
    change(tmp_path, SPATIAL, 1, image=["0.jpg"])
    checked = check_folder(tmp_path)
    assert checked.faults == () and [finding.kind for finding in checked.findings] == ["scenes"]
    assert checked.findings[0].what.startswith("rows whose pictures lie outside of any scene folder: 1;")


def test_paths_of_findings_are_where_the_files_are(tmp_path, monkeypatch):
    change(write_folder(tmp_path / "rooms"), SPATIAL, 1, answer="E")
    monkeypatch.chdir(tmp_path)
    assert found(check_folder(Path("rooms"))) == [(tmp_path / "rooms" / SPATIAL, 1, "answer")]
