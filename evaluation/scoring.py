"""From the model's texts to per-row scores, with the rewards' own parsers. Pure.

What holds
    * Every row counts. An answer that is missing, unreadable or cut off by the length limit scores 0 everywhere and is
      flagged; nothing is dropped. (In training such a completion has no reward at all; a benchmark must count it.)
    * An engine that aborted is no answer of the model: EvaluationError, the evaluation has to be run again.
    * Extraction, accuracy, IoU and the composed reward are the functions that GRPO trains on.
    * Boxes, true and predicted, are in the model's frame (`models.inputs.frame_size`).

What is measured, by metric (the prompt's mode in brackets):
    localization_iou (ground)   iou: set IoU of the whole text read as JSON boxes, a code fence allowed
    accuracy (direct)           accuracy: the whole text as the answer; exact letter, or mean relative accuracy
    think (think)               format; accuracy or iou, by the row's question type; reward: the training reward made of
                                the built-in components (rewards of the user's own need the RewardActor's processes)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Mapping, Sequence

from data.coordinates import Size, in_frame
from data.prompts import Mode, answer_kind
from data.types import Example
from rewards.boxes import Corners, PredictedBox, parse_boxes
from rewards.choice import parse_choice
from rewards.compose import NUMBER_UNITS, answer_reward, applicable, score_completion
from rewards.errors import GroundTruthError
from rewards.extraction import extract_answer
from rewards.format import format_reward
from rewards.iou import iou_reward
from rewards.number import parse_number
from rewards.settings import RewardSettings

Metric = Literal["localization_iou", "accuracy", "think"]
Flag = Literal["truncated", "no answer", "unparsable"]
MODES: Mapping[Metric, Mode] = {"localization_iou": "ground", "accuracy": "direct", "think": "think"}


class EvaluationError(RuntimeError):
    """An evaluation that cannot give a number: says which row and what to do."""


@dataclass(frozen=True)
class RowView:
    """A row as scoring reads it (`rewards.compose.ExampleView`).

    Sizes are (width, height) of the one picture of a localisation row, in its file and in the model's frame of boxes; None on
    all other rows.
    """

    example: Example
    original_size: Size | None = None
    processed_size: Size | None = None

    @property
    def question_type(self) -> str:
        return self.example.question_type

    @property
    def options(self) -> tuple[str, ...] | None:
        return self.example.options

    @property
    def answer(self) -> str | None:
        return self.example.answer

    @property
    def target_boxes(self) -> tuple[tuple[str, Corners], ...]:
        """(label, box in the model's frame), on rows that ask for boxes only."""
        if not self.example.is_localization or self.original_size is None or self.processed_size is None:
            return ()
        return in_frame(self.example.boxes, self.original_size, self.processed_size)


@dataclass(frozen=True)
class RowScore:
    """What one text earned. `answer`: the extracted text; `boxes`: the parsed prediction, None where none was asked or
    readable; `scores`: only what applies to the row."""

    scores: Mapping[str, float]
    answer: str | None
    flag: Flag | None = None
    boxes: tuple[PredictedBox, ...] | None = None


@dataclass(frozen=True)
class Scoring:
    """How rows are scored: the metric, and the settings that compose the reward."""

    metric: Metric
    settings: RewardSettings = RewardSettings()


def score_rows(
    rows: Sequence[RowView], texts: Sequence[str], finish_reasons: Sequence[str], scoring: Scoring
) -> list[RowScore]:
    """One RowScore per row, in order. ValueError on unequal lengths, EvaluationError on aborted or unscorable rows."""
    scored = []
    for row, text, finish_reason in zip(rows, texts, finish_reasons, strict=True):
        if finish_reason not in ("stop", "length"):
            raise EvaluationError(
                f"row {row.example.id}: generation ended with {finish_reason!r}; the engine failed, not the model: "
                "run the evaluation again"
            )
        try:
            scored.append(_score(row, text, finish_reason == "length", scoring))
        except GroundTruthError as error:
            raise EvaluationError(f"row {row.example.id} cannot be scored: {error}") from error
    return scored


def _score(row: RowView, text: str, truncated: bool, scoring: Scoring) -> RowScore:
    boxes_asked = answer_kind(row.example) == "boxes"
    answer = extract_answer(text) if scoring.metric == "think" else text.strip()
    boxes = parse_boxes(answer) if boxes_asked and answer is not None else None
    flag = "truncated" if truncated else _flag(row, answer, boxes, boxes_asked)
    counted = None if truncated else answer  # what was cut off is wrong, even if its beginning can be read
    if boxes_asked:
        _check_mode(row, scoring.metric, "accuracy")
        scores = {"iou": iou_reward(counted, row.target_boxes, _frame(row))}
    else:
        _check_mode(row, scoring.metric, "localization_iou")
        scores = {"accuracy": answer_reward(counted, row, scoring.settings)}
    if scoring.metric == "think":
        scores = {"format": format_reward(text, ended=not truncated), **scores}
        if applicable(row, scoring.settings):
            outcome = score_completion(text, "length" if truncated else "stop", row, scoring.settings)
            scores["reward"] = outcome.total if outcome.total is not None else 0.0
    return RowScore(scores, answer, flag, boxes)


def _flag(row: RowView, answer: str | None, boxes: tuple[PredictedBox, ...] | None, boxes_asked: bool) -> Flag | None:
    if not answer:
        return "no answer"
    if boxes_asked:
        return "unparsable" if boxes is None else None
    if row.options:
        return "unparsable" if parse_choice(answer, row.options) is None else None
    return "unparsable" if parse_number(answer, NUMBER_UNITS[row.question_type]) is None else None


def _frame(row: RowView) -> Size:
    if row.processed_size is None or row.original_size is None:
        raise GroundTruthError("boxes are asked but the sizes of the picture and of its frame are not known")
    return row.processed_size


def _check_mode(row: RowView, metric: Metric, wrong: Metric) -> None:
    if metric == wrong:
        raise EvaluationError(
            f"row {row.example.id} is a {row.question_type!r} question: it cannot be evaluated by {metric!r}"
        )
