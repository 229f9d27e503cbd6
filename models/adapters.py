"""LoRA: low-rank adapters beside the frozen weights of the language model (Hu et al. 2021, arXiv 2106.09685), by peft.

What holds
    * Of the policy only the adapters train; they stand beside every linear map of the decoder's layers. Embeddings, head
      and vision tower keep their weights.
    * At the start an adapter adds nothing, and all ranks have drawn the same one.
    * What leaves a learner (weights for the engines, a stage's model folder) is the plain model: the adapters are added
      to the weights they stand beside, and names and shapes are those of the base. Nothing outside knows of them.
    * `adapters_off` is the policy before training: GRPO's reference needs no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from configs.schema import LoraConfig

_NAME = "default"
_BASE, _DOWN, _UP = ".base_layer.", f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
_LINEAR_MAPS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.[qkvogud][a-z]*_proj"


def add_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> None:
    """Freeze `model` and give its decoder adapters, the same for the same `seed`, of the type of its weights."""
    from peft import LoraConfig as PeftConfig, inject_adapter_in_model

    model.requires_grad_(False)
    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=_LINEAR_MAPS, lora_dropout=0.0)
        inject_adapter_in_model(settings, model, _NAME)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block the adapters add nothing. Their parameters stay as they are, for whoever has hooks on them."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.set_scale(_NAME, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(_NAME, 1.0)


def merged(weights: Mapping[str, torch.Tensor], lora: LoraConfig | None) -> dict[str, torch.Tensor]:
    """All weights of a model with adapters by the names of the base, the adapters added: W + alpha / rank * B A.

    Sums and products in float32, the result in the type of W. Without `lora` the weights as they are.
    """
    if lora is None:
        return dict(weights)
    plain = {}
    for name, tensor in weights.items():
        module = name.partition(_BASE)[0]
        if name.endswith(f"{_BASE}weight"):
            up, down = weights[module + _UP].float(), weights[module + _DOWN].float()
            tensor = (tensor.float() + lora.alpha / lora.rank * (up @ down)).to(tensor.dtype)
        if ".lora_" not in name:
            plain[name.replace(_BASE, ".")] = tensor
    return plain
