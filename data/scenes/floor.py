"""How large a floor is, from the points of a scan seen from above."""

from __future__ import annotations

import numpy as np
from scipy.spatial import Delaunay, QhullError

#: Metres. One point counts per square of this side (about the spacing of ScanNet's vertices: a coarser grid would cost the
#: outline more than a centimetre), and a hole is bridged where it is narrower than twice this radius.
GRID = 0.02
BRIDGE = 0.5


def outline_area(points: np.ndarray, bridge: float = BRIDGE) -> float:
    """Square metres of the alpha shape of points (N, 2): the Delaunay triangles of circumradius at most `bridge` metres.

    Corners that go inwards stay outside, unlike in a convex hull, and places that nobody scanned are filled up to a width
    of twice `bridge`. VSI-Bench measures its rooms by an alpha shape, too; its radius is not known. 0 for points in a line.
    """
    kept = points[np.unique(np.floor(points / GRID), axis=0, return_index=True)[1]]
    try:
        triangles = kept[Delaunay(kept).simplices]
    except (QhullError, ValueError):
        return 0.0
    a, b, c = (np.linalg.norm(triangles[:, i] - triangles[:, j], axis=1) for i, j in ((1, 2), (2, 0), (0, 1)))
    (ux, uy), (vx, vy) = (triangles[:, 1] - triangles[:, 0]).T, (triangles[:, 2] - triangles[:, 0]).T
    area = np.abs(ux * vy - uy * vx) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = a * b * c / (4 * area)
    return float(area[radius <= bridge].sum())
