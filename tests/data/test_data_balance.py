"""The last pass over a table: letters in equal shares, answers in turn, and nothing else changed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.balance import answer_class, balance_letters, choose_balanced, with_answer_at
from data.facts import CountFacts, NearestFacts, OffsetFacts, OrderFacts, Question
from data.templates import LETTERS, SCENE, SINGLE_IMAGE, option_text
from data.types import Box

LABELS = ("sofa", "lamp", "bed", "side table", "bin")


def nearest(number, count, answer, data_type="video"):
    """A question of relative distance with `count` candidates, the one at `answer` right."""
    labels = [LABELS[(number + i) % len(LABELS)] for i in range(count)]
    distances = tuple((label, 1.0 + (i != answer) + i / 10) for i, label in enumerate(labels))
    if data_type == "video":
        text, boxes = SCENE["relative distance"].format(candidates=", ".join(labels), target="fridge"), ()
    else:
        text = SINGLE_IMAGE["relative distance"].format(a=labels[0], b=labels[1], target="fridge")
        boxes = tuple(Box(label, (i, 0, i + 5, 5)) for i, label in enumerate((*labels, "fridge")))
    return Question(data_type, "relative distance", text, ("f0",), tuple(f"{LETTERS[i]}. {x}" for i, x in enumerate(labels)),
                    LETTERS[answer], NearestFacts("fridge", distances, labels[answer]), ("key", number), boxes)


def direction(number, answer):
    names = ("left-front", "left-back", "right-front", "right-back")
    facts = OffsetFacts("sofa", "lamp", 1.0, 1.0, names[answer])
    text = SINGLE_IMAGE["relative direction"].format(a="sofa", b="lamp")
    return Question("single_image", "relative direction", text, ("f0",), tuple(map("{}. {}".format, "ABCD", names)),
                    "ABCD"[answer], facts, ("direction", number))


def count(number, answer):
    return Question("video", "object count", f"How many thing{number}(s) are in this room?", ("f0",), None, str(answer),
                    CountFacts("thing", (1,) * answer), ("count", number))


def right(question):
    return option_text(question.options[LETTERS.index(question.answer)])


kinds = st.sampled_from(["two", "four", "single", "direction", "count"])
tables = st.lists(st.tuples(kinds, st.integers(0, 1)), max_size=60)


def table(kinds):
    make = {"two": lambda i, a: nearest(i, 2, a), "four": lambda i, a: nearest(i, 4, a), "direction": direction,
            "single": lambda i, a: nearest(i, 2, a, "single_image"), "count": lambda i, a: count(i, a + 1)}
    return [make[kind](i, answer) for i, (kind, answer) in enumerate(kinds)]


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 5))
def test_letters_of_a_group_differ_by_at_most_one_and_the_questions_stay_what_they_were(kinds, seed):
    before = table(kinds)
    after = balance_letters(before, seed)
    assert after == balance_letters(before, seed)
    counts = {}
    for a, b in zip(before, after, strict=True):
        assert (a.key, a.question_type, a.frames, a.data_type) == (b.key, b.question_type, b.frames, b.data_type)
        if a.options is None:
            assert a == b
            continue
        assert right(a) == right(b) and sorted(map(option_text, a.options)) == sorted(map(option_text, b.options))
        assert [option[:3] for option in b.options] == [f"{letter}. " for letter in "ABCD"[:len(b.options)]]
        counts.setdefault((b.data_type, b.question_type, len(b.options)), Counter())[b.answer] += 1
    for options in (2, 4):
        groups = [letters for (_, _, count), letters in counts.items() if count == options]
        for letters in (*groups, sum(groups, Counter())):
            shares = [letters[letter] for letter in "ABCD"[:options]]
            assert max(shares) - min(shares) <= 1


def test_all_a_becomes_uniform():
    """A hundred questions whose answer is A, as a careless generator writes them: 25 of each letter."""
    letters = Counter(q.answer for q in balance_letters([nearest(i, 4, 0) for i in range(100)], 3))
    assert letters == dict.fromkeys("ABCD", 25)


@pytest.mark.parametrize("data_type, options", [("single_image", 2), ("video", 4)])
def test_the_text_the_facts_and_the_boxes_follow_the_options(data_type, options):
    question = nearest(3, options, 1, data_type)
    for place in range(options):
        moved = with_answer_at(question, place, np.random.default_rng(place))
        labels = [option_text(option) for option in moved.options]
        assert labels[place] == right(question) and moved.answer == LETTERS[place]
        assert f"({', '.join(labels)})" in moved.question
        assert [label for label, _ in moved.facts.distances] == labels
        assert dict(moved.facts.distances) == dict(question.facts.distances) and moved.facts.nearest == right(question)
        if question.boxes:
            assert [box.label for box in moved.boxes] == [*labels, "fridge"]
            assert set(moved.boxes) == set(question.boxes)


def test_orders_of_appearance_keep_their_text():
    options = ("A. a, b, c", "B. c, b, a", "C. b, a, c")
    question = Question("video", "appearance order", "the order of: a, b, c?", ("f0",), options, "A",
                        OrderFacts((("a", 1), ("b", 2), ("c", 3))), ("order",))
    moved = with_answer_at(question, 2, np.random.default_rng(0))
    assert moved.options[2] == "C. a, b, c" and moved.answer == "C" and moved.question == question.question
    assert moved.facts == question.facts


def test_answers_are_taken_in_turn():
    ones, twos, five = [count(i, 1) for i in range(20)], [count(20 + i, 2) for i in range(6)], [count(30, 5)]
    chosen = choose_balanced([*ones, *twos, *five], 13)
    assert Counter(map(answer_class, chosen)) == {"1": 6, "2": 6, "5": 1}
    assert chosen == [*ones[:6], *twos, *five]  # the first of each, in the order of the table
    assert choose_balanced(ones, 50) == ones and choose_balanced([], 3) == []
    sided = [direction(i, 0) for i in range(9)] + [direction(9 + i, 3) for i in range(3)]
    assert Counter(map(answer_class, choose_balanced(sided, 6))) == {(4, "left-front"): 3, (4, "right-back"): 3}
