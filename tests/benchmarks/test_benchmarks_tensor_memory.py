"""Bytes of tensors that are alive."""

import torch

from benchmarks.tensor_memory import AliveTensors


def test_the_peak_is_of_what_was_alive_together():
    known = torch.empty(1000)
    with AliveTensors([known]) as memory:
        first = torch.empty(10)  # 40 bytes
        second = torch.empty(5)
        view, same = first.view(2, 5), known + 0  # a view is no memory of its own; the sum is: 4000 bytes
        assert memory.now == memory.peak == 40 + 20 + 4000
        del same
        third = torch.empty(25)
        assert (memory.now, memory.peak) == (40 + 20 + 100, 4060)
    assert view.shape == (2, 5) and len(second) + len(third) == 30


def test_it_sees_the_backward_pass():
    weight = torch.ones(100, requires_grad=True)
    with AliveTensors([weight]) as memory:
        (weight * weight).sum().backward()
    assert memory.now == 400 and memory.peak >= 1200  # the gradient stays; the product, its gradient and the sum of two went
