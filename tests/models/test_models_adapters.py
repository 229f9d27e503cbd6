"""Adapters beside the weights: what trains, what they add, and that what leaves is a plain model."""

from __future__ import annotations

import pytest
import torch
from policy_cases import tree

from configs.schema import LoraConfig
from models.adapters import add_adapters, adapters_off, merged
from models.forward import PolicyForward
from models.loading import load_policy, save_policy
from models.packing import pack

LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture
def adapted(folder):
    """A model whose adapters have been somewhere."""
    model = load_policy(folder)
    add_adapters(model, LORA, seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def batch(prompts):
    return pack([tree(encoded, (5, 1, 9)) for encoded in prompts.values()])


def logprobs(model, batch):
    with torch.no_grad():
        return PolicyForward(model)(batch)


def test_only_adapters_of_the_decoder_train_and_the_seed_decides_them(folder):
    model, again, other = load_policy(folder), load_policy(folder), load_policy(folder)
    add_adapters(model, LORA, seed=3)
    add_adapters(again, LORA, seed=3)
    add_adapters(other, LORA, seed=4)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = model.config.text_config.num_hidden_layers
    assert len(trained) == layers * 7 * 2 and all(".language_model.layers." in name and ".lora_" in name for name in trained)
    down = next(name for name in trained if "lora_A" in name)
    assert torch.equal(model.get_parameter(down), again.get_parameter(down))
    assert not torch.equal(model.get_parameter(down), other.get_parameter(down))


def test_at_the_start_an_adapter_adds_nothing(folder, batch):
    model = load_policy(folder)
    add_adapters(model, LORA, seed=3)
    assert torch.equal(logprobs(model, batch), logprobs(load_policy(folder), batch))


def test_switched_off_they_add_nothing_and_come_back(folder, adapted, batch):
    forward = PolicyForward(adapted)
    with torch.no_grad():
        moved = forward(batch)
        with adapters_off(forward):
            still = forward(batch)
        again = forward(batch)
    assert torch.equal(still, logprobs(load_policy(folder), batch))
    assert torch.equal(again, moved) and float((moved - still).abs().max()) > 0.01
    assert sum(parameter.requires_grad for parameter in adapted.parameters()) > 0


def test_merged_weights_are_those_of_peft_and_make_a_plain_model(folder, adapted, batch, tmp_path):
    from peft.tuners.lora import LoraLayer

    plain, moved = merged(adapted.state_dict(), LORA), logprobs(adapted, batch)
    assert plain.keys() == load_policy(folder).state_dict().keys()
    saved = load_policy(save_policy(adapted, folder, tmp_path / "hf", plain))
    torch.testing.assert_close(logprobs(saved, batch), moved, atol=1e-5, rtol=0)
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            module.merge()
            torch.testing.assert_close(plain[f"{name}.weight"], module.get_base_layer().weight.data, atol=1e-6, rtol=0)


def test_adapters_take_the_type_of_the_weights(folder):
    model = load_policy(folder, "bfloat16")
    add_adapters(model, LORA, seed=3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in merged(model.state_dict(), LORA).values()} == {torch.bfloat16}
