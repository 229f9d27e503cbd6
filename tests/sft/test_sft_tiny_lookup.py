"""The lookup head: it reads the first layer at the names, and gives nothing where nothing is named."""

import numpy as np
import pytest
import torch

from data.pictures import FIND
from models.forward import PolicyForward, build_batch
from models.loading import load_policy
from models.tiny import build_tiny
from sft.tiny_lookup import LookupHead


def test_error_is_that_of_the_first_layer_at_the_names(rows, tmp_path):
    """Against the hidden states that the library itself returns."""
    policy = PolicyForward(load_policy(build_tiny(tmp_path, seed=2)))
    head = LookupHead(policy)
    drawn = [rows.sample(index, np.random.default_rng(index), 3, FIND) for index in range(8)]
    batch = build_batch([row.sample for row in drawn], 0)
    policy(batch)
    error = head.error(drawn)
    decoder = policy.model.model.language_model
    embeds = decoder.embed_tokens(batch.input_ids)
    embeds = embeds.masked_scatter(batch.media_mask.unsqueeze(-1), policy.visual(batch.pixel_values, batch.grid_thw))
    states = decoder(inputs_embeds=embeds, position_ids=batch.positions, use_cache=False,
                     output_hidden_states=True).hidden_states
    wrong = []
    for place, row in enumerate(drawn):
        for position, box in row.named:
            hidden = states[1][place, position]
            hidden = hidden / (hidden.pow(2).mean() + torch.finfo(hidden.dtype).eps).sqrt()
            wrong += (head.out(hidden) - torch.tensor(box)).abs().tolist()
    assert len(wrong) > 40 and error.item() == pytest.approx(np.mean(wrong), rel=1e-4)
    error.backward()
    assert decoder.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert decoder.layers[1].self_attn.q_proj.weight.grad is None


def test_nothing_named_is_no_error(rows, tmp_path):
    policy = PolicyForward(load_policy(build_tiny(tmp_path, seed=2)))
    head, row = LookupHead(policy), rows.sample(0, np.random.default_rng(0), 1, {"caption": 1.0})
    policy(build_batch([row.sample], 0))
    assert row.named == [] and head.error([row]).item() == 0
