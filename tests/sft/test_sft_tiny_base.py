"""The training of the tiny base: its shortcuts equal the library, it is deterministic, and the shipped model sees."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import conversation, make_picture
from models.forward import PolicyForward, build_batch
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
    row = rows.sample(0, np.random.default_rng(0), PHASES[0])
    tokens, answers = rows.processor.tokenizer.convert_ids_to_tokens(row.sample.completion_ids), row.answers
    assert len(answers) == len(tokens)
    assert sum(answer and token == "<|im_end|>" for answer, token in zip(answers, tokens)) == 2
    assert not any(answer and token in ("user", "assistant", "<|im_start|>") for answer, token in zip(answers, tokens))


def test_pictures_seen_once_give_the_log_probs_of_pictures_seen_each_time(rows, tmp_path):
    """As they are and mirrored."""
    policy = PolicyForward(load_policy(build_tiny(tmp_path, seed=2)))
    drawn = [rows.sample(index, np.random.default_rng(index), PHASES[1]) for index in range(8)]
    assert {row.place[0] for row in drawn} == {0, 1} and [row.place[1] for row in drawn] == list(range(8))
    batch, seen = build_batch([row.sample for row in drawn], 0), rows.seen(policy)
    with torch.no_grad():
        cached = policy(batch, features=torch.cat([seen[row.place] for row in drawn]))
        torch.testing.assert_close(cached, policy(batch), atol=1e-4, rtol=0)


def test_learning_rate_warms_up_and_ends_low():
    assert learning_rate(0, 2000, 1e-3) == 1e-3 / WARMUP
    assert learning_rate(WARMUP, 2000, 1e-3) == pytest.approx(1e-3)
    assert learning_rate(1999, 2000, 1e-3) == pytest.approx(FINAL_LR, rel=0.05)


#: What tells each kind of question from the others.
QUESTIONS = {"trace": r"Trace the \w+\.", "edges": r"Where are the edges of the \w+\?",
             "edges of two": r"Where are the edges of the \w+ and the \w+\?", "point": r"Point at the \w+\.",
             "json point": r"Point at the \w+ as JSON\.", "json names": r"Name the things as JSON\.",
             "corner": r"Point at the (top|bottom) (left|right) corner of the \w+\.", "caption": r"Describe the picture\.",
             "colour": r"What colour is the \w+\?", "count": r"How many \w+ things are there\?",
             "nearer": r"Which is nearer, the \w+ or the \w+\?", "left": r"Which is farther left, the \w+ or the \w+\?",
             "distance": r"How far is the \w+\?", "size": r"How big is the \w+\?",
             "relation": r"Where is the \w+ from the \w+\?"}


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_questions_are_asked_with_the_stated_frequencies(rows, phase):
    """Of a picture that can answer all of them: one with two things whose names are unique in it."""
    picture = next(picture for picture in rows.pictures
                   if sum(n == 1 for n in Counter(thing.label for thing in picture.things).values()) > 1)
    turns = 4000
    found = Counter()
    for question, _ in conversation(picture, np.random.default_rng(6), turns, phase.kinds):
        (kind,) = [kind for kind, pattern in QUESTIONS.items() if re.fullmatch(pattern, question)]
        found[kind] += 1
    assert set(found) == set(phase.kinds)
    for kind, share in phase.kinds.items():
        assert found[kind] / turns == pytest.approx(share, abs=4 * (share * (1 - share) / turns) ** 0.5), kind


def test_no_prompt_or_format_of_the_ladder_is_asked(rows):
    """The base knows nothing of the stages: neither their questions' endings nor their answers' tags and keys."""
    for phase in PHASES:
        for seed in range(60):
            sample = rows.sample(seed % 8, np.random.default_rng(seed), phase).sample
            text = rows.processor.tokenizer.decode([*sample.encoded.input_ids, *sample.completion_ids])
            assert not any(part in text for part in ("bbox_2d", "label", "<think>", "<answer>", "Answer with", "Question:"))


@pytest.fixture
def trained_tower(rows, tmp_path, monkeypatch):
    """The vision tower after some steps on all eight pictures at a time."""
    monkeypatch.setattr("sft.tiny_vision.BATCH", 8)

    def train(steps):
        visual = load_policy(build_tiny(tmp_path / str(steps), seed=2)).model.visual
        torch.seed()  # only the training's own seed may decide
        train_vision(visual, rows.pictures, lambda picture: rows.patches(picture.rgb), lambda picture: picture, steps, 0)
        return visual.state_dict()

    return train


def test_vision_training_is_deterministic(trained_tower):
    one, two = trained_tower(3), trained_tower(3)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_vision_training_lowers_its_errors(trained_tower, capsys):
    trained_tower(100)
    lines = re.findall(r"loss ([\d.]+)  labels ([\d.]+)  box error ([\d.]+)", capsys.readouterr().out)
    (loss, labels, box), (later_loss, later_labels, later_box) = [tuple(map(float, line)) for line in lines]
    assert later_loss < loss / 2 and later_labels > 1.5 * labels and later_box < box / 2


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
