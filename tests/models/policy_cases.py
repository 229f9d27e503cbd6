"""Pictures, chats and trees for a tiny random model, and transformers' own forward on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from models.inputs import Encoded
from models.packing import Tree


def picture(seed, size=(168, 168)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def chat(kind, count, text):
    return [{"role": "user", "content": [{"type": kind}] * count + [{"type": "text", "text": text}]}]


def tree(encoded: Encoded, lengths: Sequence[int], seed: int = 0) -> Tree:
    """Random completions of the given lengths."""
    rng = np.random.default_rng(seed)
    return Tree(encoded, tuple(tuple(rng.integers(20, 400, length).tolist()) for length in lengths))


def padded_logprobs(model, trees: Sequence[Tree], temperature: float = 1.0, banned: Sequence[int] = ()) -> list[torch.Tensor]:
    """transformers' forward on one right-padded batch, a row for every completion with its whole prompt and pictures.

    Positions are passed, because its own rule for videos differs from the engine's.
    """
    rows = [(tree.encoded, completion) for tree in trees for completion in tree.completions]
    width = max(len(encoded.input_ids) + len(completion) for encoded, completion in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    positions = torch.zeros(3, len(rows), width, dtype=torch.long)
    media = {1: ([], []), 2: ([], [])}
    for row, (encoded, completion) in enumerate(rows):
        start, end = len(encoded.input_ids), len(encoded.input_ids) + len(completion)
        ids[row, :end] = torch.tensor([*encoded.input_ids, *completion])
        mask[row, :end] = 1
        types[row, :start] = torch.tensor(encoded.token_types)
        positions[:, row, :start] = encoded.positions
        positions[:, row, start:end] = encoded.positions.max() + 1 + torch.arange(len(completion))
        if encoded.pixel_values is not None:
            pixels, grids = media[max(encoded.token_types)]
            pixels.append(encoded.pixel_values)
            grids.append(encoded.grid_thw)
    seen = {}
    if media[1][0]:
        seen |= {"pixel_values": torch.cat(media[1][0]), "image_grid_thw": torch.cat(media[1][1])}
    if media[2][0]:
        seen |= {"pixel_values_videos": torch.cat(media[2][0]), "video_grid_thw": torch.cat(media[2][1])}
    logits = model(input_ids=ids, attention_mask=mask, mm_token_type_ids=types, position_ids=positions, **seen).logits
    logits = logits.float() / temperature
    if banned:
        logits[..., list(banned)] = float("-inf")
    scores = logits.log_softmax(-1)
    found = []
    for row, (encoded, completion) in enumerate(rows):
        start = len(encoded.input_ids) - 1
        own = scores[row, start : start + len(completion)]
        found.append(own.gather(-1, torch.tensor(completion).unsqueeze(-1))[:, 0])
    return found
