"""One completion in, one Score out: which components apply to the row, what they are worth, how they add up.

What holds
    * Applicability is a property of the row, never of the text, so it is constant within a group. A component that
      does not apply, or whose weight is 0, is absent from `components`.
    * `components` holds what was measured; weights and the gate act on `total` only.
    * A truncated completion has the outcome `truncated` and no number (but in the preset `paper`, which scores it).
      Model text never raises; a row that cannot be scored (GroundTruthError) and settings under which a row has no
      component (RewardSettingsError) do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rewards.accuracy import number_reward
from rewards.boxes import Corners, leading_boxes
from rewards.choice import choice_reward
from rewards.errors import GroundTruthError, RewardSettingsError
from rewards.extraction import extract_answer, extract_reasoning
from rewards.format import format_reward
from rewards.iou import boxes_reward, iou_reward
from rewards.outcome import Score
from rewards.paper import paper_choice_reward, paper_format_reward, paper_number_reward
from rewards.repetition import repetition_reward
from rewards.settings import RewardSettings

FinishReason = Literal["stop", "length", "abort"]
CHOICE_TYPES = ("relative distance", "relative direction", "appearance order")
#: Numeric question types and the unit of their answers (None: a plain count).
NUMBER_UNITS: Mapping[str, str | None] = {
    "object size": "cm",
    "absolute distance": "m",
    "object count": None,
    "room size": "m2",
}
LOCALIZATION = "object localization"
#: Either way; a larger sum, or one that is no number, is an error.
LARGEST_TOTAL = 1e9


class ExampleView(Protocol):
    """What scoring reads of a row.

    `target_boxes` are (label, (x1, y1, x2, y2)) in the model's frame of boxes, whose size (width, height) is
    `processed_size`: that of the processed picture, or 1000 x 1000. They are there only when the prompt asks for boxes, otherwise
    the sequence is empty: a localisation row asks for them as its answer, a question row at the beginning of the reasoning.
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


@dataclass(frozen=True)
class BuiltIn:
    """Built-in components of a completion. `counted`: those that go into the total; `others_count`: whether the gate
    lets components beside them count."""

    components: Mapping[str, float]
    counted: tuple[str, ...]
    others_count: bool = True


def applicable(example: ExampleView, settings: RewardSettings) -> tuple[str, ...]:
    """Names of the built-in components that count for this row, the same for every completion of it."""
    localization = example.question_type == LOCALIZATION
    boxes = (localization or len(example.target_boxes) > 0) and settings.preset != "paper"
    applies = {"format": True, "answer": not localization, "iou": boxes, "repetition": True}
    return tuple(name for name, applying in applies.items() if applying and settings.weights[name] > 0)


def unscored(finish_reason: FinishReason, settings: RewardSettings) -> Score | None:
    """The Score of a completion that is not to be scored; None for one that is."""
    if finish_reason == "length":
        return None if settings.preset == "paper" else Score("truncated", detail="the completion hit the length limit")
    if finish_reason != "stop":
        return Score("error", detail=f"the completion ended with {finish_reason!r}, not by itself")
    return None


def built_in(text: str, example: ExampleView, settings: RewardSettings) -> BuiltIn:
    """The built-in components of a completion that ended by itself. GroundTruthError as the module says."""
    names = applicable(example, settings)
    paper = settings.preset == "paper"
    well_formed = paper_format_reward(text) if paper else format_reward(text, ended=True)
    components: dict[str, float] = {}
    for name in names:
        if name == "format":
            components[name] = well_formed
        elif name == "answer":
            answer = _paper_answer if paper else _answer
            components[name] = answer(text, example, settings)
        elif name == "iou":
            components[name] = _iou(text, example, settings)
        else:
            components[name] = repetition_reward(text, settings.repetition_ngram)
    if settings.gate == "format" and well_formed < 1:
        return BuiltIn(components, tuple(name for name in names if name == "format"), others_count=False)
    if settings.gate == "accuracy" and "iou" in components and example.question_type != LOCALIZATION:
        if _answer(text, example, settings) < 1:
            return BuiltIn(components, tuple(name for name in names if name != "iou"))
    return BuiltIn(components, names)


def composed(
    example: ExampleView, own: BuiltIn, others: Mapping[str, float], settings: RewardSettings, weights: Mapping[str, float]
) -> Score:
    """The Score of built-in components and `others`, of which each has one of `weights`; a sum without end is an error.

    RewardSettingsError when there is nothing to add up.
    """
    if not own.components and not others:
        raise RewardSettingsError(
            f"no reward applies to a row of type {example.question_type!r}: give format, answer or iou a weight"
        )
    total = sum(settings.weights[name] * own.components[name] for name in own.counted)
    if own.others_count:
        total += sum(weights[name] * value for name, value in others.items())
    if not abs(total) <= LARGEST_TOTAL:
        return Score("error", detail=f"the weighted components add up to {total:g}, at most {LARGEST_TOTAL:g} can be compared")
    return Score("ok", {**own.components, **others}, float(total))


def score_completion(text: str, finish_reason: FinishReason, example: ExampleView, settings: RewardSettings) -> Score:
    """The Score of one completion by the built-in rewards: `text` is the response alone, without its end token."""
    if (score := unscored(finish_reason, settings)) is not None:
        return score
    return composed(example, built_in(text, example, settings), {}, settings, {})


def _iou(text: str, example: ExampleView, settings: RewardSettings) -> float:
    if example.processed_size is None:
        raise GroundTruthError("the row has boxes but no processed_size: give the size of the processed picture")
    how = example.target_boxes, example.processed_size, settings.iou_shape, settings.iou_threshold
    if example.question_type == LOCALIZATION:
        return iou_reward(extract_answer(text), *how)
    reasoning = extract_reasoning(text)
    return boxes_reward(None if reasoning is None else leading_boxes(reasoning), *how)


def _answer(text: str, example: ExampleView, settings: RewardSettings) -> float:
    return answer_reward(extract_answer(text), example, settings)


def _paper_answer(text: str, example: ExampleView, _settings: RewardSettings) -> float:
    if example.answer is None:
        raise GroundTruthError(f"a row of type {example.question_type!r} has no answer")
    score = paper_choice_reward if example.options else paper_number_reward
    return score(text, example.answer)


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
