"""What can be answered without looking: answerers that read a question's text alone, scored as models are. Pure.

What holds
    * An answerer learns from the answers of training rows of the same modality and question type, and sees of a row to
      answer only its question and options.
    * The scores are those of `rewards.compose.answer_reward`, which GRPO trains on and the evaluation reports.
    * Chance is what needs neither looking nor reading: of a letter one over the number of options, of a number the score of
      the most frequent training answer ("chance level" in the VSI-Bench paper, by frequency).
    * An answerer is clearly above chance when its mean gain over chance, row by row, is more than three standard errors: of
      some hundred comparisons of answerers that know nothing, none should be.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.joining import normalized_question
from data.types import MULTIPLE_CHOICE_TYPES, Example
from rewards.accuracy import mean_relative_accuracy
from rewards.compose import answer_reward
from rewards.settings import RewardSettings

#: Fewer scored rows than this say nothing about chance.
FEWEST_ROWS = 30
STANDARD_ERRORS = 3.0
#: Different training answers that are tried as a constant, evenly spaced.
CONSTANTS = 200

Answerer = Callable[[Example], str]
Fit = Callable[[Sequence[Example]], Answerer]


@dataclass(frozen=True)
class TextOnlyScore:
    """Answerers on the rows of one modality and question type, each of which may be "all".

    `scored`: rows. `scores`: answerer to mean accuracy. `above`: those clearly above chance.
    """

    data_type: str
    question_type: str
    scored: int
    chance: float
    scores: Mapping[str, float]
    above: tuple[str, ...]


def text_only_scores(parts: Sequence[tuple[Sequence[Example], Sequence[Example]]]) -> list[TextOnlyScore]:
    """Scores by modality and question type, then over all modalities by type, then over all choices and all numbers.

    `parts`: (training rows, rows to answer), one or several; an answer of one part never knows the training rows of another.
    Rows without training rows of their kind are left out.
    """
    chance: dict[tuple[str, str], list[float]] = defaultdict(list)
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for train, asked in parts:
        known, wanted = _by_kind(train), _by_kind(asked)
        for kind in known.keys() & wanted.keys():
            choice = kind[1] in MULTIPLE_CHOICE_TYPES
            kinds = kind, ("all", kind[1]), ("all", "all choices" if choice else "all numbers")
            by_chance = _chance(known[kind], wanted[kind])
            for own in kinds:
                chance[own] += by_chance
            for name, fit in (CHOICE_ANSWERERS if choice else NUMBER_ANSWERERS).items():
                accuracies = _accuracies(fit(known[kind]), wanted[kind])
                for own in kinds:
                    scores[own][name] += accuracies
    order = sorted(scores, key=lambda kind: (kind[0] == "all", kind[1].startswith("all "), kind))
    return [_summary(kind, chance[kind], scores[kind]) for kind in order]


def _summary(kind: tuple[str, str], chance: Sequence[float], scores: Mapping[str, Sequence[float]]) -> TextOnlyScore:
    means = {name: float(np.mean(own)) for name, own in scores.items()}
    above = tuple(name for name, own in scores.items() if clearly_above(own, chance))
    return TextOnlyScore(*kind, len(chance), float(np.mean(chance)), means, above)


def clearly_above(scores: Sequence[float], chance: Sequence[float]) -> bool:
    """Whether the mean of `scores` - `chance`, pairs of one row each, is more than three standard errors above 0."""
    gains = np.subtract(scores, chance)
    if len(gains) < FEWEST_ROWS:
        return False
    return bool(gains.mean() > STANDARD_ERRORS * gains.std(ddof=1) / np.sqrt(len(gains)) + 1e-12)


def _by_kind(rows: Iterable[Example]) -> dict[tuple[str, str], list[Example]]:
    kinds: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for row in rows:
        if row.answer is not None:
            kinds[row.data_type, row.question_type].append(row)
    return kinds


def _accuracies(answerer: Answerer, rows: Sequence[Example]) -> list[float]:
    settings = RewardSettings()
    return [answer_reward(answerer(row), row, settings) for row in rows]


def _chance(train: Sequence[Example], rows: Sequence[Example]) -> list[float]:
    if rows[0].options:
        return [1 / len(row.options or ()) for row in rows]
    return _accuracies(_most_frequent_number(train), rows)


# Letters ----------------------------------------------------------------------------------------------------------


def _most_frequent_letter(train: Sequence[Example]) -> Answerer:
    counts = Counter(row.answer for row in train)
    return lambda row: max((option[0] for option in row.options or ()), key=lambda letter: counts[letter])


def _likeliest_text(train: Sequence[Example]) -> Answerer:
    """The option whose text was right most often of the times it was offered; one never offered counts like chance."""
    right: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    expected: dict[str, float] = defaultdict(float)
    for row in train:
        for option in row.options or ():
            offered[_text(option)] += 1
            expected[_text(option)] += 1 / len(row.options or ())
            right[_text(option)] += option[0] == row.answer
    surplus = {text: (right[text] - expected[text]) / (offered[text] + 1) for text in offered}
    return lambda row: max(row.options or (), key=lambda option: surplus.get(_text(option), 0.0))[0]


def _longest_option(_train: Sequence[Example]) -> Answerer:
    return lambda row: max(row.options or (), key=len)[0]


def _shortest_option(_train: Sequence[Example]) -> Answerer:
    return lambda row: min(row.options or (), key=len)[0]


def _named_first(_train: Sequence[Example]) -> Answerer:
    """The option whose words come first in the question, in the question's order where an option lists several."""
    return lambda row: min(row.options or (), key=lambda option: _places(option, row.question))[0]


