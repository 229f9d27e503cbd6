"""Conversations about pictures as samples: the shortcuts equal the library, answers and names are where rows say."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import FIND, conversation
from models.forward import PolicyForward
from models.loading import load_policy
from models.packing import pack
from models.tiny import build_tiny
from sft.tiny_base import PHASES


def test_patches_equal_the_image_processor(rows):
    for picture in rows.pictures:
        theirs = rows.processor.image_processor(images=[Image.fromarray(picture.rgb)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(rows.patches(picture.rgb), theirs, atol=1e-4, rtol=0)


def test_only_answers_count(rows):
    row = rows.sample(0, np.random.default_rng(0), 2, FIND)
    tokens, answers = rows.processor.tokenizer.convert_ids_to_tokens(row.tree.completions[0]), row.answers
    assert len(answers) == len(tokens)
    assert sum(answer and token == "<|im_end|>" for answer, token in zip(answers, tokens)) == 2
    assert not any(answer and token in ("user", "assistant", "<|im_start|>") for answer, token in zip(answers, tokens))


def test_names_of_every_question_are_where_the_row_says_with_the_box_of_their_thing(rows):
    """Also of the first, which is the prompt, and of questions that name several things."""
    told = 0
    for index, picture in enumerate(rows.pictures):
        boxes = {thing.label: thing.box for thing in picture.things}
        row = rows.sample(index, np.random.default_rng(index), 4, FIND)
        tokens = [*row.tree.encoded.input_ids, *row.tree.completions[0]]
        text = rows.processor.tokenizer.decode(tokens)
        asked = [word for line in text.split("<|im_start|>user\n")[1:]
                 for word in re.findall(r"the (\w+)", line.split("<|im_end|>")[0]) if word in boxes]
        assert [rows.processor.tokenizer.decode([tokens[position]]).strip() for position, _ in row.named] == asked
        for (_, (x1, y1, x2, y2)), label in zip(row.named, asked):
            left, right = (x1, x2) if not row.place[0] else (1 - x2, 1 - x1)
            assert [round(112 * value) for value in (left, y1, right, y2)] == list(boxes[label])
        told += len(asked)
    assert told > 20


def test_pictures_seen_once_give_the_log_probs_of_pictures_seen_each_time(rows, tmp_path):
    """As they are and mirrored."""
    policy = PolicyForward(load_policy(build_tiny(tmp_path, seed=2)))
    drawn = [rows.sample(index, np.random.default_rng(index), 4, FIND) for index in range(8)]
    assert {row.place[0] for row in drawn} == {0, 1} and [row.place[1] for row in drawn] == list(range(8))
    batch, seen = pack([row.tree for row in drawn]), rows.seen(policy)
    with torch.no_grad():
        cached = policy(batch, features=torch.cat([seen[row.place] for row in drawn]))
        torch.testing.assert_close(cached, policy(batch), atol=1e-4, rtol=0)


#: What tells each kind of question from the others.
QUESTIONS = {"trace": r"Trace the \w+\.", "edges": r"Where are the edges of the \w+\?",
             "edges of two": r"Where are the edges of the \w+ and the \w+\?", "point": r"Point at the \w+\.",
             "json point": r"Point at the \w+ as JSON\.", "json names": r"Name the things as JSON\.",
             "frames": r"Frame the \w+(, the \w+)*\.", "caption": r"Describe the picture\.",
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
    for turn in conversation(picture, np.random.default_rng(6), turns, phase.kinds):
        (kind,) = [kind for kind, pattern in QUESTIONS.items() if re.fullmatch(pattern, turn.question)]
        found[kind] += 1
    assert set(found) == set(phase.kinds)
    for kind, share in phase.kinds.items():
        assert found[kind] / turns == pytest.approx(share, abs=4 * (share * (1 - share) / turns) ** 0.5), kind


def test_no_prompt_or_format_of_the_ladder_is_asked(rows):
    """The base knows nothing of the stages: neither their questions' endings nor their answers' tags and keys."""
    for phase in PHASES:
        for seed in range(60):
            tree = rows.sample(seed % 8, np.random.default_rng(seed), phase.turns, phase.kinds).tree
            text = rows.processor.tokenizer.decode([*tree.encoded.input_ids, *tree.completions[0]])
            assert not any(part in text for part in ("bbox_2d", "label", "<think>", "<answer>", "Answer with", "Question:"))
