"""Builds of small data folders: same bytes whatever the processes, rows that read back, splits that do not share."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.data_schema import BuildConfig, CompositionConfig, ConstructionConfig, DataConfig, RoomsConfig
from data.build import build_data
from data.build_folder import BuildRefused
from data.build_progress import written_lines
from data.checking_media import check_media
from data.facts import CountFacts, GapFacts, NearestFacts, OffsetFacts, SizeFacts
from data.prompts import user_text
from data.reading import COLDSTART_FILE, FILES, GROUNDING_FILE, SPATIAL_FILE, DataError, load_split
from data.records import frame_records
from data.scene_build import SceneJob, build_scene, read_table
from data.scene_tables import scene_table
from data.scenes.rooms import Rooms
from data.types import Example

CONFIG = DataConfig(rooms=RoomsConfig(train_rooms=4, heldout_rooms=2, image_size=84, frames_per_room=12))


def half(size):
    return size[0] // 2, size[1] // 2


def hashes(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build") / "data"
    lines = []
    manifest = build_data(CONFIG, folder, 7, half, lines.append, workers=1)
    return folder, manifest, lines


def test_another_seed_writes_other_rows_and_fewer_rooms_the_same_rooms(built, tmp_path):
    folder, manifest, _ = built
    one = CONFIG.model_copy(update={"rooms": CONFIG.rooms.model_copy(update={"train_rooms": 1, "heldout_rooms": 1})})
    other = build_data(one, tmp_path / "other", 8, half, workers=1)
    build_data(one, tmp_path / "fewer", 7, half, workers=1)
    assert not set(other["sha256"].values()) & set(manifest["sha256"].values())
    pictures = {name: value for name, value in hashes(tmp_path / "fewer").items() if name.endswith(".png")}
    assert len(pictures) > 8 and pictures.items() <= hashes(folder).items()


def test_lists_are_for_scenes_not_for_rooms(tmp_path):
    lists = CONFIG.build.model_copy(update={"train_list": "train.txt", "heldout_list": "heldout.txt"})
    with pytest.raises(DataError, match="train_list .*rooms are drawn for one split or the other"):
        build_data(CONFIG.model_copy(update={"build": lists}), tmp_path / "data", 7, half, workers=1)
    assert not (tmp_path / "data").exists()


def test_the_folder_reads_back(built):
    folder, manifest, lines = built
    for name in ("train", "heldout"):
        split = load_split(folder, name)
        counts = manifest["counts"][name]
        assert counts["rows"] == {GROUNDING_FILE: len(split.grounding), SPATIAL_FILE: len(split.spatial),
                                  COLDSTART_FILE: len(split.coldstart)}
        assert check_media(split.examples) == counts["pictures"]
        written = {str(path) for path in (folder / name / "images").rglob("*.png")}
        assert written == {path for row in split.examples for path in row.media}
        ids = [row.question_id for row in split.examples]
        assert ids == list(range(len(ids)))
        assert {row.data_type for row in split.spatial} == {"single_image", "multi_view", "video"}
        pictures = {"single_image": 1, "multi_view": 8, "video": 8}
        assert all(len(row.media) == pictures[row.data_type] for row in split.spatial)
    assert lines[0] == "data: 6 scenes of procedural rooms, divided by room"
    assert lines[-2].startswith("data: choosing and writing the rows of 6 scenes")
    for name, value in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert DataConfig.model_validate(manifest["config"]) == CONFIG


def test_rows_carry_the_released_fields_and_no_other(built):
    folder, _, _ = built
    shared = ["question_id", "image", "data_type"]
    expected = {GROUNDING_FILE: [*shared, "question", "answer"], COLDSTART_FILE: [*shared, "prompt", "solution"],
                SPATIAL_FILE: [*shared, "question", "options", "answer", "question_type"]}
    for name, keys in expected.items():
        for line in (folder / "train" / name).read_text().splitlines():
            row = json.loads(line)
            assert list(row) == keys and all(not path.startswith("images/") for path in row["image"])
            if name == GROUNDING_FILE:
                assert all(type(v) is int and 0 <= v <= 84 for item in row["answer"] for v in item["bbox_2d"])


def test_training_and_heldout_share_no_room_and_no_picture(built):
    folder, _, _ = built
    scenes = {name: {path.name for path in (folder / name / "images").iterdir()} for name in ("train", "heldout")}
    assert not scenes["train"] & scenes["heldout"] and (len(scenes["train"]), len(scenes["heldout"])) == (4, 2)
    contents = [value for name, value in hashes(folder).items() if name.endswith(".png")]
    assert len(contents) == len(set(contents))


def test_grounding_rows_join_to_single_image_rows(built):
    split = load_split(built[0], "train")
    asked = {(row.media, row.question) for row in split.spatial if row.data_type == "single_image"}
    assert {(row.media, row.question) for row in split.grounding} == asked


def test_cold_start_prompts_are_the_think_prompts_of_rows(built):
    split = load_split(built[0], "train")
    prompts = {(row.media, user_text(row, "think")): row for row in split.grounding + split.spatial}
    for row in split.coldstart:
        source = prompts[row.media, row.prompt_text]
        answer = row.solution.split("<answer>")[1].removesuffix("</answer>")
        if source.is_localization:  # processed pictures are half as large
            boxes = json.loads(answer)
            assert [item["label"] for item in boxes] == [box.label for box in source.boxes]
            expected = np.array([box.bbox for box in source.boxes]) / 2
            np.testing.assert_allclose([item["bbox_2d"] for item in boxes], expected, atol=0.51)
        else:
            assert answer == source.answer
    kinds = [prompts[row.media, row.prompt_text].question_type for row in split.coldstart]
    assert kinds.count("object localization") == 4 * 2 and len(kinds) == 4 * 6 and len(set(kinds)) >= 6


def test_quotas_are_kept(tmp_path):
    quotas = ConstructionConfig(localization_per_room=3, single_image_per_room=2, multi_view_per_room=1,
                                video_per_room=0, coldstart_per_room=0)
    rooms = RoomsConfig(train_rooms=1, heldout_rooms=1, image_size=84, frames_per_room=8)
    manifest = build_data(DataConfig(rooms=rooms, construction=quotas), tmp_path / "data", 0, half, workers=1)
    for counts in manifest["counts"].values():
        assert counts["rows"] == {GROUNDING_FILE: 3, SPATIAL_FILE: 3, COLDSTART_FILE: 0}
    assert len(load_split(tmp_path / "data", "train").examples) == 6


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail(size):
        raise RuntimeError("no processor")

    with pytest.raises(RuntimeError, match="no processor"):
        build_data(CONFIG, tmp_path / "data", 0, fail, workers=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty; remove it or choose another"):
        build_data(CONFIG, tmp_path / "data", 0, half, workers=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "notes.txt"]
    with pytest.raises(BuildRefused, match="cannot be written .*choose another"):
        build_data(CONFIG, tmp_path / "data" / "notes.txt" / "in", 0, half, workers=1)
    with pytest.raises(DataError, match="nothing to build"):
        build_data(CONFIG.model_copy(update={"path": "somewhere"}), tmp_path / "new", 0, half)


def test_two_builds_of_one_folder_do_not_disturb_each_other(tmp_path):
    folder = tmp_path / "data"
    (tmp_path / ".data.partial" / "train").mkdir(parents=True)  # what a killed build leaves behind
    (tmp_path / ".data.partial" / "train" / "old.jsonl").write_text("old")
    small = DataConfig(rooms=RoomsConfig(train_rooms=1, heldout_rooms=1, image_size=84, frames_per_room=8))

    def intrude(size):  # called while the outer build holds the folder
        with pytest.raises(BuildRefused, match="another process is building"):
            build_data(small, folder, 0, half, workers=1)
        return half(size)

    build_data(small, folder, 0, intrude, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert sorted(path.name for path in (folder / "train").iterdir()) == ["images", *sorted([
        GROUNDING_FILE, SPATIAL_FILE, COLDSTART_FILE])]


# Interrupted, and with bad scenes -----------------------------------------------------------------------------------

def posed_folders(folder, names, broken=()):
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        scene = posed_folder(folder / name) / "scene.json"
        text = scene.read_text().replace("scene9999_00", name)
        scene.write_text(text.replace('"metres"', '"feet"') if name in broken else text)
    return DataConfig(source=str(folder))


def interrupted(line):
    """A `progress` during which somebody presses Ctrl-C: when a scene is left out, which is told at once."""
    if "is left out" in line:
        raise KeyboardInterrupt


def test_an_interrupted_build_goes_on_with_what_is_not_finished(tmp_path):
    names = [f"scene000{place}_00" for place in range(5)]
    config = posed_folders(tmp_path / "source", names)
    build_data(config, tmp_path / "whole", 0, half)
    posed_folders(tmp_path / "source", names[2:3], broken=names[2:3])
    with pytest.raises(KeyboardInterrupt):
        build_data(config, tmp_path / "data", 0, half, interrupted)
    scenes = tmp_path / ".data.partial" / "scenes"
    assert sorted(path.name for path in scenes.iterdir()) == names[:2]
    (scenes / f".{names[2]}.77").mkdir()  # what a killed process was writing
    (tmp_path / ".data.partial" / "folder" / "train").mkdir(parents=True)
    written = {path: path.stat().st_mtime_ns for path in scenes.glob("*/table.json")}
    posed_folders(tmp_path / "source", names[2:3])
    posed_folders(tmp_path / "source", names[3:4], broken=names[3:4])
    lines = []
    with pytest.raises(KeyboardInterrupt):
        build_data(config, tmp_path / "data", 0, half, lambda line: (lines.append(line), interrupted(line)))
    assert lines[:2] == [f"data: 5 scenes of {tmp_path / 'source'} (posed_frames), divided by place",
                         "data: 2 of 5 scenes were finished before, 3 are left"]
    assert sorted(path.name for path in scenes.iterdir()) == names[:3]
    assert len(written) == 2 and {path: path.stat().st_mtime_ns for path in written} == written
    posed_folders(tmp_path / "source", names[3:4])
    build_data(config, tmp_path / "data", 0, half)
    assert hashes(tmp_path / "data") == hashes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source", "whole"]


def test_other_settings_do_not_go_on_from_an_unfinished_build(tmp_path):
    names = [f"scene000{place}_00" for place in range(3)]
    config = posed_folders(tmp_path / "source", names, broken=names[2:])
    with pytest.raises(KeyboardInterrupt):
        build_data(config, tmp_path / "data", 0, half, interrupted)
    other = config.model_copy(update={"construction": ConstructionConfig(min_visible=0.5)})
    with pytest.raises(BuildRefused) as refused:
        build_data(other, tmp_path / "data", 1, half)
    message = str(refused.value)
    assert "2 scenes of an unfinished build" in message
    assert "  seed: 0 -> 1\n  data.construction.min_visible: 0.35 -> 0.5\n" in message
    assert build_data(config, tmp_path / "data", 0, half)["skipped"] == 1


def test_a_bad_scene_is_told_and_left_out(tmp_path):
    names = [f"scene000{place}_0{visit}" for place in range(3) for visit in range(2)]
    config, lines = posed_folders(tmp_path / "source", names, broken=["scene0001_01"]), []
    manifest = build_data(config, tmp_path / "data", 0, half, lines.append)
    assert manifest["skipped"] == 1 and manifest["split"] == "by place"
    skipped = json.loads((tmp_path / "data" / "skipped.json").read_text())
    assert [entry["scene"] for entry in skipped] == ["scene0001_01"] and "units: is 'feet'" in skipped[0]["reason"]
    told = [line for line in lines if "scene0001_01" in line and "units: is 'feet'" in line]
    assert len(told) == 2 and told[1].startswith("data: 1 of 6 scenes are left out:")
    images = {split: tmp_path / "data" / split / "images" for split in ("train", "heldout")}
    shown = {split: {path.name for path in folder.iterdir()} for split, folder in images.items()}
    assert shown["train"] | shown["heldout"] == set(names) - {"scene0001_01"}
    assert not {name[:9] for name in shown["train"]} & {name[:9] for name in shown["heldout"]}


def test_too_many_bad_scenes_end_the_build_and_keep_the_good_ones(tmp_path):
    names = [f"scene000{place}_00" for place in range(5)]
    config = posed_folders(tmp_path / "source", names, broken=names[2:])
    with pytest.raises(DataError, match=r"2 of 5 scenes cannot be built, 1 may be left out \(data.build.max_bad_share\)"):
        build_data(config, tmp_path / "data", 0, half)
    assert sorted(path.name for path in (tmp_path / ".data.partial" / "scenes").iterdir()) == names[:2]
    assert not (tmp_path / "data").exists()
    forgiving = config.model_copy(update={"build": config.build.model_copy(update={"max_bad_share": 0.6})})
    assert build_data(forgiving, tmp_path / "other", 0, half)["skipped"] == 3
    hopeless = posed_folders(tmp_path / "hopeless", names[:1], broken=names[:1])
    with pytest.raises(DataError, match="1 of 1 scenes cannot be built"):
        build_data(hopeless, tmp_path / "none", 0, half)
    assert not (tmp_path / ".none.partial").exists()


def test_a_composition_is_met_and_its_rows_join(tmp_path):
    wanted = CompositionConfig(localization=12, single_image=12, multi_view=5, video=7, coldstart=6)
    config = CONFIG.model_copy(update={"build": BuildConfig(train=wanted)})
    manifest = build_data(config, tmp_path / "data", 7, half)
    assert manifest["counts"]["train"]["rows"] == {GROUNDING_FILE: 12, SPATIAL_FILE: 24, COLDSTART_FILE: 6}
    assert manifest["shortfalls"] == []
    split = load_split(tmp_path / "data", "train")
    assert check_media(split.examples) == manifest["counts"]["train"]["pictures"]
    prompts = {(row.media, user_text(row, "think")): row for row in split.grounding + split.spatial}
    for row in split.coldstart:  # also where letters were dealt anew
        source = prompts[row.media, row.prompt_text]
        assert source.is_localization or row.solution.endswith(f"<answer>{source.answer}</answer>")


def test_tables_read_back_as_they_were_drawn(tmp_path):
    rooms = Rooms(CONFIG.rooms, 0)
    job = SceneJob(rooms, {"train00000": "train"}, 0.2, 0, CONFIG.rooms, CONFIG.construction, str(tmp_path))
    assert build_scene(job, "train00000").rows > 20
    table = read_table(tmp_path, "train00000")
    scene, rng = rooms.draw("train00000")
    records = {frame.name: frame_records(scene, frame, CONFIG.construction) for frame in scene.frames}
    drawn = scene_table(scene, records, CONFIG.rooms, CONFIG.construction, "train", 0.2, rng)
    assert table.rows == drawn.rows and table.pictures == drawn.pictures
    assert [replace(q, key=()) for q in table.questions] == [replace(q, key=()) for q in drawn.questions]
    assert {type(q.facts) for q in table.questions} >= {SizeFacts, GapFacts, NearestFacts, OffsetFacts, CountFacts}


# Posed frames -----------------------------------------------------------------------------------------------------

SIDE, FOCAL = 96, 80.0


def posed_folder(folder, frames=3):
    """Three pieces in front of cameras that stand at the origin, 1.2 m up, and step to the right; x right, y ahead."""
    (folder / "frames").mkdir(parents=True)
    posed = []
    for index in range(frames):
        Image.new("RGB", (SIDE, SIDE), (40 * index, 90, 120)).save(folder / "frames" / f"{index:05d}.jpg")
        pose = [[1, 0, 0, 0.2 * index], [0, 0, 1, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]]
        posed.append({"file": f"frames/{index:05d}.jpg", "camera_to_world": pose})
    objects = [("sofa", (-1.2, 4.0, 0.4), (1.6, 0.9, 0.8)), ("lamp", (0.6, 2.8, 0.8), (0.4, 0.4, 1.6)),
               ("bed", (1.8, 5.2, 0.3), (1.6, 1.8, 0.6))]
    scene = {"scene": "scene9999_00", "dataset": "fixture", "units": "metres",
             "image_width": SIDE, "image_height": SIDE,
             "intrinsics": [[FOCAL, 0, SIDE / 2, 0], [0, FOCAL, SIDE / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
             "axis_align": np.eye(4).tolist(), "frames": posed,
             "objects": [{"id": i, "label": label, "aligned": {"center": center, "dimensions": size},
                          "unaligned": {"center": center, "dimensions": size}}
                         for i, (label, center, size) in enumerate(objects)]}
    (folder / "scene.json").write_text(json.dumps(scene))
    return folder


def test_posed_frames_become_rows_of_every_modality(tmp_path):
    source = posed_folder(tmp_path / "source")
    manifest = build_data(DataConfig(source=str(source)), tmp_path / "data", 0, half)
    assert manifest["split"] == "by row; one place only" and manifest["source"] == "posed_frames"
    splits = {name: load_split(tmp_path / "data", name) for name in ("train", "heldout")}
    rows = {name: [row for row in split.grounding + split.spatial] for name, split in splits.items()}
    assert {row.data_type for row in rows["train"]} == {"single_image", "multi_view", "video"}
    assert len({row.media for row in rows["train"] if row.data_type == "single_image"}) == 3
    questions = {name: {(row.media[0].rsplit("/", 1)[1], row.data_type, row.question) for row in some}
                 for name, some in rows.items()}
    assert questions["heldout"] and not questions["train"] & questions["heldout"]
    for split in splits.values():
        check_media(split.examples)
    copied = tmp_path / "data/train/images/scene9999_00/00000.jpg"
    assert copied.read_bytes() == (source / "frames/00000.jpg").read_bytes()
    distances = {row.answer for row in rows["train"] + rows["heldout"]
                 if isinstance(row, Example) and row.question_type == "absolute distance"}
    assert distances <= {"1.0", "1.3", "1.4"}  # sofa-lamp, lamp-bed, sofa-bed, by hand


@pytest.mark.parametrize("names, warned", [(["scene0001_00", "scene0001_01"], 1), (["scene0001_00", "scene0002_00"], 0)])
def test_the_last_line_counts_the_rows_and_one_place_is_warned_of(tmp_path, names, warned):
    lines = []
    build_data(posed_folders(tmp_path / "source", names), tmp_path / "data", 0, half, lines.append)
    assert lines[0].endswith("divided by row; one place only" if warned else "divided by place")
    assert ["WARNING" in line for line in lines].count(True) == warned == ("one place only" in lines[-2])
    told = []
    for name in ("train", "heldout"):
        split = load_split(tmp_path / "data", name)
        modality = Counter(row.data_type for row in split.spatial)
        kinds = ", ".join(f"{modality[kind]} {kind}" for kind in ("single_image", "multi_view", "video"))
        told.append(f"{name}: {len(split.examples)} rows ({len(split.grounding)} localization, {kinds}, "
                    f"{len(split.coldstart)} coldstart)")
    assert lines[-1] == f"data: {tmp_path / 'data'} is written: {'; '.join(told)}"


def test_a_split_without_rows_is_warned_of():
    empty = {"rows": dict.fromkeys(FILES, 0), "question_types": {name: {} for name in FILES}}
    one = {"rows": dict(zip(FILES, (2, 3, 1))),
           "question_types": {SPATIAL_FILE: {"video: room size": 1, "video: object count": 2}}}
    first, last = written_lines(Path("/d"), {"split": "by list", "counts": {"train": one, "heldout": empty}})
    assert first.startswith("data: WARNING: heldout/ has no rows")
    assert last == ("data: /d is written: "
                    "train: 6 rows (2 localization, 0 single_image, 0 multi_view, 3 video, 1 coldstart); "
                    "heldout: 0 rows (0 localization, 0 single_image, 0 multi_view, 0 video, 0 coldstart)")


def test_a_posed_build_is_deterministic(tmp_path):
    source = posed_folder(tmp_path / "source")
    for name in ("one", "two"):
        build_data(DataConfig(source=str(source)), tmp_path / name, 3, half)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
