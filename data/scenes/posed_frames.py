"""Real scenes from a folder: pictures with camera poses and labelled 3-D boxes, described by one `scene.json`.

Any posed capture (ScanNet, ARKitScenes, your own) can be written like this; metres, pixels, right-handed frames:

    FOLDER/scene.json
    {
      "scene": "scene0000_00",             unique name, letters, digits, '.', '_' and '-'
      "units": "metres",
      "image_width": 1296, "image_height": 968,
      "intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],     3x3, or 4x4 with a last row and column of 0 0 0 1;
                                           of the full pictures, shared by all frames, no distortion, no skew
      "axis_align": 4x4,                   capture frame -> aligned frame (walls along x and y, z up), or identity
      "frames": [                          in temporal order
        {"file": "frames/00000.jpg",       relative to FOLDER, inside it; its stem, unique, becomes the frame's name
         "camera_to_world": 4x4}, ...],    camera (x right, y down, z forward) -> capture frame
      "objects": [
        {"id": 0, "label": "table",        id: whole number >= 0, unique in the scene
         "aligned": {"center": [x, y, z], "dimensions": [dx, dy, dz]}}, ...]    axis-aligned in the aligned frame,
    }                                                                           middle and full sizes

Other keys are ignored. Objects outside every picture belong in `objects` too: they are what counts are made of.

What holds: the world of the returned scene is the aligned frame, so `camera_to_world` is axis_align @ camera_to_world.
Each object has one solid, its whole box, with which it hides others. `Scene.room` is None: the boxes do not say where
the walls are. Everything is checked before anything is returned.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image

from data.media import PictureError, decoded_sizes
from data.scenes.types import Camera, Frame, Scene, SceneError, SceneObject, Solid

FILE = "scene.json"
_GREY = (0.6, 0.6, 0.6)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXIF_ORIENTATION = 0x0112


def read_posed_frames(folder: str | Path) -> list[Scene]:
    """The scene of `folder`, or of each of its sub-folders that holds a scene.json, ordered by sub-folder name.

    Image paths in the scenes are absolute. SceneError on anything missing, of a wrong shape, not finite, or a picture
    of another size than declared or that cannot be decoded to its last pixel.
    """
    folder = Path(folder).resolve()
    files = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob(f"*/{FILE}"))
    if not files:
        raise SceneError(folder.name, folder, FILE, "neither the folder nor a folder directly inside it has one",
                         "Point data.source at a scene folder or at a folder of scene folders")
    scenes: dict[str, Scene] = {}
    for file in files:
        scene = _read_scene(file)
        if scene.id in scenes:
            raise SceneError(file.parent.name, file, "scene", f"the name {scene.id!r} is already taken by another folder",
                             "Give every scene its own name")
        scenes[scene.id] = scene
    return list(scenes.values())


def _read_scene(file: Path) -> Scene:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SceneError(file.parent.name, file, "whole file", f"is not JSON ({error})",
                         "Write it as UTF-8 JSON") from error
    reader = _Reader(file)
    name = reader.text(document, "scene", "")
    if not _NAME.fullmatch(name):
        reader.refuse("scene", f"{name!r} cannot name a folder", "Use letters, digits, '.', '_' and '-'")
    if (units := reader.text(document, "units", "")) != "metres":
        reader.refuse("units", f"is {units!r}", "Convert every length to metres and declare \"metres\"")
    size = tuple(reader.whole(document, key, "", least=1) for key in ("image_width", "image_height"))
    intrinsics = _intrinsics(reader, document)
    align = _pose(reader, document, "axis_align", "")
    frames, names = [], set()
    for index, entry in enumerate(reader.items(document, "frames")):
        frames.append(_frame(reader, entry, f"frames[{index}]", size, intrinsics, align))
        if frames[-1].name in names:
            reader.refuse(f"frames[{index}].file", f"a second frame is called {frames[-1].name!r}",
                          "Give every picture its own stem")
        names.add(frames[-1].name)
    objects, ids = [], set()
    for index, entry in enumerate(reader.items(document, "objects")):
        objects.append(_object(reader, entry, f"objects[{index}]"))
        if objects[-1].id in ids:
            reader.refuse(f"objects[{index}].id", f"{objects[-1].id} is used twice", "Number the objects uniquely")
        ids.add(objects[-1].id)
    # Last, because it takes longest: whatever else is wrong has been said by now.
    for index, found in enumerate(decoded_sizes([frame.image for frame in frames])):
        if isinstance(found, PictureError):
            reader.refuse(f"frames[{index}].file", f"{frames[index].image} cannot be decoded ({found})",
                          "Replace it or drop the frame")
    return Scene(name, tuple(objects), tuple(frames), None)


def _intrinsics(reader: _Reader, document: dict) -> np.ndarray:
    matrix = reader.array(document, "intrinsics", "", ((3, 3), (4, 4)))
    k = matrix[:3, :3]
    if not (k[0, 0] > 0 and k[1, 1] > 0 and np.array_equal(k[2], [0, 0, 1])):
        reader.refuse("intrinsics", f"is not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0: {matrix.tolist()}",
                      "Write the pinhole matrix of the full pictures, in pixels")
    if k[0, 1] or k[1, 0] or (len(matrix) == 4 and (matrix[3].tolist() != [0, 0, 0, 1] or matrix[:3, 3].any())):
        reader.refuse("intrinsics", f"has a skew or a translation: {matrix.tolist()}", "Rectify the pictures first")
    return k


def _pose(reader: _Reader, entry: dict, key: str, at: str) -> np.ndarray:
    """A rigid motion (4, 4), up to the rounding of printed numbers."""
    matrix = reader.array(entry, key, at, ((4, 4),))
    rotation = matrix[:3, :3]
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        reader.refuse(f"{at}{key}", f"its last row is {matrix[3].tolist()}, not [0, 0, 0, 1]",
                      "Write the matrix row by row, translation in the last column")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        reader.refuse(f"{at}{key}", "its upper left 3x3 is not a rotation (scaled, sheared or mirrored)",
                      "Write a rigid motion between right-handed frames, in metres")
    return matrix


def _frame(reader: _Reader, entry: object, at: str, size: tuple[int, int], intrinsics: np.ndarray,
           align: np.ndarray) -> Frame:
    relative = reader.text(entry, "file", at + ".")
    pose = _pose(reader, entry, "camera_to_world", at + ".")
    root = reader.file.parent
    path = (root / relative).resolve()
    if Path(relative).is_absolute() or not path.is_relative_to(root):
        reader.refuse(f"{at}.file", f"{relative!r} leaves the scene's folder", "Give paths relative to scene.json")
    if not path.is_file():
        reader.refuse(f"{at}.file", f"there is no picture {path}", "Add the picture or drop the frame")
    try:
        with Image.open(path) as image:
            found, orientation = image.size, image.getexif().get(_EXIF_ORIENTATION, 1)
    except OSError as error:
        reader.refuse(f"{at}.file", f"{relative!r} is not a readable picture ({error})", "Replace it or drop the frame")
    if found != size:
        reader.refuse(f"{at}.file", f"{relative!r} has {found} pixels (width, height), declared are {size}",
                      "Correct image_width, image_height and intrinsics, or use the full picture")
    if orientation != 1:
        reader.refuse(f"{at}.file", f"{relative!r} asks to be turned when shown (EXIF orientation {orientation}), "
                      "so its pixels and the intrinsics may disagree", "Save it upright, without that tag")
    return Frame(path.stem, Camera(intrinsics, align @ pose, *size), str(path))


def _object(reader: _Reader, entry: object, at: str) -> SceneObject:
    identity = reader.whole(entry, "id", at + ".", least=0)
    label = reader.text(entry, "label", at + ".")
    box = reader.get(entry, "aligned", at + ".")
    center = reader.array(box, "center", f"{at}.aligned.", ((3,),))
    dimensions = reader.array(box, "dimensions", f"{at}.aligned.", ((3,),))
    if (dimensions <= 0).any():
        reader.refuse(f"{at}.aligned.dimensions", f"must be positive, got {dimensions.tolist()}",
                      "Write full sizes along x, y, z, in metres, or drop the object")
    middle, sizes = tuple(center.tolist()), tuple(dimensions.tolist())
    return SceneObject(identity, label, middle, sizes, (Solid("box", middle, tuple(s / 2 for s in sizes), _GREY),))


class _Reader:
    """Typed access to the parts of one document; every refusal names the file and the field."""

    def __init__(self, file: Path):
        self.file = file

    def refuse(self, field: str, reason: str, action: str):
        raise SceneError(self.file.parent.name, self.file, field, reason, action)

    def get(self, entry: object, key: str, at: str) -> object:
        if not isinstance(entry, dict):
            self.refuse(at.rstrip(".") or "whole file", f"must be an object with keys, got {_short(entry)}", _SEE)
        if key not in entry:
            self.refuse(f"{at}{key}", "is missing", _SEE)
        return entry[key]

    def text(self, entry: object, key: str, at: str) -> str:
        value = self.get(entry, key, at)
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{at}{key}", f"must be a text, got {_short(value)}", _SEE)
        return value.strip()

    def whole(self, entry: object, key: str, at: str, least: int) -> int:
        value = self.get(entry, key, at)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(f"{at}{key}", f"must be a whole number >= {least}, got {_short(value)}", _SEE)
        return value

    def items(self, entry: object, key: str) -> list:
        value = self.get(entry, key, "")
        if not isinstance(value, list) or not value:
            self.refuse(key, f"must be a list with at least one entry, got {_short(value)}", _SEE)
        return value

    def array(self, entry: object, key: str, at: str, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
        value = self.get(entry, key, at)
        numbers = _flat(value)
        wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
        if numbers is None or (shape := _shape(value)) not in shapes:
            self.refuse(f"{at}{key}", f"must be {wanted} numbers, got {_short(value)}", _SEE)
        if not all(map(math.isfinite, numbers)):
            self.refuse(f"{at}{key}", f"holds a number that is not finite: {_short(value)}",
                        "Drop the frame or object whose measurement failed")
        return np.array(numbers, float).reshape(shape)


_SEE = "The format is described in data/scenes/posed_frames.py"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


def _flat(value: object) -> list[float] | None:
    """The numbers of a nested list in order; None where something else is in it (JSON true and texts included)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value if abs(value) < 1e300 else math.inf]  # a whole number may exceed every float
    if not isinstance(value, list):
        return None
    parts = [_flat(part) for part in value]
    return None if any(part is None for part in parts) else [number for part in parts for number in part]


def _shape(value: object) -> tuple[int, ...] | None:
    """Shape of a nested list, None when it is ragged."""
    if not isinstance(value, list):
        return ()
    inner = {_shape(part) for part in value}
    return None if len(inner) != 1 or None in inner else (len(value), *inner.pop())
