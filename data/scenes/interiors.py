"""Rooms as they are lived in: what comes together stands together, small things lie on large ones, walls carry things.

What holds
    * Boxes do not intersect and lie inside the room. What stands on the floor keeps `GAP` from what it does not belong to;
      the door can be opened.
    * Chairs and clutter are turned a little: their boxes are oriented. Furniture at a wall is along it.
    * A room is a function of the generator it is given.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import Callable, Mapping, Sequence

import numpy as np

from data.scenes.furnishings import furnish
from data.scenes.furniture import place
from data.scenes.types import ALIGNED, Backdrop, Light, SceneObject, Texture
from data.scenes.walk import footprint, free_points

#: Metres between things that do not belong together, and between furniture and the wall behind it.
GAP, BEHIND = 0.12, 0.16
#: Sides of the floor, metres; the largest share of it that units may cover.
SIDES, MAX_COVER = (3.0, 6.0), 0.42
_LAYOUTS, _TRIES, _DOORWAY = 60, 50, 0.8


@dataclass(frozen=True)
class Unit:
    """Things that come together, in a frame of their own with the back at +y: those on the floor, and those on them."""

    standing: tuple[SceneObject, ...]
    resting: tuple[SceneObject, ...] = ()
    near_wall: bool = True


@dataclass(frozen=True)
class Plan:
    """A kind of room: the units that make it, further ones with their weights, and what hangs on its walls."""

    first: tuple[str, ...]
    more: Mapping[str, float]
    walls: tuple[str, ...]


@dataclass(frozen=True)
class Interior:
    """`objects` have ids from 0, `standing` of them, the first, on the floor; `points` (P, 2): where a camera may stand;
    `floor` (width, depth) metres."""

    objects: tuple[SceneObject, ...]
    standing: int
    points: np.ndarray
    floor: tuple[float, float]
    backdrop: Backdrop


def make_interior(pieces: tuple[int, int], rng: np.random.Generator) -> Interior:
    """A furnished room. About `pieces` (fewest, most) things stand on its floor: units stay whole, and one that finds no
    place is left out. ValueError when not even the first unit fits the largest floor."""
    plan = PLANS[str(rng.choice(list(PLANS)))]
    units = _units(plan, int(rng.integers(pieces[0], pieces[1] + 1)), rng)
    for attempt in range(_LAYOUTS):
        floor = _floor(units, attempt / (_LAYOUTS - 1), rng)
        door = _hang("door", floor, [], rng)
        standing, resting = _arrange(units, floor, door, rng)
        points = free_points(standing, floor, rng) if standing else None
        if points is not None:
            break
    else:
        raise ValueError(f"{pieces} pieces of furniture leave no place for a camera in the largest room")
    objects = [*standing, *resting, door]
    for label in _wall_labels(plan, rng):
        hung = _hang(label, floor, objects, rng)
        objects += [] if hung is None else [hung]
    objects = tuple(replace(item, id=index) for index, item in enumerate(objects))
    return Interior(objects, len(standing), points, floor, _backdrop(rng))


# Units ------------------------------------------------------------------------------------------------------------


def _single(label: str, near_wall: bool = True, tops: tuple[str, ...] = ()) -> Callable[[np.random.Generator], Unit]:
    def build(rng):
        item = furnish(label, rng)
        resting = _on(item, _some(tops, rng), rng)
        return Unit((item if near_wall else _spun(item, rng.uniform(-0.5, 0.5)),), resting, near_wall)
    return build


def _workplace(rng) -> Unit:
    desk, label = furnish("desk", rng), "office chair" if rng.random() < 0.6 else "chair"
    chair = _before(desk, _spun(place(furnish(label, rng), 0, 0, 2), rng.uniform(-0.6, 0.6)), rng.uniform(0.03, 0.25), rng)
    tops = ("monitor", "keyboard") if rng.random() < 0.7 else ("laptop",)
    return Unit((desk, chair), _on(desk, tops + _some(("telephone", "table lamp", "book", "cup", "vase"), rng), rng))


def _seating(rng) -> Unit:
    sofa, table = furnish("sofa", rng), furnish("coffee table", rng)
    standing = (sofa, _before(sofa, table, rng.uniform(0.3, 0.5), rng))
    seat = sofa.dimensions[2] / 2
    pillows = _on(sofa, ("pillow",) * int(rng.integers(0, 4)), rng, seat, (-0.36, 0.36, -0.45, 0.18))
    return Unit(standing, pillows + _on(standing[1], _some(("book", "cup", "vase", "laptop", "book"), rng), rng))


def _bedside(rng) -> Unit:
    bed = furnish("bed", rng)
    standing, resting = [bed], list(_on(bed, ("pillow",) * int(rng.integers(1, 3)), rng, 0.45 * bed.dimensions[2],
                                        (-0.48, 0.48, 0.2, 0.46)))
    for side in (-1, 1)[: int(rng.integers(1, 3))]:
        stand = furnish("nightstand", rng)
        x = side * ((bed.dimensions[0] + stand.dimensions[0]) / 2 + rng.uniform(0.02, 0.1))
        standing.append(_moved(stand, x, (bed.dimensions[1] - stand.dimensions[1]) / 2))
        resting += _on(standing[-1], _some(("table lamp", "book", "cup", "telephone"), rng), rng)
    return Unit(tuple(standing), tuple(resting))


def _kitchen_line(rng) -> Unit:
    line = [furnish(str(label), rng) for label in rng.permutation(["counter", "oven", "refrigerator"])]
    width, deepest, placed = sum(item.dimensions[0] + 0.02 for item in line), max(item.dimensions[1] for item in line), []
    x = -width / 2
    for item in line:
        placed.append(_moved(item, x + item.dimensions[0] / 2, (deepest - item.dimensions[1]) / 2))
        x += item.dimensions[0] + 0.02
    counter = next(item for item in placed if item.label == "counter")
    return Unit(tuple(placed), _on(counter, _some(("microwave", "cup", "cup", "vase", "towel"), rng), rng))


def _around(label: str, least: int, most: int) -> Callable[[np.random.Generator], Unit]:
    """A table with chairs of one kind at its long sides."""
    def build(rng):
        table, alike, chairs = furnish("table", rng), rng.integers(2**31), []
        each = max(1, int(table.dimensions[0] // 0.7))
        for index in range(min(int(rng.integers(least, most + 1)), 2 * each)):
            near, column = index % 2, index // 2
            chair = _spun(place(furnish(label, np.random.default_rng(alike)), 0, 0, 2 * near), rng.uniform(-0.2, 0.2))
            x = ((column + 0.5) / each - 0.5) * table.dimensions[0]
            y = (table.dimensions[1] + chair.hull[1]) / 2 + rng.uniform(0.02, 0.15)
            chairs.append(_moved(chair, x, -y if near else y))
        return Unit((table, *chairs), _on(table, _some(("cup", "book", "laptop", "vase", "cup"), rng), rng), near_wall=False)
    return build


UNITS: dict[str, Callable[[np.random.Generator], Unit]] = {
    "workplace": _workplace, "seating": _seating, "bedside": _bedside, "kitchen line": _kitchen_line,
    "dining": _around("chair", 2, 4), "conference": _around("office chair", 3, 6),
    "television": _single("tv stand", tops=("tv",)), "printer": _single("cabinet", tops=("printer",)),
    "cabinet": _single("cabinet", tops=("vase", "book", "table lamp", "box")),
    "dresser": _single("dresser", tops=("vase", "towel", "book")),
    "washing machine": _single("washing machine", tops=("towel", "box")),
    **{label: _single(label) for label in ("bookshelf", "wardrobe", "piano", "lamp", "plant", "trash bin")},
    **{label: _single(label, False) for label in ("fan", "armchair", "chair", "stool", "backpack", "box", "suitcase")},
}
PLANS: dict[str, Plan] = {
    "office": Plan(
        ("workplace",),
        {"workplace": 3, "bookshelf": 1, "printer": 1, "cabinet": 1, "plant": 1, "trash bin": 2, "backpack": 1, "box": 1,
         "fan": 0.5, "chair": 1},
        ("whiteboard", "clock", "picture", "radiator")),
    "living room": Plan(
        ("seating", "television"),
        {"armchair": 2, "bookshelf": 1, "plant": 1, "lamp": 2, "cabinet": 1, "dining": 1, "stool": 0.5, "backpack": 0.5,
         "piano": 0.3, "box": 0.5},
        ("picture", "picture", "clock", "mirror", "radiator")),
    "bedroom": Plan(
        ("bedside",),
        {"wardrobe": 2, "dresser": 1, "workplace": 1, "lamp": 1, "chair": 1, "backpack": 1, "suitcase": 1, "box": 0.5,
         "plant": 0.5, "fan": 0.5, "trash bin": 0.5},
        ("picture", "mirror", "clock", "radiator")),
    "kitchen": Plan(
        ("kitchen line", "dining"),
        {"trash bin": 2, "stool": 1, "plant": 1, "cabinet": 1, "washing machine": 1, "box": 0.5},
        ("clock", "picture", "radiator")),
    "meeting room": Plan(
        ("conference",),
        {"cabinet": 1, "plant": 1, "television": 1, "trash bin": 1, "backpack": 1, "chair": 1, "box": 0.5},
        ("whiteboard", "clock", "picture", "radiator")),
}


def _units(plan: Plan, pieces: int, rng) -> list[Unit]:
    """The plan's first unit, then what still fits the number of pieces on the floor."""
    units = [UNITS[plan.first[0]](rng)]
    names, weights = list(plan.more), np.array(list(plan.more.values()))
    drawn = [*plan.first[1:], *(str(name) for name in rng.choice(names, 3 * pieces, p=weights / weights.sum()))]
    for name in drawn:
        unit = UNITS[name](rng)
        if sum(len(one.standing) for one in units) + len(unit.standing) <= pieces:
            units.append(unit)
    return units


