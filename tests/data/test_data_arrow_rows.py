"""Hugging Face datasets of a folder's rows: the strict reader's rows, its errors, and nothing stale."""

import json

import datasets
import pytest
from PIL import Image

from data.arrow_rows import example_of, mapped_rows, streamed_rows
from data.reading import FILES, GROUNDING_FILE, SPATIAL_FILE, DataError, RowError, read_rows
from data_folders import change, write_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    datasets.disable_progress_bars()
    return write_folder(tmp_path / "rooms")


@pytest.mark.parametrize("name", FILES)
def test_both_forms_hold_what_the_reader_reads(folder, tmp_path, name):
    rows = read_rows(folder, name, "train")
    mapped, streamed = mapped_rows(folder, name, "train", tmp_path / "cache"), streamed_rows(folder, name, "train")
    assert [example_of(row) for row in mapped] == rows == [example_of(row) for row in streamed]
    assert [str(tmp_path / "cache") in str(file["filename"]) for file in mapped.cache_files] == [True]


def test_metadata_comes_back_as_it_was_written(folder, tmp_path):
    change(folder, f"train/{SPATIAL_FILE}", 1, source={"scans": [1, None, "Möbel"]})
    for rows in (mapped_rows(folder, SPATIAL_FILE, "train", tmp_path), streamed_rows(folder, SPATIAL_FILE, "train")):
        assert example_of(next(iter(rows))).metadata == {"source": {"scans": [1, None, "Möbel"]}}


def test_a_fraction_of_a_pixel_stays_one(folder, tmp_path):
    change(folder, f"train/{GROUNDING_FILE}", 2, answer=[{"bbox_2d": [1, 2.5, 3, 4], "label": "bowl"}])
    row = example_of(mapped_rows(folder, GROUNDING_FILE, "train", tmp_path)[1])
    assert repr(row.boxes[0].bbox) == "(1, 2.5, 3, 4)"


def test_pictures_are_decoded_when_asked_for(folder, tmp_path):
    mapped = mapped_rows(folder, SPATIAL_FILE, "train", tmp_path, pictures=True)
    assert [picture.size for picture in mapped[2]["media"]] == [(64, 48)] * 3
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "train/images/scene0000_00/0.jpg", exif=exif)
    assert next(iter(streamed_rows(folder, SPATIAL_FILE, "train", pictures=True)))["media"][0].size == (48, 64)


def test_a_file_that_changed_is_read_again(folder, tmp_path):
    assert mapped_rows(folder, SPATIAL_FILE, "train", tmp_path)[1]["answer"] == "30"
    change(folder, f"train/{SPATIAL_FILE}", 2, answer="31")
    assert mapped_rows(folder, SPATIAL_FILE, "train", tmp_path)[1]["answer"] == "31"


def test_bad_rows_are_refused_with_their_place(folder, tmp_path):
    change(folder, f"train/{SPATIAL_FILE}", 3, question_type="route planning")
    place = r"spld_spatial_data.jsonl, line 3, field 'question_type': .*; found 'route planning'"
    with pytest.raises(RowError, match=place):
        mapped_rows(folder, SPATIAL_FILE, "train", tmp_path)
    rows = iter(streamed_rows(folder, SPATIAL_FILE, "train"))
    assert [next(rows)["question_id"] for _ in range(2)] == [2, 3]  # what stands before it is given
    with pytest.raises(RowError, match=place):
        next(rows)
    for read in (mapped_rows, streamed_rows):
        with pytest.raises(DataError, match="heldout2.*is missing"):
            read(folder, SPATIAL_FILE, "heldout2")


def test_a_stream_goes_on_where_it_was(folder):
    stream = streamed_rows(folder, SPATIAL_FILE, "train")
    assert next(iter(stream))["question_id"] == 2
    state = json.loads(json.dumps(stream.state_dict()))
    again = streamed_rows(folder, SPATIAL_FILE, "train")
    again.load_state_dict(state)
    assert [row["question_id"] for row in again] == [3, 4]
