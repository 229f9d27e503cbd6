"""The policy's forward pass, shared by SFT, the learner and every check: log-probabilities of completion tokens.

What holds
    * A batch is R rows, right-padded; row r is an encoded prompt followed by its completion. Attention is causal and
      padding stands behind everything real, so no mask is needed and no row can see another.
    * Rows that share one `Encoded` object share one vision pass: features are computed once per distinct prompt and
      scattered into every row.
    * Full logits never exist: the head runs over chunks of completion positions, recomputed in the backward pass.
    * Log-probabilities are of the distribution the engine samples from: logits divided by the temperature, banned ids
      at minus infinity (`processed_logprobs`).

Alignment: `logprobs[r, t]` is the log-probability of `completion_ids[t]` given prompt and completion_ids[:t].
Legend: R rows, S padded length, T longest completion, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

from models.inputs import Encoded
from models.vision_attention import batch_vision_attention

#: Completion positions whose logits exist at the same time.
HEAD_CHUNK = 4096


@dataclass(frozen=True)
class Sample:
    """One row: a prompt and the completion whose tokens are scored."""

    encoded: Encoded
    completion_ids: tuple[int, ...]


@dataclass(frozen=True)
class PolicyBatch:
    """input_ids, positions: (R, S), (3, R, S). targets, mask, source: (R, T); `source` is the position that predicts the
    target. pixel_values (patches, 1176) and grid_thw (media, 3) of the distinct prompts; `feature_rows[r]` is the slice
    of visual tokens of row r."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor
    source: torch.Tensor
    media_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    grid_thw: torch.Tensor | None
    feature_rows: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str) -> "PolicyBatch":
        moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in vars(self).items()}
        return PolicyBatch(**moved)


def build_batch(samples: Sequence[Sample], pad_id: int, merge: int = 2) -> PolicyBatch:
    """Pad the samples to one batch. ValueError on an empty batch or an empty completion."""
    if not samples or any(not sample.completion_ids for sample in samples):
        raise ValueError("a batch needs at least one sample, and every sample at least one completion token")
    rows, width = len(samples), max(len(s.encoded.input_ids) + len(s.completion_ids) for s in samples)
    longest = max(len(s.completion_ids) for s in samples)
    input_ids = torch.full((rows, width), pad_id, dtype=torch.long)
    positions = torch.zeros((3, rows, width), dtype=torch.long)
    targets, source = torch.zeros((rows, longest), dtype=torch.long), torch.zeros((rows, longest), dtype=torch.long)
    mask, media_mask = torch.zeros((rows, longest), dtype=torch.bool), torch.zeros((rows, width), dtype=torch.bool)
    pixels, grids, spans, feature_rows, visual_tokens = [], [], {}, [], 0
    for r, sample in enumerate(samples):
        encoded, done = sample.encoded, len(sample.completion_ids)
        start = len(encoded.input_ids)
        input_ids[r, :start] = torch.tensor(encoded.input_ids)
        completion = torch.tensor(sample.completion_ids)
        input_ids[r, start:start + done] = completion
        positions[:, r, :start] = encoded.positions
        positions[:, r, start:start + done] = encoded.next_position + torch.arange(done)
        targets[r, :done], mask[r, :done] = completion, True
        source[r, :done] = torch.arange(start - 1, start - 1 + done)
        media_mask[r, :start] = torch.tensor(encoded.token_types) > 0
        if id(encoded) not in spans:
            count = 0
            if encoded.pixel_values is not None:
                pixels.append(encoded.pixel_values)
                grids.append(encoded.grid_thw)
                count = int(encoded.grid_thw.prod(-1).sum()) // merge**2
            spans[id(encoded)] = (visual_tokens, visual_tokens + count)
            visual_tokens += count
        feature_rows.append(spans[id(encoded)])
    return PolicyBatch(input_ids, positions, targets, mask, source, media_mask,
                       torch.cat(pixels) if pixels else None, torch.cat(grids) if grids else None, tuple(feature_rows))


class PolicyForward(nn.Module):
    """The model with the one forward that training uses; wrap this, not the inner model, into a training engine."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        batch_vision_attention(model)
        self.model = model

    def forward(self, batch: PolicyBatch, temperature: float = 1.0, banned: Sequence[int] = (),
                features: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities (R, T) float32 of the completion tokens; zero where `batch.mask` is false.

        `features` (visual tokens of the distinct prompts, width): what `visual` gave before, where it need not run again.
        """
        hidden = self._hidden(batch, features)
        rows, tokens = batch.mask.nonzero(as_tuple=True)
        picked = hidden[rows, batch.source[rows, tokens]]
        targets = batch.targets[rows, tokens]
        forbidden = torch.tensor(list(banned), dtype=torch.long, device=hidden.device)
        parts = [
            checkpoint(self._score, picked[i:i + HEAD_CHUNK], targets[i:i + HEAD_CHUNK], temperature, forbidden,
                       use_reentrant=False)
            for i in range(0, len(targets), HEAD_CHUNK)
        ]
        out = torch.zeros(batch.mask.shape, dtype=torch.float32, device=hidden.device)
        return out.index_put((rows, tokens), torch.cat(parts))

    def visual(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Visual tokens (tokens, width) of patches (patches, 1176) with grids (media, 3)."""
        tower = self.model.model.visual
        return tower(pixel_values.to(tower.dtype), grid_thw=grid_thw).pooler_output

    def _hidden(self, batch: PolicyBatch, features: torch.Tensor | None) -> torch.Tensor:
        inner = self.model.model
        embeds = inner.language_model.embed_tokens(batch.input_ids)
        if batch.pixel_values is not None:
            if features is None:
                features = self.visual(batch.pixel_values, batch.grid_thw)
            rows = torch.cat([features[start:end] for start, end in batch.feature_rows])
            if len(rows) != int(batch.media_mask.sum()):
                raise ValueError(f"{len(rows)} visual tokens for {int(batch.media_mask.sum())} placeholders")
            embeds = embeds.masked_scatter(batch.media_mask.unsqueeze(-1), rows.to(embeds.dtype))
        return inner.language_model(inputs_embeds=embeds, position_ids=batch.positions, use_cache=False).last_hidden_state

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, banned: torch.Tensor) -> torch.Tensor:
        logits = self.model.lm_head(hidden).float() / temperature
        if len(banned):
            logits = logits.index_fill(-1, banned, float("-inf"))
        return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
