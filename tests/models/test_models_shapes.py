"""Published shapes on the meta device: every parameter accounted for, nothing allocated."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models.loading import ModelFolderError
from models.shapes import PUBLISHED, folder_config, meta_model, qwen2_5_vl_3b, shape_of

TINY_BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"


def written_out() -> tuple[int, int]:
    """Parameters of Qwen2.5-VL-3B from its matrices: the text model with its tied head, the vision tower."""
    attention = 2048 * 2048 + 2048 + 2 * (2048 * 256 + 256) + 2048 * 2048  # queries, keys and values with bias; output
    layer = attention + 3 * 2048 * 11008 + 2 * 2048  # gate, up, down; two norms
    text = 151936 * 2048 + 36 * layer + 2048
    block = 1280 * 3840 + 3840 + 1280 * 1280 + 1280  # queries, keys and values together; output
    block += 2 * (1280 * 3420 + 3420) + 3420 * 1280 + 1280 + 2 * 1280
    merger = 1280 + 5120 * 5120 + 5120 + 5120 * 2048 + 2048
    vision = 3 * 2 * 14 * 14 * 1280 + 32 * block + merger
    return text, vision


def test_the_3b_model_has_the_parameters_of_its_checkpoint():
    model = meta_model(qwen2_5_vl_3b())
    text, vision = written_out()
    assert (text, vision) == (3_085_938_688, 668_684_288)
    assert sum(parameter.numel() for parameter in model.parameters()) == text + vision == 3_754_622_976
    assert {(parameter.device.type, parameter.dtype) for parameter in model.parameters()} == {("meta", torch.bfloat16)}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_the_shape_of_the_3b_model():
    shape = shape_of(meta_model(PUBLISHED["qwen2.5-vl-3b"](), "float32"))
    assert (shape.parameters, shape.vision_parameters, shape.tied) == (3_754_622_976, 668_684_288, True)
    assert (shape.vocab, shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (151936, 36, 2048, 16, 2)
    assert (shape.head_dim, shape.intermediate, shape.patches, shape.patch_values) == (128, 11008, 4, 1176)
    assert (shape.vision_layers, shape.vision_hidden, shape.vision_heads, shape.vision_intermediate) == (32, 1280, 16, 3420)


def test_what_the_positions_need_is_that_of_the_checkpoint():
    config = qwen2_5_vl_3b()
    rope = config.text_config.rope_parameters
    assert (rope["rope_theta"], rope["mrope_section"]) == (1e6, [16, 24, 24])
    assert config.text_config.rms_norm_eps == 1e-6
    vision = config.vision_config
    assert list(vision.fullatt_block_indexes) == [7, 15, 23, 31]
    assert (vision.window_size, vision.patch_size, vision.spatial_merge_size) == (112, 14, 2)
    assert (vision.temporal_patch_size, vision.tokens_per_second, vision.out_hidden_size) == (2, 2, 2048)
    assert set(config.text_config.layer_types) == {"full_attention"}


def test_the_shape_of_a_folder_needs_no_weights(tmp_path):
    shutil.copy(TINY_BASE / "config.json", tmp_path)
    shape = shape_of(meta_model(folder_config(tmp_path), "float32"))
    with safe_open(TINY_BASE / "model.safetensors", "pt") as weights:
        sizes = {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}
    assert shape.tied and shape.parameters == sum(sizes.values()) - sizes.get("lm_head.weight", 0)
    assert shape.vision_parameters == sum(size for name, size in sizes.items() if "visual." in name)


@pytest.mark.parametrize("text, part", [(None, "cannot be read"), ("{", "cannot be read"),
                                        ('{"model_type": "llama"}', "model_type is 'llama'")])
def test_a_folder_without_a_usable_configuration(tmp_path, text, part):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFolderError, match=part) as refused:
        folder_config(tmp_path)
    assert str(tmp_path / "config.json") in str(refused.value)
