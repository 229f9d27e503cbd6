"""A whole step of stage 3, as it runs in training: generation, rewards, learner, weights, on one machine.

    python -m benchmarks.grpo_step [--workload single] [--peer trl_peer.py --peer-libraries DIR] [--json FILE]

The random model hardly ever ends a completion, so the overlong buffer is on: then every completion has a reward, all of
them are trained on, and the divergence from the reference (beta 0.01) is part of the loss, as it is at the peer's.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from actors.trainer import train_policy
from benchmarks.measure import PeakMemory, compare
from benchmarks.workloads import GROUP, NEW_TOKENS, PROMPTS, rows
from configs.schema import (
    GRPOConfig,
    LearnerConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
)

#: Parts of a step in metrics.jsonl.
PARTS = ("seconds_generate", "seconds_reward", "seconds_learn", "seconds_sync")


def ours(workload: str, options, model: Path, folder: Path) -> dict[str, Any]:
    """The training loop on Ray; seconds of the steps after the first."""
    steps = options.steps + 1
    config = RunConfig(
        learner=LearnerConfig(threads=options.threads, num_cpus=1, optimizer=OptimizerConfig(lr=1e-5)),
        rollout=RolloutConfig(max_model_len=1024, threads=options.threads),
        grpo=GRPOConfig(
            steps=steps,
            prompts_per_step=PROMPTS,
            group_size=GROUP,
            overlong_buffer=NEW_TOKENS // 2,
            checkpoint_steps=steps,
            sampling=SamplingConfig(temperature=1.0, max_new_tokens=NEW_TOKENS),
        ),
    )
    examples = [row for row in rows(workload, PROMPTS * steps, folder / "pictures")]
    with PeakMemory() as memory:
        train_policy(config, examples, model, folder / "grpo", print)
    records = [json.loads(line) for line in (folder / "grpo" / "metrics.jsonl").read_text().splitlines()][1:]
    seconds = statistics.median(record["seconds"] for record in records)
    return {
        "samples_per_s": round(PROMPTS * GROUP / seconds, 3),
        "step_seconds": [round(record["seconds"], 3) for record in records],
        **{part: round(statistics.median(record[part] for record in records), 3) for part in PARTS},
        "trained_tokens": records[-1]["trained_tokens"],
        "peak_memory_mib": round(memory.mib),
    }


if __name__ == "__main__":
    compare("grpo_step", __doc__.splitlines()[0], "grpo", ours)
