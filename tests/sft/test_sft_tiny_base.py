"""The training of the tiny base: its shortcuts equal the library, it is deterministic, and the shipped model sees."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import make_picture
from models.loading import load_policy, load_processor
from models.tiny import build_tiny
from sft.tiny_base import FINAL_LR, PHASES, WARMUP, Rows, learning_rate
from sft.tiny_vision import cell_targets, train_vision

BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    pictures = [make_picture(np.random.default_rng((9, index)), 112, 112) for index in range(8)]
    return Rows(build_tiny(tmp_path_factory.mktemp("tiny"), seed=2), pictures)


def test_patches_equal_the_image_processor(rows):
    for picture in rows.pictures:
        theirs = rows.processor.image_processor(images=[Image.fromarray(picture.rgb)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(rows.patches(picture.rgb), theirs, atol=1e-4, rtol=0)


def test_only_answers_count(rows):
    sample, answers = rows.sample(0, np.random.default_rng(0))
    tokens = rows.processor.tokenizer.convert_ids_to_tokens(sample.completion_ids)
    assert len(answers) == len(tokens)
    assert sum(answer and token == "<|im_end|>" for answer, token in zip(answers, tokens)) == 2
    assert not any(answer and token in ("user", "assistant", "<|im_start|>") for answer, token in zip(answers, tokens))


def test_learning_rate_warms_up_and_ends_low():
    assert learning_rate(0, 2000, 1e-3) == 1e-3 / WARMUP
    assert learning_rate(WARMUP, 2000, 1e-3) == pytest.approx(1e-3)
    assert learning_rate(1999, 2000, 1e-3) == pytest.approx(FINAL_LR, rel=0.05)


def test_questions_are_asked_with_the_stated_frequencies():
    for phase in PHASES:
        assert sum(phase.kinds.values()) == pytest.approx(1.0), phase.name


def test_no_prompt_or_format_of_the_ladder_is_asked(rows):
    """The base knows nothing of the stages: neither their questions' endings nor their answers' tags and keys."""
    for phase in PHASES:
        for seed in range(60):
            sample, _ = rows.sample(seed % 8, np.random.default_rng(seed), phase.kinds)
            text = rows.processor.tokenizer.decode([*sample.encoded.input_ids, *sample.completion_ids])
            assert not any(part in text for part in ("bbox_2d", "label", "<think>", "<answer>", "Answer with", "Question:"))


def test_vision_training_is_deterministic_and_lowers_its_error(rows, tmp_path):
    def trained(steps):
        model = load_policy(build_tiny(tmp_path / str(steps), seed=2))
        train_vision(model.model.visual, rows.pictures, lambda picture: rows.patches(picture.rgb), lambda picture: picture, steps, 0)
        return model.model.visual.state_dict()

    one, two = trained(3), trained(3)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_cell_targets_by_hand(rows):
    labels, colors, boxes = cell_targets(rows.pictures)
    assert labels.shape == (8, 16) and boxes.shape == (8, 16, 4)
    picture = rows.pictures[0]
    for cell, index in enumerate(picture.cells.reshape(-1)):
        if index >= 0:
            assert boxes[0, cell].tolist() == pytest.approx([value / 112 for value in picture.things[index].box])


def test_the_shipped_base_traces_things_it_has_never_seen():
    """A tenth of its training's success would fail this: mean box IoU on 24 fresh pictures."""
    processor, model = load_processor(BASE), load_policy(BASE).eval()
    rng, prompts, images, truths = np.random.default_rng(4242), [], [], []
    while len(prompts) < 24:
        picture = make_picture(rng, 112, 168)
        labels = [thing.label for thing in picture.things]
        unique = [thing for thing in picture.things if labels.count(thing.label) == 1]
        if unique:
            content = [{"type": "image"}, {"type": "text", "text": f"Trace the {unique[0].label}."}]
            prompts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                                         add_generation_prompt=True))
            images.append(Image.fromarray(picture.rgb))
            truths.append(unique[0].box)
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False, use_cache=True)
    texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    scores = []
    for text, (a1, b1, a2, b2) in zip(texts, truths):
        numbers = [int(n) for n in re.findall(r"\d+", text)]
        assert len(numbers) == 4, text
        x1, y1, x2, y2 = numbers
        inter = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
        scores.append(inter / max((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter, 1e-9))
    assert np.mean(scores) > 0.35
