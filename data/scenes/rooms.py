"""Procedural rooms: furniture on a floor and a walk that looks at it.

What holds
    * A room is a function of the generator it is given, and of nothing else.
    * Plain rooms (`style`): boxes lie along the axes, inside the room, and keep `GAP` from each other. Rich ones are as in
      `data.scenes.interiors`. Cameras as in `data.scenes.walk`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from configs.data_schema import RoomsConfig
from data.scenes.furniture import CATEGORIES, build, place
from data.scenes.interiors import make_interior
from data.scenes.render import Backdrop, Rendering, render
from data.scenes.types import Frame, Scene, SceneError, SceneObject
from data.scenes.walk import footprint, free_points, walk
from data.types import SPLITS

#: Metres between the boxes of two pieces, seen from above.
GAP = 0.2
#: Sides of the floor, metres, and the largest share of it that furniture may cover.
SIDES = (3.0, 6.0)
MAX_COVER = 0.36
_NEAR_WALL = frozenset({"sofa", "bed", "cabinet", "shelf", "fridge", "tv"})
_REPEATABLE = ("chair", "stool", "lamp", "plant", "bin", "cabinet", "shelf")
_LAYOUTS, _TRIES = 60, 40


@dataclass(frozen=True)
class Rooms:
    """Rooms of both splits, called train00000, ... and heldout00000, ...: each a function of (seed, split, number)."""

    config: RoomsConfig
    seed: int

    def scene_ids(self) -> list[str]:
        """Training rooms, then held-out ones."""
        return [room_name(split, number) for split, count in self._counts().items() for number in range(count)]

    def load(self, scene_id: str) -> Scene:
        """SceneError where the furniture does not fit; KeyError for a name that is not listed."""
        return self.draw(scene_id)[0]

    def draw(self, scene_id: str) -> tuple[Scene, np.random.Generator]:
        """The room, and its generator as the room left it: questions are drawn on from there. Raises as `load`."""
        split = scene_id.rstrip("0123456789")
        number = int(scene_id.removeprefix(split) or -1)
        if not 0 <= number < self._counts().get(split, 0) or scene_id != room_name(split, number):
            raise KeyError(scene_id)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        try:
            return make_room(scene_id, self.config, rng), rng
        except ValueError as error:
            raise SceneError(scene_id, "configuration", "data.rooms.objects", str(error), "Ask for less") from error

    def _counts(self) -> dict[str, int]:
        return dict(zip(SPLITS, (self.config.train_rooms, self.config.heldout_rooms)))


def room_name(split: str, number: int) -> str:
    """The name of a split's room, counted from 0."""
    return f"{split}{number:05d}"


def make_room(room_id: str, config: RoomsConfig, rng: np.random.Generator) -> Scene:
    """A furnished room with `config.frames_per_room` cameras in walking order, frames named `000`, `001`, ...

    Object ids count from 0. Reads `image_size`, `objects` and `frames_per_room`. ValueError when the number of
    pieces drawn from `config.objects` does not fit the largest room.
    """
    low, high = config.objects
    if not 1 <= low <= high:
        raise ValueError(f"data.rooms.objects must be (fewest, most) with 1 <= fewest <= most, got {config.objects}")
    if config.style == "rich":
        return _rich_room(room_id, config, rng)
    labels = _labels(int(rng.integers(low, high + 1)), rng)
    for attempt in range(_LAYOUTS):
        pieces = [build(label, rng) for label in labels]
        floor = _floor(pieces, attempt / (_LAYOUTS - 1), rng)
        objects = None if floor is None else _furnish(pieces, floor, rng)
        points = None if objects is None else free_points(objects, floor, rng)
        if points is not None:
            break
    else:
        raise ValueError(f"room {room_id}: {len(labels)} pieces of furniture do not fit a floor of {SIDES[1]:g} x "
                         f"{SIDES[1]:g} m together with a camera; lower data.rooms.objects (now {config.objects})")
    room = ((0.0, 0.0, 0.0), (*floor, float(rng.uniform(2.5, 2.7))))
    return Scene(room_id, tuple(objects), walk(objects, points, config.frames_per_room, config.image_size, rng), room)


def _rich_room(room_id: str, config: RoomsConfig, rng: np.random.Generator) -> Scene:
    inside = make_interior(config.objects, rng)
    room = ((0.0, 0.0, 0.0), (*inside.floor, float(rng.uniform(2.5, 2.8))))
    frames = walk(inside.objects[: inside.standing], inside.points, config.frames_per_room, config.image_size, rng)
    return Scene(room_id, inside.objects, frames, room, backdrop=inside.backdrop)


