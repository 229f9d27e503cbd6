"""Directions between points, and the sectors that name them. Distances between boxes: `data.oriented`.

What holds: points are in metres in a world frame whose z points up; camera offsets are (right, down, forward). A
direction that lies closer to a sector border than the margin is None: the caller must not ask.
"""

from __future__ import annotations

import math
from typing import Literal, Sequence

Level = Literal["easy", "medium", "hard"]

#: Turning angle in degrees (left positive) at which a sector starts, and its name; sectors run to the next start.
_SECTORS: dict[Level, tuple[tuple[float, str], ...]] = {
    "easy": ((-180.0, "right"), (0.0, "left")),
    "medium": ((-180.0, "back"), (-135.0, "right"), (0.0, "left"), (135.0, "back")),
    "hard": ((-180.0, "back-right"), (-90.0, "front-right"), (0.0, "front-left"), (90.0, "back-left")),
}
#: Borders of the sectors, degrees. Medium joins its two back halves, so 180 is no border there.
_BORDERS: dict[Level, tuple[float, ...]] = {"easy": (0, 180), "medium": (0, 135, -135), "hard": (0, 90, 180, -90)}


def sector_names(level: Level) -> tuple[str, ...]:
    """The answers possible at a level, each once."""
    return tuple(sorted({name for _, name in _SECTORS[level]}))


def camera_quadrant(right: float, forward: float, margin: float) -> str | None:
    """Where something lies that is offset by (right, forward) metres in the camera frame: left-front, right-back, ...

    "front" means farther along the viewing direction (the reading of the paper's one published example). None when
    the direction is within `margin` degrees of an axis.
    """
    angle = math.degrees(math.atan2(abs(forward), abs(right)))
    if not margin <= angle <= 90 - margin or right == 0 or forward == 0:
        return None
    return f"{'left' if right < 0 else 'right'}-{'front' if forward > 0 else 'back'}"


def turn_angle(stand: Sequence[float], face: Sequence[float], query: Sequence[float]) -> float:
    """Degrees in (-180, 180] that someone at `stand` who faces `face` turns to face `query`; left is positive."""
    heading = math.atan2(face[1] - stand[1], face[0] - stand[0])
    bearing = math.atan2(query[1] - stand[1], query[0] - stand[0])
    angle = math.degrees(bearing - heading)
    while angle <= -180:
        angle += 360
    while angle > 180:
        angle -= 360
    return angle


def turn_sector(angle: float, level: Level, margin: float) -> str | None:
    """Name of the sector that a turning angle falls in, None within `margin` degrees of a border."""
    if min(abs((angle - border + 180) % 360 - 180) for border in _BORDERS[level]) < max(margin, 1e-9):
        return None
    return [name for start, name in _SECTORS[level] if angle >= start][-1]


def floor_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Metres between two points, height ignored."""
    return math.hypot(a[0] - b[0], a[1] - b[1])


def swing(distance: float, epsilon: float) -> float:
    """Degrees by which the direction to a point at `distance` metres can turn when it, or who looks, moves by `epsilon`."""
    return math.degrees(math.asin(epsilon / distance)) if distance > epsilon else 180.0
