"""The rewards of the SpatialLadder authors, as their released training code computes them, quirks included.

For comparison only: every leniency below is one that the rewards of this package close. R = format + accuracy, both
with weight 1; there is no IoU reward.

    cleaning  content of the last `<answer>…</answer>`, else the whole completion; newlines become spaces; strip; drop
              trailing dots; lower case
    format    a think block, whitespace, an answer block, and nothing else; one `<think>` and one `<answer>`; closing
              tags are not counted and blocks may be empty
    choice    equality of the cleaned strings
    number    mean relative accuracy with `<=` on a float64 linspace; the number is read by Python's `float`, the error
              is divided by the signed target

What holds: no completion raises, and reading takes linear time. A row that the original cannot score raises
GroundTruthError whatever the completion. Where the description of the original is silent, the literal reading was
taken; the functions say where.
"""

from __future__ import annotations

import math

import numpy as np

from rewards.errors import GroundTruthError
from rewards.extraction import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_TOLERANCES = tuple((1 - np.linspace(0.5, 0.95, 10)).tolist())


def paper_clean(text: str) -> str:
    """The cleaned answer of a completion, in the order of the module's list.

    Literal readings: blocks are found from left to right, each from an opening tag to the first closing tag after it,
    and the last of them counts (so `<answer>a<answer>b</answer>` holds `a<answer>b`); only line feeds are newlines; what
    the dots leave at the end is not stripped again (`a .` becomes `a `).
    """
    answer, position = text, 0
    while (start := text.find(ANSWER_OPEN, position)) >= 0 and (end := text.find(ANSWER_CLOSE, start)) >= 0:
        answer, position = text[start + len(ANSWER_OPEN) : end], end + len(ANSWER_CLOSE)
    return answer.replace("\n", " ").strip().rstrip(".").lower()


def paper_format_reward(text: str) -> float:
    """1.0 for the form of the module's list, else 0.0.

    The same as matching `<think>.*?</think>\\s*<answer>.*?</answer>` against the whole stripped text (dots match
    newlines) and counting the opening tags. As closing tags are not counted, text may stand between two of them.
    """
    stripped = text.strip()
    if stripped.count(THINK_OPEN) != 1 or stripped.count(ANSWER_OPEN) != 1:
        return 0.0
    thought, _, answer = stripped.partition(ANSWER_OPEN)
    thought = thought.rstrip()
    closed = thought.endswith(THINK_CLOSE) and answer.endswith(ANSWER_CLOSE)
    return float(thought.startswith(THINK_OPEN) and closed)


def paper_choice_reward(text: str, truth: str) -> float:
    """1.0 when the cleaned completion equals the cleaned `truth`, else 0.0.

    GroundTruthError for a `truth` that is empty once cleaned: every empty answer would be right.
    """
    wanted = paper_clean(truth)
    if not wanted:
        raise GroundTruthError(f"answer {truth!r} is empty: fix the row")
    return float(paper_clean(text) == wanted)


def paper_number_reward(text: str, truth: str) -> float:
    """Mean relative accuracy in {0, 0.1, …, 1} of the number that the whole cleaned completion is, else 0.0.

    `float` reads `1_000` and digits of any script, but neither `3 m` nor `1,000`. Infinities and NaN follow float64:
    NaN scores 0; an infinity scores 0 for a positive target. A negative target gives 1.0 for every number but NaN,
    infinities among them, as no relative error is then positive. GroundTruthError for a target of 0 (the original divides
    by it and crashes) and, where the description is silent, for one that is no finite number.
    """
    target = _number(truth)
    if target is None or not math.isfinite(target):
        raise GroundTruthError(f"answer {truth!r} is not a finite number: fix the row")
    if target == 0:
        raise GroundTruthError(f"answer {truth!r}: the original divides by the target and crashes on 0")
    prediction = _number(text)
    if prediction is None:
        return 0.0
    relative_error = abs(prediction - target) / target
    return sum(relative_error <= tolerance for tolerance in _TOLERANCES) / len(_TOLERANCES)


def _number(text: str) -> float | None:
    try:
        return float(paper_clean(text))
    except ValueError:
        return None