def _some(labels: Sequence[str], rng) -> tuple[str, ...]:
    """About 60 percent of the labels."""
    return tuple(label for label in labels if rng.random() < 0.6)


def _before(back: SceneObject, item: SceneObject, gap: float, rng) -> SceneObject:
    """The item in front of another that stands at the origin, `gap` metres away."""
    return _moved(item, rng.uniform(-0.1, 0.1) * back.dimensions[0], -(back.dimensions[1] + item.hull[1]) / 2 - gap)


def _on(support: SceneObject, labels: Sequence[str], rng, top: float | None = None,
        region: tuple[float, float, float, float] = (-0.47, 0.47, -0.47, 0.47)) -> tuple[SceneObject, ...]:
    """Things at free places on an unturned support; `top` metres high (None: its whole height), inside the `region` (x0, x1,
    y0, y1) in shares of its sides; what finds no place is left out."""
    height, (cx, cy) = support.dimensions[2] if top is None else top, support.center[:2]
    low = np.array([region[0] * support.dimensions[0] + cx, region[2] * support.dimensions[1] + cy])
    high = np.array([region[1] * support.dimensions[0] + cx, region[3] * support.dimensions[1] + cy])
    placed: list[SceneObject] = []
    for label in labels:
        item = _spun(furnish(label, rng), 0.0 if label in _STRAIGHT else rng.uniform(-0.35, 0.35))
        half = np.array(item.hull[:2]) / 2
        for _ in range(8 if (low + half < high - half).all() else 0):
            x, y = rng.uniform(low + half, high - half)
            candidate = _moved(item, float(x), float(y), height)
            if not any(_meet(candidate, other, 0.01) for other in placed):
                placed.append(candidate)
                break
    return tuple(placed)


