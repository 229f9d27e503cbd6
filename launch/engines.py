"""Environment of every process of a run: what must be said before libraries are imported and holds for all of them.

What concerns one engine or one learner (threads, compilation) its actor says itself (`actors.engine`).
"""

from __future__ import annotations

from configs.schema import RunConfig

COMMON = {
    "HF_HUB_OFFLINE": "1",  # models are folders; nothing is looked up elsewhere
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_COLOR_PREFIX": "0",  # the log is a file too
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # of libraries about their own future; they drown the progress lines
}
CPU_LEARNER = {"DS_ACCELERATOR": "cpu"}


def engine_environment(config: RunConfig) -> dict[str, str]:
    """Variables for the driver and all Ray workers of the run."""
    return dict(COMMON) if config.learner.num_gpus else COMMON | CPU_LEARNER
