"""What a reward may read of a row: `rewards.compose.ExampleView`, and what rewards of one's own ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RewardRow:
    """A row without its pictures.

    `target_boxes`: (label, (x1, y1, x2, y2)) in the model's frame of boxes, whose size (width, height) is `processed_size`:
    that of the processed picture, or 1000 x 1000 (`model.box_frame`); present only where the prompt asks for boxes. `media`: paths. `metadata`: what else the row's line of JSON holds.
    """

    id: str
    question: str
    question_type: str
    options: tuple[str, ...] | None
    answer: str | None
    target_boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    processed_size: tuple[int, int] | None = None
    media: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
