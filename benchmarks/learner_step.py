"""What the learner's step costs: whole, against plain packing as a group grows, and in memory as the vocabulary grows.

    python -m benchmarks.learner_step [--workload multiview] [--peer trl_peer.py --peer-libraries DIR] [--json FILE]

`step`: `Learner.step` on 8 prompts with 8 completions of 48 tokens (reading, encoding, reference, policy, update). The
peer does not time its learner alone: its step has generation and rewards in it, and so has the ratio.

Tables: seconds and memory of forward and backward for one group of G = 1 … 16 completions of 48 tokens, its prompt shared
and its prompt repeated (plain packing, pictures still once); the same for completions that are long against the prompt,
which says when sharing stops to pay; peak memory of the log-probs of 2,048 tokens as vocabulary and width grow, in chunks
and with all logits at once. Memory is that of tensors, beside weights and batch, gradients of the weights included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.batching import TrainBatch, TrainGroup
from actors.learner import Learner
from benchmarks.measure import arguments, report, run_peer
from benchmarks.tensor_memory import AliveTensors
from benchmarks.workloads import GROUP, NEW_TOKENS, PROMPTS, QUESTION, build_model, rows
from configs.schema import LearnerConfig, OptimizerConfig, RunConfig
from data.prompts import render
from data.types import Prompt
from models.deepspeed_engine import free_port
from models.forward import PolicyForward
from models.heap import TRAINING_HEAP
from models.inputs import Encoded, encode, load_images
from models.loading import load_policy, load_processor
from models.packing import Tree, pack
from models.tiny import VOCABULARY

GROUPS = (1, 2, 4, 8, 16)
LONG = (48, 192, 768)
_MEMORY = """
import sys, torch
from models.token_logprobs import token_logprobs
chunked, vocabulary, width = sys.argv[1] == "chunked", int(sys.argv[2]), int(sys.argv[3])
hidden, weight = torch.randn(2048, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
targets, banned = torch.randint(vocabulary, (2048,)), torch.tensor([0])
weight.grad = torch.ones_like(weight)  # touched: it is there in any step, and not counted
def peak():  # of this process alone: ru_maxrss begins with that of its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
if chunked:
    out = token_logprobs(hidden, weight, targets, 1.0, banned)
else:
    out = (hidden @ weight.T).index_fill(-1, banned, float("-inf")).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
out.sum().backward()
print((peak() - before) / 1024)
"""


def seconds(policy: PolicyForward, forms: Sequence[list[Tree]], steps: int) -> list[float]:
    """Median seconds of forward and backward of a pass of each form, in turns, after two that do not count."""
    batches = [pack(trees) for trees in forms]
    taken: list[list[float]] = [[] for _ in batches]
    for _ in range(steps + 2):
        for batch, times in zip(batches, taken, strict=True):
            begun = time.perf_counter()
            policy(batch).sum().backward()
            times.append(time.perf_counter() - begun)
            policy.zero_grad()
    return [statistics.median(times[2:]) for times in taken]


def group_cost(policy: PolicyForward, encoded: Encoded, size: int, tokens: int, steps: int) -> dict[str, Any]:
    """One group of `size` completions of `tokens` tokens."""
    rng = np.random.default_rng(size)
    completions = [tuple(rng.integers(20, 400, tokens).tolist()) for _ in range(size)]
    forms = [Tree(encoded, tuple(completions))], [Tree(encoded, (completion,)) for completion in completions]
    shared, packed = seconds(policy, forms, steps)
    shared_mib, packed_mib = (peak_mib(policy, trees) for trees in forms)
    return {
        "prompt": len(encoded.input_ids),
        "completions": size,
        "tokens": tokens,
        "shared_seconds": round(shared, 4),
        "packed_seconds": round(packed, 4),
        "ratio": round(packed / shared, 2),
        "shared_mib": shared_mib,
        "packed_mib": packed_mib,
    }


def peak_mib(policy: PolicyForward, trees: list[Tree]) -> int:
    """MiB of the tensors of one pass."""
    batch = pack(trees)
    with AliveTensors(policy.parameters()) as memory:
        policy(batch).sum().backward()
    policy.zero_grad()
    return round(memory.peak / 2**20)


def logprob_memory(vocabulary: int, width: int) -> dict[str, Any]:
    """Peak MiB beside hidden states, weights and the gradient the weights already have; each form in its own process."""
    measured = {}
    for form in ("chunked", "whole"):
        command = [sys.executable, "-c", _MEMORY, form, str(vocabulary), str(width)]
        measured[f"{form}_mib"] = round(float(subprocess.run(command, check=True, capture_output=True).stdout))
    return {"vocabulary": vocabulary, "width": width, **measured}


def whole_step(workload: str, options, model: Path, folder: Path) -> dict[str, Any]:
    """Seconds of the learner's steps after the first, every one with new pictures."""
    steps = options.steps + 1
    config = RunConfig(learner=LearnerConfig(threads=options.threads, optimizer=OptimizerConfig(lr=1e-5)))
    learner = Learner(config, str(model), str(folder), 0, 1, steps)
    learner.start("127.0.0.1", free_port())
    processor, rng = load_processor(model), np.random.default_rng(0)
    prompts = [render(row, "think") for row in rows(workload, PROMPTS * steps, folder / "pictures")]
    taken = []
    for step in range(steps):
        batch = train_batch(prompts[step * PROMPTS :][:PROMPTS], processor, rng)
        begun = time.perf_counter()
        learner.step(batch)
        taken.append(time.perf_counter() - begun)
    learner.close()
    median = statistics.median(taken[1:])
    return {
        "samples_per_s": round(PROMPTS * GROUP / median, 3),
        "step_seconds": [round(seconds, 3) for seconds in taken[1:]],
    }


def train_batch(prompts: Sequence[Prompt], processor, rng: np.random.Generator) -> TrainBatch:
    """Random completions, as probable as any, with random advantages."""
    groups = []
    for prompt in prompts:
        encoded = encode(processor, prompt.messages, load_images(prompt.example.media), False)
        completions = tuple(tuple(ids) for ids in rng.integers(20, 400, (GROUP, NEW_TOKENS)).tolist())
        behaviour = ((-float(np.log(VOCABULARY)),) * NEW_TOKENS,) * GROUP
        advantages, versions = tuple(rng.normal(size=GROUP).tolist()), (((0, 0),),) * GROUP
        groups.append(TrainGroup(prompt, encoded.input_ids, completions, behaviour, advantages, versions))
    return TrainBatch(tuple(groups), GROUP * len(groups), GROUP * NEW_TOKENS * len(groups), 0)


def say(line: str) -> None:
    print(f"learner_step: {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    if not TRAINING_HEAP.items() <= os.environ.items():  # a learner's process begins with it
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.learner_step", *sys.argv[1:]], os.environ | TRAINING_HEAP)
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"step": {}, "group_size": {}, "completion_length": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = build_model(folder / "model")
        processor, policy = load_processor(model), PolicyForward(load_policy(model))
        for workload in options.workload or ("single", "multiview"):
            say(f"{workload}: whole step")
            results["step"][workload] = own = {}
            if options.peer:
                own["peer"] = run_peer(options, "grpo", workload, model)
            # In a process of its own, as in a run: a learner that has closed has left the group its engine knows.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                own["ours"] = process.submit(whole_step, workload, options, model, folder / f"{workload}-step").result()
            if options.peer:
                own["ratio"] = round(own["ours"]["samples_per_s"] / own["peer"]["samples_per_s"], 2)
            (row,) = rows(workload, 1, folder / workload)
            content = [{"type": "image"}] * len(row.media) + [{"type": "text", "text": QUESTION}]
            encoded = encode(processor, [{"role": "user", "content": content}], load_images(row.media), False)
            say(f"{workload}: groups of {GROUPS}")
            results["group_size"][workload] = [
                group_cost(policy, encoded, size, NEW_TOKENS, options.steps) for size in GROUPS
            ]
            say(f"{workload}: completions of {LONG} tokens")
            results["completion_length"][workload] = [
                group_cost(policy, encoded, 8, tokens, options.steps) for tokens in LONG
            ]
    sizes = [(1_152, 128), (19_000, 128), (38_000, 128), (152_000, 128), (38_000, 2048), (152_000, 2048)]
    say("memory of log-probs")
    results["logprob_memory"] = [logprob_memory(*size) for size in sizes]
    report("learner_step", options, results)


if __name__ == "__main__":
    main()
