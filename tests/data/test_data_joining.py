"""Boxes of localisation rows for the questions that ask the same."""

from dataclasses import replace

import pytest

from data.joining import join_boxes, normalized_question
from data.prompts import render, user_text
from data.reading import load_split
from data.types import LOCALIZATION, Box, Example
from data_folders import BOXES, write_folder

CHAIR, LAMP = Box("chair", (1, 2, 3, 4)), Box("lamp", (5, 6, 7, 8))


def located(question, *boxes, picture="/r/0.jpg"):
    return Example("l", 0, "single_image", question, LOCALIZATION, (picture,), boxes=boxes)


def asked(question, picture="/r/0.jpg", data_type="single_image"):
    return Example("q", 0, data_type, question, "object size", (picture,), answer="3")


def test_the_released_layout(tmp_path):
    split = load_split(write_folder(tmp_path), "train")
    joined = join_boxes(split.spatial, split.grounding)
    assert [len(row.boxes) for row in joined.rows] == [2, 0, 0]
    assert [box.label for box in joined.rows[0].boxes] == [box["label"] for box in BOXES]
    assert tuple(replace(row, boxes=()) for row in joined.rows) == split.spatial
    assert str(joined) == "1 of 2 single-image rows have the boxes of a localisation row (50.0%)"


def test_same_picture_and_same_words_are_needed():
    truths = [located("How long is the  chair?", CHAIR), located("Where is the lamp?", LAMP, picture="/r/1.jpg")]
    rows = [asked("how long is\nthe Chair? "), asked("How long is the chair", "/r/0.jpg"), asked("Where is the lamp?"),
            asked("How long is the chair?", data_type="multi_view")]
    joined = join_boxes(rows, truths)
    assert [row.boxes for row in joined.rows] == [(CHAIR,), (), (), ()]
    assert (joined.single_image, joined.matched, joined.contradicted) == (3, 1, 0)


def test_two_truths_are_none_and_one_truth_twice_is_one():
    truths = [located("a", CHAIR, LAMP), located("A", LAMP, CHAIR), located("b", CHAIR), located("b", LAMP)]
    joined = join_boxes([asked("a"), asked("b")], truths)
    assert [row.boxes for row in joined.rows] == [(CHAIR, LAMP), ()] and joined.contradicted == 1
    assert str(joined).endswith("(50.0%), 1 left out because their localisation rows contradict one another")
    assert str(join_boxes([], truths)) == "0 of 0 single-image rows have the boxes of a localisation row"


def test_questions_are_compared_without_case_and_spacing():
    assert normalized_question("  Is\tit A\n?") == "is it a ?" != normalized_question("isit a ?")


def test_a_joined_question_stays_a_question_that_may_be_asked_for_boxes_too():
    row = asked("How long is the chair?")
    joined = replace(row, boxes=(CHAIR,))
    assert not joined.is_localization and render(joined, "direct").target == "3"
    assert all(user_text(joined, mode) == user_text(row, mode) for mode in ("direct", "think"))
    tags = "Think between <think> and </think>", "then give a number between <answer> and </answer>."
    asks = "beginning with a JSON list of bbox_2d and label of the objects named"
    assert user_text(joined, "think").endswith(f"?\n{tags[0]}, {tags[1]}")
    assert user_text(joined, "locate").endswith(f"?\n{tags[0]}, {asks}, {tags[1]}")
    prompt = render(joined, "locate", original_size=(9, 9), frame=(9, 9))
    assert (prompt.mode, prompt.target) == ("locate", None) and len(prompt.messages) == 2
    for own, preset in ((row, "ladder"), (joined, "paper"), (located("Where?", CHAIR), "ladder")):
        with pytest.raises(ValueError, match="mode 'locate'"):
            user_text(own, "locate", preset)
