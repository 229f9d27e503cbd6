"""Letters and answers in equal shares over a built set: a last pass over its questions, before rows and traces are written.

What holds
    * `balance_letters` changes the order of options and what follows from it (the letter, the candidates named in the
      text, the order of the facts and boxes), never what is asked or which thing is the answer. A group is the questions
      of one modality and type with the same number of options; in it, one letter is right at most once oftener than another,
      and so it is over all groups with that number of options.
    * Both functions see the order they are given, a seed, and nothing else. Give them the order of the final table, by
      scene and then as drawn: then neither the number of workers nor who finishes first changes anything.
    * Shares of letters alone do not keep a reader of texts from guessing: `choose_balanced` takes the answers
      themselves (a direction, a number of things, the nearest label) in turn as far as there are any.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Hashable, Sequence

import numpy as np

from data.facts import NearestFacts, Question
from data.templates import LETTERS, option_text

#: Text between the candidates that a question of relative distance lists in the order of its options.
_BETWEEN = ", "


def answer_class(question: Question) -> Hashable:
    """What a guesser could prefer: the right option's text among so many, a count, or None where answers are measured."""
    if question.options is not None:
        return len(question.options), option_text(question.options[LETTERS.index(question.answer)])
    return question.answer if question.question_type == "object count" else None


def choose_balanced(questions: Sequence[Question], quota: int) -> list[Question]:
    """At most `quota` of `questions` (of one modality and type): answers in turn, the first of each answer first.

    The result keeps the order of `questions`. An answer that is rarer than the others is taken whole.
    """
    waiting: dict[Hashable, deque[int]] = {}
    for index, question in enumerate(questions):
        waiting.setdefault(answer_class(question), deque()).append(index)
    turns, chosen = deque(waiting.values()), []
    while turns and len(chosen) < quota:
        indices = turns.popleft()
        chosen.append(indices.popleft())
        if indices:
            turns.append(indices)
    return [questions[index] for index in sorted(chosen)]


def balance_letters(questions: Sequence[Question], seed: int) -> list[Question]:
    """The same questions in the same order, every letter right equally often, up to one question, in each group and over
    all groups with as many options."""
    groups: dict[tuple, list[int]] = {}
    for index, question in enumerate(questions):
        if question.options is not None:
            groups.setdefault((question.data_type, question.question_type, len(question.options)), []).append(index)
    result = list(questions)
    used: dict[int, np.ndarray] = {}
    for number, group in enumerate(sorted(groups)):
        rng, count = np.random.default_rng([seed, number]), group[2]
        total = used.setdefault(count, np.zeros(count, int))
        for start in range(0, len(groups[group]), count):
            places = rng.permutation(count)
            places = places[np.argsort(total[places], kind="stable")]  # what is left over goes where least has gone
            block = groups[group][start: start + count]
            for index, place in zip(block, rng.permutation(places[:len(block)])):
                result[index] = with_answer_at(questions[index], int(place), rng)
                total[place] += 1
    return result


def with_answer_at(question: Question, place: int, rng: np.random.Generator) -> Question:
    """The multiple-choice question with its right option at `place`, counted from 0, and the others in random order."""
    texts = [option_text(option) for option in question.options]
    right = texts.pop(LETTERS.index(question.answer))
    order = [texts[i] for i in rng.permutation(len(texts))]
    order.insert(place, right)
    options = tuple(f"{LETTERS[i]}. {text}" for i, text in enumerate(order))
    changed = replace(question, options=options, answer=LETTERS[place])
    return _candidates_in_order(changed, question, order) if isinstance(question.facts, NearestFacts) else changed


def _candidates_in_order(changed: Question, question: Question, order: Sequence[str]) -> Question:
    """The text, facts and boxes of a question of relative distance follow its options."""
    before = f"({_BETWEEN.join(option_text(option) for option in question.options)})"
    head, found, tail = question.question.partition(before)
    if not found:
        raise ValueError(f"the question does not list its options as {before}: {question.question!r}")
    distances = dict(question.facts.distances)
    facts = replace(question.facts, distances=tuple((label, distances[label]) for label in order))
    boxes = {box.label: box for box in question.boxes}
    named = tuple(boxes[label] for label in (*order, question.facts.target)) if boxes else ()
    return replace(changed, question=f"{head}({_BETWEEN.join(order)}){tail}", facts=facts, boxes=named)
