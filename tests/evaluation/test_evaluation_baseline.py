"""The best constant answer, worked by hand."""

import pytest

from evaluation.baseline import best_constants


def test_the_best_answer_of_every_type_is_found() -> None:
    rows = [
        *({"question_type": "relative distance", "truth": letter} for letter in "ABBA"),
        {"question_type": "relative distance", "truth": "B"},
        *({"question_type": "object count", "truth": count} for count in ("2", "2", "4")),
        {"question_type": "object localization", "truth": None},
    ]
    # "2" for 4 is off by half: one of ten tolerances; "4" for 2 by all of it: none.
    assert best_constants(rows) == {"relative distance": pytest.approx(0.6), "object count": pytest.approx(2.1 / 3)}
    assert best_constants(rows, "strict")["object count"] == pytest.approx(2 / 3)
