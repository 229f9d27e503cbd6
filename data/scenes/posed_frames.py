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
         "depth": "depth/00000.png",       optional: 16-bit PNG, millimetres along the viewing axis, 0 = unknown
         "camera_to_world": 4x4}, ...],    camera (x right, y down, z forward) -> capture frame
      "depth_intrinsics": 3x3 or 4x4,      optional: of the depth pictures; else those of the pictures, scaled
      "objects": [
        {"id": 0, "label": "table",        id: whole number >= 0, unique in the scene
         "aligned": {"center": [x, y, z], "dimensions": [dx, dy, dz],     in the aligned frame, middle and full sizes
                     "axes": 3x3},         optional: row i is the direction of dimension i; else along x, y and z
         "unaligned": {"center": ..., "dimensions": ...}}, ...],     optional: a second box around it, along the capture
                                           frame's axes; the thing is in both, so its place in pictures is known better
      "room": {"low": [x, y, z], "high": [x, y, z]},    optional: extent in the aligned frame
      "room_area": 18.4                    optional: square metres of the floor, where it is no rectangle
    }

Other keys are ignored; one that is almost an absent optional key is refused. Objects outside every picture belong in
`objects` too: they are what counts are made of. Several scenes are folders side by side, each called as its scene is; one
without scene.json is a bad scene, a data folder among them is none.

What holds: the world of the returned scene is the aligned frame, so `camera_to_world` is axis_align @ camera_to_world.
Each object has one solid, its whole box, with which it hides others. Everything is checked before anything is returned.
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from data.media import PictureError, decoded_sizes
from data.oriented import OrientedBox
from data.reading import MANIFEST
from data.scenes.depth import depth_size
from data.scenes.outlines import common_points
from data.scenes.types import ALIGNED, NAME, Camera, Frame, Scene, SceneError, SceneObject, Solid, SourceError, Vector

FILE = "scene.json"
_GREY = (0.6, 0.6, 0.6)
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PosedFrames:
    """The scene of `folder`, or those of the folders inside it, hidden ones and data folders left out. Image paths are
    absolute."""

    folder: str

    def scene_ids(self) -> list[str]:
        """The name of the one scene, or the sorted names of the folders: one without a scene.json is named when it is loaded.
        SourceError when none has one; SceneError when the one scene has no name."""
        folder = Path(self.folder).resolve()
        if (folder / FILE).is_file():
            return [_Reader.open(folder / FILE).name()]
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise SourceError(folder, what, "Point data.source at a scene folder or at a folder of scene folders; what is no "
                              "posed frames needs its data.source_format")
        found = [path for path in sorted(folder.iterdir()) if _may_hold_a_scene(path)]
        if not any((path / FILE).is_file() for path in found):
            raise SourceError(folder, f"neither the folder nor a folder directly inside it has a {FILE}",
                              "Point data.source at a scene folder or at a folder of scene folders")
        return [path.name for path in found]

    def load(self, scene_id: str) -> Scene:
        """SceneError on anything missing, of a wrong shape, not finite, or a picture of another size than declared or that
        cannot be decoded to its last pixel; KeyError when there is no such scene."""
        folder = Path(self.folder).resolve()
        alone = (folder / FILE).is_file()
        file = folder / FILE if alone else folder / scene_id / FILE
        if not alone and (file.parent.parent != folder or not _may_hold_a_scene(file.parent)):
            raise KeyError(scene_id)
        if not file.is_file():
            raise SceneError(scene_id, file, "whole file", "is missing", "Write it, or take the folder away")
        reader = _Reader.open(file)
        if (name := reader.name()) != scene_id:
            if alone:
                raise KeyError(scene_id)
            reader.refuse("scene", f"is {name!r} in a folder called {scene_id!r}", "Call the folder as its scene is called")
        return _read_scene(reader)


def _may_hold_a_scene(path: Path) -> bool:
    other = path.name.startswith(".") or (path / MANIFEST).is_file()
    return (path / FILE).is_file() or (path.is_dir() and not other)


