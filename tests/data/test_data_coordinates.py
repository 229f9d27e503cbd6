"""Boxes in the model's frame: against the grid of the real processor, in both frames, there and back."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actors.reward import reward_row
from data.coordinates import as_text_target, in_frame, rescaled
from data.facts import Question, SizeFacts
from data.prompts import render
from data.traces import solution
from data.types import LOCALIZATION, Box, Example
from evaluation.scoring import RowView, Scoring, score_rows
from models.inputs import _check_grids, encode, frame_size
from models.loading import load_processor
from viewer.svg import DrawnBox, to_shown

TINY_BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
#: (width, height) of pictures, odd ones and those of the specification's table among them.
SIZES = [(1296, 968), (968, 1296), (640, 480), (1280, 720), (168, 168), (57, 29), (301, 997), (2000, 33)]
#: Fewest and most pixels: the small model's, the paper's training and evaluation.
LIMITS = [(112 * 112, 112 * 112), (16 * 784, 128 * 784), (16 * 784, 512 * 784)]


@cache
def processor(limits: tuple[int, int]):
    own = load_processor(TINY_BASE)
    own.image_processor.size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
    return own


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", SIZES)
def test_the_absolute_frame_is_the_grid_that_the_processor_made(size, limits):
    encoded = encode(processor(limits), CHAT, [Image.new("RGB", size)], False)
    _, height, width = encoded.grid_thw[0].tolist()
    assert frame_size(processor(limits), size, "absolute") == (14 * width, 14 * height)
    assert frame_size(processor(limits), size, "norm1000") == (1000, 1000)


def test_a_picture_that_was_resized_to_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(300, 200\) became 112 x 112 pixels, not \(112, 84\)"):
        _check_grids(processor(LIMITS[0]), [Image.new("RGB", (300, 200))], [[1, 8, 8]])


@st.composite
def pictures(draw):
    """A size within the processor's aspect ratio, and a box on it of at least a pixel."""
    width, height = draw(st.integers(28, 4000)), draw(st.integers(28, 4000))
    x1, y1 = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
    return (width, height), (x1, y1, draw(st.floats(x1 + 1, width)), draw(st.floats(y1 + 1, height)))


@settings(max_examples=200, deadline=None)
@given(pictures(), st.sampled_from(LIMITS), st.sampled_from(["absolute", "norm1000"]))
def test_boxes_go_there_and_back(picture, limits, box_frame):
    size, bbox = picture
    frame = frame_size(processor(limits), size, box_frame)
    there = rescaled(bbox, size, frame)
    assert rescaled(there, frame, size) == pytest.approx(bbox, rel=1e-12)
    assert all(0 <= value <= limit + 1e-9 for value, limit in zip(there, (*frame, *frame)))
    text = as_text_target(there, frame)
    assert 0 <= text[0] < text[2] <= frame[0] and 0 <= text[1] < text[3] <= frame[1]
    back = rescaled(text, frame, size)
    units = (size[0] / frame[0], size[1] / frame[1]) * 2
    moved = 0.5 if min(there[2] - there[0], there[3] - there[1]) > 1 else 1.5  # units of the frame; more where it was widened
    assert all(abs(a - b) <= moved * unit * (1 + 1e-9) for a, b, unit in zip(back, bbox, units))


@pytest.mark.parametrize("box_frame, expected", [("absolute", [85, 27, 546, 266]), ("norm1000", [78, 50, 500, 500])])
def test_one_box_is_the_same_for_every_reader(box_frame, expected):
    """By hand: 1296 x 640 becomes 1092 x 532 under a limit of 768 visual tokens."""
    size, box = (1296, 640), Box("sofa", (100.8, 32.0, 648.0, 320.0))
    frame = frame_size(processor((784, 768 * 784)), size, box_frame)
    assert frame == {"absolute": (1092, 532), "norm1000": (1000, 1000)}[box_frame]
    row = Example("r", 0, "single_image", "Where?", LOCALIZATION, ("a.png",), boxes=(box,))
    prompt = render(row, "ground", original_size=size, frame=frame)
    written = json.loads(prompt.target)[0]["bbox_2d"]
    assert written == expected
    exact = (7 / 90 * frame[0], frame[1] / 20, frame[0] / 2, frame[1] / 2)  # 100.8 / 1296 = 7 / 90, 32 / 640 = 1 / 20
    ((_, rewarded),) = reward_row(prompt, size, frame).target_boxes
    ((_, evaluated),) = RowView(row, size, frame).target_boxes
    assert rewarded == evaluated == pytest.approx(exact, rel=1e-12)
    question = Question("single_image", LOCALIZATION, "", ("f",), None, None, SizeFacts("sofa", 1, 1, 1), (), (box,))
    traced = solution(question, size, frame)
    assert json.loads(traced.split("<answer>")[1].removesuffix("</answer>"))[0]["bbox_2d"] == written
    shown = to_shown(DrawnBox(rewarded, frame, "sofa", "true"), 324.0, 160.0)
    assert shown == pytest.approx((25.2, 8.0, 162.0, 80.0), rel=1e-9)
    score = score_rows([RowView(row, size, frame)], [prompt.target], ["stop"], Scoring("localization_iou"))[0]
    assert score.scores["iou"] > 0.98


@pytest.mark.parametrize("box, expected", [
    ((3.2, 3.6, 3.4, 9.0), (3, 4, 4, 9)), ((111.9, 0, 112.4, 5), (111, 0, 112, 5)), ((-4, -4, 500, 500), (0, 0, 112, 84)),
])
def test_a_text_target_is_inside_and_never_collapses(box, expected):
    assert as_text_target(box, (112, 84)) == expected


def test_labels_stay_with_their_boxes():
    boxes = (Box("sofa", (10, 20, 30, 40)), Box("lamp", (0, 0, 100, 50)))
    assert in_frame(boxes, (100, 50), (1000, 1000)) == (("sofa", (100, 400, 300, 800)), ("lamp", (0, 0, 1000, 1000)))
