"""What the port counts of the pictures in the answers of workers."""

from __future__ import annotations

from actors.ray_port import PictureCount


def test_passes_per_picture_are_those_since_the_last_look_of_all_workers() -> None:
    count = PictureCount()
    assert count.passes_per_picture() is None
    count.answered("w0", 2, 2)
    count.answered("w1", 3, 1)
    count.answered("w0", 4, 2)
    assert count.passes_per_picture() == (4 + 3) / 5
    assert count.passes_per_picture() is None
    count.answered("w1", 5, 2)
    count.answered("w1", 4, 1)  # answered later, counted earlier
    assert count.passes_per_picture() == 2 / 3


def test_what_was_given_up_makes_one_figure_unknown_and_no_later_one_wrong() -> None:
    count = PictureCount()
    count.answered("w0", 2, 2)
    assert count.passes_per_picture() == 1.0
    count.given_up()
    count.answered("w0", 7, 2)  # three of these were of prompts that nobody wants
    assert count.passes_per_picture() is None
    count.answered("w0", 9, 2)
    assert count.passes_per_picture() == 1.0
