"""The policy forward, packed and with shared prompts, against transformers' own on a padded batch."""

import pytest
import torch
from policy_cases import chat, padded_logprobs, picture, tree

from models.forward import PolicyForward
from models.inputs import encode
from models.loading import load_policy
from models.packing import Tree, pack
from models.tokens import banned_token_ids

CASES = {
    "one image": [("one image", [3, 7, 1, 5])],
    "eight images": [("eight images", [4, 9])],
    "video": [("video", [2, 6, 3])],
    "text only": [("text", [5, 1])],
    "one completion": [("one image", [6])],
    "one token": [("one image", [1]), ("text", [1, 1])],
    "sixteen completions": [("eight images", [1 + (5 * i) % 13 for i in range(16)])],
    "mixed": [("one image", [3, 1]), ("eight images", [5]), ("video", [2, 8, 4]), ("text", [3]), ("the same image", [2, 2])],
}


@pytest.fixture(scope="module")
def library(folder):
    return load_policy(folder)


@pytest.fixture(scope="module")
def policy(folder):
    return PolicyForward(load_policy(folder))


def trees(case, prompts):
    return [tree(prompts[name], lengths, seed) for seed, (name, lengths) in enumerate(CASES[case])]


def gradients(model):
    """By name; taken and cleared."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("case", CASES)
def test_logprobs_and_gradients_are_those_of_the_padded_forward(library, policy, processor, prompts, case):
    banned = banned_token_ids(processor, library.config.text_config.vocab_size)
    asked = trees(case, prompts)
    batch = pack(asked)
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(3))
    ours, theirs = policy(batch, 0.7, banned), padded_logprobs(library, asked, 0.7, banned)
    assert len(theirs) == len(ours) == sum(len(one.completions) for one in asked)
    for row, expected in enumerate(theirs):
        torch.testing.assert_close(ours[row, batch.mask[row]], expected, atol=1e-5, rtol=0)
    (ours * weights).sum().backward()
    sum((expected * weights[row, : len(expected)]).sum() for row, expected in enumerate(theirs)).backward()
    mine, reference = gradients(policy.model), gradients(library)
    assert mine.keys() == reference.keys()
    for name, gradient in reference.items():
        assert (mine[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp(min=1e-4), name


def test_a_prompt_and_a_picture_are_in_the_pass_once(prompts):
    asked = trees("mixed", prompts)
    batch = pack(asked)
    distinct = [prompts[name] for name in ("one image", "eight images", "video")]
    assert len(batch.pixel_values) == sum(len(encoded.pixel_values) for encoded in distinct)
    inner = sum(len(completion) - 1 for one in asked for completion in one.completions)
    assert len(batch.input_ids) == sum(len(one.encoded.input_ids) for one in asked) + inner


def test_pictures_of_unknown_names_are_never_taken_for_each_other(processor, prompts):
    batch = pack([tree(prompts["eight images"], [1]), tree(prompts["eight images"], [2])])
    assert len(batch.grid_thw) == 8  # the same encoded prompt: known to be the same
    again = encode(processor, chat("image", 1, "Where?"), [picture(0)], False)
    assert len(pack([tree(again, [1]), tree(prompts["one image"], [1])]).grid_thw) == 2


def test_rows_do_not_see_each_other(policy, prompts):
    """Other neighbours, other siblings, another order: the same numbers."""
    with torch.no_grad():
        together = policy(pack(trees("mixed", prompts)))
        row = 0
        for asked in trees("mixed", prompts):
            for completion in asked.completions:
                alone = policy(pack([Tree(asked.encoded, (completion,))]))[0]
                torch.testing.assert_close(together[row, : len(completion)], alone, atol=1e-5, rtol=0)
                row += 1


def test_another_video_gives_other_logprobs(policy, processor, prompts):
    other = encode(processor, chat("video", 1, "What comes first?"), [picture(50 + s) for s in range(6)], True)
    with torch.no_grad():
        a, b = policy(pack([tree(prompts["video"], [4]), tree(other, [4])]))
    assert (a - b).abs().max() > 1e-3


def test_a_banned_token_has_no_probability(policy, prompts):
    with torch.no_grad():
        assert policy(pack([Tree(prompts["text"], ((5, 6),))]), 1.0, (5,))[0, 0] == float("-inf")


def test_features_given_are_not_computed_again(policy, prompts):
    batch = pack(trees("mixed", prompts))
    with torch.no_grad():
        features = policy.visual(batch.pixel_values, batch.grid_thw)
        torch.testing.assert_close(policy(batch, features=features), policy(batch), atol=1e-6, rtol=0)
        assert not torch.allclose(policy(batch, features=torch.zeros_like(features)), policy(batch))


def test_a_pass_without_pictures_calls_the_tower_where_ranks_must_agree(folder, prompts):
    seeing = PolicyForward(load_policy(folder), always_see=True)
    batch = pack(trees("text only", prompts))
    out = seeing(batch)
    with torch.no_grad():
        torch.testing.assert_close(out, PolicyForward(load_policy(folder))(batch))
    out.sum().backward()
    tower = dict(seeing.model.model.visual.named_parameters())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in tower.values())


def test_empty_completions_and_trees_are_refused(prompts):
    with pytest.raises(ValueError, match="at least one completion"):
        Tree(prompts["text"], ())
    with pytest.raises(ValueError, match="at least one token"):
        Tree(prompts["text"], ((1,), ()))
    with pytest.raises(ValueError, match="at least one tree"):
        pack([])
