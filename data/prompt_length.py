"""How many tokens a rendered prompt takes in engine and learner, from the sizes of its pictures: no pixel is read."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from data.prompts import Mode, Preset, Use, render
from data.types import Example, Prompt
from models.inputs import image_size, processed_size, prompt_token_ids

#: Rows that are measured: those with the most media, of equal ones those with the longest text.
MEASURED_ROWS = 50


def longest_prompt(
    processor, examples: Iterable[Example], mode: Mode, preset: Preset, use: Use = "training"
) -> tuple[int, Example | None]:
    """Tokens and row of the longest of the prompts measured; (0, None) without rows. MediaError, ValueError as `render`."""
    candidates = heapq.nlargest(MEASURED_ROWS, examples, key=lambda row: (len(row.media), _text_length(row)))
    lengths = [prompt_length(processor, render(row, mode, preset, use)) for row in candidates]
    return max(zip(lengths, candidates, strict=True), key=lambda pair: pair[0], default=(0, None))


def prompt_length(processor, prompt: Prompt) -> int:
    """Tokens of the prompt after every placeholder has become its medium's tokens. MediaError for an unreadable header."""
    ids, example = prompt_token_ids(processor, prompt.messages), prompt.example
    if example.data_type == "video":
        return len(ids) - 1 + _video_tokens(processor, example)
    return len(ids) - len(example.media) + sum(_image_tokens(processor, path) for path in example.media)


def _image_tokens(processor, path: str) -> int:
    width, height = processed_size(processor, image_size(path))
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    return (width // side) * (height // side)


def _video_tokens(processor, example: Example) -> int:
    """Tokens of a frame list; frames of a video have one size."""
    width, height = image_size(example.media[0])
    patches = processor.video_processor.get_num_of_video_patches(len(example.media), height, width, {})
    return patches // processor.video_processor.merge_size**2


def _text_length(example: Example) -> int:
    return len(example.question) + sum(map(len, example.options or ()))
