"""Stage 3 with and without overlap: the same rows, model and seed, one engine and one learner rank with a core each.

    python -m benchmarks.asynchrony [--staleness 0 --staleness 1 ...] [--steps 8] [--json FILE]

Both have a core: the learner's process is kept on the last one, everything else on the others. On two cores the engine shares
its own with the small processes (the trainer, Ray's, the reward's, the engine's front end), which take about a quarter of it;
left to themselves they stand in the learner's way although there is room beside the engine.

The policy is the benchmarks' tiny model, trained for a moment to write digits and to stop; the reward is the share of
sevens, and completions near the limit of tokens lose some of it (`grpo.overlong_buffer`), so that lengths stay as they were.
With `grpo.staleness` 0 generation and learning take turns: that run says how long each takes by itself.

Means over the steps that count, seconds: with overlap long and short steps take turns, since two of them are sampled
together. `generate`: from the admission of a step to its last group (with overlap: what of it the learner had to wait for),
`reward`: to its last score. `learn`: the optimizer step. `sync`: publication of the weights, their way into the engine, canary
and proof. `between`: the rest, the trainer's records. `step`: all of that, from the log line of a step to that of the next;
checkpoints are left to the last step. `cores`: how many this run kept busy,
`cores_elsewhere`: how many others did; the figures hold if that is next to none, for Ray's processes give way to theirs.

`overlap_efficiency` = max(generate, learn) of the run without overlap / step of this one: 1 would be all work of the shorter
part hidden, at no cost of publication and bookkeeping.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from actors.trainer import train_policy
from benchmarks import digit_reward
from benchmarks.measure import report
from benchmarks.workloads import build_model, rows
from configs.schema import (
    CustomRewardConfig,
    GRPOConfig,
    LearnerConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
)
from data.prompts import render
from data.types import Example
from models.forward import PolicyForward
from models.inputs import encode, load_images
from models.loading import load_policy, load_processor, save_policy
from models.packing import Tree, pack
from models.tokens import end_token_id

PROMPTS, GROUP, NEW_TOKENS, LEARNING_RATE = 64, 8, 128, 3e-4
#: Digits of a completion: geometric with this mean, cut off; each is two tokens.
MEAN_DIGITS, MOST_DIGITS = 24, 60
#: Of the writer's training: optimizer steps, prompts, and completions of each in a step.
WRITER_STEPS, WRITER_PROMPTS, WRITER_COMPLETIONS = 100, 4, 4
#: Steps before those that count: the first ones fill the pipeline.
WARM_UP = 3
PARTS = ("generate", "reward", "learn", "sync")


def build_writer(folder: Path, examples: list[Example]) -> Path:
    """The benchmarks' model after a short training on lines of random digits, long-tailed in length."""
    base = build_model(folder / "base")
    processor, model = load_processor(base), load_policy(base)
    chosen = examples[:WRITER_PROMPTS]
    encoded = [encode(processor, render(row, "think").messages, load_images(row.media), False) for row in chosen]
    policy, adamw, draw = PolicyForward(model), torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    end = end_token_id(processor)

    def line() -> tuple[int, ...]:
        count = min(1 + int(draw.expovariate(1 / MEAN_DIGITS)), MOST_DIGITS)
        return (*processor.tokenizer(" ".join(str(draw.randint(0, 9)) for _ in range(count))).input_ids, end)

    for _ in range(WRITER_STEPS):
        batch = pack([Tree(own, tuple(line() for _ in range(WRITER_COMPLETIONS))) for own in encoded])
        (-policy(batch).sum() / batch.mask.sum()).backward()
        adamw.step()
        adamw.zero_grad()
    return save_policy(model, base, folder / "writer")


