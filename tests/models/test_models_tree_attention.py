"""Who sees whom in a packed pass: three implementations against one dense mask written from the rule."""

import sys
from types import SimpleNamespace

import pytest
import torch
from policy_cases import tree
from torch.nn import functional as F

from models.forward import PolicyForward
from models.loading import load_policy
from models.packing import pack
from models.tree_attention import Node, TreeLayout, choose_attention, flash_attention, flex_attention, sdpa_attention

#: (prompt length, completion lengths): alone, ragged, empty completions, many prompts of similar and of odd lengths.
SHAPES = [
    [(5, (3,))],
    [(4, (3, 1, 6)), (9, (2,)), (1, (1, 1))],
    [(6, (0, 4, 0)), (3, (0,)), (7, (0, 0)), (8, (5, 2)), (40, (3, 3, 3, 3))],
    [(length, (2,)) for length in (10, 11, 10, 12, 3, 30, 9)],
]


def nodes(shape):
    start, found = 0, []
    for prompt, branches in shape:
        found.append(Node(start, prompt, branches))
        start += prompt + sum(branches)
    return found


def dense(shape):
    """True where a query may see a key, token by token."""
    owner = []
    for index, (prompt, branches) in enumerate(shape):
        owner += [(index, None)] * prompt
        for number, length in enumerate(branches):
            owner += [(index, number)] * length
    sees = lambda q, k: k <= q and owner[q][0] == owner[k][0] and owner[k][1] in (None, owner[q][1])
    return torch.tensor([[sees(q, k) for k in range(len(owner))] for q in range(len(owner))])


def inputs(shape, heads=4, kv=2, size=8):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(prompt + sum(branches) for prompt, branches in shape)
    made = [torch.randn(1, n, tokens, size, generator=generator).requires_grad_() for n in (heads, kv, kv)]
    return made, torch.randn(1, tokens, heads, size, generator=generator)


def varlen(query, key, value, query_ends, key_ends, longest_query, longest_key, *, softmax_scale, causal, dropout_p):
    """What flash-attn's variable-length call computes, segment by segment; the causal mask ends at the bottom right."""
    assert causal and query_ends.dtype == key_ends.dtype == torch.int32
    out = []
    for q0, q1, k0, k1 in zip(query_ends, query_ends[1:], key_ends, key_ends[1:]):
        q, k, v = query[q0:q1], key[k0:k1], value[k0:k1]
        assert len(q) <= longest_query and len(k) <= longest_key
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        out.append(F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), mask, scale=softmax_scale))
    return torch.cat(out, 1).transpose(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", [sdpa_attention, flex_attention, flash_attention])
def test_every_form_computes_the_dense_mask(monkeypatch, attention, shape):
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    (query, key, value), weights = inputs(shape)
    repeated = (x.repeat_interleave(2, 1) for x in (key, value))
    expected = F.scaled_dot_product_attention(query, *repeated, dense(shape), scale=0.3).transpose(1, 2)
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    if attention is flex_attention:
        query, key, value = (x.detach() for x in (query, key, value))
    ours, _ = attention(None, query, key, value, None, layout=TreeLayout.of(nodes(shape)), scaling=0.3, dropout=0.0)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    if attention is flex_attention:  # has no backward pass on a CPU
        return
    for mine, theirs in zip(torch.autograd.grad((ours * weights).sum(), (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_prompts_of_similar_length_share_one_call():
    layout = TreeLayout.of(nodes(SHAPES[3]))
    assert sorted(1 if batch.index is None else len(batch.index) for batch in layout.causal) == [1, 1, 5]


def test_auto_is_what_runs_here():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_attention("auto", cpu, torch.bfloat16) == "sdpa"
    assert choose_attention("auto", gpu, torch.float32) == "flex"
    assert choose_attention("flex", cpu, torch.float32) == "flex"
    with pytest.raises(ValueError, match="flash needs a GPU, bfloat16 and the package flash-attn.*model.attention"):
        choose_attention("flash", cpu, torch.bfloat16)


def test_the_whole_model_gives_the_same_with_flex(folder, prompts):
    batch = pack([tree(prompts["one image"], [3, 2]), tree(prompts["text"], [4])])
    with torch.no_grad():
        ours, theirs = (PolicyForward(load_policy(folder), attention)(batch) for attention in ("flex", "sdpa"))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_sliding_windows_are_refused(folder):
    model = load_policy(folder)
    model.model.language_model.config.layer_types[0] = "sliding_attention"
    with pytest.raises(ValueError, match="sliding windows.*use_sliding_window"):
        PolicyForward(model)


def test_completions_as_long_as_their_prompt_are_causal_segments_with_it():
    layout = TreeLayout.of(nodes([(6, (5, 2)), (6, (6, 2, 0))]))
    assert [len(group.index) for group in layout.branches] == [2]
    assert sorted(len(batch.places()) for batch in layout.causal) == [6 + 2, 12]  # the two are attended to with their prompt of six
