"""VSI-Bench's annotations of 88 ScanNet rooms: counts, room sizes, distances and directions against file and oracle."""

import gzip
import json
from collections import Counter
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from scene_cases import chosen, seen_whole
from scene_oracle import Tolerance, answer, between

from configs.data_schema import ConstructionConfig, LayoutsConfig
from data.facts import AreaFacts, GapFacts
from data.scene_questions import scene_questions
from data.scenes.layouts import Layouts

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "vsibench_meta" / "scannet_val.json.gz"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="no VSI-Bench annotations in ../shared/data/vsibench_meta")
CONFIG = ConstructionConfig()
#: Per scene and type, those that the slow oracle answers anew.
CHECKED = 6


@pytest.fixture(scope="module")
def annotations():
    with gzip.open(FILE) as file:
        return json.load(file)


@pytest.fixture(scope="module")
def scenes():
    source = Layouts(str(FILE), LayoutsConfig(image_size=56, frames_per_scene=8), 0)
    return {name: source.load(name) for name in source.scene_ids()}


def ask(scene, kind):
    return scene_questions("video", kind, seen_whole(scene), CONFIG, np.random.default_rng(0))


def test_counts_are_those_of_the_boxes(annotations, scenes):
    """For all but twelve pairs of scene and label they are the file's own counts too (test_data_layouts.py lists those)."""
    other = 0
    for name, scene in scenes.items():
        found = {q.facts.label: int(q.answer) for q in ask(scene, "object count")}
        # No two of these labels are confusable, so that all are asked.
        assert found == {label: len(boxes) for label, boxes in annotations[name]["object_bbox"].items()}
        other += sum(annotations[name]["object_counts"].get(label) != count for label, count in found.items())
    assert len(scenes) == 88 and other == 12


def test_room_sizes_are_the_files_own(annotations, scenes):
    for name, scene in scenes.items():
        (question,) = ask(scene, "room size")
        assert question.facts == AreaFacts(annotations[name]["room_size"])
        assert question.answer == f"{annotations[name]['room_size']:.1f}" == answer(scene, question)


def test_every_distance_is_computed_and_the_oracle_agrees(scenes):
    """Of all pairs of things that are single of their kind, only those are left out that touch, or nearly."""
    total = 0
    for scene in scenes.values():
        questions = {frozenset((q.facts.first, q.facts.second)): q for q in ask(scene, "absolute distance")}
        counts = Counter(o.label for o in scene.objects)
        singles = [o for o in scene.objects if counts[o.label] == 1]
        for a, b in combinations(singles, 2):
            question = questions.pop(frozenset((a.label, b.label)), None)
            if question is None:
                assert between(a, b) < CONFIG.min_distance + 1e-6
                continue
            assert isinstance(question.facts, GapFacts)
            assert np.linalg.norm(question.facts.along) == pytest.approx(question.facts.distance)
            assert between(a, b) == pytest.approx(question.facts.distance, abs=1e-6)
            assert float(question.answer) == pytest.approx(question.facts.distance, abs=0.05 + 1e-9)
            total += 1
        assert not questions
    assert total > 600


def test_relative_directions_and_distances_and_the_oracle_agrees(scenes):
    """The first questions of each scene, which take the levels and the answers in turn."""
    tolerance = Tolerance(gap=CONFIG.min_distance_gap - 1e-6, degrees=CONFIG.direction_margin - 1e-6,
                          center=CONFIG.center_epsilon - 1e-6)
    directions, kinds = Counter(), Counter()
    for scene in scenes.values():
        for kind in ("relative direction", "relative distance"):
            for q in islice(ask(scene, kind), CHECKED):
                assert answer(scene, q, tolerance) == chosen(q), (scene.id, q)
                kinds[kind] += 1
                if kind == "relative direction":
                    directions[len(q.options), chosen(q)] += 1
    assert kinds["relative direction"] > 300 and kinds["relative distance"] > 200
    assert set(directions) == {(2, "left"), (2, "right"), (3, "left"), (3, "right"), (3, "back"), (4, "front-left"),
                               (4, "front-right"), (4, "back-left"), (4, "back-right")}


def test_sizes_are_those_along_the_boxes_own_axes(annotations, scenes):
    for name, scene in scenes.items():
        for q in ask(scene, "object size"):
            (box,) = annotations[name]["object_bbox"][q.facts.label]
            assert float(q.answer) == round(100 * max(box["axesLengths"]))
            assert sorted((q.facts.long, q.facts.wide, q.facts.high)) == pytest.approx(sorted(box["axesLengths"]))
