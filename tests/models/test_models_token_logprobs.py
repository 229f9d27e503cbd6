"""Chunked log-probabilities against log_softmax of all logits: values, gradients, chunk sizes, memory."""

import pytest
import torch

import models.token_logprobs
from models.token_logprobs import token_logprobs


def plain(hidden, weight, targets, temperature, banned):
    logits = (hidden @ weight.T).float() / temperature
    logits = logits.index_fill(-1, banned, float("-inf"))
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1))[:, 0]


@pytest.mark.parametrize("chunk", [1, 7 * 50, 1 << 20])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_values_and_gradients_are_those_of_all_logits(monkeypatch, chunk, dtype, tolerance):
    monkeypatch.setattr(models.token_logprobs, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(models.token_logprobs, "CHUNK_PRODUCT", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16).to(dtype).requires_grad_(), torch.randn(50, 16).to(dtype).requires_grad_()
    targets, banned, slopes = torch.randint(2, 50, (23,)), torch.tensor([0, 1]), torch.randn(23)
    results = []
    for function in (token_logprobs, plain):
        out = function(hidden, weight, targets, 0.7, banned)
        results.append((out, *torch.autograd.grad((out * slopes).sum(), (hidden, weight))))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_a_frozen_head_gets_no_gradient():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    token_logprobs(hidden, weight, torch.tensor([1, 2, 3]), 1.0, torch.tensor([], dtype=torch.long)).sum().backward()
    assert weight.grad is None and hidden.grad is not None


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    """Forward and backward; the largest tensor made, counted at every operation."""
    monkeypatch.setattr(models.token_logprobs, "CHUNK_LOGITS", 1000)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor))])
            return out

    hidden, weight = torch.randn(400, 4, requires_grad=True), torch.randn(200, 4, requires_grad=True)
    targets = torch.randint(0, 200, (400,))
    with Watch():
        token_logprobs(hidden, weight, targets, 1.0, torch.tensor([3])).sum().backward()
    assert largest == max(400 * 4, 1000)  # all logits would be 80,000
