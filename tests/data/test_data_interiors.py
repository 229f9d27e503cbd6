"""Rich rooms: furnishings fill their boxes, what belongs together is together, and nothing stands in anything else."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from configs.data_schema import RoomsConfig
from data.records import frame_records
from data.scenes.furnishings import KINDS, furnish, solids_of
from data.scenes.interiors import GAP, PLANS, UNITS, make_interior
from data.scenes.rooms import backdrop, frame_picture, make_room
from data.scenes.types import ALIGNED
from data.scenes.walk import CLEARANCE

CONFIG = RoomsConfig(style="rich", objects=(4, 10))


@pytest.fixture(scope="module")
def rooms():
    return [make_room(f"room{i:05d}", CONFIG, np.random.default_rng([5, i])) for i in range(25)]


def hull(item):
    half = np.array(item.hull) / 2
    return np.array(item.center) - half, np.array(item.center) + half


def test_solids_fill_the_box_of_every_category():
    rng = np.random.default_rng(0)
    for label, kind in KINDS.items():
        item = furnish(label, rng)
        assert (np.array(item.dimensions) >= np.array(kind.low) - 1e-9).all() or kind.round
        assert (np.array(item.dimensions) <= np.array(kind.high) + 1e-9).all() or kind.round
        for sizes, solids in ((item.dimensions, item.solids), ((2, 3, 5), solids_of(label, (2, 3, 5), rng))):
            low = np.min([np.subtract(s.center, s.half) for s in solids], axis=0)
            high = np.max([np.add(s.center, s.half) for s in solids], axis=0)
            w, d, h = sizes
            np.testing.assert_allclose([low, high], [[-w / 2, -d / 2, 0], [w / 2, d / 2, h]])
            assert all(min(s.half) > 0 and 0 <= min(s.color) <= max(s.color) <= 1 for s in solids), label
    (plain,) = solids_of("guitar", (1, 2, 3), rng)
    assert plain.kind == "box" and plain.half == (0.5, 1, 1.5)


def intersect(a, b):
    """Whether two oriented boxes intersect, by the separating axis theorem."""
    ra, rb = np.array(a.axes), np.array(b.axes)
    offset = np.subtract(b.center, a.center)
    axes = [*ra, *rb, *(np.cross(x, y) for x in ra for y in rb)]
    for axis in axes:
        if np.linalg.norm(axis) < 1e-9:
            continue
        reach = np.abs(ra @ axis) @ a.dimensions / 2 + np.abs(rb @ axis) @ b.dimensions / 2
        if abs(offset @ axis) >= reach - 1e-9:
            return False
    return True


def lies_inside(item, other):
    """A pillow on a sofa lies in the sofa's box, not in the sofa."""
    return (item.label, other.label) in {("pillow", "sofa"), ("pillow", "bed")}


def test_boxes_are_inside_the_room_and_apart(rooms):
    for scene in rooms:
        for index, item in enumerate(scene.objects):
            assert item.id == index
            low, high = hull(item)
            assert (low > -1e-9).all() and (high < np.array(scene.room[1]) + 1e-9).all()
            for other in scene.objects[:index]:
                among = lies_inside(item, other) or lies_inside(other, item)
                assert among or not intersect(item, other), (item.label, other.label)


