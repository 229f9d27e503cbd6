"""Answerers that see no picture, on rows small enough to answer by hand, and on rows that give nothing away."""

import random

import pytest

from data.types import Example
from evaluation.text_only import CHOICE_ANSWERERS, FEWEST_ROWS, NUMBER_ANSWERERS, clearly_above, text_only_scores


def choice(answer, *options, question="?", kind="relative distance", data_type="video"):
    lettered = tuple(f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(options))
    return Example("r", 0, data_type, question, kind, ("p",), lettered, answer)


def number(answer, question="?", kind="object size"):
    return Example("r", 0, "video", question, kind, ("p",), None, str(answer))


BED = "Nearest to the bed?"
TRAIN = [choice("B", "lamp", "sofa"), choice("A", "sofa", "bin"), choice("B", "lamp", "sofa", question=BED),
         choice("B", "sofa", "lamp", question="nearest to  the bed?"), choice("A", "lamp", "sofa", question=BED)]


@pytest.mark.parametrize("name, answers", [
    ("most frequent letter", "BBB"),  # B three times, A twice
    ("longest option", "AAB"),  # of equally long ones the first
    ("shortest option", "AAA"),
    ("named first", "BAA"),  # where none is named, the first
    ("named last", "AAA"),
    ("likeliest option", "BAA"),  # sofa 3 of 5, lamp 2 of 4: above and at chance, as what was never offered
    ("same question", "BBA"),  # about the bed it was the lamp twice, the sofa once
])
def test_choices(name, answers):
    asked = [choice("A", "lamp", "sofa", question="Which (sofa, lamp)?"),
             choice("A", "sofa", "lamp", question="nearest to the BED?"),
             choice("A", "chair", "wardrobe")]
    assert "".join(map(CHOICE_ANSWERERS[name](TRAIN), asked)) == answers


def test_several_things_in_one_option_are_taken_in_the_order_of_the_question():
    row = choice("A", "bin, sofa", "sofa, bin", question="Which order: sofa, bin?", kind="appearance order")
    assert CHOICE_ANSWERERS["named first"]([])(row) == "B" and CHOICE_ANSWERERS["named last"]([])(row) == "A"
    part = choice("A", "sofa", "so", question="so, the sofa?")  # words, not parts of words
    assert CHOICE_ANSWERERS["named last"]([])(part) == "A"


def test_numbers():
    """12 earns 0.7 at 10, 1 at 12 and 0.9 at 13; 13 earns 2.4, 100 (which comes twice) 2, 50 earns 1.2, 10 less than 12."""
    train = [number(value) for value in (100, 100, 10, 12, 13)] + [number(50, BED)]
    answerers = {name: fit(train) for name, fit in NUMBER_ANSWERERS.items()}
    unseen = number(0, "How long is the chair?")
    assert {name: float(answerer(unseen)) for name, answerer in answerers.items()} == {
        "median": 31.5, "best constant": 12, "same question": 12}
    assert float(answerers["same question"](number(0, "nearest to the  Bed?"))) == 50
    assert float(answerers["same question"](number(0))) == 13  # the median of five


def test_scores_beside_chance():
    """Two of three letters right where chance is a half; the most frequent number, 2, earns 1 of 2 and 0.1 of 4."""
    train = [*TRAIN, number(2, kind="object count"), number(2, kind="object count"), number(3, kind="object count")]
    asked = [choice("B", "x", "y"), choice("B", "x", "y"), choice("A", "x", "y"), number(2, kind="object count"),
             number(4, kind="object count"), choice("A", "x", "y", kind="appearance order")]
    scores = {(score.data_type, score.question_type): score for score in text_only_scores([(train, asked)])}
    assert list(scores) == [("video", "object count"), ("video", "relative distance"), ("all", "object count"),
                            ("all", "relative distance"), ("all", "all choices"), ("all", "all numbers")]
    distance, count = scores["video", "relative distance"], scores["all", "all numbers"]
    assert (distance.scored, distance.chance) == (3, 0.5) and distance.above == ()
    assert distance.scores["most frequent letter"] == pytest.approx(2 / 3)
    assert (count.scored, count.chance) == (2, pytest.approx(0.55)) and count.scores["median"] == pytest.approx(0.55)


def test_parts_do_not_know_one_another():
    """Each part is answered by what the other taught: always wrong."""
    first, second = [choice("A", "x", "y")] * 3, [choice("B", "x", "y")] * 3
    score = text_only_scores([(first, second), (second, first)])[0]
    assert score.scored == 6 and score.scores["most frequent letter"] == 0.0


def test_what_is_clear():
    assert clearly_above([1.0] * FEWEST_ROWS, [0.5] * FEWEST_ROWS)
    assert not clearly_above([1.0] * (FEWEST_ROWS - 1), [0.5] * (FEWEST_ROWS - 1))
    assert not clearly_above([0.5] * 100, [0.5] * 100)
    # 60 of 100 where 50 are expected: gains of +-0.5, mean 0.1, standard error 0.0492; 66 of 100: mean 0.16, error 0.0476.
    assert not clearly_above([1.0] * 60 + [0.0] * 40, [0.5] * 100)
    assert clearly_above([1.0] * 66 + [0.0] * 34, [0.5] * 100)


def test_a_set_by_lot_is_near_chance_and_a_crooked_one_is_not():
    rng = random.Random(0)
    things = ["sofa", "lamp", "bin", "bed", "chair", "shelf"]
    fair = [choice(rng.choice("ABCD"), *(names := rng.sample(things, 4)), question=" ".join(names)) for _ in range(600)]
    (own, *_) = text_only_scores([(fair[:400], fair[400:])])
    assert own.above == () and own.chance == 0.25
    offered = [rng.sample(things, 4) for _ in range(200)]
    crooked = [choice("ABCD"[names.index(max(names, key=len))], *names) for names in offered]
    (own, *_) = text_only_scores([(crooked[:100], crooked[100:])])
    assert own.scores["longest option"] == 1.0 and "longest option" in own.above and "likeliest option" in own.above
