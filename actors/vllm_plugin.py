"""What vLLM has to do otherwise, in every process of an engine: its plugin `ladder` (setup.cfg), which it loads by itself.

What holds: a sequence keeps its pictures as long as it lives. vLLM takes them from a sequence whose prompt it finds in the
prefix cache, as nothing would compute them again. An update of the weights clears that cache, and with it the encoder's: the
sequence's prompt is computed again, pictures included, and without them the engine dies ("Expected number of multimodal
embeddings to match number of input items"). That meets every completion that began later than another of its prompt which
has ended by then. `tests/actors/test_actors_vllm_plugin.py` fails when vLLM sends pictures again, or keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Pictures = TypeVar("Pictures", bound=Sequence)


class PluginMissing(RuntimeError):
    """vLLM did not load the plugin: its engines would die at an update of the weights."""


def keep_pictures() -> None:
    """vLLM calls it, in every process, before an engine is made."""
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = _kept


def _kept(mm_features: Pictures, num_computed_tokens: int, uses_mrope: bool = False) -> Pictures:
    """In place of vLLM's `strip_covered_mm_data`."""
    return mm_features


def require_plugin() -> None:
    """PluginMissing unless vLLM, whose plugins must have been loaded, has this one."""
    from vllm.v1.core.sched import output

    if output.strip_covered_mm_data is not _kept:
        raise PluginMissing(
            "vLLM did not load the plugin 'ladder' (actors.vllm_plugin), without which engines die at an update of their "
            "weights: install this project where workers run (make setup, or pip install .), and if VLLM_PLUGINS is set, "
            "name ladder in it"
        )
