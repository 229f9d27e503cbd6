"""Memory per GPU: every part against arithmetic written out, the tensors of a pass against the library's own layers."""

from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface

import models.vision_tower
from benchmarks.tensor_memory import AliveTensors
from configs.load import load_config
from launch.memory import (DEVICES, MARGIN, EngineMemory, EstimateError, LearnerMemory, Ranks, engine_memory, estimate,
                           learner_memory, main, pass_bytes, text_layer, vision_block)
from models.deepspeed_engine import _deepspeed_config
from models.shapes import ModelShape, meta_model, qwen2_5_vl_3b, shape_of
from models.token_logprobs import token_logprobs
from models.vision_tower import quicken_vision

ROOT = Path(__file__).resolve().parents[2]
NODES = {"h100-80gb": "spatialladder-3b-8xh100", "a100-80gb": "spatialladder-3b-8xa100"}
P = 3_754_622_976  # parameters of the 3B model
SIZES = {"bfloat16": 2, "float32": 4}


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return shape_of(meta_model(qwen2_5_vl_3b()))


@pytest.mark.parametrize("gpu, name", NODES.items())
def test_the_eight_gpu_configurations_load_and_fit(shape, gpu, name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    base = load_config(ROOT / "configs" / "spatialladder-3b.yaml")
    assert config.name == name and config.model == base.model and config.model.attention == "auto"
    assert config.grpo == base.grpo and config.sft1.batch_size == base.sft1.batch_size == 16
    assert config.sft1.optimizer == base.sft1.optimizer and config.sft1 == config.sft2 == config.coldstart
    lines = estimate(config, shape, DEVICES[gpu])
    assert [(line.stage, line.gpus, line.fits) for line in lines] == [
        ("sft1", 8, True), ("sft2", 8, True), ("coldstart", 8, True), ("grpo", 4, True), ("grpo", 4, True)]


def test_the_learner_of_the_h100_node_part_by_part(shape):
    """Four ranks, ZeRO-1, bfloat16, a reference, passes of 16384 tokens, all of them visual, with checkpointing."""
    config = load_config(ROOT / "configs" / "spatialladder-3b-8xh100.yaml")
    learner = estimate(config, shape, DEVICES["h100-80gb"])[3].memory
    kept = 36 * 16384 * 2 * 2048  # the inputs of the decoder layers
    eyes = 32 * 65536 * 2 * 1280 + 65536 * (4 * 1280 + 4 * 2 * 1280 + 4)  # of the tower's blocks, and the merger
    pixels, features = 65536 * 1176 * (4 + 2), 16384 * 2048 * 2
    head_waits = 151936 * 2048 * 2
    layer = 16384 * (2 * (2048 * 8 + 4) + 2 * (2048 + 2048 + 256 + 256) + 16 * 4 + 4 * 2 * 11008)
    backward = 16384 * 2 * (2 * 11008 + 2048) + 2048 * 11008 * 2
    assert learner == LearnerMemory(
        weights=7_509_245_952,
        reference=7_509_245_952,
        gradients=7_509_245_952 + 1_877_311_488,  # all, and the share that is copied out for the update
        optimizer=12 * 938_655_744,
        buffers=1_000_000_000,
        activations=kept + eyes + pixels + features + head_waits + layer + backward,
        step=4 * 938_655_744,  # the share's gradient in float32
        host=0,
    )
    assert learner.activations == 12_908_888_064
    assert learner.total == (7_509_245_952 * 2 + 9_386_557_440 + 11_263_868_928 + 1_000_000_000 + 12_908_888_064
                             + 3 * 2**30) == 52_799_031_808


def test_the_engine_of_the_h100_node_part_by_part(shape):
    config = load_config(ROOT / "configs" / "spatialladder-3b-8xh100.yaml")
    engine = estimate(config, shape, DEVICES["h100-80gb"])[4].memory
    workspace = 8192 * 4 * 2 * 3 * (3420 + 1280) + 128 * 151936 * 4 * 2
    assert engine == EngineMemory(7_509_245_952, workspace, int(79 * 2**30 * 0.85), 2 * 36 * 2 * 128 * 2)
    assert engine.cache == int(79 * 2**30 * 0.85) - 7_509_245_952 - 1_079_640_064 - 3 * 2**30
    assert engine.cache_tokens == engine.cache // 36_864 == 1_635_515


@pytest.mark.parametrize("dtype, stage, per_parameter", [
    # weights, gradients, optimizer, step; four ranks
    ("bfloat16", 0, (2, 2, 12, 4)),
    ("bfloat16", 1, (2, 2.5, 3, 1)),
    ("bfloat16", 2, (2, 1, 3, 1)),
    ("bfloat16", 3, (0.5, 0.5, 3, 1)),
    ("float32", 0, (4, 4, 8, 0)),
    ("float32", 1, (4, 5, 3, 1)),
    ("float32", 2, (4, 2, 3, 1)),
    ("float32", 3, (1, 1, 3, 1)),
])
def test_what_every_zero_stage_keeps(shape, dtype, stage, per_parameter):
    size = SIZES[dtype]
    memory = learner_memory(shape, size, Ranks(4, stage, True, 1024), reference=False, frozen_eyes=False, visual_share=0)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.step) == tuple(P * part for part in per_parameter)
    assert memory.buffers == size * {0: 5e8, 1: 5e8, 2: 5e8, 3: 2e9}[stage]
    assert memory.reference == 0


