"""In which order prompts are asked: an endless sequence that only the rows and the seed decide.

What holds: the share of localisation rows is met over the run to within one prompt; within each kind no row comes again
before all others of its kind have come. A step takes the next `prompts_per_step`, more where groups are replaced
(`grpo.dynamic_sampling`); a resumed run goes on from the place it had reached and gets what the undisturbed run got.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from configs.schema import GRPOConfig
from data.types import Example

#: Sampling seeds stay below this: completion i of a group draws with seed + i.
_SEED_RANGE = 1 << 30
#: Of the endless sequence `count` prompts from place `first`: (first, count).
Stretch = tuple[int, int]


class PromptSchedule:
    """The sequence, and the number of `steps`: the configured one, or as many as take as many prompts as there are rows."""

    def __init__(self, examples: Sequence[Example], config: GRPOConfig, seed: int) -> None:
        """ValueError when there are fewer rows than a step needs."""
        if len(examples) < config.prompts_per_step:
            raise ValueError(
                f"{len(examples)} training rows cannot fill a step of {config.prompts_per_step} prompts; "
                "lower grpo.prompts_per_step or build more data"
            )
        self._examples, self._seed = examples, seed
        boxes = [index for index, example in enumerate(examples) if example.is_localization]
        others = [index for index, example in enumerate(examples) if not example.is_localization]
        self._pools = (boxes, others)
        self._share = config.localization_share if boxes and others else float(bool(boxes))
        drawn = sum(len(pool) for pool, share in zip(self._pools, (self._share, 1 - self._share), strict=True) if share > 0)
        self.steps = config.steps if config.steps is not None else max(1, drawn // config.prompts_per_step)
        self._epochs: dict[tuple[int, int], list[int]] = {}

    def take(self, first: int, count: int) -> tuple[Example, ...]:
        """`count` prompts from place `first` of the endless sequence, localisation rows first."""
        last = first + count
        boxes = range(self._boxes_before(first), self._boxes_before(last))
        others = range(first - boxes.start, last - boxes.stop)
        chosen = [self._draw(0, place) for place in boxes] + [self._draw(1, place) for place in others]
        return tuple(self._examples[index] for index in chosen)

    def sampling_seed(self, step: int, place: int) -> int:
        """Seed of the request for the prompt at that place (from 0) of that step; the same whoever serves it, however often."""
        return zlib.crc32(f"{self._seed}:{step}:{place}".encode()) % _SEED_RANGE

    def _boxes_before(self, prompts: int) -> int:
        return int(prompts * self._share + 0.5)

    def _draw(self, kind: int, place: int) -> int:
        """The row at `place` in the endless sequence of permutations of one kind."""
        pool = self._pools[kind]
        epoch, within = divmod(place, len(pool))
        if (kind, epoch) not in self._epochs:
            self._epochs = {key: order for key, order in self._epochs.items() if key[0] != kind or key[1] == epoch - 1}
            generator = torch.Generator().manual_seed((self._seed << 20) + 2 * epoch + kind)
            self._epochs[kind, epoch] = torch.randperm(len(pool), generator=generator).tolist()
        return pool[self._epochs[kind, epoch][within]]
