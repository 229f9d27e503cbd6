"""Three real ScanNet frames: boxes against boxes drawn by hand, and what is asked about them against the raw boxes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scene_cases import chosen, posed_scenes
from scene_oracle import answer, between

from configs.data_schema import ConstructionConfig
from data.facts import GapFacts, SizeFacts
from data.questions import localization_rows, single_image_rows
from data.records import frame_records
from data.scene_questions import multi_view_rows, video_rows
from data.types import LOCALIZATION

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "scannet_sample"
pytestmark = pytest.mark.skipif(not SAMPLE.is_dir(), reason="no ScanNet sample in ../shared/data/scannet_sample")
CONFIG = ConstructionConfig()

#: Drawn by hand on enlarged pictures with a grid of pixels and nothing else on them: the visible edges of the thing,
#: continued where something else hides them, inside the undistorted picture (its black margin is 8 pixels wide).
#: The last five were chosen and drawn before anybody computed their projection, and left as they were.
DRAWN = {
    # The whole low table: left corner of the top 548, its back corner 436, right corner 1225, front foot 958.
    ("00000", 15, "table"): (548, 436, 1225, 958),
    # The green curtain: left seam 930 at table height, cut by the picture on the right, the floor behind the shoes at 905.
    ("00000", 4, "curtain"): (930, 8, 1290, 905),
    # The white sheet before the wardrobe, both of its halves: left edge 287, right edge 757, hem 648.
    ("00000", 19, "cabinet"): (287, 8, 757, 648),
    # The same sheet from the desk: its left half begins at 843 and ends at the picture's border, hem 627.
    ("00011", 19, "cabinet"): (843, 8, 1290, 627),
    # The brown cloth before the window, cut above and on the left: lower edge 119, right end 848.
    ("00011", 5, "curtain"): (10, 8, 848, 119),
    # The wooden television corner: beside the green curtain at 78, where the bookshelf starts at 515, its foot at 460.
    ("00102", 7, "cabinet"): (78, 8, 515, 460),
    # The whole corner sofa: from the left border to the arm at 1161, cushions from 337, the front at the lower border.
    ("00102", 12, "sofa"): (10, 337, 1161, 960),
    # The desk with its high side: top of the side 78, its foot 738; the right end is behind the chair, 905 by the cable
    # that lies beside its foot in 00000 too.
    ("00011", 6, "desk"): (240, 78, 905, 738),
    # The white bin: rim 578, foot 793.
    ("00011", 11, "garbagebin"): (249, 578, 377, 793),
    # The bar: the end of its top 1104 to the border, upper edge 265.
    ("00102", 2, "table"): (1104, 265, 1290, 960),
    # The brown cloth, cut above and on the left: its corner at the wall 293, the lowest of its hem 116.
    ("00000", 5, "curtain"): (10, 8, 293, 116),
    # The right part of the desk: back corner of the top 244, right foot 401, front foot 691 beside the chair.
    ("00000", 6, "desk"): (10, 244, 401, 691),
    # The left end of the low table: its foot 1112, back corner of the top 430, the lower board leaves the picture at 754.
    ("00011", 15, "table"): (1112, 430, 1286, 754),
    # The green curtain: its edge continued down behind the sofa to 150, its hem at the left border to 555.
    ("00102", 4, "curtain"): (10, 8, 150, 555),
    # The footstool of the sofa: back corner of the top 400, front corner continued down behind the cushion to 506.
    ("00102", 14, "table"): (488, 400, 798, 506),
}
#: Things with a record that nobody can draw.
UNDRAWN = {
    ("00011", 17, "bed"),  # none shows: at the left border, where the record is, the picture has the rug
    ("00102", 0, "window"),  # 40 pixels of brown wood in the corner, of a window, a picture or a cupboard
}
#: Pairs below 0.7 and the IoU they have: the annotated 3-D box is larger than the thing, twice the drawing is off as well.
LOOSE = {
    ("00011", 6, "desk"): 0.68,  # some 0.2 m too long on the left, where a folded chair leans against it
    ("00011", 11, "garbagebin"): 0.49,  # 0.50 m deep in the annotation, by eye half of that
    ("00102", 2, "table"): 0.62,  # wider and higher than the bar by a hand's breadth
    ("00000", 5, "curtain"): 0.65,  # 0.22 m thick: its near edge is 33 pixels below a strip of 108
    ("00000", 6, "desk"): 0.55,  # as high as the side that is outside of this picture, and 0.15 m too long on the right
    ("00011", 15, "table"): 0.56,  # 0.15 m too long at the end that shows, and some 0.06 m too high
    ("00102", 4, "curtain"): 0.69,  # goes on for 0.2 m or more behind the wooden corner; see OVERDRAWN too
    # The edge that was continued is 0.3 m above the floor, on which the box stands: rather the rim of the cushion before it.
    ("00102", 14, "table"): 0.37,
}
#: The share of a drawing that the box holds, where a hidden edge was continued too far.
OVERDRAWN = {
    ("00102", 4, "curtain"): 0.93,  # by the pose, 555 at the border is on the floor 0.5 m before it
}


@pytest.fixture(scope="module")
def scene():
    (found,) = posed_scenes(SAMPLE)
    return found


@pytest.fixture(scope="module")
def raw():
    return json.loads((SAMPLE / "scene.json").read_text())


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (area(a) + area(b) - common), common / area(a)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize("drawn", DRAWN, ids=lambda key: "-".join(map(str, key)))
def test_boxes_overlap_those_drawn_by_hand(scene, drawn):
    name, identity, label = drawn
    frame = next(f for f in scene.frames if f.name == name)
    record = next(r for r in frame_records(scene, frame) if r.object_id == identity)
    overlap, held = iou(DRAWN[drawn], record.box2d)
    assert record.label == label
    if drawn in OVERDRAWN:
        assert held == pytest.approx(OVERDRAWN[drawn], abs=0.01)
    else:
        assert held > 0.95  # a loose box is too large, never beside the thing
    if drawn in LOOSE:
        assert overlap == pytest.approx(LOOSE[drawn], abs=0.01)
    else:
        assert overlap >= 0.7


def test_every_record_is_drawn_or_named(scene):
    """Nothing was left out because it does not fit: seven of the fifteen drawings do."""
    found = {(frame.name, r.object_id, r.label) for frame in scene.frames for r in frame_records(scene, frame)}
    assert found == set(DRAWN) | UNDRAWN and not UNDRAWN & set(DRAWN)
    assert len(set(DRAWN) - set(LOOSE)) == 7 and len(DRAWN) == 15


def test_an_outline_is_tighter_than_its_box(scene):
    """The sample has two boxes of each thing; what they have in common fits the drawn boxes better than the aligned one."""
    gains = []
    for (name, identity, _), drawn in DRAWN.items():
        frame = next(f for f in scene.frames if f.name == name)
        with_outline, without = (next(r for r in frame_records(made, frame) if r.object_id == identity)
                                 for made in (scene, boxes_only(scene)))
        gains.append(iou(drawn, with_outline.box2d)[0] - iou(drawn, without.box2d)[0])
        assert with_outline.dimensions == without.dimensions
    assert min(gains) > 0 and np.mean(gains) > 0.05


def boxes_only(scene):
    return replace(scene, objects=tuple(replace(o, outline=()) for o in scene.objects))


@pytest.fixture(scope="module")
def rows(scene):
    generator = np.random.default_rng(0)
    records = {frame.name: frame_records(scene, frame, CONFIG) for frame in scene.frames}
    single = single_image_rows(scene, records, 100, CONFIG, generator)
    several = multi_view_rows(scene, records, 8, 100, CONFIG, generator)
    return single, several + video_rows(scene, records, 8, 100, CONFIG, generator)


def test_rows_of_localisation_and_of_every_applicable_type(rows):
    """No picture shows three things whose names are clear, so that nothing is nearer or beside; the walls are not known."""
    single, several = rows
    kinds = Counter((q.data_type, q.question_type) for q in (*single, *several))
    assert set(kinds) == {
        ("single_image", "object size"), ("single_image", "absolute distance"), ("single_image", "relative direction"),
        ("multi_view", "object size"), ("multi_view", "absolute distance"), ("multi_view", "object count"),
        ("video", "object size"), ("video", "object count")}
    boxes = localization_rows(single, 100)
    assert len(boxes) == len(single) == 8 and {q.question_type for q in boxes} == {LOCALIZATION}
    assert {box.label for q in boxes for box in q.boxes} == {"table", "desk", "garbagebin", "cabinet", "sofa"}
    for q in boxes:
        for box in q.boxes:
            assert 0 <= box.bbox[0] < box.bbox[2] <= 1296 and 0 <= box.bbox[1] < box.bbox[3] <= 968


def test_distances_and_sizes_are_those_of_the_raw_boxes(scene, raw, rows):
    """To a centimetre, computed anew from the file: the labels asked about have one clear bearer each."""
    asked = {("00000", "table"): 15, ("00011", "desk"): 6, ("00011", "garbagebin"): 11, ("00102", "cabinet"): 7,
             ("00102", "sofa"): 12}
    sizes = {o["id"]: sorted(o["aligned"]["dimensions"]) for o in raw["objects"]}
    by_id = {o.id: o for o in scene.objects}
    lengths = distances = 0
    for q in (*rows[0], *rows[1]):
        def identity(label, q=q):
            return asked.get((q.frames[0], label)) if len(q.frames) == 1 else {"desk": 6, "sofa": 12}[label]

        if isinstance(q.facts, SizeFacts):
            lengths += 1
            truth = sizes[identity(q.facts.label)]
            assert sorted((q.facts.long, q.facts.wide, q.facts.high)) == pytest.approx(truth, abs=0.01)
            assert float(q.answer) / 100 == pytest.approx(truth[-1], abs=0.01)
        elif isinstance(q.facts, GapFacts):
            distances += 1
            truth = between(by_id[identity(q.facts.first)], by_id[identity(q.facts.second)])
            assert q.facts.distance == pytest.approx(truth, abs=0.01)
            assert float(q.answer) == pytest.approx(truth, abs=0.05 + 1e-9)
    assert (lengths, distances) == (8, 2)


def test_every_answer_is_the_oracles(scene, rows):
    for q in (*rows[0], *rows[1]):
        assert answer(scene, q) == chosen(q), q