_STRAIGHT = frozenset({"tv", "microwave", "printer", "pillow"})


# Moving -----------------------------------------------------------------------------------------------------------


def _moved(item: SceneObject, x: float, y: float, z: float = 0.0, quarter_turns: int = 0) -> SceneObject:
    """Turned about the origin by quarter turns, then moved; what is along the axes stays so."""
    if item.axes == ALIGNED:
        item = place(item, 0.0, 0.0, quarter_turns, item.id)
    else:
        quarter = np.linalg.matrix_power(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), quarter_turns % 4)
        item = _rotated(item, quarter, np.zeros(3))
    shift = np.array([x, y, z])
    solids = tuple(replace(solid, center=tuple((solid.center + shift).tolist())) for solid in item.solids)
    return replace(item, center=tuple((item.center + shift).tolist()), solids=solids)


def _spun(item: SceneObject, angle: float) -> SceneObject:
    """Turned by `angle`, radians, about the upright through its own middle; its box turns along."""
    if angle == 0:
        return item
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return _rotated(item, rotation, np.array(item.center))


def _rotated(item: SceneObject, rotation: np.ndarray, about: np.ndarray) -> SceneObject:
    def turned(thing):
        center = rotation @ (np.array(thing.center) - about) + about
        axes = np.array(thing.axes) @ rotation.T
        return replace(thing, center=tuple(center.tolist()), axes=tuple(map(tuple, axes.tolist())))
    return replace(turned(item), solids=tuple(turned(solid) for solid in item.solids))


