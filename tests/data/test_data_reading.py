"""The strict reader on hand-written lines in the released schemas: what it accepts, and what it refuses and where."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data.reading import (
    COLD_START, COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, DataError, MediaError, RowError, check_media, load_split,
    read_rows,
)
from data.types import LOCALIZATION, Box

GROUNDING = ('{"question_id": 3, "image": ["scene0000_00/820.jpg"], "data_type": "single_image", "question": "<image>'
             'From the camera\'s perspective, is the bowl to the laptop\'s left-front, left-back, right-front, or '
             'right-back?", "answer": [{"bbox_2d": [10, 20, 40, 44], "label": "bowl"}, '
             '{"bbox_2d": [1, 2, 30, 40], "label": "laptop"}]}')
CHOICE = ('{"question_id": 4, "image": ["scene0000_00/820.jpg"], "data_type": "single_image", "question": "Is it?", '
          '"options": ["A. left-front", "B. left-back", "C. right-front", "D. right-back"], "answer": "A", '
          '"question_type": "relative direction"}')
NUMBER = ('{"question_id": 5, "image": ["scene0000_00/0.jpg", "images/scene0000_00/10.jpg"], "data_type": "video", '
          '"question": "What is the size of this room?", "options": null, "answer": "27.5", '
          '"question_type": "room size"}')
COLD = ('{"question_id": 6, "image": "images/scene0000_00/820.jpg", "data_type": "single_image", '
        '"prompt": "Question: Is it? Think.", "solution": "<think>The bowl is left.</think>\\n<answer>A</answer>"}')
LINES = {GROUNDING_FILE: GROUNDING, SPATIAL_FILE: CHOICE, COLDSTART_FILE: COLD}


def write(folder, name, *lines):
    (folder / "train" / "images").mkdir(parents=True, exist_ok=True)
    (folder / "train" / name).write_text("\n".join(lines) + "\n")
    return folder


def changed(line, **fields):
    row = json.loads(line)
    for key, value in fields.items():
        if value is ...:
            del row[key]
        else:
            row[key] = value
    return json.dumps(row)


def test_a_grounding_row(tmp_path):
    (row,) = read_rows(write(tmp_path, GROUNDING_FILE, GROUNDING), GROUNDING_FILE, "train")
    assert row.id == "train/spld_grounding_data/3" and row.question_id == 3
    assert row.question.startswith("From the camera's perspective")
    assert row.question_type == LOCALIZATION and row.is_localization
    assert row.boxes == (Box("bowl", (10, 20, 40, 44)), Box("laptop", (1, 2, 30, 40)))
    assert row.media == (str(tmp_path / "train/images/scene0000_00/820.jpg"),)
    assert row.options is None and row.answer is None


def test_spatial_rows(tmp_path):
    choice, number = read_rows(write(tmp_path, SPATIAL_FILE, CHOICE, "", NUMBER), SPATIAL_FILE, "train")
    assert choice.options == ("A. left-front", "B. left-back", "C. right-front", "D. right-back")
    assert choice.answer == "A" and choice.question_type == "relative direction"
    assert (number.answer, number.options, number.data_type) == ("27.5", None, "video")
    assert number.media == tuple(str(tmp_path / f"train/images/scene0000_00/{n}.jpg") for n in (0, 10))


def test_a_cold_start_row_and_one_path_as_text(tmp_path):
    (row,) = read_rows(write(tmp_path, COLDSTART_FILE, COLD), COLDSTART_FILE, "train")
    assert row.question_type == COLD_START and row.prompt_text == "Question: Is it? Think."
    assert row.solution.endswith("<answer>A</answer>")
    assert row.media == (str(tmp_path / "train/images/scene0000_00/820.jpg"),)


def test_pictures_unpacked_without_an_images_folder(tmp_path):
    write(tmp_path, SPATIAL_FILE, CHOICE)
    (tmp_path / "train" / "images").rmdir()
    (row,) = read_rows(tmp_path, SPATIAL_FILE, "train")
    assert row.media == (str(tmp_path / "train/scene0000_00/820.jpg"),)


def test_unknown_keys_are_ignored_with_one_counted_warning(tmp_path):
    lines = [changed(CHOICE, question_id=i, accu_reward_method="exact") for i in range(3)] + [changed(CHOICE, extra=1)]
    with pytest.warns(UserWarning) as caught:
        assert len(read_rows(write(tmp_path, SPATIAL_FILE, *lines), SPATIAL_FILE, "train")) == 4
    assert len(caught) == 1 and "accu_reward_method (3), extra (1)" in str(caught[0].message)


OPTIONS = ["A. a", "B. b"]
BAD = [
    (SPATIAL_FILE, changed(CHOICE, image=["/etc/1.jpg"]), "image", "relative path"),
    (SPATIAL_FILE, changed(CHOICE, image="scene/../../1.jpg"), "image", "relative path"),
    (SPATIAL_FILE, changed(CHOICE, image=[]), "image", "non-empty list"),
    (SPATIAL_FILE, changed(CHOICE, image=["a.jpg", "b.jpg"]), "image", "1 picture"),
    (SPATIAL_FILE, changed(NUMBER, image=["a.jpg"]), "image", "at least 2"),
    (SPATIAL_FILE, changed(CHOICE, data_type="picture"), "data_type", "single_image, multi_view, video"),
    (SPATIAL_FILE, changed(CHOICE, question_type="route planning"), "question_type", "relative distance"),
    (SPATIAL_FILE, changed(CHOICE, options=None), "options", "at least two"),
    (SPATIAL_FILE, changed(CHOICE, options=["A. a", "C. b"]), "options", "lettered in order"),
    (SPATIAL_FILE, changed(CHOICE, options=OPTIONS, answer="C"), "answer", "A, B"),
    (SPATIAL_FILE, changed(CHOICE, answer="a"), "answer", "A, B, C, D"),
    (SPATIAL_FILE, changed(NUMBER, answer="27,5"), "answer", "decimal"),
    (SPATIAL_FILE, changed(NUMBER, answer=27.5), "answer", "a string"),
    (SPATIAL_FILE, changed(NUMBER, options=OPTIONS), "options", "null"),
    (SPATIAL_FILE, changed(CHOICE, question=" <image> "), "question", "beside the <image>"),
    (SPATIAL_FILE, changed(CHOICE, question=...), "question", "missing"),
    (SPATIAL_FILE, changed(CHOICE, question_id="4"), "question_id", "integer"),
    (GROUNDING_FILE, changed(GROUNDING, answer=[{"bbox_2d": [40, 20, 10, 44], "label": "bowl"}]), "answer", "x1 < x2"),
    (GROUNDING_FILE, changed(GROUNDING, answer=[{"bbox_2d": [10, 20, 40, 20], "label": "bowl"}]), "answer", "y1 < y2"),
    (GROUNDING_FILE, changed(GROUNDING, answer=[{"bbox_2d": [10, 20, 40], "label": "bowl"}]), "answer", "four numbers"),
    (GROUNDING_FILE, changed(GROUNDING, answer=[{"bbox_2d": [1, 2, 3, 4]}]), "answer", "label"),
    (GROUNDING_FILE, changed(GROUNDING, answer='[{"bbox_2d": [1, 2, 3, 4], "label": "bowl"}]'), "answer", "list"),
    (GROUNDING_FILE, changed(GROUNDING, data_type="video"), "data_type", "single_image"),
    (COLDSTART_FILE, changed(COLD, solution="<answer>A</answer>"), "solution", "<think>"),
    (COLDSTART_FILE, changed(COLD, solution="<think>a</think><answer>A</answer><answer>B</answer>"), "solution",
     "each once"),
    (SPATIAL_FILE, '{"question_id": 4', None, "JSON"),
    (SPATIAL_FILE, "[1, 2]", None, "JSON object"),
]


@pytest.mark.parametrize("name, line, field, expected", BAD)
def test_a_bad_row_is_refused_with_its_place(tmp_path, name, line, field, expected):
    good = changed(LINES[name], question_id=1)
    with pytest.raises(RowError) as caught:
        read_rows(write(tmp_path, name, good, line, good), name, "train")
    error = caught.value
    assert (error.file, error.line, error.field) == (tmp_path / "train" / name, 2, field)
    message = str(error)
    assert name in message and "line 2" in message and expected in message
    assert field is None or f"field {field!r}" in message


def test_a_repeated_id_names_both_lines(tmp_path):
    with pytest.raises(RowError, match=r"line 3, field 'question_id'.*line 1 has the same; found 4"):
        read_rows(write(tmp_path, SPATIAL_FILE, CHOICE, NUMBER, CHOICE), SPATIAL_FILE, "train")


def test_the_value_that_is_wrong_is_shown(tmp_path):
    with pytest.raises(RowError, match=r"found 'twenty'$"):
        read_rows(write(tmp_path, SPATIAL_FILE, changed(NUMBER, answer="twenty")), SPATIAL_FILE, "train")


def full_split(folder):
    for name, line in LINES.items():
        write(folder, name, line)
    pictures = folder / "train" / "images" / "scene0000_00"
    pictures.mkdir()
    Image.new("RGB", (64, 48)).save(pictures / "820.jpg")
    return folder


def test_a_split_is_read_whole_and_checked_against_the_manifest(tmp_path):
    full_split(tmp_path)
    split = load_split(tmp_path, "train")
    assert (len(split.grounding), len(split.spatial), len(split.coldstart)) == (1, 1, 1)
    assert len({row.id for row in split.examples}) == 3
    counts = {"train": {"rows": {GROUNDING_FILE: 1, SPATIAL_FILE: 2, COLDSTART_FILE: 1}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"counts": counts}))
    with pytest.raises(DataError, match=f"{SPATIAL_FILE}: 1 rows, but .*manifest.json counts 2"):
        load_split(tmp_path, "train")
    with pytest.raises(DataError, match="heldout.* is missing"):
        load_split(tmp_path, "heldout")
    with pytest.raises(DataError, match="no file of the released layout"):
        read_rows(tmp_path, "data.jsonl", "train")


def test_media_are_checked_with_one_summary(tmp_path):
    split = load_split(full_split(tmp_path), "train")
    assert check_media(split.examples) == 1
    pictures = tmp_path / "train" / "images" / "scene0000_00"
    many = [changed(CHOICE, question_id=i, image=f"scene0000_00/{i}.jpg") for i in range(12)]
    rows = read_rows(write(tmp_path, SPATIAL_FILE, *many), SPATIAL_FILE, "train")
    (pictures / "3.jpg").write_bytes(b"not a picture")
    shutil.copy(pictures / "820.jpg", pictures / "4.jpg")
    with pytest.raises(MediaError) as caught:
        check_media([*rows, *split.grounding])
    assert len(caught.value.problems) == 11
    message = str(caught.value)
    assert message.startswith("11 of 13 media cannot be used") and message.endswith("and 1 more")
    assert "3.jpg: not a readable picture" in message and "0.jpg: no such file" in message


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})],
                         ids=["jpeg", "progressive", "png"])
def test_a_picture_that_was_cut_is_found_whatever_its_header_says(tmp_path, kind, options):
    split = load_split(full_split(tmp_path), "train")
    (path,) = split.grounding[0].media
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind, **options)
    assert check_media(split.examples) == 1
    with open(path, "rb+") as file:
        file.truncate(file.seek(0, 2) // 3)
    with Image.open(path) as picture:  # the header is whole
        assert picture.size == (64, 48)
    with pytest.raises(MediaError, match=r"820\.jpg: not a readable picture \(OSError: .*truncated"):
        check_media(split.examples)


def test_boxes_lie_on_the_upright_picture(tmp_path):
    """A turned picture is checked as the model is given it: 48 x 64 pixels in the file, 64 x 48 when shown."""
    full_split(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(tmp_path / "train/images/scene0000_00/820.jpg", exif=exif)
    for box, fits in (([10, 20, 60, 44], True), ([10, 20, 40, 60], False)):
        rows = read_rows(write(tmp_path, GROUNDING_FILE, changed(GROUNDING, answer=[{"bbox_2d": box, "label": "bowl"}])),
                         GROUNDING_FILE, "train")
        if fits:
            assert check_media(rows) == 1
        else:
            with pytest.raises(MediaError, match="outside the 64 x 48 picture"):
                check_media(rows)


def test_a_box_outside_its_picture_is_found(tmp_path):
    full_split(tmp_path)
    outside = changed(GROUNDING, answer=[{"bbox_2d": [10, 20, 40, 60], "label": "bowl"}])
    rows = read_rows(write(tmp_path, GROUNDING_FILE, outside), GROUNDING_FILE, "train")
    expected = r"row train/spld_grounding_data/3 has a box \[10, 20, 40, 60\] outside the 64 x 48"
    with pytest.raises(MediaError, match=expected):
        check_media(rows)
