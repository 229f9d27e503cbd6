"""Generic pictures: what is said about them is true of their pixels."""

import numpy as np

from data.pictures import CELLS, TYPICAL, conversation, make_picture, mirrored
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


def test_a_mirrored_picture_mirrors_boxes_and_cells():
    for picture in pictures(4):
        twice = mirrored(mirrored(picture))
        assert np.array_equal(twice.rgb, picture.rgb) and twice.things == picture.things
        for thing, other in zip(picture.things, mirrored(picture).things):
            assert thing.box[0] + other.box[2] == 112 and thing.box[1] == other.box[1]


def test_answers_are_true_of_the_picture():
    asked = set()
    for index, picture in enumerate(pictures(40)):
        by_label = {thing.label: thing for thing in picture.things}
        for question, answer in conversation(picture, np.random.default_rng(index), 6):
            words = question.rstrip("?.").split()
            asked.add(words[0])
            if words[0] == "Trace":
                box = by_label[words[-1]].box
                assert answer == f"left {box[0]} top {box[1]} right {box[2]} bottom {box[3]}"
            elif words[0] == "What":
                assert answer == by_label[words[-1]].color
            elif question.startswith("How many"):
                assert int(answer) == sum(thing.label == words[2] for thing in picture.things)
            elif question.startswith("Which is nearer"):
                first, second = (by_label[label] for label in (words[4], words[7]))
                assert answer == min(first, second, key=lambda thing: thing.distance).label
    assert {"Trace", "Point", "Describe", "What", "How"} <= asked
