"""How the components of a reward are weighed: plain settings, filled by the caller from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from rewards.accuracy import MraMode
from rewards.errors import RewardSettingsError
from rewards.iou import IouShape

Gate = Literal["none", "format", "accuracy"]
Preset = Literal["ladder", "paper"]


@dataclass(frozen=True)
class RewardSettings:
    """Weights (0 switches a component off), the gate, and the forms of the components.

    `gate`: "none"; "format": the other components count only when format is 1; "accuracy": the boxes count only when
    the answer is fully right (a row without an answer has nothing to gate). `preset`: "paper" scores format and answer
    as the authors' code does (`rewards.paper`), truncated completions included.
    """

    format: float = 1.0
    answer: float = 1.0
    iou: float = 1.0
    repetition: float = 0.0
    gate: Gate = "none"
    preset: Preset = "ladder"
    mra_mode: MraMode = "inclusive"
    iou_shape: IouShape = "plain"
    iou_threshold: float = 0.5
    repetition_ngram: int = 4

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise RewardSettingsError(f"weight of {name} is {weight!r}: it must be finite and not negative")
        for name, value, known in (("gate", self.gate, get_args(Gate)), ("preset", self.preset, get_args(Preset)),
                                   ("mra_mode", self.mra_mode, get_args(MraMode)),
                                   ("iou_shape", self.iou_shape, get_args(IouShape))):
            if value not in known:
                raise RewardSettingsError(f"{name} {value!r}: choose one of {', '.join(known)}")

    @property
    def weights(self) -> Mapping[str, float]:
        """Component to weight, of the built-in ones."""
        return {"format": self.format, "answer": self.answer, "iou": self.iou, "repetition": self.repetition}


@dataclass(frozen=True)
class RewardSpec:
    """A reward of one's own, as the configuration declares it; `rewards.loading` finds it.

    `source`: path/file.py:name, the name of an entry point of the group `spatialladder.rewards`, or `http` or `judge`.
    `name`: its component (default: the last part of the source). `params`: keyword arguments of every call. `batched`:
    the function takes the texts of a group at once.
    """

    source: str
    name: str = ""
    weight: float = 1.0
    params: Mapping[str, object] = field(default_factory=dict)
    batched: bool = False

    @property
    def component(self) -> str:
        return self.name or self.source.rpartition(":")[2]
