"""Questions by hand geometry. Generated ones against an oracle: test_data_oracle.py."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from configs.data_schema import ConstructionConfig
from data.questions import (
    SINGLE_IMAGE_TYPES, askable, confusable, integer_box, localization_rows, single_image_questions, single_image_rows,
)
from data.records import ObjectRecord, frame_records
from data.relations import camera_quadrant, turn_angle, turn_sector
from data.scene_questions import covering_frames, scene_questions, video_frames, view_scene
from data.scenes.types import Camera, Frame, Scene, SceneObject, Solid
from data.templates import lettered
from data.types import LOCALIZATION

CONFIG = ConstructionConfig()
CAMERA = Camera(np.eye(3), np.eye(4), 100, 100)
SOFA = SceneObject(0, "sofa", (-1.0, 3.0, 0.4), (2.0, 0.9, 0.8))
LAMP = SceneObject(1, "lamp", (1.5, 2.0, 0.8), (0.4, 0.4, 1.6))
BED = SceneObject(2, "bed", (1.0, 5.0, 0.25), (1.6, 2.0, 0.5))
ROOM = ((-3.0, 0.0, 0.0), (3.0, 4.5, 2.5))


def record(item, frame="f0", box=(10.2, 20.7, 40.0, 60.1), **changes):
    """The object seen by a camera at the world origin, 1.5 m up, that looks along world y with x to its right."""
    x, y, z = item.center
    values = {"visibility": 1.0, "truncation": 0.0, "area": 0.1, **changes}
    return ObjectRecord("hand", frame, item.id, item.label, item.center, (x, 1.5 - z, y), item.dimensions, box,
                        image_size=(100, 100), **values)


def scene(*objects, frames=("f0",), room=ROOM):
    return Scene("hand", objects, tuple(Frame(name, CAMERA) for name in frames), room)


def rng(seed=0):
    return np.random.default_rng(seed)


def chosen(question):
    """The text of the right answer: the option without its letter, or the number."""
    if question.options is None:
        return question.answer
    return {option[0]: option[3:] for option in question.options}[question.answer]


def ask(kind, records=None, config=CONFIG, seed=0):
    records = [record(o) for o in (SOFA, LAMP, BED)] if records is None else records
    return list(single_image_questions(kind, "f0", records, config, rng(seed)))


# One picture, by hand ---------------------------------------------------------------------------------------------


def test_object_size_is_the_longest_side_in_whole_centimetres():
    got = {q.question: q.answer for q in ask("object size")}
    text = "What is the length of the longest dimension of the {}, measured in centimeters?"
    assert got == {text.format("sofa"): "200", text.format("lamp"): "160", text.format("bed"): "200"}


@pytest.mark.parametrize("seed", range(4))
def test_absolute_distance_is_between_closest_points(seed):
    got = {frozenset(re.findall("sofa|lamp|bed", q.question)): q.answer for q in ask("absolute distance", seed=seed)}
    assert got == {frozenset({"sofa", "lamp"}): "1.3",  # hypot(1.3, 0.35)
                   frozenset({"sofa", "bed"}): "0.6",   # hypot(0.2, 0.55)
                   frozenset({"lamp", "bed"}): "1.8"}   # along y alone
    assert all(q.question.startswith("Measuring from the closest point of each object, what is the direct distance "
                                     "between the ") and q.question.endswith(" (in meters)?")
               for q in ask("absolute distance", seed=seed))


@pytest.mark.parametrize("seed", range(4))
def test_relative_distance_offers_two_objects_and_names_the_nearer(seed):
    questions = ask("relative distance", seed=seed)
    got = {re.search(r"closer to the (\w+)\?", q.question).group(1): chosen(q) for q in questions}
    assert got == {"sofa": "bed", "lamp": "sofa", "bed": "sofa"}
    for q in questions:
        listed = re.search(r"these two objects \((\w+), (\w+)\)", q.question).groups()
        assert q.options == (f"A. {listed[0]}", f"B. {listed[1]}")


@pytest.mark.parametrize("seed", range(8))
def test_relative_direction_is_from_the_camera_and_farther_is_front(seed):
    truth = {("sofa", "lamp"): "left-front", ("lamp", "sofa"): "right-back",
             ("bed", "sofa"): "right-front", ("sofa", "bed"): "left-back"}
    questions = ask("relative direction", seed=seed)
    pattern = (r"From the camera's perspective, is the (\w+) to the (\w+)'s left-front, left-back, right-front, "
               r"or right-back\?")
    for q in questions:
        assert chosen(q) == truth[re.fullmatch(pattern, q.question).groups()]
        assert [option[:3] for option in q.options] == ["A. ", "B. ", "C. ", "D. "]
    # bed and lamp are 80.5 degrees from the x axis, within 10 of the border: not asked.
    assert len(questions) == 2


def test_margins_decide_what_is_asked():
    assert len(ask("relative direction", config=CONFIG.model_copy(update={"direction_margin": 9.0}))) == 3
    # Gaps between the two candidates: sofa 0.76, lamp 0.45, bed 1.21 m.
    for gap, count in ((0.4, 3), (0.5, 2), (1.0, 1), (1.3, 0)):
        assert len(ask("relative distance", config=CONFIG.model_copy(update={"min_distance_gap": gap}))) == count
    # A centre that moves by 0.25 m can take 0.5 m off a lead; the lamp is 1 m nearer than the sofa, 1.2 m turn that round.
    assert len(ask("relative distance", config=CONFIG.model_copy(update={"center_epsilon": 0.25}))) == 2
    assert len(ask("relative direction", config=CONFIG.model_copy(update={"center_epsilon": 1.2}))) == 1
    touching = replace(BED, center=(-1.0, 4.45, 0.25))
    assert ask("absolute distance", [record(SOFA), record(touching)]) == []


@pytest.mark.parametrize("change", [{"visibility": 0.34}, {"area": 0.011}, {"truncation": 0.46}])
def test_objects_that_show_badly_are_not_asked_about(change):
    records = [record(SOFA), record(LAMP, **change), record(BED)]
    assert [r.label for r in askable(records, CONFIG)] == ["sofa", "bed"]
    assert len(ask("object size", records)) == 2


def test_a_label_that_fits_two_things_in_the_picture_is_not_asked_about():
    second = replace(LAMP, id=7, center=(0.0, 4.0, 0.8))
    records = [record(SOFA), record(LAMP), record(BED), record(second, visibility=0.01, area=0.0001)]
    assert [r.label for r in askable(records, CONFIG)] == ["sofa", "bed"]
    desk_lamp = replace(second, label="desk lamp")
    assert [r.label for r in askable(records[:3] + [record(desk_lamp)], CONFIG)] == ["sofa", "bed"]
    assert confusable("Coffee table", "table") and not confusable("table", "tablet")


@pytest.mark.parametrize("image", [None, "picture.jpg"], ids=["rendered", "real"])
def test_a_label_that_fits_something_around_the_camera_is_not_asked_about(image):
    def thing(id, label, center, dimensions, *solids):
        whole = Solid("box", center, tuple(side / 2 for side in dimensions), (0.5, 0.5, 0.5))
        return SceneObject(id, label, center, dimensions, solids or (whole,))

    door = Solid("box", (-0.4, 0.0, 0.9), (0.1, 0.4, 0.1), (0.5, 0.5, 0.5))  # the one part of the near cabinet in view
    near = thing(0, "cabinet", (0.0, 0.0, 0.5), (1.2, 1.2, 1.2), door)
    far, lamp = thing(1, "cabinet", (0.5, 0.0, 3.0), (0.8, 0.8, 0.4)), thing(2, "lamp", (-0.6, 0.0, 3.5), (0.5, 1.0, 0.5))
    frame = Frame("f0", Camera(np.array([[50.0, 0, 50], [0, 50, 50], [0, 0, 1]]), np.eye(4), 100, 100), image)
    asked = {}
    for objects in ((far, lamp), (near, far, lamp)):
        made = Scene("hand", objects, (frame,))
        records = {"f0": frame_records(made, frame)}
        assert [r.object_id for r in records["f0"]] == [1, 2]
        rows = single_image_rows(made, records, 20, CONFIG, rng())
        asked[len(objects)] = {label for row in rows for label in re.findall("cabinet|lamp", row.question)}
    assert asked == {2: {"cabinet", "lamp"}, 3: {"lamp"}}


def test_localization_asks_for_integer_boxes_of_the_objects_mentioned():
    rows = localization_rows(single_image_rows(scene(SOFA, LAMP, BED), {"f0": [record(o) for o in (SOFA, LAMP, BED)]},
                                               20, CONFIG, rng()), 20)
    assert {len(row.boxes) for row in rows} == {1, 2, 3}
    for row in rows:
        assert (row.question_type, row.options, row.answer) == (LOCALIZATION, None, None)
        # "longest dimension of the sofa": every label in the text has its box, no other.
        assert {box.label for box in row.boxes} == set(re.findall(r"\b(sofa|lamp|bed)\b", row.question))
        assert all(box.bbox == (10, 20, 40, 61) for box in row.boxes)
    assert integer_box(record(SOFA, box=(-0.0, 3.0, 100.0, 99.5))).bbox == (0, 3, 100, 100)


def test_rows_are_unique_and_take_types_in_turn():
    records = {"f0": [record(o) for o in (SOFA, LAMP, BED)]}
    rows = single_image_rows(scene(SOFA, LAMP, BED), records, 100, CONFIG, rng())
    assert Counter(q.question_type for q in rows) == {"object size": 3, "absolute distance": 3, "relative distance": 3,
                                                      "relative direction": 2}
    assert len({q.key for q in rows}) == len({q.question for q in rows}) == 11
    assert {q.question_type for q in rows[:4]} == set(SINGLE_IMAGE_TYPES)


# Several pictures, by hand ----------------------------------------------------------------------------------------

FRAMES = ("f0", "f1", "f2", "f3")
SEEN = {"f0": [LAMP], "f1": [LAMP, SOFA], "f2": [BED], "f3": []}


def view(*objects, seen=SEEN, room=ROOM, config=CONFIG):
    records = {name: [record(item, name) for item in items] for name, items in seen.items()}
    return view_scene(scene(*objects, frames=FRAMES, room=room), FRAMES, records, config)


def ask_scene(kind, the_view=None, config=CONFIG, seed=0):
    return list(scene_questions("video", kind, the_view or view(SOFA, LAMP, BED), config, rng(seed)))


def test_scene_numbers_by_hand():
    sizes = {re.search(r"of the (\w+), measured", q.question).group(1): q.answer for q in ask_scene("object size")}
    assert sizes == {"sofa": "200", "lamp": "160", "bed": "200"}
    assert sorted(q.answer for q in ask_scene("absolute distance")) == ["0.6", "1.3", "1.8"]
    (room,) = ask_scene("room size")
    assert room.question.startswith("What is the size of this room (in square meters)?") and room.answer == "27.0"
    assert ask_scene("room size", view(SOFA, LAMP, BED, room=None)) == []


def test_count_asks_only_for_categories_seen_completely():
    second = replace(LAMP, id=3, center=(-2.0, 1.0, 0.8))
    both = view(SOFA, LAMP, BED, second, seen={**SEEN, "f3": [second]})
    counts = {q.question: q.answer for q in ask_scene("object count", both)}
    assert counts == {"How many lamp(s) are in this room?": "2", "How many sofa(s) are in this room?": "1",
                      "How many bed(s) are in this room?": "1"}
    several = CONFIG.model_copy(update={"min_count": 2})
    assert [q.answer for q in ask_scene("object count", both, config=several)] == ["2"]
    unseen = view(SOFA, LAMP, BED, second)
    assert "How many lamp(s) are in this room?" not in {q.question for q in ask_scene("object count", unseen)}


@pytest.mark.parametrize("seed", range(5))
def test_appearance_order_is_the_order_of_first_clear_pictures(seed):
    (question,) = ask_scene("appearance order", seed=seed)
    assert chosen(question) == "lamp, sofa, bed"
    assert len(question.options) == 4 and len(set(option[3:] for option in question.options)) == 4


def test_appearance_order_is_not_asked_when_a_glimpse_says_otherwise():
    records = {name: [record(item, name) for item in items] for name, items in SEEN.items()}
    records["f0"].append(record(BED, "f0", visibility=0.2, area=0.01))  # not clear, yet visible before the sofa
    seen = view_scene(scene(SOFA, LAMP, BED, frames=FRAMES), FRAMES, records, CONFIG)
    assert ask_scene("appearance order", seen) == []


@pytest.mark.parametrize("number, orders", [(None, 1), (0, 0), (1, 0), (2, 1), (3, 1)])
def test_what_shows_without_a_record_has_no_known_first_picture_and_is_not_counted(number, orders):
    """A second bed stands around the camera of picture `number`; the bed that has records shows clearly in picture 2."""
    second = replace(BED, id=3, center=(9.0, 9.0, 1.0))
    away = np.array([0.0, 0.0, 100.0])  # far above everything, looking up
    frames = []
    for index, name in enumerate(FRAMES):
        pose = np.eye(4)
        pose[:3, 3] = second.center if index == number else away
        frames.append(Frame(name, Camera(np.eye(3), pose, 100, 100), f"{name}.jpg"))
    records = {name: [record(item, name) for item in items] for name, items in SEEN.items()}
    seen = view_scene(Scene("hand", (SOFA, LAMP, BED, second), tuple(frames), ROOM), FRAMES, records, CONFIG)
    assert seen.unrecorded == ({} if number is None else {3: number + 1})
    assert len(ask_scene("appearance order", seen)) == orders
    counted = {q.question for q in ask_scene("object count", seen)}
    assert counted == {"How many lamp(s) are in this room?", "How many sofa(s) are in this room?"}


@pytest.mark.parametrize("seed", range(3))
def test_relative_distance_in_a_scene(seed):
    questions = ask_scene("relative distance", seed=seed)
    got = {re.search(r"closest to the (\w+)\?", q.question).group(1): chosen(q) for q in questions}
    assert got == {"sofa": "bed", "lamp": "sofa", "bed": "sofa"}
    near = replace(LAMP, id=3, center=(-1.0, 1.5, 0.8))  # 0.85 m before the sofa: measure to the closest lamp
    both = view(SOFA, LAMP, BED, near, seen={**SEEN, "f3": [near]})
    close = CONFIG.model_copy(update={"min_distance_gap": 0.2})
    (question,) = [q for q in ask_scene("relative distance", both, seed=seed, config=close)
                   if "closest to the sofa" in q.question]
    assert question.question.endswith("If there are multiple instances of an object category, measure to the closest.")
    assert chosen(question) == "bed" and dict(question.facts.distances)["lamp"] == pytest.approx(0.85)


def test_turning_directions_by_hand():
    truth = {("sofa", "bed", "lamp"): "right", ("sofa", "lamp", "bed"): "left", ("lamp", "sofa", "bed"): "right",
             ("lamp", "bed", "sofa"): "left", ("bed", "sofa", "lamp"): "left", ("bed", "lamp", "sofa"): "right"}
    questions = ask_scene("relative direction")
    counts = Counter()
    for q in questions:
        named = re.match(r"If I am standing by the (\w+) and facing the (\w+), is the (\w+) to", q.question)
        side = truth[named.groups()]
        level = {2: "easy", 3: "medium", 4: "hard"}[len(q.options)]
        counts[level] += 1
        assert chosen(q) == (f"front-{side}" if level == "hard" else side)
    assert counts == {"easy": 6, "medium": 6, "hard": 6}


@pytest.mark.parametrize("angle, easy, medium, hard", [
    (45, "left", "left", "front-left"), (120, "left", "left", "back-left"), (150, "left", "back", "back-left"),
    (-150, "right", "back", "back-right"), (-120, "right", "right", "back-right"),
    (-45, "right", "right", "front-right"),
    (5, None, None, None), (95, "left", "left", None), (130, "left", None, "back-left"), (175, None, "back", None),
    (-175, None, "back", None), (-85, "right", "right", None),
])
def test_sectors_and_their_margins(angle, easy, medium, hard):
    assert tuple(turn_sector(angle, level, 10.0) for level in ("easy", "medium", "hard")) == (easy, medium, hard)


def test_relations():
    assert turn_angle((0, 0), (0, 1), (-1, 0)) == pytest.approx(90)
    assert turn_angle((0, 0), (-1, -0.1), (-1, 0.1)) == pytest.approx(-11.42, abs=0.01)
    assert camera_quadrant(-1, 1, 10) == "left-front" and camera_quadrant(1, -1, 44) == "right-back"
    assert camera_quadrant(1, 0.1, 10) is None and camera_quadrant(0, 1, 0) is None


def test_frames_are_chosen_to_cover_and_stay_in_order():
    names = tuple(f"{i}" for i in range(6))
    shown = {"5": [record(SOFA, "5")], "1": [record(LAMP, "1")], "3": [record(BED, "3")]}
    records = {name: shown.get(name, []) for name in names}
    made = scene(SOFA, LAMP, BED, frames=names)
    assert covering_frames(made, records, 3, CONFIG, rng()) == ("1", "3", "5")
    assert covering_frames(made, records, 9, CONFIG, rng()) == names
    assert video_frames(made, 4, rng()) in [("0", "1", "2", "3"), ("1", "2", "3", "4"), ("2", "3", "4", "5")]
    assert video_frames(scene(SOFA, frames=names[:3]), 8, rng()) == ("0", "2")
    assert video_frames(scene(SOFA, frames=names[:1]), 8, rng()) == ()


def test_letters_are_drawn_uniformly():
    generator = rng(1)
    drawn = Counter(lettered(["left", "right", "back"], "back", generator)[1] for _ in range(3000))
    assert all(abs(drawn[letter] - 1000) < 130 for letter in "ABC")
