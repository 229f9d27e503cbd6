"""The policy forward against transformers' own, row by row, and the claims of its docstring."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.forward import PolicyForward, Sample, build_batch
from models.inputs import encode
from models.loading import load_policy, load_processor
from models.tiny import build_tiny
from models.tokens import banned_token_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), seed=1, init_std=0.15)


@pytest.fixture(scope="module")
def processor(folder):
    return load_processor(folder)


@pytest.fixture(scope="module")
def policy(folder):
    return PolicyForward(load_policy(folder))


def picture(seed, size=(168, 168)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def chat(kind, count, text):
    return [{"role": "user", "content": [{"type": kind}] * count + [{"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def samples(processor):
    one = encode(processor, chat("image", 1, "Where is the chair?"), [picture(0)], False)
    three = encode(processor, chat("image", 3, "How many?"), [picture(1), picture(2, (200, 120)), picture(3)], False)
    video = encode(processor, chat("video", 1, "What comes first?"), [picture(i) for i in range(4, 10)], True)
    text = encode(processor, chat("image", 0, "Hello"), [], False)
    return [Sample(one, (5, 6, 7)), Sample(three, (8, 9, 10, 11, 12)), Sample(one, (9,)), Sample(video, (9, 12)),
            Sample(text, (3, 4))]


def reference(model, sample, temperature, banned):
    """transformers' forward on one unpadded row; video positions are passed, since its own rule for them differs."""
    encoded, done = sample.encoded, len(sample.completion_ids)
    kwargs = {}
    if 2 in encoded.token_types:
        tail = encoded.next_position + torch.arange(done).expand(3, -1)
        kwargs = dict(pixel_values_videos=encoded.pixel_values, video_grid_thw=encoded.grid_thw,
                      position_ids=torch.cat([encoded.positions, tail], 1)[:, None])
    elif encoded.pixel_values is not None:
        kwargs = dict(pixel_values=encoded.pixel_values, image_grid_thw=encoded.grid_thw)
    logits = model(input_ids=torch.tensor([[*encoded.input_ids, *sample.completion_ids]]),
                   mm_token_type_ids=torch.tensor([[*encoded.token_types, *[0] * done]]), **kwargs).logits[0] / temperature
    logits[:, list(banned)] = float("-inf")
    start = len(encoded.input_ids) - 1
    return logits.log_softmax(-1)[start:start + done].gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]


def test_logprobs_equal_transformers_row_by_row(policy, processor, samples):
    banned = banned_token_ids(processor, policy.model.config.text_config.vocab_size)
    batch = build_batch(samples, processor.tokenizer.pad_token_id)
    with torch.no_grad():
        ours = policy(batch, 0.7, banned)
        for row, sample in enumerate(samples):
            theirs = reference(policy.model, sample, 0.7, banned)
            torch.testing.assert_close(ours[row, batch.mask[row]], theirs, atol=1e-5, rtol=0)


def test_rows_of_one_prompt_share_one_vision_pass(policy, processor, samples):
    batch = build_batch(samples, processor.tokenizer.pad_token_id)
    distinct = [s.encoded for s in (samples[0], samples[1], samples[3])]
    assert len(batch.pixel_values) == sum(len(e.pixel_values) for e in distinct)
    assert batch.feature_rows[0] == batch.feature_rows[2]


def test_gradients_of_a_shared_pass_equal_those_of_separate_passes(policy, processor, samples):
    pad = processor.tokenizer.pad_token_id
    names = ["model.model.visual.patch_embed.proj.weight", "model.model.language_model.layers.0.mlp.up_proj.weight"]
    parameters = dict(policy.named_parameters())

    def gradients(batches):
        policy.zero_grad()
        for batch in batches:
            policy(batch).sum().backward()
        return [parameters[name].grad.clone() for name in names]

    group = [samples[0], samples[2]]
    together, apart = gradients([build_batch(group, pad)]), gradients([build_batch([s], pad) for s in group])
    for a, b in zip(together, apart):
        assert (a - b).norm() / b.norm() < 1e-5


def test_another_picture_gives_other_logprobs(policy, processor):
    prompts = [encode(processor, chat("video", 1, "What?"), [picture(seed + i) for i in range(4)], True) for seed in (0, 50)]
    with torch.no_grad():
        a, b = policy(build_batch([Sample(prompt, (20, 21)) for prompt in prompts], 0))
    assert (a - b).abs().max() > 1e-3


def test_a_banned_token_has_no_probability(policy, processor, samples):
    with torch.no_grad():
        assert policy(build_batch([samples[0]], 0), 1.0, (5,))[0, 0] == float("-inf")


def test_an_empty_completion_is_refused(samples):
    with pytest.raises(ValueError, match="at least one completion token"):
        build_batch([Sample(samples[0].encoded, ())], 0)
