"""A step of a supervised stage, as it runs in training: Ray Train with a DeepSpeed engine, 16 rows.

    python -m benchmarks.sft_step [--workload single] [--peer trl_peer.py --peer-libraries DIR] [--json FILE]

Every row is new, so no picture is in a cache. The peer's clock starts when the rows of a step have been read and
processed (transformers' Trainer does that before it calls `on_step_begin`), so `samples_per_s`, which the ratio is of,
leaves out reading on our side too; `samples_per_s_with_reading` does not.
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
    trained = [record["seconds"] - record["seconds_read"] for record in records]
    return {
        "samples_per_s": round(SFT_ROWS / statistics.median(trained), 3),
        "samples_per_s_with_reading": round(SFT_ROWS / statistics.median(record["seconds"] for record in records), 3),
        "step_seconds": [round(seconds, 3) for seconds in trained],
        "peak_memory_mib": round(memory.mib),
    }


if __name__ == "__main__":
    compare("sft_step", __doc__.splitlines()[0], "sft", ours)
