"""Writes a small room exactly as ScanNet lies on the disk: mesh, annotation, capture. The truth comes from the boxes."""

import io
import json
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from data.scenes.render import render
from data.scenes.walk import look
from data.scenes.types import Camera, SceneObject, Solid

SCENE = "scene0000_00"
COLOR, DEPTH = (96, 72), (64, 48)
COLOR_K = np.array([[80.0, 0, 47.5], [0, 80, 35.5], [0, 0, 1]])
DEPTH_K = np.array([[53.0, 0, 31.5], [0, 53, 23.5], [0, 0, 1]])
#: An L: 5 x 4 m without its upper right 2 x 1 m.
ROOM, NOTCH, AREA = ((0.0, 0.0, 0.0), (5.0, 4.0, 2.5)), (3.0, 3.0), 18.0
BOXES = {3: ("office chair", (1.0, 2.0, 0.45), (0.5, 0.6, 0.9)), 1: ("table", (2.5, 1.5, 0.375), (1.4, 0.8, 0.75)),
         7: ("picture", (0.0, 1.0, 1.5), (0.0, 0.6, 0.4))}
ALIGN = np.eye(4)
ALIGN[:3, :3] = Rotation.from_euler("z", 30, degrees=True).as_matrix()
ALIGN[:3, 3] = (2.0, -1.0, 0.05)
#: Number of the frame -> camera_to_world in the aligned world; None: tracking was lost.
POSES = {0: look(np.array([4.5, 2.0, 1.4]), np.pi, -0.3), 1: look(np.array([4.4, 2.1, 1.4]), 3.2, -0.3), 2: None,
         3: look(np.array([4.2, 2.2, 1.4]), 3.3, -0.25), 4: look(np.array([0.6, 0.5, 1.5]), 0.8, -0.35), 5: None}


def objects():
    return [SceneObject(number, label, center, size, (Solid("box", center, tuple(s / 2 for s in size), (0.6, 0.3, 0.2)),))
            for number, (label, center, size) in BOXES.items()]


def shot(number, size, k):
    """The rendering of one frame at a size; the camera of a lost frame stands in the middle."""
    pose = POSES[number] if POSES[number] is not None else look(np.array([2.5, 2.0, 1.5]), 0.0, -0.3)
    return render(objects(), Camera(k, pose, *size), ROOM)


def raw_pose(number):
    return np.full((4, 4), -np.inf) if POSES[number] is None else np.linalg.inv(ALIGN) @ POSES[number]


def _grid(center, size, step=0.05):
    """Points on the six faces of a box, corners included."""
    low, high = np.subtract(center, np.divide(size, 2)), np.add(center, np.divide(size, 2))
    axes = [np.linspace(a, b, max(2, round((b - a) / step) + 1)) for a, b in zip(low, high)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return points[((points == low) | (points == high)).any(axis=1)]


def mesh():
    """Aligned vertices (N, 3) and the segment (N,) of each: floor 10 and 11, walls 20, a thing n 100 + n, nothing 99."""
    floor = _grid((2.5, 2.0, 0.0), (5.0, 4.0, 0.0))
    floor = floor[~((floor[:, 0] > NOTCH[0]) & (floor[:, 1] > NOTCH[1]))]
    for _, center, size in list(BOXES.values())[:2]:  # under a thing nobody sees the floor
        floor = floor[~(np.abs(floor - center)[:, :2] < np.divide(size, 2)[:2] - 0.01).all(axis=1)]
    corners = np.array([(0, 0), (5, 0), (5, 3), (3, 3), (3, 4), (0, 4), (0, 0)], float)
    walls = np.concatenate([np.stack([x.ravel(), y.ravel(), z.ravel()], 1) for a, b in zip(corners, corners[1:])
                            for t, z in [np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 2.5, 30))]
                            for x, y in [(a[0] + t * (b - a)[0], a[1] + t * (b - a)[1])]])
    behind = np.random.default_rng(0).uniform((7, 7, 0), (9, 9, 2), (200, 3))  # seen through a door
    parts = [(floor[::2], 10), (floor[1::2], 11), (walls, 20), (behind, 99)]
    parts += [(_grid(center, size), 100 + number) for number, (_, center, size) in BOXES.items()]
    return np.concatenate([p for p, _ in parts]), np.concatenate([np.full(len(p), s) for p, s in parts])


