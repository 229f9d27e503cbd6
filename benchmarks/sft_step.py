"""A step of a supervised stage, as it runs in training: Ray Train with a DeepSpeed engine, 16 rows.

    python -m benchmarks.sft_step [--workload single] [--peer trl_peer.py --peer-libraries DIR] [--json FILE]

Every row is new, so no picture is in a cache; reading and processing it belong to the step.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measure import PeakMemory, compare
from benchmarks.workloads import SFT_ROWS, rows
from configs.schema import LearnerConfig, OptimizerConfig, RunConfig, SFTConfig
from sft.stage import SFTTask, train_rows


def ours(workload: str, options, model: Path, folder: Path) -> dict[str, Any]:
    """One rank; seconds of the steps after the first."""
    steps = options.steps + 1
    section = SFTConfig(batch_size=SFT_ROWS, max_steps=steps, checkpoint_steps=steps, optimizer=OptimizerConfig(lr=1e-5))
    run = RunConfig(learner=LearnerConfig(threads=options.threads))
    examples = tuple(rows(workload, SFT_ROWS * steps, folder / "pictures"))
    with PeakMemory() as memory:
        train_rows(SFTTask("coldstart", examples, str(model), str(folder / "sft"), run, section))
    records = [json.loads(line) for line in (folder / "sft" / "metrics.jsonl").read_text().splitlines()][1:]
    seconds = statistics.median(record["seconds"] for record in records)
    return {
        "samples_per_s": round(SFT_ROWS / seconds, 3),
        "step_seconds": [round(record["seconds"], 3) for record in records],
        "peak_memory_mib": round(memory.mib),
    }


if __name__ == "__main__":
    compare("sft_step", __doc__.splitlines()[0], "sft", ours)
