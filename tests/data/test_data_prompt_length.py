"""The counted length of a prompt is the length that the processor gives it."""

from pathlib import Path

import pytest
from PIL import Image

from data.prompts import render
from data.types import Example
from data.prompt_length import longest_prompt, prompt_length
from models.inputs import encode, load_images
from models.loading import load_processor

TINY_BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"


@pytest.fixture(scope="module")
def processor():
    """The tiny base's, with limits that leave pictures of different sizes different, and videos unlike pictures."""
    processor = load_processor(TINY_BASE)
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 64 * 28 * 28}
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 9 * 28 * 28}
    return processor


def row(folder: Path, data_type: str, sizes: list[tuple[int, int]], question: str = "How many chairs are there?") -> Example:
    paths = [folder / f"{index}-{width}-{height}.png" for index, (width, height) in enumerate(sizes)]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size).save(path)
    return Example(f"{data_type}/{question}", 0, data_type, question, "object count", tuple(map(str, paths)), None, "2")


@pytest.mark.parametrize(
    "data_type, sizes",
    [
        ("single_image", [(168, 100)]),
        ("multi_view", [(168, 168), (300, 90), (56, 56)]),
        ("video", [(200, 120)] * 4),
        ("video", [(200, 120)] * 5),
    ],
)
@pytest.mark.parametrize("mode, preset", [("think", "ladder"), ("direct", "paper")])
def test_the_length_is_that_of_the_encoded_prompt(tmp_path, processor, data_type, sizes, mode, preset):
    example = row(tmp_path, data_type, sizes)
    prompt = render(example, mode, preset)
    encoded = encode(processor, prompt.messages, load_images(example.media), data_type == "video")
    assert prompt_length(processor, prompt) == len(encoded.input_ids)


def test_the_longest_prompt_is_found(tmp_path, processor):
    rows = [row(tmp_path, "single_image", [(56, 56)], question) for question in ("Short?", "How many of all the chairs?")]
    tokens, longest = longest_prompt(processor, rows, "think", "ladder")
    assert longest is rows[1] and tokens == prompt_length(processor, render(rows[1], "think", "ladder"))
    assert longest_prompt(processor, [], "think", "ladder") == (0, None)
