"""The training of the tiny base: its schedule, its resume, and the shipped model sees."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sft.tiny_base
import sft.tiny_vision
from data.pictures import make_picture
from models.loading import load_policy, load_processor
from sft.tiny_base import FINAL_LR, WARMUP, learning_rate, train

BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"


def test_learning_rate_warms_up_and_ends_low():
    assert learning_rate(0, 2000, 1e-3) == 1e-3 / WARMUP
    assert learning_rate(WARMUP, 2000, 1e-3) == pytest.approx(1e-3)
    assert learning_rate(1999, 2000, 1e-3) == pytest.approx(FINAL_LR, rel=0.05)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 1)], ids=["after the tower", "within a phase", "in the second phase"])
def test_an_interrupted_training_ends_with_the_same_weights(rows, tmp_path, monkeypatch, place):
    monkeypatch.setattr(sft.tiny_base, "draw_pictures", lambda count, seed, processes: rows.pictures)
    monkeypatch.setattr(sft.tiny_base, "BATCH", 4)
    monkeypatch.setattr(sft.tiny_base, "SAVE_EVERY", 1)
    monkeypatch.setattr(sft.tiny_vision, "BATCH", 8)
    run = lambda name, resume: train(tmp_path / name, 2, {"find": 3, "speak": 2}, 8, 0, 1, resume)
    run("whole", False)
    save = sft.tiny_base._save

    def stop(work, learning, done):
        save(work, learning, done)
        if (done.phase, done.step) == place:
            raise Stopped

    with monkeypatch.context() as until:
        until.setattr(sft.tiny_base, "_save", stop)
        with pytest.raises(Stopped):
            run("pieces", False)
    run("pieces", True)
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert not any(name.startswith("lookup") for name in whole)


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
    assert np.mean(scores) > 0.5