def test_some_boxes_are_turned_and_their_solids_with_them(rooms):
    turned = [item for scene in rooms for item in scene.objects if item.axes != ALIGNED]
    assert len(turned) > 60 and {"chair", "office chair", "book", "cup"} <= {item.label for item in turned}
    for item in turned:
        axes = np.array(item.axes)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
        assert axes[2] == pytest.approx([0, 0, 1]) and np.linalg.det(axes) == pytest.approx(1)
        points = np.concatenate([np.array(s.center) + np.array([x, y, z]) * s.half @ np.array(s.axes)
                                 for s in item.solids for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).reshape(-1, 3)
        local = (points - item.center) @ axes.T
        np.testing.assert_allclose([local.min(0), local.max(0)], np.array([[-1], [1]]) * item.dimensions / 2, atol=1e-9)


def test_what_comes_together_is_together(rooms):
    chairs = screens = pillows = 0
    for scene in rooms:
        by_label = {}
        for item in scene.objects:
            by_label.setdefault(item.label, []).append(item)
        for desk in by_label.get("desk", []):
            seats = by_label.get("chair", []) + by_label.get("office chair", [])
            assert min(np.linalg.norm(np.subtract(desk.center, seat.center)[:2]) for seat in seats) < 1.5
            chairs += 1
        for small, large in (("monitor", "desk"), ("tv", "tv stand"), ("printer", "cabinet")):
            for item in by_label.get(small, []):
                bottom = item.center[2] - item.dimensions[2] / 2
                below = [o for o in by_label[large] if abs(hull(o)[1][2] - bottom) < 1e-9
                         and (hull(o)[0][:2] < item.center[:2]).all() and (item.center[:2] < hull(o)[1][:2]).all()]
                assert len(below) == 1
                screens += 1
        for pillow in by_label.get("pillow", []):
            assert any((hull(o)[0] < pillow.center).all() and (pillow.center < hull(o)[1]).all()
                       for o in by_label.get("sofa", []) + by_label.get("bed", []))
            pillows += 1
        (door,) = by_label["door"]
        assert door.center[2] == pytest.approx(door.dimensions[2] / 2)
    assert min(chairs, screens, pillows) >= 5


def test_the_number_of_pieces_on_the_floor():
    for seed in range(15):
        inside = make_interior((3, 6), np.random.default_rng(seed))
        bottoms = [item.center[2] - item.dimensions[2] / 2 for item in inside.objects[: inside.standing]]
        assert bottoms == pytest.approx([0] * inside.standing)
        first = inside.objects[0].label
        assert 1 <= inside.standing <= 6 or first in ("bed", "counter", "oven", "refrigerator", "table")


def test_cameras_keep_clear_and_see_things(rooms):
    seen = 0
    for scene in rooms:
        standing = [item for item in scene.objects if hull(item)[0][2] < 1e-9]
        for frame in scene.frames:
            position = frame.camera.camera_to_world[:3, 3]
            for item in standing:
                low, high = hull(item)
                if item.label != "door":
                    assert np.linalg.norm(np.maximum(np.maximum(low - position, position - high)[:2], 0)) > CLEARANCE
    for scene in rooms[:5]:
        found = {r.object_id for f in scene.frames[::2] for r in frame_records(scene, f) if r.visibility > 0.5}
        seen += len(found) / len(scene.objects)
    assert seen / 5 > 0.75


def test_rooms_differ_in_kind_look_and_light(rooms):
    looks = {scene.backdrop for scene in rooms}
    assert len(looks) == len(rooms) and {b.floor_texture.kind for b in looks} == {"planks", "tiles", "noise"}
    assert np.ptp([b.light.ambient for b in looks]) > 0.15 and np.ptp([b.light.gain for b in looks], axis=0).min() > 0.15
    labels = Counter(item.label for scene in rooms for item in scene.objects)
    assert len(labels) > 30 and set(labels) <= set(KINDS)
    scene = rooms[0]
    drawn = frame_picture(scene, scene.frames[0])
    plain = frame_picture(replace(scene, backdrop=backdrop(scene)), scene.frames[0])
    np.testing.assert_array_equal(drawn.instance, plain.instance)
    assert (drawn.rgb != plain.rgb).any()


def test_every_unit_and_plan_can_be_built():
    assert {name for plan in PLANS.values() for name in (*plan.first, *plan.more)} == set(UNITS)
    for name, build in UNITS.items():
        for seed in range(4):
            unit = build(np.random.default_rng(seed))
            items = (*unit.standing, *unit.resting)
            assert unit.standing and len(items) < 20
            for index, item in enumerate(items):
                for other in items[:index]:
                    assert lies_inside(item, other) or not intersect(item, other), (name, seed, item.label, other.label)
    assert GAP > 0


def test_a_rich_room_is_a_function_of_its_generator():
    named = (("a", 1), ("b", 1), ("a", 2))
    first, again, other = (make_room(name, CONFIG, np.random.default_rng(seed)) for name, seed in named)
    assert first.objects == again.objects and first.backdrop == again.backdrop and first.objects != other.objects


def test_more_than_a_floor_holds():
    crowded = make_room("a", RoomsConfig(style="rich", objects=(40, 40)), np.random.default_rng(0))
    assert len(crowded.objects) < 60  # what finds no place is left out
    with pytest.raises(ValueError, match="fewest <= most"):
        make_room("a", RoomsConfig(style="rich", objects=(5, 3)), np.random.default_rng(0))


def test_the_separating_axis_test_by_hand():
    a = furnish("box", np.random.default_rng(0))
    a = replace(a, center=(0, 0, 0), dimensions=(2, 2, 2))
    turned = replace(a, axes=tuple(map(tuple, Rotation.from_euler("z", 45, degrees=True).as_matrix().T.tolist())))
    reach = 1 + np.sqrt(2)
    for offset, met in ((-0.01, True), (0.01, False)):
        assert intersect(a, replace(turned, center=(reach + offset, 0, 0))) is met
