"""`ladder data check` as it is told: bounded, with places and remedies, and an honest exit code."""

import json

import pytest
from PIL import Image

from launch.cli import main


@pytest.fixture
def folder(tmp_path, write_rows):
    write_rows(tmp_path / "rooms")
    for split in ("train", "heldout"):
        (tmp_path / f"rooms/{split}/images/{split}").mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(tmp_path / f"rooms/{split}/images/{split}/f.png")
        for path in (tmp_path / "rooms" / split).glob("*.jsonl"):
            path.write_text(path.read_text().replace("room/f.png", f"{split}/f.png"))
    return tmp_path / "rooms"


def test_a_whole_folder_exits_0(folder, capsys):
    assert main(["data", "check", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "1 in spld_spatial_data.jsonl" in told and "2 pictures" in told and told.endswith("no fault\n")
    assert "train: 0 of 1 single-image rows have the boxes of a localisation row (0.0%)" in told
    assert "no rows: the stage that trains on them cannot run" in told  # the cold start's


def test_faults_exit_1_and_are_listed_up_to_the_limit(folder, capsys):
    spatial = folder / "train/spld_spatial_data.jsonl"
    row = json.loads(spatial.read_text())
    spatial.write_text("".join(json.dumps(row | {"question_id": number, "answer": "two"}) + "\n" for number in range(30)))
    (folder / "heldout/images/heldout/f.png").write_bytes(b"")
    assert main(["data", "check", str(folder)]) == 1
    told = capsys.readouterr().out
    assert "31 faults:" in told and told.count("expected a decimal number") == 20
    expected = "expected a decimal number for 'object count' that is not negative, such as 42 or 3.1; found 'two'\n"
    assert f"{spatial}, line 20, field 'answer': {expected}" in told
    assert "      -> correct the answer, or take the row out\n  and 10 more of this kind (--limit 0 tells all)" in told
    assert "2 of 2 pictures looked at" in told and "\n2 pictures: 1 can be used, 1 missing or not decodable\n" in told
    picture = folder / "heldout/images/heldout/f.png"
    assert f"{picture}: empty, the file has 0 bytes (and 1 more rows)\n" in told
    assert main(["data", "check", str(folder), "--limit", "0"]) == 1
    assert capsys.readouterr().out.count("expected a decimal number") == 30


def test_every_picture_is_counted_once(folder, capsys):
    grounding = folder / "train/spld_grounding_data.jsonl"
    rows = [json.loads(line) for line in grounding.read_text().splitlines()]
    boxes = [{"bbox_2d": [1, 2, 90 + place, 40], "label": "chair"} for place in range(2)]
    grounding.write_text("".join(json.dumps(row | {"answer": boxes}) + "\n" for row in rows))
    (folder / "heldout/images/heldout/f.png").unlink()
    assert main(["data", "check", str(folder)]) == 1
    told = capsys.readouterr().out
    assert "\n2 pictures: 1 missing or not decodable, 1 with a box outside\n" in told
    assert told.count(": missing, ") == 1 and told.count(": box outside, ") == 2


def test_scenes_of_others(folder, tmp_path, capsys):
    (tmp_path / "scenes.txt").write_text("# of a benchmark\ntrain\nscene0011_00 val\n")
    assert main(["data", "check", str(folder), "--against", str(tmp_path / "scenes.txt")]) == 1
    told = capsys.readouterr().out
    assert f"other scenes: 2 of {tmp_path / 'scenes.txt'}, the first is scene0011_00\n" in told
    assert "place train (train), shown by 2 rows, is in the other scenes too" in told


@pytest.mark.parametrize("content", ["train,val\n", '["train"]\n', "'train'\n"])
def test_a_file_that_is_no_list_of_scenes_is_refused(folder, tmp_path, capsys, content):
    """It would match no scene, and the folder would look clean."""
    (tmp_path / "scenes").write_text(content)
    assert main(["data", "check", str(folder), "--against", str(tmp_path / "scenes")]) == 2
    assert "is no scene id; give one per line as text, no JSON or CSV" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [
    ([], "is no data folder"),
    (["--limit", "-1"], "--limit -1"),
    (["--against", "nowhere"], "--against nowhere: cannot be read"),
])
def test_refusals_exit_2(tmp_path, capsys, arguments, words):
    assert main(["data", "check", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
