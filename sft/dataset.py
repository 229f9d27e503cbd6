"""Rows of a supervised stage as training samples, in an order that only the seed decides.

What holds
    * A sample is the rendered prompt and, as its completion, the target text with the token that ends the turn. The
      loss is over completions, so nothing of the prompt (system, question, media) is ever supervised.
    * Row order is a permutation per epoch drawn from (seed, epoch), in which rows with the same views may be brought
      together, so that a step sends them through the vision tower once for several rows; batches are cut from the endless
      sequence, so the rows of step s do not depend on how often the run was interrupted or on the number of ranks.
    * Targets are checked before training starts: a row without a target, or with a media token in it, is refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor

from configs.schema import BoxFrame, SFTConfig
from data.prompt_length import prompt_length
from data.prompts import Mode, Preset, render
from data.types import Example, Prompt
from models.inputs import Encoded, encode, frame_size, image_size, load_images
from models.packing import Tree
from models.passes import TreeSize
from models.tokens import banned_token_ids, end_token_id

#: What each supervised stage asks its rows for.
STAGE_MODES: dict[str, Mode] = {"sft1": "ground", "sft2": "direct", "coldstart": "think"}
#: Memory for decoded pictures and for encoded rows, each.
CACHE_BYTES = 1 << 30

Value = TypeVar("Value")


class TargetError(ValueError):
    """A row that cannot be supervised: says which row and why."""


class RowOrder:
    """Which rows are in which step. `steps` optimizer steps of at most `batch_size` rows."""

    def __init__(self, views: Sequence[tuple[str, ...]], config: SFTConfig, seed: int) -> None:
        """`views`: the media of every row. ValueError when there is no row."""
        if not views:
            raise ValueError("the stage has no rows")
        self._views, self._together = views, config.views_together
        self._rows, self._batch, self._seed = len(views), config.batch_size, seed
        self._total = max(1, round(config.epochs * self._rows))
        self.steps = math.ceil(self._total / self._batch)
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self._epoch: tuple[int, list[int]] = (-1, [])

    def batch(self, step: int) -> tuple[int, ...]:
        """Row indices of step `step` (from 0); the last step of the run may be smaller."""
        places = range(step * self._batch, min((step + 1) * self._batch, self._total))
        return tuple(self._permutation(place // self._rows)[place % self._rows] for place in places)

    def _permutation(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            self._epoch = (epoch, self._gathered(torch.randperm(self._rows, generator=generator).tolist()))
        return self._epoch[1]

    def _gathered(self, rows: list[int]) -> list[int]:
        """Every row followed by the next ones with its views, as many as may stand together."""
        runs: list[list[int]] = []
        open_runs: dict[tuple[str, ...], list[int]] = {}
        for row in rows:
            run = open_runs.get(self._views[row])
            if run is None or len(run) == self._together:
                run = open_runs[self._views[row]] = []
                runs.append(run)
            run.append(row)
        return [row for run in runs for row in run]


class _ByteCache(Generic[Value]):
    """Least-recently-used values up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int]) -> Value:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value = make()
        self._values[key] = (value, size(value))
        self._used += self._values[key][1]
        while self._used > self._limit and len(self._values) > 1:
            self._used -= self._values.popitem(last=False)[1][1]
        return value


class StageRows:
    """The rows of one stage, encoded when asked for. Rows that share a picture read it from disk once."""

    def __init__(
        self,
        stage: str,
        examples: Sequence[Example],
        processor: Qwen2_5_VLProcessor,
        preset: Preset = "ladder",
        tokens_per_second: float = 2.0,
        vocab_size: int = 0,
        box_frame: BoxFrame = "absolute",
    ) -> None:
        """Renders every row. `vocab_size`: rows of the model's head. Errors: TargetError, MediaError."""
        self._processor, self._tokens_per_second = processor, tokens_per_second
        self._images: _ByteCache[Image.Image] = _ByteCache(CACHE_BYTES)
        self._encoded: _ByteCache[Encoded] = _ByteCache(CACHE_BYTES)
        self._prompt_tokens: dict[int, int] = {}
        self._prompts = [_with_target(example, STAGE_MODES[stage], preset, processor, box_frame) for example in examples]
        texts = [prompt.target for prompt in self._prompts]
        end, banned = end_token_id(processor), frozenset(banned_token_ids(processor, vocab_size))
        ids = processor.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        self._targets = [(*row, end) for row in ids]
        for prompt, target in zip(self._prompts, self._targets, strict=True):
            if banned.intersection(target):
                raise TargetError(f"row {prompt.example.id}: its target holds a media token: {prompt.target[:80]!r}")

    def __len__(self) -> int:
        return len(self._prompts)

    def target(self, row: int) -> tuple[int, ...]:
        """Supervised token ids of a row, the end of the turn included."""
        return self._targets[row]

    def size(self, row: int) -> TreeSize:
        """What the row takes in a pass, without reading pixels. MediaError when a picture's header cannot be read."""
        prompt = self._prompts[row]
        if row not in self._prompt_tokens:
            self._prompt_tokens[row] = prompt_length(self._processor, prompt)
        return TreeSize(self._prompt_tokens[row], (len(self._targets[row]),), prompt.example.media)

    def tree(self, row: int) -> Tree:
        """The row ready for the forward pass. MediaError when a picture cannot be read."""
        encoded = self._encoded.get(row, lambda: self._encode(self._prompts[row]), _encoded_bytes)
        return Tree(encoded, (self._targets[row],))

    def _encode(self, prompt: Prompt) -> Encoded:
        images = [
            self._images.get(
                path, lambda path=path: load_images([path])[0], lambda image: 3 * image.width * image.height
            )
            for path in prompt.example.media
        ]
        return encode(
            self._processor,
            prompt.messages,
            images,
            prompt.example.data_type == "video",
            self._tokens_per_second,
            prompt.example.media,
        )


def _with_target(
    example: Example, mode: Mode, preset: Preset, processor: Qwen2_5_VLProcessor, box_frame: BoxFrame
) -> Prompt:
    sizes = {}
    if mode == "ground":
        original = image_size(example.media[0])
        sizes = {"original_size": original, "frame": frame_size(processor, original, box_frame)}
    prompt = render(example, mode, preset, **sizes)
    if not prompt.target:
        raise TargetError(f"row {example.id}: it has no target for a stage that trains {mode!r} answers")
    return prompt


def _encoded_bytes(encoded: Encoded) -> int:
    pixels = 0 if encoded.pixel_values is None else encoded.pixel_values.nbytes
    return pixels + encoded.positions.nbytes + 32 * len(encoded.input_ids)
