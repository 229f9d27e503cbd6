"""A tiny policy that answers any question about a picture with one to four random digits, and its questions.

A moment's training makes it: its completions end, differ, and have rewards (`benchmarks.digit_reward`), which a random
model's do not. For runs of stage 3 in which not the model counts but what happens to the run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.prompts import render
from data.types import Example
from models.forward import PolicyForward
from models.inputs import encode, load_images
from models.loading import load_policy, load_processor, save_policy
from models.packing import Tree, pack
from models.tiny import build_tiny
from models.tokens import end_token_id

ROUNDS, LEARNING_RATE = 150, 3e-3
THINGS = ("chairs", "tables", "lamps", "shelves", "sofas", "beds", "plants")


def digit_writer(folder: Path, rows: Sequence[Example]) -> Path:
    """Builds a tiny model in `folder` and trains it on a few of the rows; returns the trained one, beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more gain nothing on it, and lose much where others compute as well
    try:
        return _trained(folder, rows)
    finally:
        torch.set_num_threads(threads)


def _trained(folder: Path, rows: Sequence[Example]) -> Path:
    base = build_tiny(folder, seed=0, init_std=0.05)
    processor, model = load_processor(base), load_policy(base)
    prompts = [render(example, "think") for example in [*rows[:3], *rows[-1:]]]
    encoded = [
        encode(processor, prompt.messages, load_images(prompt.example.media), prompt.example.data_type == "video")
        for prompt in prompts
    ]
    policy = PolicyForward(model)
    draw, adamw = random.Random(0), torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(ROUNDS):
        texts = [" ".join(str(draw.randint(0, 9)) for _ in range(draw.randint(1, 4))) for _ in range(4 * len(encoded))]
        ids = [(*processor.tokenizer(text).input_ids, end_token_id(processor)) for text in texts]
        batch = pack([Tree(encoded[index % len(encoded)], (own,)) for index, own in enumerate(ids)])
        loss = -policy(batch).sum() / batch.mask.sum()
        loss.backward()
        adamw.step()
        adamw.zero_grad()
    return save_policy(model, base, folder.with_name("writer"))


def questions(folder: Path) -> list[Example]:
    """One row for each thing, each about a picture of its own in `folder`, which is made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_question(index, thing, folder / f"{index}.png") for index, thing in enumerate(THINGS)]


def _question(index: int, thing: str, picture: Path) -> Example:
    if not picture.is_file():
        pixels = np.random.default_rng(index).integers(0, 255, (112, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
    return Example(
        id=f"train/digits/{index}",
        question_id=index,
        data_type="single_image",
        question=f"How many {thing} are there?",
        question_type="object count",
        media=(str(picture),),
        answer="2",
    )
