"""ScanNet as it lies on the disk: annotated meshes, and the pictures that were exported from its captures.

    FOLDER/scene0000_00/scene0000_00.txt                             axisAlignment, sizes of the pictures
                        scene0000_00.aggregation.json                things: label and segments
                        scene0000_00_vh_clean_2.0.010000.segs.json   segment of every vertex
                        scene0000_00_vh_clean_2.ply                  the cleaned mesh
                        color/N.jpg  depth/N.png  pose/N.txt  intrinsic/intrinsic_{color,depth}.txt
                        scene0000_00.sens                            the capture, where the four are not exported yet

What holds
    * The world is the aligned one: axisAlignment goes to the mesh and to every camera pose (SPBench's construction).
    * A thing's box is the axis-aligned hull of its vertices there, at least `THINNEST` thick. Labels are those of the
      annotators; the labels to drop are a setting. A thing that is annotated twice (same label, same segments: all of
      scene0217_00 is) counts once.
    * `room` is the hull of all annotated vertices, `room_area` the area of their outline from above
      (`data.scenes.floor`). Vertices of no thing are left out: much of them was seen through doors and windows.
    * Frames are those whose number in the capture is a multiple of `every_nth`, in order of their numbers. Where some of
      these were not exported (there are only exports at other distances), pictures would be thinned a second time: refused,
      unless all pictures are such multiples. Frames without a finite pose are left out: tracking was lost there. Depth is
      used where the folder `depth` exists.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Collection, Iterator

import numpy as np

from data.coordinates import Size
from data.media import PictureError, decoded_size
from data.scenes.depth import depth_size
from data.scenes.floor import outline_area
from data.scenes.outlines import hull_points
from data.scenes.ply import read_vertices
from data.scenes.sens import SensError, export
from data.scenes.types import Camera, Frame, Scene, SceneError, SceneObject, Solid, SourceError, Vector

#: Metres; the sensor's noise is not smaller. A poster's vertices may lie in one plane.
THINNEST = 0.01
_SCENE = re.compile(r"scene\d{4}_\d\d")
_GREY = (0.6, 0.6, 0.6)
_AGAIN = "Download the scene's file again"
_EXPORT = "Export the pictures with `ladder data frames FOLDER`"


@dataclass(frozen=True)
class ScanNet:
    """The scenes below `folder`. `every_nth` and `drop_labels` as in `configs.data_schema.ScanNetConfig`."""

    folder: str
    every_nth: int
    drop_labels: tuple[str, ...]

    def scene_ids(self) -> list[str]:
        """Names of all folders that are called like a scene, whatever they hold. SourceError when there is none."""
        found = sorted(path.name for path in _entries(Path(self.folder)) if _SCENE.fullmatch(path.name))
        if not found:
            what = "has no folder called like scene0000_00" if Path(self.folder).is_dir() else "is no folder"
            raise SourceError(self.folder, what, how_to_get(self.folder, self.every_nth))
        return found

    def load(self, scene_id: str) -> Scene:
        """SceneError on anything missing, inconsistent or unreadable; KeyError when there is no such folder."""
        folder = Path(self.folder).resolve() / scene_id
        if not (_SCENE.fullmatch(scene_id) and folder.is_dir()):
            raise KeyError(scene_id)
        reader = _Reader(scene_id, folder)
        settings = reader.settings()
        align = reader.alignment(settings)
        labels, groups = reader.things(align)
        dropped = {label.lower() for label in self.drop_labels}
        objects = tuple(_object(number, label, points) for (number, label), points in zip(labels, groups)
                        if label.lower() not in dropped)
        annotated = np.concatenate(groups)
        room = tuple(annotated.min(axis=0).tolist()), tuple(annotated.max(axis=0).tolist())
        frames = reader.frames(settings, align, self.every_nth)
        return Scene(scene_id, objects, frames, room, outline_area(annotated[:, :2]))


def how_to_get(folder: str | Path, every_nth: int) -> str:
    """What a user without ScanNet has to do, so that `folder` is a source."""
    return (
        "Point data.source at the folder of ScanNet's scans. To get them:\n"
        "  1. agree to ScanNet's terms of use (www.scan-net.org): its authors then send you their download script\n"
        f"  2. download of every scan SCENE into {Path(folder) / 'SCENE'}: SCENE.sens, SCENE.txt, SCENE.aggregation.json, "
        "SCENE_vh_clean_2.ply, SCENE_vh_clean_2.0.010000.segs.json\n"
        "  3. if scenes are divided by lists: point data.build.train_list and data.build.heldout_list at ScanNet's "
        "scannetv2_train.txt and scannetv2_val.txt (its repository has them)\n"
        f"  4. ladder data frames {folder} --every {every_nth}\n"
        "  5. the same command again, or with --set data.source=FOLDER if the scans lie elsewhere"
    )


def export_frames(folder: str | Path, scene_id: str, every_nth: int) -> Iterator[int]:
    """Export the capture of one scene beside it, what is there already excepted; yields the number of each written frame.

    SceneError when there is no capture or it cannot be read.
    """
    scene = Path(folder) / scene_id
    capture = scene / f"{scene_id}.sens"
    try:
        yield from export(capture, scene, every_nth)
    except (OSError, SensError) as error:
        raise SceneError(scene_id, capture, "whole file", str(error), _AGAIN) from error


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _object(number: int, label: str, points: np.ndarray) -> SceneObject:
    low, high = points.min(axis=0), points.max(axis=0)
    center: Vector = tuple(((low + high) / 2).tolist())
    sizes: Vector = tuple(np.maximum(high - low, THINNEST).tolist())
    whole = Solid("box", center, tuple(side / 2 for side in sizes), _GREY)
    return SceneObject(number, label, center, sizes, (whole,), outline=hull_points(points))


@dataclass(frozen=True)
class _Reader:
    """The files of one scene; every refusal names the file and what in it."""

    scene: str
    folder: Path

    def refuse(self, file: str, field: str, reason: str, action: str, cause: Exception | None = None):
        raise SceneError(self.scene, self.folder / file, field, reason, action) from cause

    def text(self, file: str, action: str = _AGAIN) -> str:
        try:
            return (self.folder / file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.refuse(file, "whole file", f"cannot be read ({_why(error)})", action, error)

    def document(self, file: str) -> dict:
        try:
            document = json.loads(self.text(file))
        except json.JSONDecodeError as error:
            self.refuse(file, "whole file", f"is not JSON ({error})", _AGAIN, error)
        return document if isinstance(document, dict) else self.refuse(file, "whole file", "is no JSON object", _AGAIN)

    def matrix(self, file: str, text: str, field: str, action: str) -> np.ndarray:
        """4x4 numbers, which may be infinite."""
        try:
            return np.array([float(word) for word in text.split()]).reshape(4, 4)
        except ValueError as error:
            self.refuse(file, field, f"is not 4x4 numbers ({error})", action, error)

    # Mesh and annotation ------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        """The scene's text file: key -> value."""
        lines = (line.partition("=") for line in self.text(f"{self.scene}.txt").splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, _, value in lines}

    def alignment(self, settings: dict[str, str]) -> np.ndarray:
        file, key = f"{self.scene}.txt", "axisAlignment"
        if key not in settings:
            self.refuse(file, key, "is missing", "Train and validation scans have it; leave test scans out")
        matrix = self.matrix(file, settings[key], key, _AGAIN)
        if not np.isfinite(matrix).all() or np.abs(matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)).max() > 1e-2:
            self.refuse(file, key, f"is no rigid motion: {matrix.tolist()}", _AGAIN)
        return matrix

    def things(self, align: np.ndarray) -> tuple[list[tuple[int, str]], list[np.ndarray]]:
        """(number, label) of every annotated thing, structure included, and its aligned vertices (N, 3)."""
        mesh, segs, aggregation = (self.scene + end for end in (
            "_vh_clean_2.ply", "_vh_clean_2.0.010000.segs.json", ".aggregation.json"))
        try:
            vertices = read_vertices(self.folder / mesh)
        except (OSError, ValueError) as error:
            self.refuse(mesh, "whole file", _why(error), _AGAIN, error)
        segment_of = np.array(self.document(segs).get("segIndices", ()))
        if segment_of.shape != (len(vertices),) or segment_of.dtype.kind != "i":
            self.refuse(segs, "segIndices", f"is not one whole number for each of the {len(vertices)} vertices of the mesh",
                        _AGAIN)
        vertices = vertices @ align[:3, :3].T + align[:3, 3]
        order = np.argsort(segment_of, kind="stable")
        names, starts = np.unique(segment_of[order], return_index=True)
        members = dict(zip(names.tolist(), np.split(order, starts[1:])))
        labels, groups, known = [], [], set()
        entries = self.document(aggregation).get("segGroups")
        if not isinstance(entries, list) or not entries:
            self.refuse(aggregation, "segGroups", "is not a list with at least one entry", _AGAIN)
        for index, entry in enumerate(entries):
            number, label, segments = self._group(aggregation, entry, f"segGroups[{index}]")
            if missing := [segment for segment in segments if segment not in members]:
                self.refuse(aggregation, f"segGroups[{index}].segments", f"segment {missing[0]} of {label!r} has no vertex",
                            "Take aggregation, segments and mesh from one release of the scan")
            if (same := (label, frozenset(segments))) in known:
                continue
            known.add(same)
            if number in (earlier for earlier, _ in labels):
                self.refuse(aggregation, f"segGroups[{index}].objectId", f"{number} is used twice", _AGAIN)
            labels.append((number, label))
            groups.append(vertices[np.concatenate([members[segment] for segment in segments])])
        return labels, groups

    def _group(self, file: str, entry: object, at: str) -> tuple[int, str, list[int]]:
        found = [entry.get(key) for key in ("objectId", "label", "segments")] if isinstance(entry, dict) else [None] * 3
        number, label, segments = found
        if not isinstance(number, int) or number < 0 or not isinstance(label, str) or not label.strip():
            self.refuse(file, at, "has no objectId (a whole number) or no label (a text)", _AGAIN)
        if not isinstance(segments, list) or not segments or not all(isinstance(value, int) for value in segments):
            self.refuse(file, f"{at}.segments", "is not a list of whole numbers", _AGAIN)
        return number, label.strip(), segments

    # Pictures -----------------------------------------------------------------------------------------------------

    def frames(self, settings: dict[str, str], align: np.ndarray, every_nth: int) -> tuple[Frame, ...]:
        pictures = {int(path.stem): path for path in self._files("color") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
                    and path.stem.isdecimal()}
        if not pictures:
            self.refuse("color", "folder", "has no pictures named by their numbers", _EXPORT)
        self._refuse_thinning(pictures, every_nth)
        poses = {number: self._pose(path.stem) for number, path in sorted(pictures.items()) if number % every_nth == 0}
        kept = [number for number, pose in poses.items() if pose is not None]
        if not kept:
            self.refuse("pose", "folder", f"none of the {len(poses)} frames whose number is a multiple of {every_nth} has a "
                        "finite pose", "Lower data.scannet.every_nth, or leave the scan out")
        images = [str(pictures[number]) for number in kept]
        size = self._one_size(images, decoded_size)
        k = self._intrinsics("color", size, settings)
        depths, depth_k = [None] * len(kept), None
        if (self.folder / "depth").is_dir():
            depths = [str(self.folder / "depth" / f"{pictures[number].stem}.png") for number in kept]
            depth_k = self._intrinsics("depth", self._one_size(depths, depth_size), settings)
        return tuple(Frame(pictures[number].stem, Camera(k, align @ poses[number], *size), image, depth, depth_k)
                     for number, image, depth in zip(kept, images, depths))

    def _refuse_thinning(self, numbers: Collection[int], every_nth: int) -> None:
        """Where every 20th frame is there and every 50th is asked for, only every 100th would be used.

        So each multiple up to the last picture has to be there, or its pose has to say that it was lost. Where all pictures
        are multiples, nothing is thinned.
        """
        if all(number % every_nth == 0 for number in numbers):
            return
        last = max(numbers)
        stems = [path.stem for path in self._files("pose") if path.suffix == ".txt" and path.stem.isdecimal()]
        known = {number for number in numbers if number % every_nth == 0}
        known |= {int(stem) for stem in stems if int(stem) % every_nth == 0 and int(stem) <= last
                  and int(stem) not in numbers and self._pose(stem) is None}
        count = last // every_nth + 1
        if len(known) < count:
            first = next(number for number in range(0, last + 1, every_nth) if number not in known)
            self.refuse("color", "folder", f"{count - len(known)} of the {count} frames whose number is a multiple of "
                        f"{every_nth} (data.scannet.every_nth) are not exported, frame {first} the first; the others are "
                        "unevenly spaced", f"Export them with `ladder data frames FOLDER --every {every_nth}`, or set "
                        f"data.scannet.every_nth to {math.gcd(*numbers)}, with which all pictures are used")

    def _files(self, name: str) -> list[Path]:
        folder = self.folder / name
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _pose(self, stem: str) -> np.ndarray | None:
        """camera_to_world in the capture's frame, None where tracking was lost."""
        file = f"pose/{stem}.txt"
        pose = self.matrix(file, self.text(file, _EXPORT), "whole file", _EXPORT)
        if not np.isfinite(pose).all():
            return None
        if np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-2:
            self.refuse(file, "whole file", f"is no rigid motion: {pose.tolist()}", _EXPORT)
        return pose

    def _one_size(self, files: list[str], size_of: Callable[[str], Size]) -> Size:
        first = None
        for file in files:
            name = str(Path(file).relative_to(self.folder))
            try:
                size = size_of(file)
            except PictureError as error:
                self.refuse(name, "whole file", f"cannot be decoded ({error})", _EXPORT, error)
            first = first or size
            if size != first:
                self.refuse(name, "size", f"is {size}, that of {Path(files[0]).name} is {first}", _EXPORT)
        return first

    def _intrinsics(self, kind: str, size: tuple[int, int], settings: dict[str, str]) -> np.ndarray:
        """(3, 3) for pictures of `size`; the file's are for the sizes that the scene's text file gives."""
        file = f"intrinsic/intrinsic_{kind}.txt"
        k = self.matrix(file, self.text(file, _EXPORT), "whole file", _EXPORT)[:3, :3]
        if not np.isfinite(k).all() or not (k[0, 0] > 0 and k[1, 1] > 0) or k[0, 1] or k[1, 0] or k[2].tolist() != [0, 0, 1]:
            self.refuse(file, "whole file", f"is no pinhole matrix: {k.tolist()}", _EXPORT)
        try:
            full = np.array([float(settings[f"{kind}{side}"]) for side in ("Width", "Height")])
        except (KeyError, ValueError) as error:
            self.refuse(f"{self.scene}.txt", f"{kind}Width, {kind}Height", "are missing or no numbers", _AGAIN, error)
        return np.diag([*(np.array(size) / full), 1.0]) @ k


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
