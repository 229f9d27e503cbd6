"""Generic procedural pictures: pieces of furniture on any backdrop, with what there is to say about them.

They play the part of the web pictures a large model was pretrained on: names, colours, pointing, near and far. None of
the ladder's prompts, tags, keys or rooms appear here.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data.facts import centimetres
from data.records import frame_records
from data.scenes.furniture import CATEGORIES, build, place
from data.scenes.render import Backdrop, render
from data.scenes.types import Camera, Frame, Scene, SceneObject

#: Colour names and their linear RGB.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12), "orange": (0.95, 0.5, 0.08), "yellow": (0.95, 0.85, 0.15), "green": (0.15, 0.65, 0.2),
    "cyan": (0.15, 0.75, 0.8), "blue": (0.15, 0.3, 0.9), "purple": (0.5, 0.2, 0.75), "pink": (0.95, 0.5, 0.75),
    "brown": (0.45, 0.28, 0.15), "white": (0.95, 0.95, 0.95), "grey": (0.5, 0.5, 0.5), "black": (0.1, 0.1, 0.1),
}
#: What the typical colour of a category is called.
TYPICAL = {"chair": "orange", "table": "brown", "sofa": "blue", "bed": "red", "lamp": "yellow", "cabinet": "cyan",
           "shelf": "purple", "fridge": "white", "plant": "green", "bin": "grey", "stool": "pink", "tv": "black"}


@dataclass(frozen=True)
class Setting:
    """How a picture is composed: numbers of pieces, drawn uniformly; where they stand, x to either side and y from 0 away
    from the camera, metres; ranges of the eye's x, y and z, of the point it looks at, and of the angle of view, degrees."""

    pieces: tuple[int, ...]
    spread: tuple[float, float]
    eye: tuple[tuple[float, float], ...]
    target: tuple[tuple[float, float], ...]
    degrees: tuple[float, float]


#: A few things in the middle, which teach where a thing is before the model can tell things apart; and many, anywhere,
#: hiding one another and cut by the border.
SETTINGS = (
    Setting((1, 1, 1, 2, 2, 3, 4, 5, 6), (1.5, 2.6), ((-0.9, 0.9), (-2.3, -1.0), (1.1, 2.0)), ((-0.5, 0.5), (1.0, 2.0), (0.3, 0.9)),
            (55, 72)),
    Setting((3, 4, 5, 6, 7, 8), (2.4, 4.2), ((-1.5, 1.5), (-1.4, -0.5), (1.2, 1.9)), ((-1.6, 1.6), (1.0, 3.0), (0.2, 1.1)), (65, 75)),
)


#: Cells per side of the coarse map of a picture: the visual tokens of a 112 x 112 picture.
CELLS = 4
_CELL_COVER = 0.1
#: Least share of the picture that a thing's visible pixels must cover, and least share of the thing that must show, for it
#: to be spoken of.
_SMALLEST, _LEAST_VISIBLE = 0.008, 0.3


@dataclass(frozen=True)
class Thing:
    """One visible thing: box (x1, y1, x2, y2) of its pixels inside the picture, hidden ones too, in pixels of the picture;
    distance of the nearest visible point along the view axis, metres; full sizes along x, y and z, metres."""

    label: str
    color: str
    box: tuple[int, int, int, int]
    distance: float
    size: tuple[float, float, float]


@dataclass(frozen=True)
class Picture:
    """rgb (side, side, 3) uint8, its things, and `cells` (CELLS, CELLS): the thing that covers most of each cell of a
    grid over the picture, as an index into `things`, -1 where nothing covers a tenth of it."""

    rgb: np.ndarray
    things: tuple[Thing, ...]
    cells: np.ndarray


def look_at(eye, target, side: int, degrees: float) -> Camera:
    """A square camera at `eye` looking at `target`, `degrees` of view in each direction, upright."""
    forward = np.subtract(target, eye).astype(float)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    focal = side / 2 / np.tan(np.radians(degrees / 2))
    return Camera(np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1.0]]), pose, side, side)


