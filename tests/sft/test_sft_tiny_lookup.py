"""The lookup head: it reads the first layer at the names, and gives nothing where nothing is named."""

import numpy as np
import pytest
import torch

from data.pictures import FIND
from models.forward import PolicyForward
from models.loading import load_policy
from models.packing import pack
from models.tiny import build_tiny
from sft.tiny_lookup import LookupHead


def test_error_is_that_of_the_first_layer_at_the_names(rows, tmp_path):
    """Against the hidden states that the library itself returns."""
    folder = build_tiny(tmp_path, seed=2)
    policy, library = PolicyForward(load_policy(folder)), load_policy(folder).model
    head = LookupHead(policy)
    drawn = [rows.sample(index, np.random.default_rng(index), 3, FIND) for index in range(8)]
    batch = pack([row.tree for row in drawn])
    policy(batch)
    error = head.error(drawn, batch)
    decoder = policy.model.model.language_model
    wrong = []
    for row in drawn:
        encoded, (ids,) = row.tree.encoded, row.tree.completions
        types = torch.tensor([[*encoded.token_types, *[0] * len(ids)]])
        states = library(input_ids=torch.tensor([[*encoded.input_ids, *ids]]), mm_token_type_ids=types,
                         pixel_values=encoded.pixel_values, image_grid_thw=encoded.grid_thw,
                         output_hidden_states=True).hidden_states
        for position, box in row.named:
            hidden = states[1][0, position]
            hidden = hidden / (hidden.pow(2).mean() + torch.finfo(hidden.dtype).eps).sqrt()
            wrong += (head.out(hidden) - torch.tensor(box)).abs().tolist()
    assert len(wrong) > 40 and error.item() == pytest.approx(np.mean(wrong), rel=1e-4)
    error.backward()
    assert decoder.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert decoder.layers[1].self_attn.q_proj.weight.grad is None


def test_nothing_named_is_no_error(rows, tmp_path):
    policy = PolicyForward(load_policy(build_tiny(tmp_path, seed=2)))
    head, row = LookupHead(policy), rows.sample(0, np.random.default_rng(0), 1, {"caption": 1.0})
    batch = pack([row.tree])
    policy(batch)
    assert row.named == [] and head.error([row], batch).item() == 0
