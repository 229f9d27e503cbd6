"""The vertices of a mesh in a binary little-endian PLY file, as ScanNet's cleaned meshes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
          "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
          "double": "<f8", "float64": "<f8"}
_LONGEST_HEADER = 1 << 16


def read_vertices(path: str | Path) -> np.ndarray:
    """Positions (N, 3) float64 of the element `vertex`, which must be the file's first; other properties are skipped.

    OSError when the file cannot be read, ValueError when it is not such a file, shorter than it says, or when a position is
    not finite.
    """
    with open(path, "rb") as file:
        head = file.read(_LONGEST_HEADER)
        start = head.find(b"end_header")
        if not head.startswith(b"ply") or start < 0:
            raise ValueError("is not a PLY file")
        start = head.index(b"\n", start) + 1
        count, layout = _vertex_layout(head[:start].decode("ascii", "replace"))
        file.seek(start)
        table = np.fromfile(file, layout, count)
    if len(table) < count:
        raise ValueError(f"ends after {len(table)} of {count} vertices")
    vertices = np.stack([table[axis] for axis in "xyz"], axis=1).astype(float)
    bad = np.flatnonzero(~np.isfinite(vertices).all(axis=1))
    if len(bad):
        raise ValueError(f"the position of {len(bad)} of {count} vertices is not finite; the first is vertex {bad[0]}, "
                         f"{vertices[bad[0]].tolist()}")
    return vertices


def _vertex_layout(header: str) -> tuple[int, np.dtype]:
    lines = [line.split() for line in header.splitlines()]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError("is not PLY of format binary_little_endian 1.0")
    elements = [index for index, words in enumerate(lines) if words[:1] == ["element"]]
    if not elements or lines[elements[0]][1:2] != ["vertex"]:
        raise ValueError("does not begin with the element vertex")
    end = elements[1] if len(elements) > 1 else len(lines)
    fields = [words for words in lines[elements[0] + 1 : end] if words[:1] == ["property"]]
    if any(len(words) != 3 or words[1] not in _TYPES for words in fields):
        raise ValueError("has a vertex property that is not a plain number")
    if not {"x", "y", "z"} <= {name for _, _, name in fields}:
        raise ValueError("its vertices have no x, y, z")
    return int(lines[elements[0]][2]), np.dtype([(name, _TYPES[kind]) for _, kind, name in fields])
