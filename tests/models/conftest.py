"""A tiny random model and prompts of every kind for it."""

from __future__ import annotations

import pytest
from policy_cases import chat, picture

from models.inputs import Encoded, encode
from models.loading import load_processor
from models.tiny import build_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    # Large enough that every layer matters; at 0.15 the library's own rounding is beyond the bound of 1e-5 nats.
    return build_tiny(tmp_path_factory.mktemp("tiny"), seed=1, init_std=0.1)


@pytest.fixture(scope="session")
def processor(folder):
    return load_processor(folder)


@pytest.fixture(scope="session")
def prompts(processor) -> dict[str, Encoded]:
    views = [picture(seed, (168 + 28 * (seed % 3), 140)) for seed in range(10, 18)]
    return {
        "one image": encode(processor, chat("image", 1, "Where is the chair?"), [picture(0)], False, names=["a"]),
        "eight images": encode(processor, chat("image", 8, "How many chairs?"), views, False),
        "video": encode(processor, chat("video", 1, "What comes first?"), [picture(s) for s in range(4, 10)], True),
        "text": encode(processor, chat("image", 0, "Hello"), [], False),
        "the same image": encode(processor, chat("image", 1, "Is it red?"), [picture(0)], False, names=["a"]),
    }
