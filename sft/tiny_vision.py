"""The first part of the tiny base's training: the vision tower alone, on what each visual token should know.

A vision-language model this small stays blind for thousands of steps when the language loss alone must teach its eyes;
large ones start from a vision tower that was trained before. So the tower is: from every merged visual token, linear
heads tell what covers that cell of the picture, in which colour, and where its box is. The heads are thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.pictures import CELLS, PALETTE, Picture
from data.scenes.furniture import CATEGORIES

BATCH = 64
PEAK_LR = 2e-3
WARMUP = 100
#: Weight of the box loss, which is the mean absolute error in units of the picture's side.
BOX_WEIGHT = 8.0

_LABELS, _COLORS = tuple(CATEGORIES), tuple(PALETTE)


class CellHeads(nn.Module):
    """Linear heads over visual tokens (N, cells, width): label and colour logits (the last class is 'nothing'), box."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.sizes = (len(_LABELS) + 1, len(_COLORS) + 1, 4)
        self.out = nn.Linear(width, sum(self.sizes))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.out(self.norm(features)).split(self.sizes, dim=-1)


def cell_targets(pictures: Sequence[Picture]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels (N, cells), colours (N, cells) and boxes (N, cells, 4) in units of the side, row by row."""
    labels = np.full((len(pictures), CELLS * CELLS), len(_LABELS))
    colors = np.full((len(pictures), CELLS * CELLS), len(_COLORS))
    boxes = np.zeros((len(pictures), CELLS * CELLS, 4), np.float32)
    for row, picture in enumerate(pictures):
        for cell, index in enumerate(picture.cells.reshape(-1)):
            if index >= 0:
                thing = picture.things[index]
                labels[row, cell], colors[row, cell] = _LABELS.index(thing.label), _COLORS.index(thing.color)
                boxes[row, cell] = np.asarray(thing.box) / picture.rgb.shape[0]
    return torch.from_numpy(labels), torch.from_numpy(colors), torch.from_numpy(boxes)


def train_vision(visual: nn.Module, pictures: Sequence[Picture], patches: Callable[[Picture], torch.Tensor],
                 augment: Callable[[Picture], Picture], steps: int, seed: int) -> None:
    """Train `visual` (the model's vision tower with its merger) in place. `patches(picture)`: (patches, 1176)."""
    torch.manual_seed(seed)
    heads = CellHeads(visual.config.out_hidden_size)
    parameters = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=min(0.3, WARMUP / steps))
    grid = torch.tensor([[1, 2 * CELLS, 2 * CELLS]]).expand(BATCH, 3)
    shown, since = [], time.time()
    for step in range(steps):
        rng = np.random.default_rng((seed, 2, step))
        drawn = [pictures[int(index)] for index in rng.integers(len(pictures), size=BATCH)]
        drawn = [augment(picture) if rng.random() < 0.5 else picture for picture in drawn]
        labels, colors, boxes = cell_targets(drawn)
        features = visual(torch.cat([patches(picture) for picture in drawn]), grid_thw=grid).pooler_output
        label_logits, color_logits, box = heads(features.view(BATCH, CELLS * CELLS, -1))
        covered = labels < len(_LABELS)
        box_error = (box[covered] - boxes[covered]).abs().mean()
        loss = (F.cross_entropy(label_logits.flatten(0, 1), labels.flatten())
                + 0.5 * F.cross_entropy(color_logits.flatten(0, 1), colors.flatten()) + BOX_WEIGHT * box_error)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        hits = (label_logits.argmax(-1) == labels)[covered].float().mean()
        shown.append((loss.item(), hits.item(), box_error.item()))
        if (step + 1) % 50 == 0:
            mean, pace = np.mean(shown, axis=0), (time.time() - since) / len(shown)
            print(f"vision: step {step + 1}/{steps}  loss {mean[0]:.3f}  labels {mean[1]:.2f}  box error {mean[2]:.3f} of the side  "
                  f"{pace:.2f} s/step  about {pace * (steps - step - 1) / 60:.0f} min left", flush=True)
            shown, since = [], time.time()
