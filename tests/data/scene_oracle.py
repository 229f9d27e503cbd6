"""Answers a question from its words and the scene alone, by other means than the generator's; refuses what is ambiguous.

Distances are bounded least squares, turns are quotients of complex numbers, what a picture shows is counted in the
instance map of the whole scene. `Ambiguous` is raised when a name fits several things or two answers lie within tolerance.
"""

import re
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.optimize import lsq_linear

from data.scenes.render import render


class Ambiguous(ValueError):
    """Two answers are possible."""


@dataclass(frozen=True)
class Tolerance:
    """Metres between two distances, degrees to a border, metres of a centre, and metres of the smallest distance."""

    gap: float = 0.3
    degrees: float = 10.0
    center: float = 0.05
    distance: float = 0.1


NONE = Tolerance(0.0, 0.0, 0.0, 0.0)


def answer(scene, question, tolerance=Tolerance()):
    """The text of the right option, or the number as written."""
    ask = {"object size": _size, "absolute distance": _distance, "relative distance": _nearest, "object count": _count,
           "room size": _room, "appearance order": _order,
           "relative direction": _quadrant if question.data_type == "single_image" else _turn}
    return ask[question.question_type](scene, question, tolerance)


def mentioned(scene, question):
    """Ids of the things that a question about directions or distances names."""
    labels = sorted({o.label for o in scene.objects}, key=len, reverse=True)
    found = set(re.findall("|".join(rf"\b{re.escape(label)}\b" for label in labels), question.question))
    return [o.id for o in scene.objects if o.label in found]


# Names ------------------------------------------------------------------------------------------------------------


def fits(label, other):
    a, b = label.lower().split(), other.lower().split()
    return all(word in b for word in a) or all(word in a for word in b)


def _single(scene, question, label):
    things = [o for o in scene.objects if fits(label, o.label)]
    if question.data_type == "single_image" and len(things) > 1:
        frame = next(f for f in scene.frames if f.name == question.frames[0])
        shown = _shown(scene, frame)
        things = [o for o in things if o.id in shown]
    if len(things) != 1:
        raise Ambiguous(f"{label!r} fits {len(things)} things")
    return things[0]


def _category(scene, label):
    if {o.label for o in scene.objects if fits(label, o.label)} != {label}:
        raise Ambiguous(f"{label!r} is not the only such category")
    return [o for o in scene.objects if o.label == label]


def _shown(scene, frame):
    """Ids of what is in the picture: by its pixels, or where it is a file by dense points of the boxes."""
    if frame.image is None:
        return set(np.unique(render(scene.objects, frame.camera).instance).tolist())
    line = np.linspace(-0.5, 0.5, 25)
    grid = np.stack(np.meshgrid(line, line, line), -1).reshape(-1, 3)
    shown = set()
    for o in scene.objects:
        local = _local(frame.camera, (grid * o.dimensions) @ np.array(o.axes) + o.center)
        pixels = local[local[:, 2] > 0.1] @ frame.camera.intrinsics[:3, :3].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        if ((pixels >= 0) & (pixels <= (frame.camera.width, frame.camera.height))).all(axis=1).any():
            shown.add(o.id)
    return shown


def _local(camera, points):
    return (points - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]


# Measures ---------------------------------------------------------------------------------------------------------


def between(a, b):
    """Metres between two boxes: min |x - y| over x in a, y in b as bounded least squares in the boxes' coordinates."""
    matrix = np.concatenate([np.array(a.axes).T, -np.array(b.axes).T], axis=1)
    limit = np.array([*a.dimensions, *b.dimensions]) / 2
    found = lsq_linear(matrix, np.subtract(b.center, a.center), (-limit, limit), method="bvls", tol=1e-14)
    return float(np.sqrt(2 * found.cost))


def _size(scene, question, _):
    label = re.search(r"dimension (?:\(length, width, or height\) )?of the (.+), measured", question.question).group(1)
    return str(round(100 * max(_single(scene, question, label).dimensions)))


def _distance(scene, question, tolerance):
    labels = re.search(r"between the (.+) and the (.+) \(in meters\)", question.question).groups()
    distance = between(*(_single(scene, question, label) for label in labels))
    if distance < tolerance.distance:
        raise Ambiguous("they touch, or nearly")
    return f"{distance:.1f}"


def _nearest(scene, question, tolerance):
    listed, label = re.search(r"objects \((.+?)\) is (?:the )?close(?:r|st) to the (.+?)\?", question.question).groups()
    target, distances = _single(scene, question, label), []
    for name in listed.split(", "):
        single = question.data_type == "single_image"
        things = [_single(scene, question, name)] if single else _category(scene, name)
        distances.append((min(between(target, o) for o in things), name))
    (first, name), (second, _) = sorted(distances)[:2]
    if second - first < max(tolerance.gap, 2 * tolerance.center):
        raise Ambiguous(f"{first:.3f} and {second:.3f} m")
    return name


