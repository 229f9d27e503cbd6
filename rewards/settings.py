"""How the components of a reward are weighed: plain settings, filled by the caller from its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rewards.accuracy import MraMode
from rewards.errors import RewardSettingsError

Gate = Literal["none", "format", "accuracy"]


@dataclass(frozen=True)
class RewardSettings:
    """Weights (0 switches a component off), the gate, and the mode of the numeric accuracy.

    `gate`: "none"; "format": the other components count only when format is 1; "accuracy": the boxes count only when
    the answer is fully right (a row without an answer has nothing to gate).
    """

    format: float = 1.0
    answer: float = 1.0
    iou: float = 1.0
    gate: Gate = "none"
    mra_mode: MraMode = "inclusive"

    def __post_init__(self) -> None:
        for name, weight in (("format", self.format), ("answer", self.answer), ("iou", self.iou)):
            if not math.isfinite(weight) or weight < 0:
                raise RewardSettingsError(f"weight of {name} is {weight!r}: it must be finite and not negative")
        for name, value, known in (("gate", self.gate, get_args(Gate)), ("mra_mode", self.mra_mode, get_args(MraMode))):
            if value not in known:
                raise RewardSettingsError(f"{name} {value!r}: choose one of {', '.join(known)}")
