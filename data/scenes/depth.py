"""What a frame's depth picture measured, at the pixels of any camera that shows the same view.

What holds: metres along the viewing axis; nan where the sensor saw nothing (0 in the file) or the depth picture does not
reach. The colour and the depth sensor are taken to look from one place (ScanNet's are millimetres apart), so that a
colour pixel's ray finds its depth pixel by the two intrinsics alone; the nearest pixel counts, as depths at an edge must
not be mixed.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from data.coordinates import Size
from data.media import PictureError, decoded_size
from data.scenes.types import Camera, Frame

#: Metres per unit of the file.
MILLIMETRE = 0.001


def read_depth(path: str) -> np.ndarray:
    """Depth (H, W) float32 metres of a 16-bit PNG in millimetres, nan where it holds 0.

    OSError when it cannot be read, PictureError when it is not one channel of 16 bits.
    """
    with Image.open(path) as picture:
        _require_depth(picture)
        values = np.asarray(picture).astype(np.float32)
    return np.where(values > 0, values * np.float32(MILLIMETRE), np.float32(np.nan))


def depth_size(path: str) -> Size:
    """(width, height) of a depth picture, all of which was decoded. PictureError where it is none or cannot be."""
    size = decoded_size(path)
    with Image.open(path) as picture:
        _require_depth(picture)
    return size


def _require_depth(picture: Image.Image) -> None:
    if picture.format != "PNG" or picture.mode != "I;16":
        raise PictureError(f"is {picture.format} {picture.mode}, not PNG with one channel of 16 bits")


def write_depth(path: str, metres: np.ndarray) -> None:
    """Write depth (H, W) as `read_depth` reads it. Not finite, or 65.5 m and farther, becomes 0: unknown."""
    millimetres = np.round(np.nan_to_num(metres, nan=0.0, posinf=0.0, neginf=0.0) / MILLIMETRE)
    Image.fromarray(np.where((millimetres < 0) | (millimetres > 65535), 0, millimetres).astype(np.uint16)).save(path)


def measured_depth(frame: Frame, camera: Camera) -> np.ndarray:
    """Depth (camera.height, camera.width) float32 metres at the pixel centres of `camera`, nan where unknown.

    `camera` is the frame's own, or one at the same place with the same viewing direction and other intrinsics: smaller,
    or cropped. ValueError when the frame has no depth picture, and as in `read_depth`.
    """
    if frame.depth is None:
        raise ValueError(f"frame {frame.name} has no depth picture")
    depth = read_depth(frame.depth)
    height, width = depth.shape
    k = frame.depth_intrinsics
    if k is None:
        k = np.diag([width / frame.camera.width, height / frame.camera.height, 1.0]) @ frame.camera.intrinsics[:3, :3]
    c = camera.intrinsics
    columns = np.floor((np.arange(camera.width) + 0.5 - c[0, 2]) / c[0, 0] * k[0, 0] + k[0, 2]).astype(int)
    rows = np.floor((np.arange(camera.height) + 0.5 - c[1, 2]) / c[1, 1] * k[1, 1] + k[1, 2]).astype(int)
    found = depth[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    covered = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    return np.where(covered, found, np.float32(np.nan))