def backdrop(scene: Scene) -> Backdrop:
    """Paler or warmer walls and a darker or lighter floor: a function of the scene's id."""
    rng = np.random.default_rng(zlib.crc32(scene.id.encode()))
    wall = rng.uniform(0.74, 0.90) + rng.uniform(-0.04, 0.04, 3)
    floor = rng.uniform(0.42, 0.66) * np.array([1.0, 0.88, 0.76]) + rng.uniform(-0.03, 0.03, 3)
    return Backdrop(wall=tuple(map(float, wall)), floor=tuple(map(float, floor)))


def frame_picture(scene: Scene, frame: Frame) -> Rendering:
    """The picture, depth and instance map of one frame that has no image, of a scene from any source."""
    return render(scene.objects, frame.camera, scene.room, scene.backdrop or backdrop(scene))


# Layout -----------------------------------------------------------------------------------------------------------


def _labels(count: int, rng: np.random.Generator) -> list[str]:
    """`count` categories: often two or three instances of one, sometimes a second pair, the rest all different."""
    repeats = list(rng.permutation(_REPEATABLE))
    labels: list[str] = []
    if count >= 3 and rng.random() < 0.7:
        labels += [repeats[0]] * min(int(rng.integers(2, 4)), count - 1)
    if count - len(labels) >= 4 and labels and rng.random() < 0.35:
        labels += [repeats[1]] * 2
    rest = [label for label in rng.permutation(list(CATEGORIES)) if label not in labels]
    while len(labels) < count:
        labels += rest[: count - len(labels)]
        rest = list(rng.permutation(list(CATEGORIES)))
    return [str(label) for label in labels]


def _floor(pieces: list[SceneObject], urgency: float, rng: np.random.Generator) -> tuple[float, float] | None:
    """Sides of a floor that the pieces cover sparsely. `urgency` 0..1 pushes towards the largest floor."""
    covered = sum((p.dimensions[0] + GAP) * (p.dimensions[1] + GAP) for p in pieces)
    smallest = SIDES[0] + urgency * (SIDES[1] - SIDES[0])
    for _ in range(_TRIES):
        sides = rng.uniform(smallest, SIDES[1], 2)
        if covered <= MAX_COVER * sides.prod():
            return float(sides[0]), float(sides[1])
    return None


def _furnish(pieces: list[SceneObject], floor: tuple[float, float],
             rng: np.random.Generator) -> list[SceneObject] | None:
    """The pieces placed without overlap, large ones first, ids in order of the list; None when one found no place."""
    placed: dict[int, SceneObject] = {}
    boxes = np.zeros((0, 4))
    for index in sorted(range(len(pieces)), key=lambda i: -pieces[i].dimensions[0] * pieces[i].dimensions[1]):
        near_wall = rng.random() < (0.9 if pieces[index].label in _NEAR_WALL else 0.3)
        for _ in range(_TRIES):
            item = _candidate(pieces[index], index, near_wall, floor, rng)
            box = None if item is None else footprint(item)
            if box is not None and not _overlaps(box, boxes, GAP).any():
                placed[index] = item
                boxes = np.concatenate([boxes, box[None]])
                break
        else:
            return None
    return [placed[index] for index in range(len(pieces))]


def _candidate(piece: SceneObject, index: int, near_wall: bool, floor: tuple[float, float],
               rng: np.random.Generator) -> SceneObject | None:
    """One random place, its back (the piece's +y side) to a wall if `near_wall`; None where the floor is too small."""
    turns = int(rng.integers(4))
    width, depth = piece.dimensions[:2] if turns % 2 == 0 else piece.dimensions[1::-1]
    margin = 0.03 if near_wall else 0.2
    low = np.array([width / 2 + margin, depth / 2 + margin])
    high = np.array(floor) - low
    if (low > high).any():
        return None
    x, y = rng.uniform(low, high)
    if near_wall:  # a quarter turn takes +y to -x, then -y, then +x
        x, y = ((x, high[1]), (low[0], y), (x, low[1]), (high[0], y))[turns]
    return place(piece, float(x), float(y), turns, index)


def _overlaps(box: np.ndarray, boxes: np.ndarray, gap: float) -> np.ndarray:
    """Which of `boxes` (N, 4) come closer to `box` than `gap` along both axes."""
    return ((box[:2] - gap < boxes[:, 2:]) & (boxes[:, :2] < box[2:] + gap)).all(axis=1)