def configuration(staleness: int, steps: int) -> RunConfig:
    """One engine and one rank, a thread and a core each."""
    return RunConfig(
        learner=LearnerConfig(threads=1, num_cpus=1, optimizer=OptimizerConfig(lr=LEARNING_RATE)),
        rollout=RolloutConfig(max_model_len=1024, threads=1, num_cpus=1),
        reward=RewardConfig(
            format=0.0, answer=0.0, iou=0.0, custom=(CustomRewardConfig(source=f"{digit_reward.__file__}:sevens"),)
        ),
        grpo=GRPOConfig(
            steps=steps,
            prompts_per_step=PROMPTS,
            group_size=GROUP,
            staleness=staleness,
            overlong_buffer=NEW_TOKENS // 2,
            checkpoint_steps=steps,
            sampling=SamplingConfig(temperature=1.0, max_new_tokens=NEW_TOKENS),
        ),
    )


def measured(staleness: int, steps: int, examples: list[Example], model: Path, folder: Path) -> dict[str, Any]:
    """One run of `steps` steps that count, on a Ray cluster of its own."""
    ends: list[float] = []
    used: list[tuple[float, float]] = []

    def say(text: str) -> None:
        if text == "grpo: the learner is ready":
            _keep_learner_on(cores[-1])
        if text.startswith("grpo: step "):
            ends.append(time.monotonic())
            used.append(_busy_seconds())
        print(text, flush=True)

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1])  # whatever is started from here on has them, too
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 << 20)
    try:
        train_policy(configuration(staleness, WARM_UP + steps), examples, model, folder, say)
    finally:
        ray.shutdown()
        os.sched_setaffinity(0, cores)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counted = records[WARM_UP:]
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 : -1], ends[WARM_UP:], strict=True)]
    busy, own = ((last - first) / sum(seconds) for first, last in zip(used[WARM_UP - 1], used[-1], strict=True))
    return {
        "staleness": staleness,
        "step": round(statistics.mean(seconds), 3),
        **{part: round(statistics.mean(record[f"seconds_{part}"] for record in counted), 3) for part in PARTS},
        "between": round(statistics.mean(map(_between, seconds, counted)), 3),
        "samples_per_s": round(PROMPTS * GROUP * len(seconds) / sum(seconds), 2),
        "cores": round(own, 2),
        "cores_elsewhere": round(busy - own, 2),
        "step_seconds": [round(value, 3) for value in seconds],
        "staleness_max": [record["staleness_max"] for record in records],
        "reward_curve": [round(record["reward"], 4) for record in records],
        "completion_tokens": round(statistics.mean(record["completion_tokens"] for record in counted), 1),
    }


def _keep_learner_on(core: int) -> None:
    """Every thread of it."""
    (learner,) = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Learner")]
    for thread in learner.threads():
        os.sched_setaffinity(thread.id, [core])


def _busy_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine so far, and those of this process and all below it."""
    machine = psutil.cpu_times()
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    own = [process.cpu_times() for process in tree if process.is_running()]
    return sum(machine) - machine.idle - machine.iowait, sum(times.user + times.system for times in own)


def _between(seconds: float, record: dict[str, Any]) -> float:
    """What of a step is in none of its parts: the trainer's records."""
    return seconds - sum(record[f"seconds_{part}"] for part in PARTS)


def with_efficiency(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each run with its overlap efficiency, if one of them was without overlap."""
    alone = next((run for run in runs if run["staleness"] == 0), None)
    if alone is None:
        return runs
    longer = max(alone["generate"] + alone["reward"], alone["learn"])
    return [{**run, "overlap_efficiency": round(longer / run["step"], 3)} for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--staleness", type=int, action="append", help="repeatable; default: 0, 1 and 2")
    parser.add_argument("--steps", type=int, default=8, help=f"steps that count; {WARM_UP} more are run before them")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        examples = rows("single", PROMPTS * (WARM_UP + options.steps), folder / "pictures")
        model = build_writer(folder, examples)
        chosen = options.staleness or [0, 1, 2]
        runs = [measured(own, options.steps, examples, model, folder / f"staleness-{own}") for own in chosen]
    report("asynchrony", options, with_efficiency(runs))


if __name__ == "__main__":
    main()
