"""The policy's forward pass, shared by SFT, the learner and every check: log-probabilities of completion tokens.

What holds
    * A pass is one packed sequence (`models.packing`): no padding, every prompt once, every distinct picture through the
      vision tower once.
    * Full logits never exist (`models.token_logprobs`).
    * Log-probabilities are of the distribution the engine samples from: logits divided by the temperature, banned ids
      at minus infinity (`processed_logprobs`).
    * With `always_see` a pass without pictures sends an empty one through the tower, to no effect, so that sharded ranks
      make the same calls whatever their rows hold.

Alignment: `logprobs[r, t]` is the log-probability of token t of completion r given its prompt and its tokens before t.
Legend: R completions, T longest completion, S tokens of the pass.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from models.packing import PackedBatch
from models.token_logprobs import token_logprobs
from models.tree_attention import NO_MASK, Attention, choose_attention, use_tree_attention
from models.vision_tower import quicken_vision


class PolicyForward(nn.Module):
    """The model with the one forward that training uses; wrap this, not the inner model, into a training engine."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, attention: Attention = "auto", always_see: bool = False
    ) -> None:
        super().__init__()
        quicken_vision(model)
        use_tree_attention(model, choose_attention(attention, model.device, model.dtype))
        model.lm_head = ScoringHead(model.lm_head)
        self.model, self._always_see = model, always_see

    def forward(self, batch: PackedBatch, temperature: float = 1.0, banned: Sequence[int] = (),
                features: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities (R, T) float32 of the completions' tokens; zero behind a completion's end.

        `features` (visual tokens of the distinct media, width): what `visual` gave before, where it need not run again.
        """
        hidden = self._hidden(batch, features)[batch.source]
        forbidden = torch.tensor(list(banned), dtype=torch.long, device=hidden.device)
        scored = self.model.lm_head(hidden, batch.targets, temperature, forbidden)
        return scored.new_zeros(batch.mask.shape).masked_scatter(batch.mask, scored)

    def visual(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Visual tokens (tokens, width) of patches (patches, 1176) with grids (media, 3)."""
        tower = self.model.model.visual
        return tower(pixel_values.to(tower.dtype), grid_thw=grid_thw).pooler_output

    def _hidden(self, batch: PackedBatch, features: torch.Tensor | None) -> torch.Tensor:
        """The last hidden states (S, width)."""
        decoder = self.model.model.language_model
        embeds = decoder.embed_tokens(batch.input_ids)
        if batch.pixel_values is not None:
            features = self.visual(batch.pixel_values, batch.grid_thw) if features is None else features
            seen = features.index_select(0, batch.feature_rows).to(embeds.dtype)
            embeds = embeds.index_copy(0, batch.media_places, seen)
        elif self._always_see:
            embeds = embeds + 0 * self._nothing_seen().sum()
        out = decoder(inputs_embeds=embeds.unsqueeze(0), position_ids=batch.positions.unsqueeze(1),
                      attention_mask=NO_MASK, layout=batch.layout, use_cache=False)
        return out.last_hidden_state[0]

    def _nothing_seen(self) -> torch.Tensor:
        config = self.model.config.vision_config
        merge = config.spatial_merge_size
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        pixels = torch.zeros(merge * merge, width, device=self.model.device)
        return self.visual(pixels, torch.tensor([[1, merge, merge]], device=self.model.device))


class ScoringHead(nn.Linear):
    """The output head, with the scores of given tokens in place of all logits: one call per pass, so that weights that
    are sharded are gathered once. Takes over the weight of `head`, tied or not."""

    def __init__(self, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, None

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, banned: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, width) and tokens (N) to log-probabilities (N) float32."""
        return token_logprobs(hidden, self.weight, targets, temperature, banned)