def _read_scene(reader: _Reader) -> Scene:
    document = reader.document
    reader.spelt(document, "", "depth_intrinsics", "room", "room_area")
    if (units := reader.text(document, "units", "")) != "metres":
        reader.refuse("units", f"is {units!r}", "Convert every length to metres and declare \"metres\"")
    size = tuple(reader.whole(document, key, "", least=1) for key in ("image_width", "image_height"))
    intrinsics = _intrinsics(reader, "intrinsics")
    depth_intrinsics = _intrinsics(reader, "depth_intrinsics") if "depth_intrinsics" in document else None
    align = _pose(reader, document, "axis_align", "")
    frames, names = [], set()
    for index, entry in enumerate(reader.items(document, "frames")):
        frames.append(_frame(reader, entry, f"frames[{index}]", size, intrinsics, depth_intrinsics, align))
        if frames[-1].name in names:
            reader.refuse(f"frames[{index}].file", f"a second frame is called {frames[-1].name!r}",
                          "Give every picture its own stem")
        names.add(frames[-1].name)
    objects, ids = [], set()
    for index, entry in enumerate(reader.items(document, "objects")):
        objects.append(_object(reader, entry, f"objects[{index}]", align))
        if objects[-1].id in ids:
            reader.refuse(f"objects[{index}].id", f"{objects[-1].id} is used twice", "Number the objects uniquely")
        ids.add(objects[-1].id)
    room, area = _room(reader)
    # Last, because it takes longest: whatever else is wrong has been said by now.
    _check_pictures(reader, frames)
    return Scene(reader.name(), tuple(objects), tuple(frames), room, area)


def _check_pictures(reader: _Reader, frames: Sequence[Frame]) -> None:
    for index, found in enumerate(decoded_sizes([frame.image for frame in frames])):
        if isinstance(found, PictureError):
            reader.refuse(f"frames[{index}].file", f"{frames[index].image} cannot be decoded ({found})",
                          "Replace it or drop the frame")
    for index, frame in enumerate(frames):
        try:
            if frame.depth is not None:
                depth_size(frame.depth)
        except PictureError as error:
            reader.refuse(f"frames[{index}].depth", f"{frame.depth} cannot be read as depth ({error})",
                          "Write 16-bit PNG in millimetres, or leave depth out")


def _room(reader: _Reader) -> tuple[tuple[Vector, Vector] | None, float | None]:
    document, room, area = reader.document, None, None
    if document.get("room") is not None:
        low, high = (reader.array(document["room"], key, "room.", ((3,),)) for key in ("low", "high"))
        if (low >= high).any():
            reader.refuse("room", f"low {low.tolist()} is not below high {high.tolist()}", "Give two opposite corners")
        room = tuple(low.tolist()), tuple(high.tolist())
    if document.get("room_area") is not None:
        area = float(reader.array(document, "room_area", "", ((),)))
        if area <= 0:
            reader.refuse("room_area", f"must be positive, got {area}", "Give square metres, or leave it out")
    return room, area


def _intrinsics(reader: _Reader, key: str) -> np.ndarray:
    matrix = reader.array(reader.document, key, "", ((3, 3), (4, 4)))
    k = matrix[:3, :3]
    if not (k[0, 0] > 0 and k[1, 1] > 0 and np.array_equal(k[2], [0, 0, 1])):
        reader.refuse(key, f"is not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0: {matrix.tolist()}",
                      "Write the pinhole matrix of the full pictures, in pixels")
    if k[0, 1] or k[1, 0] or (len(matrix) == 4 and (matrix[3].tolist() != [0, 0, 0, 1] or matrix[:3, 3].any())):
        reader.refuse(key, f"has a skew or a translation: {matrix.tolist()}", "Rectify the pictures first")
    return k


def _pose(reader: _Reader, entry: dict, key: str, at: str) -> np.ndarray:
    """A rigid motion (4, 4), up to the rounding of printed numbers."""
    matrix = reader.array(entry, key, at, ((4, 4),))
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        reader.refuse(f"{at}{key}", f"its last row is {matrix[3].tolist()}, not [0, 0, 0, 1]",
                      "Write the matrix row by row, translation in the last column")
    _require_rotation(reader, matrix[:3, :3], f"{at}{key}", "Write a rigid motion between right-handed frames, in metres")
    return matrix


def _path(reader: _Reader, entry: object, key: str, at: str) -> Path:
    relative = reader.text(entry, key, at + ".")
    root = reader.file.parent
    path = (root / relative).resolve()
    if Path(relative).is_absolute() or not path.is_relative_to(root):
        reader.refuse(f"{at}.{key}", f"{relative!r} leaves the scene's folder", "Give paths relative to scene.json")
    if not path.is_file():
        reader.refuse(f"{at}.{key}", f"there is no picture {path}", "Add the picture or drop the frame")
    return path


def _frame(reader: _Reader, entry: object, at: str, size: tuple[int, int], intrinsics: np.ndarray,
           depth_intrinsics: np.ndarray | None, align: np.ndarray) -> Frame:
    path = _path(reader, entry, "file", at)
    reader.spelt(entry, at + ".", "depth")
    relative = entry["file"]
    pose = _pose(reader, entry, "camera_to_world", at + ".")
    depth = str(_path(reader, entry, "depth", at)) if entry.get("depth") is not None else None
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
    return Frame(path.stem, Camera(intrinsics, align @ pose, *size), str(path), depth, depth_intrinsics if depth else None)