def _named_last(_train: Sequence[Example]) -> Answerer:
    return lambda row: max(row.options or (), key=lambda option: _places(option, row.question, missing=-1))[0]


def _same_question_text(train: Sequence[Example]) -> Answerer:
    """The answer that training rows with the same question had most often, where it is an option; else the likeliest."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        right = next(option for option in row.options or () if option[0] == row.answer)
        answers[normalized_question(row.question)][_text(right)] += 1
    fallback = _likeliest_text(train)

    def answer(row: Example) -> str:
        own = answers.get(normalized_question(row.question), Counter())
        best = max(row.options or (), key=lambda option: own[_text(option)])
        return best[0] if own[_text(best)] else fallback(row)

    return answer


def _text(option: str) -> str:
    return " ".join(option[2:].casefold().split())


def _places(option: str, question: str, missing: int = 1 << 30) -> tuple[int, ...]:
    """Where the comma-separated parts of an option stand in the question, as words."""
    text = question.casefold()
    found = (re.search(rf"(?<!\w){re.escape(part.strip())}(?!\w)", text) for part in _text(option).split(","))
    return tuple(match.start() if match else missing for match in found)


# Numbers ----------------------------------------------------------------------------------------------------------


def _most_frequent_number(train: Sequence[Example]) -> Answerer:
    """Of equally frequent ones the one nearest to the median."""
    counts, middle = Counter(_numbers(train)), statistics.median(_numbers(train))
    best = min(counts, key=lambda number: (-counts[number], abs(number - middle), number))
    return lambda _row: f"{best:f}"


def _median(train: Sequence[Example]) -> Answerer:
    middle = statistics.median(_numbers(train))
    return lambda _row: f"{middle:f}"


def _best_constant(train: Sequence[Example]) -> Answerer:
    """The training answer that scores best on all training rows."""
    truths = Counter(_numbers(train))
    values = sorted(truths)
    tried = [values[round(place)] for place in np.linspace(0, len(values) - 1, min(CONSTANTS, len(values)))]
    best = max(tried, key=lambda guess: sum(mean_relative_accuracy(guess, truth) * n for truth, n in truths.items()))
    return lambda _row: f"{best:f}"


def _same_question_number(train: Sequence[Example]) -> Answerer:
    """The median of training rows with the same question ("how long is the sofa?"), else the best constant."""
    answers: dict[str, list[float]] = defaultdict(list)
    for row in train:
        answers[normalized_question(row.question)].append(float(row.answer or "nan"))
    fallback = _best_constant(train)

    def answer(row: Example) -> str:
        own = answers.get(normalized_question(row.question))
        return f"{statistics.median(own):f}" if own else fallback(row)

    return answer


def _numbers(rows: Sequence[Example]) -> list[float]:
    return [float(row.answer or "nan") for row in rows]


CHOICE_ANSWERERS: Mapping[str, Fit] = {
    "most frequent letter": _most_frequent_letter,
    "longest option": _longest_option,
    "shortest option": _shortest_option,
    "named first": _named_first,
    "named last": _named_last,
    "likeliest option": _likeliest_text,
    "same question": _same_question_text,
}
NUMBER_ANSWERERS: Mapping[str, Fit] = {
    "median": _median,
    "best constant": _best_constant,
    "same question": _same_question_number,
}
