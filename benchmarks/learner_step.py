"""What the learner's step costs: against plain packing as a group grows, and in memory as the vocabulary grows.

    python -m benchmarks.learner_step [--workload multiview] [--json FILE]

Tables: seconds of forward and backward for one group of G = 1 … 16 completions of 48 tokens, its prompt shared and its
prompt repeated (plain packing, pictures still once); the same for completions that are long against the prompt, which
says when sharing stops to pay; peak memory of the log-probs of 2,048 tokens as the vocabulary grows, in chunks and with
all logits at once.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import arguments, report
from benchmarks.workloads import NEW_TOKENS, QUESTION, build_model, rows
from models.forward import PolicyForward
from models.heap import TRAINING_HEAP
from models.inputs import Encoded, encode, load_images
from models.loading import load_policy, load_processor
from models.packing import Tree, pack

GROUPS = (1, 2, 4, 8, 16)
LONG = (48, 192, 768)
_MEMORY = """
import sys, torch
from models.token_logprobs import token_logprobs
chunked, vocabulary = sys.argv[1] == "chunked", int(sys.argv[2])
hidden, weight = torch.randn(2048, 128, requires_grad=True), torch.randn(vocabulary, 128, requires_grad=True)
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
    return {
        "prompt": len(encoded.input_ids),
        "completions": size,
        "tokens": tokens,
        "shared_seconds": round(shared, 4),
        "packed_seconds": round(packed, 4),
        "ratio": round(packed / shared, 2),
    }


def logprob_memory(vocabulary: int) -> dict[str, Any]:
    """Peak MiB beside hidden states and weights, each form in a process of its own."""
    measured = {}
    for form in ("chunked", "whole"):
        command = [sys.executable, "-c", _MEMORY, form, str(vocabulary)]
        measured[f"{form}_mib"] = round(float(subprocess.run(command, check=True, capture_output=True).stdout))
    return {"vocabulary": vocabulary, **measured}


def main() -> None:
    options = arguments(__doc__.splitlines()[0], peer=False).parse_args()
    if not TRAINING_HEAP.items() <= os.environ.items():  # a learner's process begins with it
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.learner_step", *sys.argv[1:]], os.environ | TRAINING_HEAP)
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"group_size": {}, "completion_length": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = build_model(folder / "model")
        processor, policy = load_processor(model), PolicyForward(load_policy(model))
        for workload in options.workload or ("single", "multiview"):
            (row,) = rows(workload, 1, folder / workload)
            content = [{"type": "image"}] * len(row.media) + [{"type": "text", "text": QUESTION}]
            encoded = encode(processor, [{"role": "user", "content": content}], load_images(row.media), False)
            results["group_size"][workload] = [
                group_cost(policy, encoded, size, NEW_TOKENS, options.steps) for size in GROUPS
            ]
            results["completion_length"][workload] = [
                group_cost(policy, encoded, 8, tokens, options.steps) for tokens in LONG
            ]
    results["logprob_memory"] = [logprob_memory(vocabulary) for vocabulary in (1_152, 19_000, 38_000, 152_000)]
    report("learner_step", options, results)


if __name__ == "__main__":
    main()