def ply(vertices):
    header = ("ply\nformat binary_little_endian 1.0\ncomment made for a test\n"
              f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
              "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty uchar alpha\n"
              "element face 1\nproperty list uchar int vertex_indices\nend_header\n")
    body = b"".join(struct.pack("<fffBBBB", *point, 1, 2, 3, 255) for point in vertices.tolist())
    return header.encode() + body + struct.pack("<Biii", 3, 0, 1, 2)


def aggregation():
    things = [("floor", [10, 11]), ("Wall", [20])] + [(label, [100 + number]) for number, (label, _, _) in BOXES.items()]
    numbers = [20, 21, *BOXES]
    groups = [{"id": index, "objectId": number, "segments": segments, "label": label}
              for index, (number, (label, segments)) in enumerate(zip(numbers, things))]
    return {"sceneId": f"scannet.{SCENE}", "appId": "Aggregator.v2", "segGroups": groups}


@dataclass(frozen=True)
class Capture:
    """What a written `.sens` file holds, to compare with."""

    jpegs: dict
    depths: dict


def write_sens(path, shift=1000.0, version=4):
    jpegs, depths = {}, {}
    four = [np.eye(4) for _ in range(4)]
    four[0][:3, :3], four[2][:3, :3] = COLOR_K, DEPTH_K
    name = b"StructureSensor"
    parts = [struct.pack("<IQ", version, len(name)), name, *(matrix.astype("<f4").tobytes() for matrix in four),
             struct.pack("<iiIIIIfQ", 2, 1, *COLOR, *DEPTH, shift, len(POSES))]
    for number in POSES:
        buffer = io.BytesIO()
        Image.fromarray(shot(number, COLOR, COLOR_K).rgb).save(buffer, "JPEG", quality=95)
        depth = shot(number, DEPTH, DEPTH_K).depth
        units = np.round(np.where(np.isfinite(depth), depth, 0) * shift).astype("<u2")
        jpegs[number], depths[number] = buffer.getvalue(), units
        packed = zlib.compress(units.tobytes())
        numbers = struct.pack("<QQQQ", number, number, len(jpegs[number]), len(packed))
        parts += [raw_pose(number).astype("<f4").tobytes(), numbers, jpegs[number], packed]
    path.write_bytes(b"".join(parts) + struct.pack("<Q", 0))  # and no inertial measurements
    return Capture(jpegs, depths)


def write_scene(folder, scene=SCENE, capture=True):
    """The scene's folder below `folder`: annotation, mesh and, as `.sens`, the capture; nothing exported yet."""
    place = folder / scene
    place.mkdir(parents=True)
    vertices, segments = mesh()
    raw = np.c_[vertices, np.ones(len(vertices))] @ np.linalg.inv(ALIGN)[:3].T
    (place / f"{scene}_vh_clean_2.ply").write_bytes(ply(raw))
    (place / f"{scene}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments.tolist()}))
    (place / f"{scene}.aggregation.json").write_text(json.dumps(aggregation()))
    sizes = zip(("colorWidth", "colorHeight", "depthWidth", "depthHeight"), (*COLOR, *DEPTH))
    lines = ["axisAlignment = " + " ".join(f"{v:.6f}" for v in ALIGN.ravel()) + " ", *(f"{k} = {v}" for k, v in sizes),
             "numColorFrames = 6", "sceneType = Office"]
    (place / f"{scene}.txt").write_text("\n".join(lines) + "\n")
    if capture:
        write_sens(place / f"{scene}.sens")
    return place
