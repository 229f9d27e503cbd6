"""A data folder from scans in ScanNet's layout, as configs/spatialladder-26k.yaml builds it."""

from pathlib import Path

import pytest
from scannet_cases import write_scene

from configs.load import load_config
from data.build import build_data
from data.checking_media import check_media
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE, DataError, load_split
from data.scenes.scannet import export_frames

PRESET = Path(__file__).parents[2] / "configs" / "spatialladder-26k.yaml"
SCANS = ("scene0000_00", "scene0000_01", "scene0001_00", "scene0002_00")


def test_the_preset_has_the_paper_s_numbers():
    wanted = load_config(PRESET).data.build.train
    assert (wanted.localization, wanted.single_image, wanted.multi_view, wanted.video) == (5929, 5929, 5752, 9000)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scannet")
    for name in SCANS:
        write_scene(folder / "scans", name)
        assert list(export_frames(folder / "scans", name, 1))
    (folder / "train.txt").write_text("\n".join((*SCANS[:2], "scene0700_00")))
    (folder / "val.txt").write_text(SCANS[2])
    return folder


def test_lists_divide_the_scans_and_the_numbers_are_met(scans, tmp_path):
    data, lines = load_config(PRESET).data, []
    wanted = data.build.train.model_copy(update={"localization": 6, "single_image": 6, "multi_view": 4, "video": 500,
                                                 "coldstart": 3})
    build = data.build.model_copy(update={"train": wanted, "heldout": None, "train_list": str(scans / "train.txt"),
                                          "heldout_list": str(scans / "val.txt")})
    scannet = data.scannet.model_copy(update={"every_nth": 1})
    data = data.model_copy(update={"source": str(scans / "scans"), "scannet": scannet, "build": build})
    manifest = build_data(data, tmp_path / "data", 0, lambda size: size, lines.append)
    train, heldout = manifest["counts"]["train"], manifest["counts"]["heldout"]
    found = {short["kind"]: short["found"] for short in manifest["shortfalls"]}
    assert list(found) == ["video"] and any(f"train has {found['video']} video rows, 500 were asked for" in x for x in lines)
    assert train["rows"] == {GROUNDING_FILE: 6, SPATIAL_FILE: 10 + found["video"], COLDSTART_FILE: 3}
    assert manifest["split"] == "by list" and manifest["source"] == "scannet" and manifest["skipped"] == 0
    places = {}
    for split, counts in (("train", train), ("heldout", heldout)):
        rows = load_split(tmp_path / "data", split).examples
        assert check_media(rows) == counts["pictures"] > 0
        places[split] = {Path(path).parent.name for row in rows for path in row.media}
    assert places == {"train": set(SCANS[:2]), "heldout": {SCANS[2]}}


def test_without_scannet_the_preset_says_in_one_message_how_to_get_it(tmp_path):
    data = load_config(PRESET).data
    folder = tmp_path / "scans"
    with pytest.raises(DataError) as caught:
        build_data(data.model_copy(update={"source": str(folder)}), tmp_path / "data", 0, lambda size: size)
    told = str(caught.value)
    assert f"{folder}: is no folder" in told and "terms of use" in told and "data.source=" in told
    for file in (f"{folder}/SCENE", "SCENE.sens", "SCENE.aggregation.json", "scannetv2_train.txt", "scannetv2_val.txt"):
        assert file in told
    assert f"ladder data frames {folder} --every {data.scannet.every_nth}\n" in told and data.scannet.every_nth == 50
