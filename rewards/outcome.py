"""The outcome of scoring one completion: a typed value, so that a failure can never pass for a number.

What holds: only an `ok` Score has a `total`; the other outcomes carry the reason in `detail` and no number anywhere.
Components that do not apply to a row are absent from `components` (not zero).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Mapping

Outcome = Literal["ok", "truncated", "timeout", "error"]


@dataclass(frozen=True)
class Score:
    outcome: Outcome
    components: Mapping[str, float] = field(default_factory=dict)
    total: float | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.outcome == "ok") != (self.total is not None):
            raise ValueError(f"outcome {self.outcome!r} with total {self.total!r}: exactly the ok outcome has a number")
