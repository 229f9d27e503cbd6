"""Multimodal rotary positions (M-RoPE), by the engine's rule and the original Qwen2.5-VL code.

Text advances all three axes (time, height, width) together; a medium takes the next position as its corner and spans
its merged grid; text resumes at the largest position so far plus one. transformers resumes at max(h, w) instead, which
differs for videos (1.95 nats), so positions are always computed here and passed explicitly.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np


def rope_positions(token_types: Sequence[int], grids: Sequence[tuple[int, int, int]], merge: int,
                   video_time_step: float) -> np.ndarray:
    """Positions (3, S) int64 of an expanded prompt.

    `token_types` (S): 0 text, 1 image, 2 video. `grids`: (t, h, w) patches of each medium in order. `merge`: patches per
    side of a visual token. `video_time_step`: positions per temporal patch of a video (tokens_per_second x
    second_per_grid). ValueError when grids and tokens disagree.
    """
    kinds = np.asarray(token_types)
    parts, start, following, media = [], 0, 0, iter(grids)
    while start < len(kinds):
        if kinds[start] == 0:
            rest = np.flatnonzero(kinds[start:])
            length = int(rest[0]) if len(rest) else len(kinds) - start
            part = np.broadcast_to(np.arange(length), (3, length)) + following
        else:
            grid = next(media, None)
            if grid is None:
                raise ValueError(f"more runs of media tokens than the {len(grids)} media")
            t, h, w = grid[0], grid[1] // merge, grid[2] // merge
            length = t * h * w
            if start + length > len(kinds) or (kinds[start:start + length] != kinds[start]).any():
                raise ValueError(f"a medium of {length} visual tokens does not fit the token types at {start}")
            part = np.indices((t, h, w)).reshape(3, -1)
            if kinds[start] == 2:
                part[0] = (part[0] * video_time_step).astype(np.int64)
            part = part + following
        parts.append(part)
        start += length
        following = int(part.max()) + 1
    if next(media, None) is not None:
        raise ValueError("more media than runs of media tokens")
    return np.concatenate(parts, axis=1).astype(np.int64)