def _backdrop(rng: np.random.Generator) -> tuple[Backdrop, tuple | None]:
    tint = lambda low, high: colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.35), rng.uniform(low, high))
    room = None
    if rng.random() < 0.6:
        x, y = rng.uniform(2.2, 3.6), rng.uniform(4.5, 7.0)
        room = ((-x, -3.5, 0.0), (x, y, rng.uniform(2.3, 3.0)))
    return Backdrop(tint(0.6, 1.0), tint(0.35, 0.8), tint(0.8, 1.0)), room


def _furnish(setting: Setting, rng: np.random.Generator) -> tuple[list[SceneObject], list[str]]:
    """Pieces that do not touch, ids in order, and the names of their colours."""
    labels, objects, names = list(CATEGORIES), [], []
    (aside, away), count = setting.spread, int(rng.choice(setting.pieces))
    for index in range(count):
        label = labels[rng.integers(len(labels))]
        name = TYPICAL[label] if rng.random() < 0.8 else list(PALETTE)[rng.integers(len(PALETTE))]
        color = None if name == TYPICAL[label] else tuple(np.clip(np.add(PALETTE[name], rng.uniform(-0.05, 0.05, 3)), 0, 1))
        item = build(label, rng, color)
        for _ in range(20):
            placed = place(item, rng.uniform(-aside, aside), rng.uniform(0.0, away), int(rng.integers(4)), index)
            if all(max(abs(np.subtract(placed.center, other.center))[:2] - np.add(placed.dimensions, other.dimensions)[:2] / 2) > 0.05
                   for other in objects):
                objects.append(replace(placed, id=len(objects)))
                names.append(name)
                break
    return objects, names


def make_picture(rng: np.random.Generator, side: int, render_side: int) -> Picture:
    """Draw one picture at `render_side` and shrink it to `side`; boxes are in the small picture."""
    backdrop, room = _backdrop(rng)
    setting = SETTINGS[rng.integers(len(SETTINGS))]
    objects, names = _furnish(setting, rng)
    eye, target = ([rng.uniform(*axis) for axis in point] for point in (setting.eye, setting.target))
    camera = look_at(eye, target, render_side, rng.uniform(*setting.degrees))
    drawn = render(objects, camera, room, backdrop)
    small = np.asarray(Image.fromarray(drawn.rgb).resize((side, side), Image.Resampling.BICUBIC))
    records = {record.object_id: record for record in frame_records(Scene("picture", tuple(objects), (), room), Frame("000", camera))}
    things, masks = [], []
    for item, name in zip(objects, names):
        mask, record = drawn.instance == item.id, records.get(item.id)
        if record is None or mask.sum() < render_side**2 * _SMALLEST or record.visibility < _LEAST_VISIBLE:
            continue
        box = tuple(int(round(float(value) * side / render_side)) for value in record.box2d)
        things.append(Thing(item.label, name, box, float(drawn.depth[mask].min()), item.dimensions))
        masks.append(mask)
    return Picture(small, tuple(things), _cells(masks, render_side))


def _cells(masks: list[np.ndarray], side: int) -> np.ndarray:
    if not masks:
        return np.full((CELLS, CELLS), -1)
    cell = side // CELLS
    cover = np.stack(masks)[:, :cell * CELLS, :cell * CELLS].reshape(len(masks), CELLS, cell, CELLS, cell).mean((2, 4))
    return np.where(cover.max(0) >= _CELL_COVER, cover.argmax(0), -1)


