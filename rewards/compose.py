"""One completion in, one Score out: which components apply to the row, what they are worth, how they add up.

What holds
    * Applicability is a property of the row, never of the text, so it is constant within a group. A component that
      does not apply, or whose weight is 0, is absent from `components`.
    * `components` holds what was measured; weights and the gate act on `total` only.
    * A truncated completion has the outcome `truncated` and no number. Model text never raises; a row that cannot be
      scored (GroundTruthError) and settings under which a row has no component (RewardSettingsError) do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from rewards.accuracy import number_reward
from rewards.boxes import Corners
from rewards.choice import choice_reward
from rewards.contract import CustomReward
from rewards.errors import GroundTruthError, RewardSettingsError
from rewards.extraction import extract_answer
from rewards.format import format_reward
from rewards.iou import iou_reward
from rewards.outcome import Score
from rewards.settings import RewardSettings

CHOICE_TYPES = ("relative distance", "relative direction", "appearance order")
#: Numeric question types and the unit of their answers (None: a plain count).
NUMBER_UNITS: Mapping[str, str | None] = {
    "object size": "cm",
    "absolute distance": "m",
    "object count": None,
    "room size": "m2",
}
LOCALIZATION = "object localization"


class ExampleView(Protocol):
    """What scoring reads of a row.

    `target_boxes` are (label, (x1, y1, x2, y2)) in pixels of the processed picture, whose size is `processed_size`
    (width, height). They are there only when the prompt asks for boxes; otherwise the sequence is empty.
    """

    @property
    def question_type(self) -> str: ...

    @property
    def options(self) -> Sequence[str] | None: ...

    @property
    def answer(self) -> str | None: ...

    @property
    def target_boxes(self) -> Sequence[tuple[str, Corners]]: ...

    @property
    def processed_size(self) -> tuple[int, int] | None: ...


def applicable(example: ExampleView, settings: RewardSettings) -> tuple[str, ...]:
    """Names of the built-in components that count for this row, the same for every completion of it."""
    localization = example.question_type == LOCALIZATION
    applies = {"format": True, "answer": not localization, "iou": localization or len(example.target_boxes) > 0}
    weights = {"format": settings.format, "answer": settings.answer, "iou": settings.iou}
    return tuple(name for name, applying in applies.items() if applying and weights[name] > 0)


def score_completion(
    text: str,
    finish_reason: Literal["stop", "length", "abort"],
    example: ExampleView,
    settings: RewardSettings,
    custom: Sequence[CustomReward] = (),
) -> Score:
    """The Score of one completion: `text` is the response alone, without its end token.

    Rewards of the user's own (`custom`) count with weight 1. Raises as the module says; an error inside a custom
    reward goes through.
    """
    if finish_reason == "length":
        return Score("truncated", detail="the completion hit the length limit")
    if finish_reason != "stop":
        return Score("error", detail=f"the completion ended with {finish_reason!r}, not by itself")
    names = applicable(example, settings)
    if not names and not custom:
        raise RewardSettingsError(
            f"no reward applies to a row of type {example.question_type!r}: give format, answer or iou a weight"
        )
    well_formed = format_reward(text, ended=True)
    components = {name: _component(name, text, well_formed, example, settings) for name in names}
    for reward in custom:
        components.update(reward(text, example))
    counted = _gated(components, text, well_formed, example, settings)
    weights = {"format": settings.format, "answer": settings.answer, "iou": settings.iou}
    return Score("ok", components, sum((weights.get(name, 1.0) * components[name] for name in counted), 0.0))


def _component(name: str, text: str, well_formed: float, example: ExampleView, settings: RewardSettings) -> float:
    if name == "format":
        return well_formed
    if name == "answer":
        return answer_reward(extract_answer(text), example, settings)
    if example.processed_size is None:
        raise GroundTruthError("the row has boxes but no processed_size: give the size of the processed picture")
    return iou_reward(extract_answer(text), example.target_boxes, example.processed_size)


def answer_reward(answer: str | None, example: ExampleView, settings: RewardSettings) -> float:
    """Accuracy of an extracted answer (None: there was none) by the row's question type, in [0, 1].

    Raises GroundTruthError for an unknown question type, a missing truth, and options that do not fit the type.
    """
    kind = example.question_type
    if kind not in CHOICE_TYPES and kind not in NUMBER_UNITS:
        known = ", ".join((*CHOICE_TYPES, *NUMBER_UNITS))
        raise GroundTruthError(f"question_type {kind!r} has no accuracy: use one of {known}")
    if example.answer is None:
        raise GroundTruthError(f"a row of type {kind!r} has no answer")
    if bool(example.options) != (kind in CHOICE_TYPES):
        raise GroundTruthError(f"a row of type {kind!r} has options {example.options!r}")
    if example.options:
        return choice_reward(answer, example.answer, example.options)
    return number_reward(answer, example.answer, NUMBER_UNITS[kind], settings.mra_mode)


def _gated(
    components: Mapping[str, float], text: str, well_formed: float, example: ExampleView, settings: RewardSettings
) -> tuple[str, ...]:
    """Names of the components that count towards the total."""
    if settings.gate == "format" and well_formed < 1:
        return tuple(name for name in components if name == "format")
    if settings.gate == "accuracy" and "iou" in components and example.question_type != LOCALIZATION:
        if answer_reward(extract_answer(text), example, settings) < 1:
            return tuple(name for name in components if name != "iou")
    return tuple(components)
