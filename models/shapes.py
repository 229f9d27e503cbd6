"""Real-size models without their weights: published architectures, and any folder's, on torch's meta device.

What holds
    * Nothing is fetched and nothing is allocated: a tensor on the meta device has a shape and a type, no memory.
    * The shapes are the library's own: the model that is counted is the class that `models.loading` loads.
    * Tied weights are one parameter, counted once, as they are stored, trained and moved.

Source of the numbers: config.json of Qwen/Qwen2.5-VL-3B-Instruct; what it leaves out are the library's defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from models.loading import DTYPES, ModelFolderError


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory depends on. `parameters` counts everything once, `vision_parameters` are part of it.

    `patches` of the tower make one visual token; a patch is `patch_values` numbers.
    """

    parameters: int
    vision_parameters: int
    tied: bool
    vocab: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    vision_intermediate: int
    patches: int
    patch_values: int


def qwen2_5_vl_3b() -> Qwen2_5_VLConfig:
    """The architecture of Qwen2.5-VL-3B-Instruct."""
    text = {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": 151643, "eos_token_id": 151645, "use_sliding_window": False, "tie_word_embeddings": True,
    }
    vision = {
        "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "in_channels": 3, "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=151655, video_token_id=151656,
        vision_start_token_id=151652, vision_end_token_id=151653, tie_word_embeddings=True)


#: Architectures that can be named where no model folder is at hand.
PUBLISHED: Mapping[str, Callable[[], Qwen2_5_VLConfig]] = {"qwen2.5-vl-3b": qwen2_5_vl_3b}


def folder_config(folder: str | Path) -> Qwen2_5_VLConfig:
    """The architecture in a folder's config.json, weights or not. ModelFolderError when it cannot be read."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("model_type") == Qwen2_5_VLConfig.model_type:
            return Qwen2_5_VLConfig.from_dict(values)
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise ModelFolderError(f"{path} cannot be read ({type(error).__name__}: {error}); "
                               f"restore it from the base model") from error
    raise ModelFolderError(f"{path}: model_type is {values.get('model_type')!r}; "
                           f"this system trains {Qwen2_5_VLConfig.model_type!r}")


def meta_model(config: Qwen2_5_VLConfig, dtype: str = "bfloat16") -> Qwen2_5_VLForConditionalGeneration:
    """The model of `config` on the meta device in `dtype` (a key of DTYPES): shapes, no memory. It cannot compute."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    return model.to(DTYPES[dtype])


def shape_of(model: Qwen2_5_VLForConditionalGeneration) -> ModelShape:
    """The sizes of a model, on whatever device it is."""
    text, vision = model.config.text_config, model.config.vision_config
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vision_parameters=sum(parameter.numel() for parameter in model.model.visual.parameters()),
        tied=model.lm_head.weight is model.model.language_model.embed_tokens.weight,
        vocab=text.vocab_size, layers=text.num_hidden_layers, hidden=text.hidden_size,
        heads=text.num_attention_heads, kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads, intermediate=text.intermediate_size,
        vision_layers=vision.depth, vision_hidden=vision.hidden_size, vision_heads=vision.num_heads,
        vision_intermediate=vision.intermediate_size, patches=vision.spatial_merge_size**2,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
    )
