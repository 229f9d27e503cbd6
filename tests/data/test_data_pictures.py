"""Generic pictures: what is said about them is true of their pixels."""

from dataclasses import replace

import numpy as np

from data.pictures import CELLS, FIND, SPEAK, TYPICAL, conversation, make_picture, mirrored
from data.scenes.furniture import CATEGORIES


def pictures(count):
    return [make_picture(np.random.default_rng((3, index)), 112, 112) for index in range(count)]


def test_same_seed_same_picture():
    one, two = (make_picture(np.random.default_rng(5), 112, 168) for _ in range(2))
    assert np.array_equal(one.rgb, two.rgb) and one.things == two.things


def test_every_category_has_a_typical_colour():
    assert set(TYPICAL) == set(CATEGORIES)


def test_cells_point_at_things_whose_box_touches_them():
    for picture in pictures(12):
        for (row, column), index in np.ndenumerate(picture.cells):
            if index >= 0:
                x1, y1, x2, y2 = picture.things[index].box
                size = 112 // CELLS
                assert x1 < (column + 1) * size and x2 > column * size and y1 < (row + 1) * size and y2 > row * size


def test_a_mirrored_picture_mirrors_pixels_boxes_and_cells():
    for picture in pictures(12):
        twin = mirrored(picture)
        np.testing.assert_array_equal(twin.rgb, picture.rgb[:, ::-1])
        np.testing.assert_array_equal(twin.cells, picture.cells[:, ::-1])
        for thing, other in zip(picture.things, twin.things):
            assert other == replace(thing, box=(112 - thing.box[2], thing.box[1], 112 - thing.box[0], thing.box[3]))


def test_answers_are_true_of_the_picture():
    kinds = sorted(FIND | SPEAK)
    asked = set()
    for index, picture in enumerate(pictures(40)):
        by_label = {thing.label: thing for thing in picture.things}
        for turn in conversation(picture, np.random.default_rng(index), 8, dict.fromkeys(kinds, 1 / len(kinds))):
            words = turn.question.rstrip("?.").replace(",", "").split()
            asked.add(words[0])
            after_the = [label for the, label in zip(words, words[1:]) if the == "the"]
            assert [thing.label for thing in turn.named] == [label for label in after_the if label in by_label]
            assert all(by_label[thing.label] == thing for thing in turn.named)
            if words[0] == "Trace":
                box = by_label[words[-1]].box
                assert turn.answer == f"left {box[0]} top {box[1]} right {box[2]} bottom {box[3]}"
            elif words[0] == "Frame":
                told = [part.split() for part in turn.answer.split("; ")]
                assert [label for _, label in told] == words[2::2]
                assert all(tuple(map(int, box.split(","))) == by_label[label].box for box, label in told)
            elif words[0] == "What":
                assert turn.answer == by_label[words[-1]].color
            elif turn.question.startswith("How many"):
                assert int(turn.answer) == sum(thing.label == words[2] for thing in picture.things)
            elif turn.question.startswith("Which is nearer"):
                first, second = (by_label[label] for label in (words[4], words[7]))
                assert turn.answer == min(first, second, key=lambda thing: thing.distance).label
    assert asked == {"Trace", "Frame", "Point", "Describe", "Name", "What", "How", "Which", "Where"}