def mirrored(picture: Picture) -> Picture:
    """The picture, its boxes and its cells, left and right exchanged."""
    side = picture.rgb.shape[1]
    things = tuple(replace(t, box=(side - t.box[2], t.box[1], side - t.box[0], t.box[3])) for t in picture.things)
    return Picture(np.ascontiguousarray(picture.rgb[:, ::-1]), things, np.ascontiguousarray(picture.cells[:, ::-1]))


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and the things that the question names, in its order."""

    question: str
    answer: str
    named: tuple[Thing, ...] = ()


#: How often each kind of question is asked, of a model that learns to find what is meant, and to say it in several ways.
#: Where a picture has too few things of a name of their own for a kind, its description is asked for, or a number of things.
FIND = {"trace": 0.5, "frames": 0.2, "point": 0.08, "colour": 0.08, "nearer": 0.05, "left": 0.05, "distance": 0.04}
SPEAK = {"trace": 0.1, "frames": 0.15, "edges": 0.2, "edges of two": 0.15, "json point": 0.1, "json names": 0.04,
         "caption": 0.04, "colour": 0.03, "count": 0.04, "nearer": 0.03, "left": 0.03, "distance": 0.03, "size": 0.03, "relation": 0.03}
_NEEDS_TWO = ("nearer", "left", "edges of two", "relation")


def conversation(picture: Picture, rng: np.random.Generator, turns: int, kinds: Mapping[str, float] = FIND) -> list[Turn]:
    """`turns` questions and answers about the picture; things are named only where the name is unique in it."""
    things = sorted(picture.things, key=lambda thing: thing.box[0] + thing.box[2])
    labels = [thing.label for thing in things]
    unique = [thing for thing in things if labels.count(thing.label) == 1]
    return [_turn(things, unique, labels, rng, kinds) for _ in range(turns)]


def _turn(things, unique, labels, rng, kinds) -> Turn:
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    if not unique or (kind in _NEEDS_TWO and len(unique) < 2):
        kind = "caption" if things else "count"
    if kind == "caption":
        return Turn("Describe the picture.", (", ".join(_article(thing) for thing in things) or "nothing") + ".")
    if kind == "count":
        among = list(CATEGORIES) if rng.random() < 0.4 or not labels else labels
        label = among[rng.integers(len(among))]
        return Turn(f"How many {label} things are there?", str(labels.count(label)))
    if kind == "json names":
        return Turn("Name the things as JSON.", json.dumps({"things": labels}, separators=(",", ":")))
    asked = [unique[i] for i in rng.permutation(len(unique))]
    if kind == "frames":
        asked = asked[:rng.integers(1, 4)]
        answer = "; ".join(f"{','.join(map(str, thing.box))} {thing.label}" for thing in asked)
        return Turn(f"Frame {', '.join(f'the {thing.label}' for thing in asked)}.", answer, tuple(asked))
    if kind in _NEEDS_TWO:
        return Turn(*_about_two(kind, *asked[:2]), tuple(asked[:2]))
    return Turn(*_about_one(kind, asked[0]), (asked[0],))


def _about_one(kind: str, thing: Thing) -> tuple[str, str]:
    x1, y1, x2, y2 = thing.box
    if kind == "trace":
        return f"Trace the {thing.label}.", f"left {x1} top {y1} right {x2} bottom {y2}"
    if kind == "edges":
        return f"Where are the edges of the {thing.label}?", f"{x1},{y1},{x2},{y2}"
    if kind == "point":
        return f"Point at the {thing.label}.", f"x {(x1 + x2) // 2} y {(y1 + y2) // 2}"
    if kind == "json point":
        return f"Point at the {thing.label} as JSON.", f'{{"point":[{(x1 + x2) // 2},{(y1 + y2) // 2}],"of":"{thing.label}"}}'
    if kind == "colour":
        return f"What colour is the {thing.label}?", thing.color
    if kind == "size":
        wide, deep, high = map(centimetres, thing.size)
        return f"How big is the {thing.label}?", f"The {thing.label} is {wide} cm wide, {deep} cm deep and {high} cm high."
    return f"How far is the {thing.label}?", f"{thing.distance:.1f}"


def _about_two(kind: str, first: Thing, second: Thing) -> tuple[str, str]:
    if kind == "nearer":
        return f"Which is nearer, the {first.label} or the {second.label}?", min(first, second, key=lambda t: t.distance).label
    if kind == "left":
        return (f"Which is farther left, the {first.label} or the {second.label}?",
                min(first, second, key=lambda t: t.box[0] + t.box[2]).label)
    if kind == "edges of two":
        answer = "; ".join(f"{thing.label} {','.join(map(str, thing.box))}" for thing in (first, second))
        return f"Where are the edges of the {first.label} and the {second.label}?", answer
    side = "left" if first.box[0] + first.box[2] < second.box[0] + second.box[2] else "right"
    depth = "nearer" if first.distance < second.distance else "farther"
    return (f"Where is the {first.label} from the {second.label}?",
            f"From the {second.label}, the {first.label} is {side} and {depth}.")


def _article(thing: Thing) -> str:
    return f"{'an' if thing.color == 'orange' else 'a'} {thing.color} {thing.label}"
