"""Pictures that vLLM would take away from a sequence, and would not send again."""

from __future__ import annotations

import dataclasses

import pytest

from actors.engine import prepare_environment
from actors.vllm_plugin import PluginMissing, keep_pictures, require_plugin
from configs.schema import RolloutConfig

prepare_environment(RolloutConfig())


def picture():
    """One picture of 4 tokens at the beginning of a prompt."""
    import torch
    from vllm.multimodal.inputs import (
        MultiModalBatchedField, MultiModalFeatureSpec, MultiModalFieldElem, MultiModalKwargsItem, PlaceholderRange,
    )

    pixels = MultiModalFieldElem(data=torch.ones(2), field=MultiModalBatchedField())
    return MultiModalFeatureSpec(MultiModalKwargsItem({"pixel_values": pixels}), "image", "a", PlaceholderRange(0, 4))


def test_vllm_still_takes_pictures_of_cached_prompts_away_and_sends_them_once() -> None:
    """When this fails, the plugin may be superfluous: see whether tests/actors/test_actors_rollout.py passes without it."""
    from vllm.multimodal.utils import strip_covered_mm_data
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData

    (kept,) = strip_covered_mm_data([picture()], num_computed_tokens=8, uses_mrope=True)
    assert kept.data is None or "pixel_values" not in kept.data
    assert "mm_features" in {field.name for field in dataclasses.fields(NewRequestData)}
    assert "mm_features" not in {field.name for field in dataclasses.fields(CachedRequestData)}


def test_a_sequence_keeps_its_pictures(monkeypatch) -> None:
    from vllm.multimodal.utils import strip_covered_mm_data
    from vllm.v1.core.sched import output

    monkeypatch.setattr(output, "strip_covered_mm_data", strip_covered_mm_data)
    with pytest.raises(PluginMissing, match="make setup"):
        require_plugin()
    keep_pictures()
    require_plugin()
    (kept,) = output.strip_covered_mm_data([picture()], 8, uses_mrope=True)
    assert "pixel_values" in kept.data


def test_vllm_finds_the_plugin() -> None:
    from importlib.metadata import entry_points

    (own,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "ladder"]
    assert own.load() is keep_pictures