def _meet(a: SceneObject, b: SceneObject, gap: float) -> bool:
    """Whether the hulls come closer than `gap` along every axis."""
    apart = np.abs(np.subtract(a.center, b.center)) - np.add(a.hull, b.hull) / 2
    return bool((apart < gap).all())


# Layout -----------------------------------------------------------------------------------------------------------


def _floor(units: Sequence[Unit], urgency: float, rng) -> tuple[float, float]:
    """Sides of a floor that the units cover sparsely. `urgency` 0..1 pushes towards the largest floor."""
    covered = sum(np.prod(np.ptp(_outline(unit).reshape(2, 2), axis=0) + GAP) for unit in units)
    smallest = SIDES[0] + urgency * (SIDES[1] - SIDES[0])
    for _ in range(_TRIES):
        sides = rng.uniform(smallest, SIDES[1], 2)
        if covered <= MAX_COVER * sides.prod():
            return float(sides[0]), float(sides[1])
    return SIDES[1], SIDES[1]


def _outline(unit: Unit) -> np.ndarray:
    """(x0, y0, x1, y1) around everything that stands, metres."""
    prints = np.stack([footprint(item) for item in unit.standing])
    return np.concatenate([prints[:, :2].min(axis=0), prints[:, 2:].max(axis=0)])


def _arrange(units: Sequence[Unit], floor, door: SceneObject, rng) -> tuple[list[SceneObject], list[SceneObject]]:
    """(standing, resting) of the units that found a place, in the order of the units; nothing when the first found none."""
    standing: list[SceneObject] = []
    resting: list[SceneObject] = []
    taken = [_doorway(door, floor)]
    for unit in units:
        for _ in range(_TRIES):
            move = _somewhere(unit, floor, rng)
            if move is None:
                continue
            moved = [_moved(item, *move) for item in unit.standing]
            if not any(_near(footprint(item), box) for item in moved for box in taken):
                standing += moved
                resting += [_moved(item, *move) for item in unit.resting]
                taken += [footprint(item) for item in moved]
                break
        if not standing:
            break
    return standing, resting


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a[:2] - GAP < b[2:]).all() and (b[:2] - GAP < a[2:]).all())


def _doorway(door: SceneObject, floor) -> np.ndarray:
    """The floor that must stay free in front of the door."""
    box = footprint(door)
    axis = 0 if door.hull[0] < door.hull[1] else 1
    if door.center[axis] > floor[axis] / 2:
        box[axis] -= _DOORWAY
    else:
        box[axis + 2] += _DOORWAY
    return box