def test_the_types_of_gradients_are_those_the_engine_asks_for():
    config = load_config(ROOT / "configs" / "spatialladder-3b.yaml").learner.optimizer
    for stage in range(4):
        settings = _deepspeed_config(config, stage, bfloat16=True, clip_here=False)
        assert "data_types" not in settings and settings["bf16"] == {"enabled": True}
        zero = settings["zero_optimization"]
        assert zero == {"stage": stage} | ({"overlap_comm": False} if stage in (1, 2) else {})


def test_one_rank_updates_zero_3_in_groups_and_reduces_nothing_under_zero_0(shape):
    one = {stage: learner_memory(shape, 2, Ranks(1, stage, True, 64), reference=True, frozen_eyes=False, visual_share=0)
           for stage in (0, 3)}
    assert one[3].step == 4 * 10**9 and one[0].buffers == 0 and one[0].reference == 2 * P


def test_a_frozen_tower_has_weights_only(shape):
    runs = Ranks(1, 0, True, 1024)
    frozen, free = (learner_memory(shape, 2, runs, reference=False, frozen_eyes=eyes, visual_share=1.0) for eyes in (True, False))
    text = P - 668_684_288
    assert (frozen.weights, frozen.gradients, frozen.optimizer) == (2 * P, 2 * text, 12 * text)
    assert frozen.activations < free.activations


def test_adapters_train_alone_and_are_their_own_reference(shape):
    """Rank 16: 36 layers with maps of 2048 to and from 2048, to 256 twice, to 11008 twice and back."""
    adapters = 36 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    assert adapters == 29_933_568
    memory = learner_memory(shape, 2, Ranks(1, 0, True, 64, lora_rank=16), reference=True, frozen_eyes=False, visual_share=0)
    assert (memory.weights, memory.reference) == (2 * (P + adapters), 0)
    assert (memory.gradients, memory.optimizer) == (2 * adapters, 12 * adapters)


