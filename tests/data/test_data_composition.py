"""Rows chosen by number: exact where scenes suffice, types and letters in equal shares, whatever order scenes come in."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.data_schema import CompositionConfig, ConstructionConfig, RoomsConfig
from data.composition import Shortfall, choose, shares, take_all
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE
from data.records import frame_records
from data.scene_tables import scene_table
from data.scenes.rooms import Rooms

CONSTRUCTION = ConstructionConfig(multi_view_per_room=10, video_per_room=14)
ROOMS = RoomsConfig(train_rooms=8, heldout_rooms=1, image_size=84, frames_per_room=12)
WANTED = CompositionConfig(localization=30, single_image=30, multi_view=20, video=28, coldstart=21)


@pytest.fixture(scope="module")
def tables():
    made = []
    for name in Rooms(ROOMS, 3).scene_ids()[:8]:
        scene, rng = Rooms(ROOMS, 3).draw(name)
        records = {frame.name: frame_records(scene, frame, CONSTRUCTION) for frame in scene.frames}
        made.append(scene_table(scene, records, ROOMS, CONSTRUCTION, "train", 0.2, rng))
    return made


def questions(tables, choice, file):
    """(scene, question) of the chosen rows of a file, as they are written."""
    by_scene = {table.scene: table for table in tables}
    return [(scene, choice.relettered.get((scene, row.question), by_scene[scene].questions[row.question]))
            for scene, rows in choice.rows.items() for row in rows if row.file == file]


def test_numbers_are_met_exactly_with_types_in_equal_shares(tables):
    choice = choose(tables, "train", WANTED, 0)
    assert choice.shortfalls == ()
    spatial = questions(tables, choice, SPATIAL_FILE)
    assert Counter(q.data_type for _, q in spatial) == {"single_image": 30, "multi_view": 20, "video": 28}
    single = Counter(q.question_type for _, q in spatial if q.data_type == "single_image")
    assert sorted(single.values()) == [7, 7, 8, 8] and len(single) == 4
    assert len(questions(tables, choice, GROUNDING_FILE)) == 30 and len(questions(tables, choice, COLDSTART_FILE)) == 21


@pytest.mark.parametrize("wanted", [WANTED, None])
def test_letters_are_right_equally_often(tables, wanted):
    groups = {}
    choice = take_all(tables, "train", 0) if wanted is None else choose(tables, "train", wanted, 0)
    for _, q in questions(tables, choice, SPATIAL_FILE):
        if q.options is not None:
            groups.setdefault((q.data_type, q.question_type, len(q.options)), Counter())[q.answer] += 1
    assert len(groups) > 4
    for (_, _, options), letters in groups.items():
        counts = [letters["ABCD"[place]] for place in range(options)]
        assert max(counts) - min(counts) <= 1


def test_without_a_composition_every_row_is_taken_and_traces_follow_their_letters(tables):
    choice = take_all(tables, "train", 0)
    assert choice.rows == {table.scene: list(table.rows) for table in tables} and choice.shortfalls == ()
    asked = questions(tables, choice, SPATIAL_FILE)
    explained = [q for q in questions(tables, choice, COLDSTART_FILE) if q[1].options is not None]
    assert explained and all(q in asked for q in explained)


def test_equal_numbers_ask_for_boxes_and_answers_of_the_same_questions(tables):
    choice = choose(tables, "train", WANTED, 0)
    located = {(scene, q.question, q.frames) for scene, q in questions(tables, choice, GROUNDING_FILE)}
    single = {(scene, q.question, q.frames) for scene, q in questions(tables, choice, SPATIAL_FILE) if len(q.frames) == 1}
    assert located == single


def test_cold_start_rows_explain_chosen_rows_a_third_of_them_boxes(tables):
    choice = choose(tables, "train", WANTED, 0)
    rows = {scene: {(row.file, row.question) for row in own} for scene, own in choice.rows.items()}
    traced = [(scene, row) for scene, own in choice.rows.items() for row in own if row.file == COLDSTART_FILE]
    assert all((GROUNDING_FILE if row.boxes else SPATIAL_FILE, row.question) in rows[scene] for scene, row in traced)
    assert sum(row.boxes for _, row in traced) == 7
    kinds = Counter(q.question_type for (_, row), (_, q) in zip(traced, questions(tables, choice, COLDSTART_FILE))
                    if not row.boxes)
    assert sorted(kinds.values()) == [2] * 7


def test_the_order_of_scenes_decides_nothing_and_the_seed_does(tables):
    forward, backward = (choose(some, "train", WANTED, 0).rows for some in (tables, tables[::-1]))
    assert {scene: set(rows) for scene, rows in forward.items()} == {scene: set(rows) for scene, rows in backward.items()}
    assert choose(tables, "train", WANTED, 0) == choose(tables, "train", WANTED, 0)
    assert forward != choose(tables, "train", WANTED, 1).rows


def test_what_the_scenes_do_not_offer_is_told(tables):
    offered = Counter(q.data_type for table in tables for q in table.questions)
    choice = choose(tables, "train", WANTED.model_copy(update={"video": 10_000}), 0)
    assert choice.shortfalls == (Shortfall("train", "video", 10_000, offered["video"]),)
    assert all(not rows for rows in choose(tables, "heldout", WANTED, 0).rows.values())


@given(st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 40)), st.integers(0, 200))
def test_shares_are_as_equal_as_can_be(available, total):
    given_ = shares(available, total)
    assert sum(given_.values()) == min(total, sum(available.values()))
    assert all(0 <= given_[kind] <= available[kind] for kind in available)
    most = max(given_.values(), default=0)
    assert all(given_[kind] >= most - 1 for kind in available if given_[kind] < available[kind])
