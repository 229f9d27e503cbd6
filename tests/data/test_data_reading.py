"""The strict reader on hand-written lines in the released schemas: what it accepts, and what it refuses and where."""

import json

import pytest
from PIL import Image

from data.reading import (
    COLD_START, COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, DataError, RowError, load_split, read_rows, scan_rows,
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


def test_a_character_beyond_two_bytes_may_be_escaped(tmp_path):
    escaped = changed(CHOICE, question="Is the \U0001fa91 near?")
    assert "\\ud83e\\ude91" in escaped
    (row,) = read_rows(write(tmp_path, SPATIAL_FILE, escaped), SPATIAL_FILE, "train")
    assert row.question == "Is the \U0001fa91 near?"


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


def test_unknown_keys_are_metadata_with_one_counted_warning(tmp_path):
    lines = [changed(CHOICE, question_id=i, accu_reward_method="exact") for i in range(3)] + [changed(CHOICE, extra=1)]
    with pytest.warns(UserWarning) as caught:
        rows = read_rows(write(tmp_path, SPATIAL_FILE, *lines), SPATIAL_FILE, "train")
    assert [row.metadata for row in rows] == [{"accu_reward_method": "exact"}] * 3 + [{"extra": 1}]
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
    (SPATIAL_FILE, changed(NUMBER, answer="-4"), "answer", "not negative"),
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
    (SPATIAL_FILE, CHOICE[:-1] + ', "answer": "B"}', None, "the key 'answer' stands twice"),
    (SPATIAL_FILE, "[" * 100_000, None, "JSON object"),
    (SPATIAL_FILE, changed(CHOICE, question="half a pair: \ud83e"), None, "surrogates not allowed"),
    (SPATIAL_FILE, changed(CHOICE, question_id=-(2**63) - 1), "question_id", "64-bit"),
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


def test_every_fault_of_every_line_is_found(tmp_path):
    """Four faults in one line, a torn one, and the good ones around them are still read."""
    bad = changed(CHOICE, question_id="x", data_type="picture", question="", options=["A. a"], answer="A")
    boxes = [{"bbox_2d": corners, "label": "a"} for corners in ([9, 9, 5, 20], [1, 2, 3], [1, 2, 3, 4])]
    found = list(scan_rows(write(tmp_path, SPATIAL_FILE, NUMBER, bad, '{"question', CHOICE), SPATIAL_FILE, "train"))
    assert [(row.line, row.example is None) for row in found] == [(1, False), (2, True), (3, True), (4, False)]
    assert [fault.field for fault in found[1].faults] == ["question_id", "data_type", "question", "options"]
    assert [fault.line for fault in found[1].faults] == [2] * 4
    (row,) = scan_rows(write(tmp_path, GROUNDING_FILE, changed(GROUNDING, answer=boxes)), GROUNDING_FILE, "train")
    assert [fault.value for fault in row.faults] == [[9, 9, 5, 20], [1, 2, 3]]


def test_an_answer_is_not_judged_by_options_that_are_wrong(tmp_path):
    lines = changed(CHOICE, options=["A. a", "C. b"], answer="D"), changed(NUMBER, options=["A. a"], answer="many")
    found = scan_rows(write(tmp_path, SPATIAL_FILE, *lines), SPATIAL_FILE, "train")
    assert [[fault.field for fault in row.faults] for row in found] == [["options"], ["options", "answer"]]


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
