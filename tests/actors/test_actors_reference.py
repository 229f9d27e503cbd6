"""Where the reference is, while it is asked and while it waits."""

import pytest
import torch

from actors.reference import OwnReference


class Recorded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.moves: list[str] = []

    def to(self, device):
        self.moves.append(str(device))
        return self


@pytest.mark.parametrize("offload, expected", [(True, ["cpu", "cuda:0", "cpu"]), (False, ["cuda:0"])])
def test_it_is_on_the_device_while_it_is_asked_even_if_that_fails(offload: bool, expected: list[str]) -> None:
    model = Recorded()
    reference = OwnReference(model, torch.device("cuda:0"), offload)
    with pytest.raises(RuntimeError), reference.awake() as forward:
        assert forward is model and not model.training and not model.weight.requires_grad
        raise RuntimeError
    assert model.moves == expected
