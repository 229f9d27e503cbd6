"""What the runs of stage 3 in the tests share: rows, a tiny policy that writes digits, and the processes of a run."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import torch

from data.prompts import render
from data.types import Box, Example
from models.forward import PolicyForward
from models.inputs import encode, load_images
from models.loading import load_policy, load_processor, save_policy
from models.packing import Tree, pack
from models.tiny import build_tiny
from models.tokens import end_token_id


def row(index: int, media: tuple[str, ...] = ("a.png",), located: bool = False) -> Example:
    if located:
        return Example(
            id=f"train/g/{index}",
            question_id=index,
            data_type="single_image",
            question="Where is the chair?",
            question_type="object localization",
            media=media,
            boxes=(Box("chair", (1.0, 2.0, 30.0, 40.0)),),
        )
    kind = {1: "single_image", 2: "multi_view", 4: "video"}[len(media)]
    return Example(
        id=f"train/s/{index}",
        question_id=index,
        data_type=kind,
        question="How many chairs?",
        question_type="object count",
        media=media,
        answer="2",
    )


def digit_writer(folder: Path, rows: list[Example]) -> Path:
    """A tiny model that has learned to answer every row with one to four random digits and to stop."""
    base = build_tiny(folder, seed=0, init_std=0.05)
    processor, model = load_processor(base), load_policy(base)
    prompts = [render(example, "think") for example in rows[:3] + rows[-1:]]
    encoded = [
        encode(processor, prompt.messages, load_images(prompt.example.media), prompt.example.data_type == "video")
        for prompt in prompts
    ]
    policy = PolicyForward(model)
    draw, adamw = random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        texts = [" ".join(str(draw.randint(0, 9)) for _ in range(draw.randint(1, 4))) for _ in range(4 * len(encoded))]
        ids = [(*processor.tokenizer(text).input_ids, end_token_id(processor)) for text in texts]
        batch = pack([Tree(encoded[index % len(encoded)], (own,)) for index, own in enumerate(ids)])
        loss = -policy(batch).sum() / batch.mask.sum()
        loss.backward()
        adamw.step()
        adamw.zero_grad()
    return save_policy(model, base, folder.with_name("writer"))


def processes() -> set[int]:
    """Processes of engines, actors and rewards."""
    marks = ("EngineCore", "ray::RolloutWorker", "ray::Learner", "ray::RewardActor", "rewards.supervisor")
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any(mark in " ".join(process.info["cmdline"] or ()) for mark in marks):
            found.add(process.pid)
    return found