def _object(reader: _Reader, entry: object, at: str, align: np.ndarray) -> SceneObject:
    identity = reader.whole(entry, "id", at + ".", least=0)
    label = reader.text(entry, "label", at + ".")
    box = reader.get(entry, "aligned", at + ".")
    center = reader.array(box, "center", f"{at}.aligned.", ((3,),))
    reader.spelt(entry, at + ".", "unaligned")
    reader.spelt(box, f"{at}.aligned.", "axes")
    dimensions = _sizes(reader, box, f"{at}.aligned.")
    axes = ALIGNED
    if box.get("axes") is not None:
        rows = reader.array(box, "axes", f"{at}.aligned.", ((3, 3),))
        _require_rotation(reader, rows, f"{at}.aligned.axes", "Row i is dimension i's unit direction, right-handed", 1e-3)
        axes = tuple(map(tuple, rows.tolist()))
    middle, sizes = tuple(center.tolist()), tuple(dimensions.tolist())
    whole = Solid("box", middle, tuple(side / 2 for side in sizes), _GREY, axes)
    outline = _outline(reader, entry, at, align, OrientedBox(middle, sizes, axes))
    return SceneObject(identity, label, middle, sizes, (whole,), axes, outline)


def _sizes(reader: _Reader, box: object, at: str) -> np.ndarray:
    dimensions = reader.array(box, "dimensions", at, ((3,),))
    if (dimensions <= 0).any():
        reader.refuse(f"{at}dimensions", f"must be positive, got {dimensions.tolist()}",
                      "Write full sizes along x, y, z, in metres, or drop the object")
    return dimensions


def _outline(reader: _Reader, entry: dict, at: str, align: np.ndarray, box: OrientedBox) -> tuple:
    """What the box and the unaligned one have in common; empty without the latter."""
    second = entry.get("unaligned")
    if second is None:
        return ()
    center = reader.array(second, "center", f"{at}.unaligned.", ((3,),))
    dimensions = _sizes(reader, second, f"{at}.unaligned.")
    middle = tuple((align[:3, :3] @ center + align[:3, 3]).tolist())
    axes = tuple(map(tuple, align[:3, :3].T.tolist()))  # row i: where the capture frame's axis i points
    return common_points(box, OrientedBox(middle, tuple(dimensions.tolist()), axes))


def _require_rotation(reader: _Reader, rotation: np.ndarray, field: str, action: str, rounding: float = 1e-2) -> None:
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > rounding or np.linalg.det(rotation) < 0:
        reader.refuse(field, "is not a rotation (scaled, sheared or mirrored)", action)


class _Reader:
    """Typed access to the parts of one document; every refusal names the file and the field."""

    def __init__(self, file: Path, document: object):
        self.file, self.document = file, document

    @staticmethod
    def open(file: Path) -> _Reader:
        """A reader of the file's JSON."""
        try:
            return _Reader(file, json.loads(file.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise SceneError(file.parent.name, file, "whole file", f"is not JSON ({error})",
                             "Write it as UTF-8 JSON") from error

    def name(self) -> str:
        """The scene's."""
        name = self.text(self.document, "scene", "")
        if not NAME.fullmatch(name):
            self.refuse("scene", f"{name!r} cannot name a folder", "Use letters, digits, '.', '_' and '-'")
        return name

    def refuse(self, field: str, reason: str, action: str):
        raise SceneError(self.file.parent.name, self.file, field, reason, action)

    def get(self, entry: object, key: str, at: str) -> object:
        if not isinstance(entry, dict):
            self.refuse(at.rstrip(".") or "whole file", f"must be an object with keys, got {_short(entry)}", _SEE)
        if key not in entry:
            self.refuse(f"{at}{key}", "is missing", _SEE)
        return entry[key]

    def spelt(self, entry: dict, at: str, *optional: str) -> None:
        """Refuses a key that is not known and must be meant for one of `optional`: left out in silence, boxes are others."""
        absent = [key for key in optional if key not in entry]
        for key in sorted(entry.keys() - _NEEDED - set(optional)):
            if meant := difflib.get_close_matches(key, absent, 1, 0.75):
                self.refuse(f"{at}{key}", f"is not known, did you mean {meant[0]}?", _SEE)

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


#: Keys that some part of a scene has to have.
_NEEDED = frozenset({"scene", "units", "image_width", "image_height", "intrinsics", "axis_align", "frames", "objects", "file",
                     "camera_to_world", "id", "label", "aligned", "center", "dimensions"})
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
