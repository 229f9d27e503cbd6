"""ScanNet's `.sens` files (SensorData, version 4): what is in them, and their export as pictures.

A file is a header (sensor's name, four 4x4 matrices, compressions, sizes, units of depth, number of frames), then the
frames: pose, two time stamps, two lengths, colour (JPEG), depth (zlib, 16 bits). All little-endian.

What holds
    * Only what is asked for is read: other frames are jumped over by their lengths.
    * Of frames whose pose is not finite (tracking was lost: -inf) the pose alone is exported: it tells that the frame was
      not forgotten.
    * A frame counts as exported when picture, depth and pose are there, of which the pose is written last; an export that
      was interrupted goes on.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Callable, Iterator

import numpy as np

from data.scenes.depth import write_depth

VERSION = 4
_JPEG, _ZLIB = 2, 1
_MATRICES = ("intrinsic_color", "extrinsic_color", "intrinsic_depth", "extrinsic_depth")
_SIZES = struct.Struct("<iiIIIIfQ")
_FRAME = struct.Struct("<16fQQQQ")


class SensError(ValueError):
    """A `.sens` file that cannot be read: the message says where in it and why."""


@dataclass(frozen=True)
class SensHeader:
    """`matrices` by name (4, 4); sizes are (width, height), pixels; `depth_unit` is metres per unit of depth."""

    matrices: dict[str, np.ndarray]
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_unit: float
    frames: int


@dataclass(frozen=True)
class SensFrame:
    """One frame: its number in the capture, camera_to_world (4, 4), the bytes of its JPEG, depth (H, W) uint16 units.

    Neither picture nor depth is read of a frame whose pose is not finite."""

    index: int
    camera_to_world: np.ndarray
    jpeg: bytes | None
    depth: np.ndarray | None


def read_header(file: BinaryIO) -> SensHeader:
    """The header; leaves `file` at the first frame. SensError on another version or other compressions."""
    (version,) = struct.unpack("<I", _exactly(file, 4, "the header"))
    if version != VERSION:
        raise SensError(f"is version {version} of the format, {VERSION} is known")
    (length,) = struct.unpack("<Q", _exactly(file, 8, "the header"))
    if length > 4096:
        raise SensError(f"gives its sensor a name of {length} bytes")
    _exactly(file, length, "the sensor's name")
    matrices = {name: np.frombuffer(_exactly(file, 64, name), "<f4").reshape(4, 4).astype(float) for name in _MATRICES}
    color, depth, *sizes, shift, frames = _SIZES.unpack(_exactly(file, _SIZES.size, "the header"))
    if (color, depth) != (_JPEG, _ZLIB):
        raise SensError(f"compresses colour as {color} and depth as {depth}; known are {_JPEG} (JPEG) and {_ZLIB} (zlib)")
    if not shift > 0:
        raise SensError(f"has {shift} units of depth in a metre")
    return SensHeader(matrices, tuple(sizes[:2]), tuple(sizes[2:]), 1 / shift, frames)


def read_frames(file: BinaryIO, header: SensHeader, every_nth: int = 1,
                wanted: Callable[[int, bool], bool] = lambda index, tracked: tracked) -> Iterator[SensFrame]:
    """Those of the frames 0, n, 2n, ... that are `wanted`, which is asked for (number, has a finite pose); SensError where
    the file ends early."""
    size = os.fstat(file.fileno()).st_size
    for index in range(header.frames):
        numbers = _FRAME.unpack(_exactly(file, _FRAME.size, f"frame {index}"))
        pose, (color_bytes, depth_bytes) = np.array(numbers[:16]).reshape(4, 4), numbers[18:]
        if file.tell() + color_bytes + depth_bytes > size:
            raise SensError(f"ends in frame {index} of {header.frames}")
        tracked = _tracked(pose)
        asked = index % every_nth == 0 and wanted(index, tracked)
        if not (asked and tracked):
            file.seek(color_bytes + depth_bytes, os.SEEK_CUR)
            if asked:
                yield SensFrame(index, pose, None, None)
            continue
        jpeg = _exactly(file, color_bytes, f"the picture of frame {index}")
        yield SensFrame(index, pose, jpeg, _depth(_exactly(file, depth_bytes, f"the depth of frame {index}"), header, index))


def export(path: str | Path, folder: str | Path, every_nth: int) -> Iterator[int]:
    """Write color/N.jpg, depth/N.png (millimetres), pose/N.txt and intrinsic/*.txt to `folder` for every nth frame.

    Lazy: yields the number of each frame once its picture is written; frames that are there already are left alone. OSError,
    SensError; without a readable header nothing is written.
    """
    folder = Path(folder)
    with open(path, "rb") as file:
        header = read_header(file)
        for part in ("color", "depth", "pose", "intrinsic"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for name, matrix in header.matrices.items():
            _write(folder / "intrinsic" / f"{name}.txt", _text(matrix))
        for frame in read_frames(file, header, every_nth, partial(_missing, folder)):
            if frame.jpeg is None or frame.depth is None:
                _write(folder / "pose" / f"{frame.index}.txt", _text(frame.camera_to_world))
                continue
            _write(folder / "color" / f"{frame.index}.jpg", frame.jpeg)
            begun = folder / "depth" / f".{frame.index}.partial.png"
            write_depth(str(begun), frame.depth * header.depth_unit)
            begun.replace(folder / "depth" / f"{frame.index}.png")
            _write(folder / "pose" / f"{frame.index}.txt", _text(frame.camera_to_world))
            yield frame.index


def _missing(folder: Path, index: int, tracked: bool) -> bool:
    parts = ("pose/{}.txt", "color/{}.jpg", "depth/{}.png") if tracked else ("pose/{}.txt",)
    return not all((folder / part.format(index)).exists() for part in parts)


def _tracked(pose: np.ndarray) -> bool:
    return bool(np.isfinite(pose).all())


def _exactly(file: BinaryIO, count: int, what: str) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise SensError(f"ends in {what}")
    return data


def _depth(data: bytes, header: SensHeader, index: int) -> np.ndarray:
    width, height = header.depth_size
    try:
        values = zlib.decompress(data)
    except zlib.error as error:
        raise SensError(f"the depth of frame {index} cannot be decompressed ({error})") from error
    if len(values) != 2 * width * height:
        raise SensError(f"the depth of frame {index} has {len(values)} bytes, {width} x {height} need {2 * width * height}")
    return np.frombuffer(values, "<u2").reshape(height, width)


def _text(matrix: np.ndarray) -> bytes:
    return "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in matrix).encode()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
