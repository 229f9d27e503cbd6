"""The batched vision attention against the library's own loop: features, gradients, and what is saved."""

import copy

import pytest
import torch

from models.loading import load_policy, save_policy
from models.tiny import build_tiny
from models.vision_tower import quicken_vision

#: Patches (t, h, w): one size only; and a video, odd sizes and several windows of different sizes.
SAME = [[1, 8, 8]] * 5
MIXED = [[1, 8, 8], [3, 8, 6], [1, 12, 20], [1, 4, 2], [1, 8, 8]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = build_tiny(tmp_path_factory.mktemp("tiny"), seed=3, init_std=0.15)
    looped, batched = load_policy(folder), load_policy(folder)
    quicken_vision(batched)
    return folder, looped, batched


@pytest.mark.parametrize("grid", [SAME, MIXED])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_features_and_gradients_are_the_librarys(models, grid, dtype, tolerance):
    """To the rounding of the type, relative to the size of the whole; rotations are float32 in any."""
    looped, batched = (copy.deepcopy(model).to(dtype) for model in models[1:])
    grid = torch.tensor(grid)
    pixels = torch.randn(int(grid.prod(1).sum()), 1176, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for model in (looped, batched):
        model.zero_grad()
        features = model.model.visual(pixels, grid_thw=grid).pooler_output
        (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
        results.append((features.detach(), {name: p.grad.clone() for name, p in model.model.visual.named_parameters()}))
    (features, gradients), (ours, our_gradients) = results
    assert (ours - features).norm() <= tolerance * features.norm()
    for name, gradient in gradients.items():
        if "qkv.bias" not in name:  # a third of it, of the keys, is zero but for rounding
            assert (our_gradients[name] - gradient).norm() <= 10 * tolerance * gradient.norm(), name


def test_one_call_per_layer_for_pictures_of_one_size(models, monkeypatch):
    _, _, batched = models
    calls, real = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *rest, **options):
        calls.append(tuple(query.shape))
        return real(query, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    batched.model.visual(torch.randn(5 * 64, 1176), grid_thw=torch.tensor(SAME))
    vision = batched.config.vision_config
    assert calls == [(5, vision.num_heads, 64, vision.hidden_size // vision.num_heads)] * vision.depth


def test_the_saved_model_does_not_name_it(models, tmp_path):
    folder, *both = models
    looped, batched = ((save_policy(model, folder, tmp_path / "saved") / "config.json").read_text() for model in both)
    assert batched == looped and "flash" not in batched
