"""Scenes of one place stay together, by share and by list."""

import pytest

from configs.data_schema import BuildConfig
from data.leakage import place_of
from data.reading import DataError
from data.splits import split_by_lists, split_by_share

SCANS = [f"scene{place:04d}_{visit:02d}" for place in range(30) for visit in range(1 + place % 3)]


@pytest.mark.parametrize("seed", range(5))
def test_a_share_of_the_places_is_held_out_whole(seed):
    split_of = split_by_share(SCANS, 0.2, seed)
    places = {split: {place_of(scene) for scene in SCANS if split_of[scene] == split} for split in ("train", "heldout")}
    assert not places["train"] & places["heldout"] and len(places["heldout"]) == 6
    assert split_by_share(SCANS[::-1], 0.2, seed) == split_of
    assert set(split_by_share(["a", "b"], 0.9, seed).values()) == {"train", "heldout"}


def test_seeds_hold_out_other_places():
    assert len({tuple(sorted(split_by_share(SCANS, 0.2, seed).items())) for seed in range(5)}) > 1


def lists(folder, train, heldout):
    for name, scenes in (("train.txt", train), ("heldout.txt", heldout)):
        (folder / name).write_text("\n".join(scenes) + "\n")
    return BuildConfig(train_list=str(folder / "train.txt"), heldout_list=str(folder / "heldout.txt"))


def test_lists_decide_and_what_they_do_not_name_is_left_out(tmp_path):
    config = lists(tmp_path, ["scene0001_00", "scene0001_01", "scene0700_00"], ["scene0002_00"])
    assert split_by_lists(SCANS, config) == {"scene0001_00": "train", "scene0001_01": "train", "scene0002_00": "heldout"}


def test_lists_that_share_a_place_or_fit_no_scene_are_refused(tmp_path):
    with pytest.raises(DataError, match="share 1 places, such as scene0001"):
        split_by_lists(SCANS, lists(tmp_path, ["scene0001_00"], ["scene0001_01"]))
    with pytest.raises(DataError, match="none of the 1 scenes of .*train.txt, such as scene0800_00, is in the source"):
        split_by_lists(SCANS, lists(tmp_path, ["scene0800_00"], ["scene0801_00"]))
    with pytest.raises(DataError, match="none of the 2 scenes of .*heldout.txt"):
        split_by_lists(SCANS, lists(tmp_path, ["scene0001_00"], ["scene0801_00", "scene0802_00"]))
    with pytest.raises(DataError, match="name no scene"):
        split_by_lists(SCANS, lists(tmp_path, [], []))
    assert split_by_lists(SCANS, lists(tmp_path, ["scene0001_00"], [])) == {"scene0001_00": "train"}
    with pytest.raises(DataError, match="none.txt cannot be read"):
        split_by_lists(SCANS, BuildConfig(train_list=str(tmp_path / "none.txt"), heldout_list=str(tmp_path / "none.txt")))
    with pytest.raises(ValueError, match="give both, or neither"):
        BuildConfig(train_list="train.txt")