def _somewhere(unit: Unit, floor, rng) -> tuple[float, float, float, int] | None:
    """A random move, its back to a wall if it belongs there; None where the floor is too small."""
    turns = int(rng.integers(4))
    quarter = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns)
    corner = np.stack([quarter @ point for point in _outline(unit).reshape(2, 2)])
    margin = BEHIND if unit.near_wall else 0.3
    low, high = margin - corner.min(axis=0), np.array(floor) - margin - corner.max(axis=0)
    if (low > high).any():
        return None
    x, y = rng.uniform(low, high)
    if unit.near_wall:  # a quarter turn takes +y to -x, then -y, then +x
        x, y = ((x, high[1]), (low[0], y), (x, low[1]), (high[0], y))[turns]
    return float(x), float(y), 0.0, turns


_HEIGHTS = {"door": (0.0, 0.0), "window": (0.8, 1.0), "radiator": (0.1, 0.15), "clock": (1.7, 2.0), "picture": (1.2, 1.5),
            "mirror": (0.7, 0.9), "whiteboard": (0.8, 1.0)}


def _wall_labels(plan: Plan, rng) -> list[str]:
    return ["window"] * int(rng.integers(0, 3)) + [label for label in plan.walls if rng.random() < 0.6]


def _hang(label: str, floor, objects: Sequence[SceneObject], rng) -> SceneObject | None:
    """A thing on a free place of some wall, its back at it; None when none was found. An empty room has one for a door."""
    item = furnish(label, rng)
    width, depth, _ = item.dimensions
    for _ in range(_TRIES):
        turns, height = int(rng.integers(4)), float(rng.uniform(*_HEIGHTS[label]))
        along = float(rng.uniform(width / 2 + 0.1, floor[turns % 2] - width / 2 - 0.1))
        off = depth / 2 + 0.005
        x, y = ((along, floor[1] - off), (off, along), (along, off), (floor[0] - off, along))[turns]
        hung = _moved(_moved(item, 0.0, 0.0, 0.0, turns), x, y, height)
        if not any(_meet(hung, other, 0.02) for other in objects):
            return hung
    return None


def _backdrop(rng) -> Backdrop:
    """Painted or papered walls, a floor of wood, tiles or carpet, and the light of some time of day."""
    wall = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.22), rng.uniform(0.68, 0.95))
    kind = str(rng.choice(["planks", "tiles", "noise"]))
    tint = {"planks": (rng.uniform(0.05, 0.1), rng.uniform(0.25, 0.55), rng.uniform(0.35, 0.75)),
            "tiles": (rng.random(), rng.uniform(0, 0.12), rng.uniform(0.55, 0.9)),
            "noise": (rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.65))}[kind]
    size = {"planks": rng.uniform(0.1, 0.2), "tiles": rng.uniform(0.25, 0.6), "noise": rng.uniform(0.03, 0.08)}[kind]
    floor = Texture(kind, float(size), float(rng.uniform(0.15, 0.35)))
    stripes, patches = rng.uniform(0.12, 0.4), rng.uniform(0.1, 0.3)
    papers = (None, Texture("stripes", float(stripes), 0.08), Texture("noise", float(patches), 0.07))
    paper = papers[rng.choice(3, p=(0.6, 0.2, 0.2))]
    angle, warmth = rng.uniform(0, 2 * np.pi), rng.uniform(-0.06, 0.06)
    gain = rng.uniform(0.72, 1.08) * np.array([1 + warmth, 1.0, 1 - warmth])
    light = Light((float(np.cos(angle)), float(np.sin(angle)), float(rng.uniform(0.5, 2.0))), float(rng.uniform(0.35, 0.65)),
                  tuple(gain.tolist()))
    return Backdrop(wall, colorsys.hsv_to_rgb(*tint), (0.95, 0.95, 0.94), paper, floor, light)