def test_what_is_offloaded_leaves_the_gpu(shape):
    runs = Ranks(4, 2, True, 64, offload_optimizer=True, offload_reference=True)
    memory = learner_memory(shape, 2, runs, reference=True, frozen_eyes=False, visual_share=0)
    assert (memory.optimizer, memory.reference, memory.step) == (0, 0, 2 * P)  # the reference is there while it is asked
    assert memory.host == 2 * P + 16 * -(-P // 4)


def test_an_engine_over_two_gpus_halves_weights_and_heads(shape):
    engine = engine_memory(shape, 2, 2, 0.9, 16, 2**36)
    assert (engine.weights, engine.cache_token) == (P, 36 * 128 * 2 * 2)
    assert engine_memory(shape, 2, 1, 0.01, 16, 2**36).cache_tokens == 0


def test_a_pass_of_grpo_holds_at_least_the_longest_completion(shape):
    config = load_config(ROOT / "configs" / "spatialladder-3b-8xh100.yaml", ["learner.micro_batch_tokens=64", "stages=[grpo]"])
    learner = estimate(config, shape, DEVICES["h100-80gb"])[0].memory
    assert learner.activations == pass_bytes(shape, 2, 4096, 4096, True, False)


class Flash(torch.autograd.Function):
    """What a fused attention keeps: queries, keys, values, result, and a float32 per query and head."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:3], device=query.device))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def real_size(dtype, checkpointing):
    """The 3B model with few layers, whose gradients are dropped as they come."""
    config = qwen2_5_vl_3b()
    config.text_config.num_hidden_layers, config.text_config.layer_types = 4, ["full_attention"] * 4
    config.vision_config.depth = 4
    model = meta_model(config, dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_decoder_layers_keep_what_the_formula_says(shape, dtype, checkpointing):
    AttentionInterface.register("a_fused_one", lambda module, q, k, v, mask, **_: (Flash.apply(q, k, v).transpose(1, 2), None))
    tokens, size, model = 4096, SIZES[dtype], real_size(dtype, checkpointing)
    decoder = model.model.language_model
    decoder.config._attn_implementation = "a_fused_one"
    embeds = torch.empty(1, tokens, 2048, dtype=model.dtype, device="meta", requires_grad=True)
    with AliveTensors(decoder.parameters()) as alive:
        out = decoder(inputs_embeds=embeds, position_ids=torch.zeros(3, 1, tokens, dtype=torch.long, device="meta"),
                      attention_mask={"full_attention": None}, use_cache=False).last_hidden_state
        kept, alive.peak = alive.now, alive.now
        out.sum().backward()
    layer = tokens * text_layer(shape, size)
    each = size * tokens * 2048 if checkpointing else layer
    outside = tokens * ((4 + 2 * size) * 2048 + 4) + 2 * tokens * 128 * size  # the last norm with its result; rotation
    # The first layer's input is ours; the last one's output, the norm's input, takes its place.
    assert abs(kept - 4 * each - outside) <= size * tokens * 2048
    inner = tokens * size * (2 * 11008 + 2048) + size * 2048 * 11008
    bound = 4 * each + inner + (layer if checkpointing else 0)
    assert 0.85 * bound <= alive.peak <= bound + 2 * tokens * 128 * size


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_blocks_of_the_tower_keep_what_the_formula_says(shape, dtype, checkpointing, monkeypatch):
    monkeypatch.setattr(models.vision_tower.F, "scaled_dot_product_attention", lambda q, k, v, **_: Flash.apply(q, k, v))
    patches, size, model = 8192, SIZES[dtype], real_size(dtype, checkpointing)
    quicken_vision(model)
    tower = model.model.visual
    hidden = torch.empty(patches, 1280, dtype=model.dtype, device="meta", requires_grad=True)
    rotation = (torch.empty(patches, 80, device="meta"), torch.empty(patches, 80, device="meta"))
    windows, kept = torch.arange(0, patches + 1, 64), []
    with AliveTensors(tower.parameters()) as alive:
        for block in tower.blocks:
            hidden = block(hidden, cu_seqlens=windows, max_seqlen=64, position_embeddings=rotation)
            kept.append(alive.now)
        alive.peak = alive.now
        hidden.sum().backward()
    block = patches * vision_block(shape, size)
    each = size * patches * 1280 if checkpointing else block
    assert kept[3] - kept[1] == 2 * each
    inner = patches * size * (2 * 3420 + 1280) + size * 1280 * 3420
    assert alive.peak <= 4 * each + inner + (block if checkpointing else 0) + size * patches * 1280


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_head_takes_what_the_formula_says(dtype):
    tokens, size, matrix = 4096, SIZES[dtype], 151936 * 2048
    hidden = torch.empty(tokens, 2048, dtype=getattr(torch, dtype), device="meta", requires_grad=True)
    weight = torch.empty(151936, 2048, dtype=hidden.dtype, device="meta", requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long, device="meta")
    with AliveTensors([hidden, weight]) as alive:
        scored = token_logprobs(hidden, weight, torch.zeros(tokens, dtype=torch.long, device="meta"), 1.0, nothing).sum()
        alive.peak = alive.now
        scored.backward()
    mixed = size < 4  # the products of a chunk are added in float32, and their sum is copied to the weights' type
    bound = 4 * matrix + max((4 + size) * 2**25 + mixed * size * 2**23, mixed * size * matrix) + size * tokens * 2048
    assert 0.9 * bound <= alive.peak <= bound + 2**20


def test_the_command_prints_a_table_and_says_whether_it_fits(capsys):
    path = str(ROOT / "configs" / "spatialladder-3b-8xh100.yaml")
    assert main([path]) == 0
    out = capsys.readouterr().out
    assert "3,754,622,976 parameters in bfloat16" in out and "79.0 GiB" in out and "does not exist" in out
    grpo = next(line.split() for line in out.splitlines() if line.startswith("grpo"))
    assert grpo == ["grpo", "4", "GPUs", "6.99", "6.99", "8.74", "10.49", "0.93", "12.02", "3.50", "49.17", "yes"]
    assert "1,635,515 (399 sequences of 4096, 128 run at once)" in out
    assert main([path, "--gpu", "a100-40gb"]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, part", [
    (["--set", "learner.rank=2"], "did you mean learner.ranks?"),
    (["--set", "learner.num_gpus=0.5"], "learner.num_gpus is 0.5"),
    (["--set", "rollout.num_gpus=0"], "rollout.num_gpus is 0:"),
    (["--set", "rollout.num_gpus=0", "--set", "learner.num_gpus=0"], "nothing to estimate"),
    (["--visual-share", "1.5"], "from 0 to 1"),
])
def test_what_cannot_be_estimated_is_refused(capsys, arguments, part):
    assert main([str(ROOT / "configs" / "spatialladder-3b-8xh100.yaml"), *arguments]) == 2
    captured = capsys.readouterr()
    assert part in captured.err and captured.out == ""


def test_a_folder_that_exists_is_the_model(capsys, tmp_path):
    path = tmp_path / "c.yaml"
    base, model = ROOT / "configs" / "spatialladder-3b-8xh100.yaml", ROOT / "models" / "tiny_base"
    path.write_text(f"base: {base}\nmodel: {{path: {model}}}\n")
    assert main([str(path)]) == 0
    assert "models/tiny_base" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([str(path), "--set", f"model.path={tmp_path / 'empty'}"]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err


def test_a_model_alone_on_a_gpu_that_is_too_small(shape):
    config = load_config(ROOT / "configs" / "spatialladder-3b-8xh100.yaml", ["stages=[grpo]"])
    learner, engine = estimate(config, shape, 8 * 2**30)
    assert not learner.fits and not engine.fits
    assert engine.memory.cache == 0 and learner.memory.total > MARGIN


def test_any_other_gpu_is_named_by_its_memory(capsys):
    config = str(ROOT / "configs" / "spatialladder-3b-8xh100.yaml")
    assert main([config, "--gpu-memory", "48"]) == 1  # the learner of GRPO takes 49.2
    said = capsys.readouterr().out
    assert "on a GPU (48.0 GiB)" in said and "GPUs at the same time: sft1 8, sft2 8, coldstart 8, grpo 8" in said
    for wrong in ("0", "-3", "inf", "nan"):
        assert main([config, f"--gpu-memory={wrong}"]) == 2 and "--gpu-memory" in capsys.readouterr().err