def _count(scene, question, _):
    return str(len(_category(scene, re.match(r"How many (.+)\(s\) are in this room", question.question).group(1))))


def _room(scene, question, _):
    if scene.room_area is not None:
        return f"{scene.room_area:.1f}"
    (x0, y0, _), (x1, y1, _) = scene.room
    return f"{(x1 - x0) * (y1 - y0):.1f}"


# Directions -------------------------------------------------------------------------------------------------------


def _quadrant(scene, question, tolerance):
    labels = re.search(r"is the (.+) to the (.+)'s left-front", question.question).groups()
    things = [_single(scene, question, label) for label in labels]
    camera = next(f.camera for f in scene.frames if f.name == question.frames[0])
    subject, anchor = _local(camera, np.array([o.center for o in things]))
    right, _, farther = subject - anchor
    bearing = np.degrees(np.arctan2(right, farther)) % 90
    if min(bearing, 90 - bearing) < tolerance.degrees or np.hypot(right, farther) < tolerance.gap:
        raise Ambiguous(f"{bearing:.1f} degrees from an axis")
    if min(abs(right), abs(farther)) <= tolerance.center:
        raise Ambiguous("a step aside changes it")
    return f"{'left' if right < 0 else 'right'}-{'front' if farther > 0 else 'back'}"


def _turn(scene, question, tolerance):
    labels = re.search(r"by the (.+?) and facing the (.+?), is the (.+?) to (?:my|the left)", question.question).groups()
    places = [complex(*_single(scene, question, label).center[:2]) for label in labels]
    options = len(question.options)
    if min(abs(places[1] - places[0]), abs(places[2] - places[0])) < max(tolerance.gap, 1e-6):
        raise Ambiguous("too near to say where it is")
    sector = _sector(places, options)
    for degrees in (-tolerance.degrees, tolerance.degrees):
        if _sector([places[0], places[1], places[0] + (places[2] - places[0]) * np.exp(1j * np.radians(degrees))],
                   options) != sector:
            raise Ambiguous(f"{degrees} degrees change it")
    for who, angle in product(range(3), np.linspace(0, 2 * np.pi, 32, endpoint=False)):
        moved = list(places)
        moved[who] += tolerance.center * np.exp(1j * angle)
        if _sector(moved, options) != sector:
            raise Ambiguous("a step aside changes it")
    return sector


def _sector(places, options):
    turn = (places[2] - places[0]) / (places[1] - places[0])
    side = "left" if turn.imag > 0 else "right"
    if options == 4:
        return f"{'front' if turn.real > 0 else 'back'}-{side}"
    return "back" if options == 3 and -turn.real > abs(turn.imag) else side


# Order of appearance ----------------------------------------------------------------------------------------------


def _order(scene, question, _, visible=0.35, area=0.012, outside=0.45):
    labels = re.search(r"video: (.+)\?", question.question).group(1).split(", ")
    frames = [next(f for f in scene.frames if f.name == name) for name in question.frames]
    clear, faint = {}, {}
    for number, frame in enumerate(frames):
        picture = render(scene.objects, frame.camera).instance
        for o in scene.objects:
            if o.label not in labels or not (picture == o.id).any():
                continue
            share, part, beyond = _view(o, picture, frame.camera)
            if share >= visible and part >= area and beyond <= outside:
                clear.setdefault(o.label, number)
            if share >= visible / 4 and part >= area / 4:
                faint.setdefault(o.label, number)
    for seen in (clear, faint):
        if len({seen.get(label) for label in labels}) < len(labels) or None in map(seen.get, labels):
            raise Ambiguous("two appear together, or one never")
    if sorted(labels, key=clear.get) != sorted(labels, key=faint.get):
        raise Ambiguous("a glimpse says otherwise")
    return ", ".join(sorted(labels, key=clear.get))


def _view(o, picture, camera):
    """(share of its own pixels that show, share of the picture its hull covers, share of its box outside the picture)."""
    alone = render([o], camera).instance == o.id
    rows, columns = np.nonzero(alone)
    part = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / alone.size
    line = np.linspace(-0.5, 0.5, 41)
    grid = np.stack(np.meshgrid(line, line, line), -1).reshape(-1, 3)
    local = _local(camera, (grid * o.dimensions) @ np.array(o.axes) + o.center)
    pixels = local[local[:, 2] >= 0.1] @ camera.intrinsics[:3, :3].T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    inside = np.clip(high, 0, (camera.width, camera.height)) - np.clip(low, 0, (camera.width, camera.height))
    return (picture == o.id).sum() / alone.sum(), part, 1 - inside.prod() / (high - low).prod()


def shifted(scene, identity, by):
    """The scene with one thing's middle moved by (3,) metres."""
    return replace(scene, objects=tuple(replace(o, center=tuple(np.add(o.center, by))) if o.id == identity else o
                                        for o in scene.objects))
