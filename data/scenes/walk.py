"""A walk through a room with a camera: where it may stand, and which way it looks at what stands there.

What holds
    * Every camera is inside the floor, at least `CLEARANCE` from any furniture seen from above (or what `free_points` was
      asked for), 1.2 to 1.9 m high, without roll. Frames are the walk in time: the view turns one way through the room, by
      small steps.
    * One pinhole per walk, square pictures, field of view 65 to 75 degrees.
    * The floor's corner is the world's origin.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from data.scenes.types import Camera, Frame, SceneObject

#: Metres between a camera and a piece or a wall, seen from above.
CLEARANCE = 0.3
_POINTS, _YAW_OFFSETS = 70, np.radians([-22.0, 0.0, 22.0])


def look(position: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """camera_to_world (4, 4) of a camera without roll. Radians; yaw from world x towards y, pitch > 0 looks up."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def footprint(item: SceneObject) -> np.ndarray:
    """(x0, y0, x1, y1), metres."""
    center, size = np.array(item.center[:2]), np.array(item.hull[:2])
    return np.concatenate([center - size / 2, center + size / 2])


def _distance(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Distances (P, N) in the floor plane from points (P, 2) to footprints (N, 4), 0 inside."""
    outside = np.maximum(boxes[None, :, :2] - points[:, None], points[:, None] - boxes[None, :, 2:])
    return np.linalg.norm(np.maximum(outside, 0), axis=-1)


def free_points(objects: Sequence[SceneObject], floor: tuple[float, float], rng: np.random.Generator,
                clearance: float = CLEARANCE, fewest: int = _POINTS // 3, draws: int = 6 * _POINTS) -> np.ndarray | None:
    """Places (P, 2) where a person can stand, `clearance` from everything; None when `draws` find less than `fewest`."""
    if min(floor) <= 2 * (clearance + 0.05):
        return None
    boxes = np.array([footprint(item) for item in objects]).reshape(-1, 4)
    points = rng.uniform(clearance + 0.05, np.array(floor) - clearance - 0.05, (draws, 2))
    points = points[(_distance(points, boxes) > clearance + 0.05).all(axis=1)][:_POINTS]
    return points if len(points) >= fewest else None


def walk(objects: Sequence[SceneObject], points: np.ndarray, count: int, size: int,
         rng: np.random.Generator) -> tuple[Frame, ...]:
    """The cheapest walk over the free points (Viterbi): several whole, not too near pieces in view, and small steps.

    The view turns steadily by up to 30 degrees a frame; at each frame a state is (point, small yaw offset).
    """
    fov = float(np.radians(rng.uniform(65, 75)))
    focal = size / 2 / np.tan(fov / 2)
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    turn = min(np.radians(rng.uniform(250, 400)) / count, np.radians(30)) * rng.choice([-1, 1])
    base = rng.uniform(0, 2 * np.pi) + turn * np.arange(count)
    height = rng.uniform(1.3, 1.75) + 0.06 * np.sin(rng.uniform(0, 6) + 0.7 * np.arange(count))

    boxes = np.stack([footprint(item) for item in objects])
    states, offsets = np.repeat(points, len(_YAW_OFFSETS), axis=0), np.tile(_YAW_OFFSETS, len(points))
    path = _cheapest([_view_cost(states, yaw + offsets, boxes, fov) for yaw in base],
                     _step_cost(points, boxes))
    xy = states[path] + rng.uniform(-0.03, 0.03, (count, 2))
    yaw = base + offsets[path]
    pitch = _smooth(np.array([_pitch(p, h, y, objects, fov) for p, h, y in zip(xy, height, yaw)]))
    frames = []
    for index in range(count):
        pose = look(np.array([*xy[index], height[index]]), yaw[index], pitch[index])
        frames.append(Frame(f"{index:03d}", Camera(intrinsics, pose, size, size)))
    return tuple(frames)


def _bearings(points: np.ndarray, yaw: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seen from (P, 2) towards yaw (P,): bearings and half angles (P, N) of the pieces, radians; distances, metres."""
    delta = (boxes[:, :2] + boxes[:, 2:])[None] / 2 - points[:, None]
    distance = np.linalg.norm(delta, axis=-1)
    bearing = np.arctan2(delta[..., 1], delta[..., 0]) - yaw[:, None]
    radius = np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1) / 2
    return (bearing + np.pi) % (2 * np.pi) - np.pi, np.arctan2(0.85 * radius, distance), distance


def _view_cost(points: np.ndarray, yaw: np.ndarray, boxes: np.ndarray, fov: float) -> np.ndarray:
    """Cost (P,): low for two to four well visible pieces, high where a piece is closer than 1.2 m or hides others."""
    bearing, half, distance = _bearings(points, yaw, boxes)
    inside = np.clip((fov / 2 - np.abs(bearing)) / half * 0.5 + 0.5, 0, 1)
    shadow = (np.abs(bearing[:, :, None] - bearing[:, None]) < 0.7 * (half[:, :, None] + half[:, None])) \
        & (distance[:, None] < distance[:, :, None] - 0.3) & (inside[:, None] > 0)
    value = np.where(inside > 0.6, inside, 0) * np.clip(half / 0.12, 0, 1) * np.where(shadow.any(axis=2), 0.4, 1.0)
    near = np.where(inside > 0, np.maximum(1.2 - _distance(points, boxes), 0), 0).sum(axis=1)
    worth = value.sum(axis=1)
    return 4.0 * near - 2.0 * np.minimum(worth, 4.5) - 4.0 * np.minimum(worth, 1.5)


def _step_cost(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Cost (S, S) of going from one state to another: length, turning, and walking through furniture.

    State s is point s // 3 with yaw offset s % 3.
    """
    length = np.linalg.norm(points[:, None] - points[None], axis=-1)
    middle = (points[:, None] + points[None]) / 2
    blocked = (_distance(middle.reshape(-1, 2), boxes) < 0.05).any(axis=1).reshape(length.shape)
    move = 1.5 * length**2 + 20.0 * np.maximum(length - 0.8, 0) + 4.0 * blocked
    turned = np.abs(_YAW_OFFSETS[:, None] - _YAW_OFFSETS[None]) / np.radians(22)
    turn = 0.5 * turned**2 + 6.0 * (turned > 1.5)
    return (move[:, None, :, None] + turn[None, :, None, :]).reshape((turn.shape[0] * len(points),) * 2)


def _cheapest(view_costs: list[np.ndarray], step_cost: np.ndarray) -> np.ndarray:
    """Viterbi: indices (T,) of the states of least total cost."""
    total, back = view_costs[0], []
    for cost in view_costs[1:]:
        reach = total[:, None] + step_cost
        best = reach.argmin(axis=0)
        back.append(best)
        total = reach[best, np.arange(len(best))] + cost
    path = [int(total.argmin())]
    for best in reversed(back):
        path.append(int(best[path[-1]]))
    return np.array(path[::-1])


def _pitch(point: np.ndarray, height: float, yaw: float, objects: list[SceneObject], fov: float) -> float:
    """Radians: towards the middle height of the pieces in view, 6 to 32 degrees down."""
    boxes = np.stack([footprint(item) for item in objects])
    bearing, _, distance = _bearings(point[None], np.array([yaw]), boxes)
    seen = (np.abs(bearing[0]) < 0.5 * fov).astype(float) + 1e-6
    drop = np.arctan2(np.array([item.center[2] for item in objects]) - height, distance[0])
    return float(np.clip((seen * drop).sum() / seen.sum(), np.radians(-32), np.radians(-6)))


def _smooth(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, 1, mode="edge")
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
