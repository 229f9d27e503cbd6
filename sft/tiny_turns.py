"""Generic pictures and conversations as trees of the policy forward, for the training of the tiny base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.pictures import Picture, Turn, conversation, mirrored
from models.forward import PolicyForward
from models.inputs import Encoded, encode
from models.loading import load_processor
from models.packing import Tree

SIDE, RENDER_SIDE = 112, 168
_BETWEEN = "\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Row:
    """A conversation: the first question as prompt, the rest as completion, and which of its tokens are answers.

    `place`: (mirrored or not, index) of its picture in `Rows.seen`. `named`: where in the row each name of a
    question stands, and the box of the thing it names, in units of the picture's side."""

    tree: Tree
    answers: list[bool]
    place: tuple[int, int]
    named: list[tuple[int, tuple[float, ...]]]


class Rows:
    """Pictures and conversations as trees; the processor runs once, on a template, and only pixels change."""

    def __init__(self, folder: Path, pictures: list[Picture]) -> None:
        self.processor = load_processor(folder)
        self.pictures = pictures
        self._prompts: dict[str, Encoded] = {}
        self._blank = Image.new("RGB", (SIDE, SIDE))
        image = self.processor.image_processor
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (image.image_mean, image.image_std))
        self._check_patches()

    def patches(self, rgb: np.ndarray) -> torch.Tensor:
        """(patches, 1176) as the image processor makes them, for a picture that needs no resize."""
        pixels = (torch.from_numpy(rgb.copy()).permute(2, 0, 1) / 255.0 - self._mean) / self._std
        n = SIDE // 28
        grid = pixels.unsqueeze(1).expand(3, 2, SIDE, SIDE).reshape(3, 2, n, 2, 14, n, 2, 14)
        return grid.permute(2, 5, 3, 6, 0, 1, 4, 7).reshape(n * n * 4, 3 * 2 * 14 * 14)

    def _check_patches(self) -> None:
        rgb = self.pictures[0].rgb
        truth = self.processor.image_processor(images=[Image.fromarray(rgb)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(self.patches(rgb), truth, atol=1e-4, rtol=0)

    def _prompt(self, question: str) -> Encoded:
        if question not in self._prompts:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            self._prompts[question] = encode(self.processor, [{"role": "user", "content": content}], [self._blank], False)
        return self._prompts[question]

    @torch.no_grad()
    def seen(self, policy: PolicyForward) -> torch.Tensor:
        """Visual tokens (2, pictures, tokens, width) of all pictures as they are, and mirrored."""
        grid = torch.tensor([[1, SIDE // 14, SIDE // 14]])
        both = [*self.pictures, *map(mirrored, self.pictures)]
        tokens = []
        for first in range(0, len(both), 64):
            patches = [self.patches(picture.rgb) for picture in both[first:first + 64]]
            tokens.append(policy.visual(torch.cat(patches), grid.expand(len(patches), 3)).unflatten(0, (len(patches), -1)))
        return torch.cat(tokens).unflatten(0, (2, -1))

    def sample(self, index: int, rng: np.random.Generator, turns: int, kinds: Mapping[str, float]) -> Row:
        """A conversation about the picture, mirrored every other time."""
        picture, flipped = self.pictures[index], rng.random() < 0.5
        if flipped:
            picture = mirrored(picture)
        asked = conversation(picture, rng, turns, kinds)
        prompt = self._prompt(asked[0].question)
        encoded = Encoded(prompt.prompt_ids, prompt.input_ids, prompt.token_types, self.patches(picture.rgb),
                          prompt.grid_thw, prompt.positions)
        ids, answers, named = [], [], self._names(list(prompt.input_ids), 0, asked[0])
        for number, turn in enumerate(asked):
            if number:
                between = self._tokenize(_BETWEEN.format(question=turn.question))
                named += self._names(between, len(prompt.input_ids) + len(ids), turn)
                ids += between
                answers += [False] * len(between)
            reply = self._tokenize(turn.answer + "<|im_end|>")
            ids += reply
            answers += [True] * len(reply)
        return Row(Tree(encoded, (tuple(ids),)), answers, (int(flipped), index), named)

    def _tokenize(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def _names(self, tokens: list[int], start: int, turn: Turn) -> list[tuple[int, tuple[float, ...]]]:
        """Position of each name of the question, whose tokens begin at `start`, with the box of what it names."""
        found, position = [], 0
        for thing in turn.named:
            (name,) = self._tokenize(f" {thing.label}")
            position = tokens.index(name, position) + 1
            found.append((start + position - 1, tuple(value / SIDE for value in thing.box)))
        return found
