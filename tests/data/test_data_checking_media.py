"""Pictures that rows show: one table of all that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from data.checking_media import MediaError, check_media
from data.types import LOCALIZATION, Box, Example


def row(number, *media, box=(10, 20, 40, 44)):
    return Example(f"train/spld_grounding_data/{number}", number, "single_image", "?", LOCALIZATION,
                   tuple(map(str, media)), boxes=(Box("bowl", box),))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "820.jpg"
    Image.new("RGB", (64, 48)).save(path)
    return path


def test_one_table_of_everything(tmp_path, picture):
    names = [tmp_path / f"{number}.jpg" for number in range(12)]
    names[3].write_bytes(b"not a picture")
    names[4].write_bytes(b"")
    Image.new("RGB", (64, 48)).save(names[5])
    rows = [row(number, path) for number, path in enumerate(names)] + [row(20, names[0]), row(21, picture)]
    assert check_media([row(21, picture), row(22, picture)]) == 1
    with pytest.raises(MediaError) as caught:
        check_media(rows)
    problems = {problem.path: problem for problem in caught.value.problems}
    assert len(problems) == 11
    assert problems[str(names[0])].rows == ("train/spld_grounding_data/0", "train/spld_grounding_data/20")
    assert {problem.fault for problem in problems.values()} == {"missing", "empty", "unreadable"}
    assert problems[str(names[3])].fault == "unreadable" and problems[str(names[4])].fault == "empty"
    title, head, first, *_, last = str(caught.value).splitlines()
    assert title == "11 of 13 media cannot be used:" and last == "  and 1 more"
    assert head.split() == ["fault", "picture", "rows", "first", "row"]
    assert first.split() == ["missing", str(names[0]), "2", "train/spld_grounding_data/0", "no", "such", "file"]


def test_a_folder_in_place_of_a_picture_is_not_called_missing(tmp_path):
    with pytest.raises(MediaError) as caught:
        check_media([row(1, tmp_path)])
    (problem,) = caught.value.problems
    assert (problem.fault, problem.detail) == ("unreadable", "it is a folder")


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})],
                         ids=["jpeg", "progressive", "png"])
def test_a_picture_that_was_cut_is_found_whatever_its_header_says(picture, kind, options):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture, kind, **options)
    assert check_media([row(0, picture)]) == 1
    with open(picture, "rb+") as file:
        file.truncate(file.seek(0, 2) // 3)
    with Image.open(picture) as opened:  # the header is whole
        assert opened.size == (64, 48)
    with pytest.raises(MediaError, match=r"unreadable .*820\.jpg .*OSError: .*truncated"):
        check_media([row(0, picture)])


def test_boxes_lie_on_the_upright_picture(picture):
    """A turned picture is checked as the model is given it: 48 x 64 pixels in the file, 64 x 48 when shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(picture, exif=exif)
    assert check_media([row(0, picture, box=(10, 20, 60, 44))]) == 1
    with pytest.raises(MediaError, match=r"box outside .*box \[10, 20, 40, 60\] of 'bowl' outside the 64 x 48 picture"):
        check_media([row(0, picture, box=(10, 20, 40, 60))])


def test_only_the_rows_whose_boxes_leave_the_picture_are_named(picture):
    rows = [row(0, picture), row(1, picture, box=(10, 20, 64, 50)), row(2, picture, box=(10, 20, 65, 49))]
    with pytest.raises(MediaError) as caught:
        check_media(rows)
    (problem,) = caught.value.problems  # one pixel beyond is a matter of convention
    assert problem.rows == ("train/spld_grounding_data/1",)
