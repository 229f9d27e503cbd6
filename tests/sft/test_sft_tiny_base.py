"""The training of the tiny base: its schedule, its resume, it learns, and the shipped model finds things."""

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
from models.forward import PolicyForward
from models.loading import load_policy, load_processor
from models.tiny import build_config, build_tiny
from sft.tiny_base import FINAL_LR, PHASES, WARMUP, Done, learning_rate, train
from sft.tiny_lookup import LookupHead

BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"


def test_learning_rate_warms_up_and_ends_low():
    assert learning_rate(0, 2000, 1e-3) == 1e-3 / WARMUP
    assert learning_rate(WARMUP, 2000, 1e-3) == pytest.approx(1e-3)
    assert learning_rate(1999, 2000, 1e-3) == pytest.approx(FINAL_LR, rel=0.05)


class Stopped(Exception):
    pass


@pytest.fixture
def run(rows, tmp_path, monkeypatch):
    """A training of a few steps on the eight pictures."""
    monkeypatch.setattr(sft.tiny_base, "draw_pictures", lambda count, seed, processes: rows.pictures)
    monkeypatch.setattr(sft.tiny_base, "BATCH", 4)
    monkeypatch.setattr(sft.tiny_base, "SAVE_EVERY", 1)
    monkeypatch.setattr(sft.tiny_vision, "BATCH", 8)
    return lambda name, resume, seed=0: train(tmp_path / name, 2, {"find": 3, "speak": 2}, 8, seed, 1, resume)


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 1)], ids=["after the tower", "within a phase", "in the second phase"])
def test_an_interrupted_training_ends_with_the_same_weights(run, tmp_path, monkeypatch, place):
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
    with pytest.raises(ValueError, match="was begun with.*'seed': 0"):
        run("pieces", True, seed=1)
    run("pieces", True)
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert not any(name.startswith("lookup") for name in whole)


def test_a_training_begun_again_forgets_the_one_before(run, tmp_path, monkeypatch):
    """Else an interruption before the first saved state would resume the older training's weights."""
    run("base", False)
    with monkeypatch.context() as until:
        until.setattr(sft.tiny_base, "train_vision", lambda *arguments: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            run("base", False)
    with pytest.raises(ValueError, match="nothing to resume in .*base.work"):
        run("base", True)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_a_phase_lowers_both_of_its_errors(rows, tmp_path, monkeypatch, capsys, phase):
    monkeypatch.setattr(sft.tiny_base, "BATCH", 8)
    torch.manual_seed(0)
    policy = PolicyForward(load_policy(build_tiny(tmp_path, seed=2)))
    learning = torch.nn.ModuleDict({"policy": policy, "lookup": LookupHead(policy)})
    sft.tiny_base._train_phase(phase, learning, rows, 100, 0, Done(PHASES.index(phase), 0, {}), tmp_path, 0.0)
    lines = re.findall(r"loss ([\d.]+)  lookup error ([\d.]+)", capsys.readouterr().out)
    (loss, error), (later_loss, later_error) = [tuple(map(float, line)) for line in lines]
    assert later_loss < 0.75 * loss and later_error < 0.75 * error


def test_the_shipped_base_is_of_the_architecture_that_is_built():
    built, shipped = build_config(load_processor(BASE), 0.02), load_policy(BASE).config
    for part in ("text_config", "vision_config"):
        ours, theirs = (getattr(config, part).to_dict() for config in (built, shipped))
        decided = ("rope_parameters", "hidden_size", "num_hidden_layers", "depth", "num_heads", "num_attention_heads",
                   "vocab_size")
        assert {key: ours.get(key) for key in decided} == {key: theirs.get(key) for key in decided}


def iou(box, other):
    overlap = [max(0, min(box[k + 2], other[k + 2]) - max(box[k], other[k])) for k in (0, 1)]
    area = lambda b: max(0, b[2] - b[0]) * max(0, b[3] - b[1])
    inter = overlap[0] * overlap[1]
    return inter / max(area(box) + area(other) - inter, 1e-9)


def test_the_shipped_base_finds_which_of_several_things_is_meant():
    """24 fresh pictures with three or more things that can be asked for."""
    processor, model = load_processor(BASE), load_policy(BASE).eval()
    rng, prompts, images, asked = np.random.default_rng(4242), [], [], []
    while len(prompts) < 24:
        picture = make_picture(rng, 112, 168)
        labels = [thing.label for thing in picture.things]
        unique = [thing for thing in picture.things if labels.count(thing.label) == 1]
        if len(unique) >= 3:
            meant = unique[rng.integers(len(unique))]
            content = [{"type": "image"}, {"type": "text", "text": f"Trace the {meant.label}."}]
            prompts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                                         add_generation_prompt=True))
            images.append(Image.fromarray(picture.rgb))
            asked.append((meant, picture.things))
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False, use_cache=True)
    texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    scores, found = [], 0
    for text, (meant, things) in zip(texts, asked):
        box = [int(n) for n in re.findall(r"\d+", text)]
        assert len(box) == 4, text
        scores.append(iou(box, meant.box))
        found += max(things, key=lambda thing: iou(box, thing.box)) is meant
    assert np.mean(scores) > 0.5 and found >= 20
