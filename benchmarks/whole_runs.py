"""What must hold of a run of stage 3 that has ended, whatever has happened to it: read from its files alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.victims import lines


def check(stage: Path, steps: int, prompts: int) -> dict[str, Any]:
    """AssertionError when something was lost, done twice or made up; else what happened to the prompts, in numbers.

    Every position of the schedule belongs to one step, in order, and is trained or dropped with a reason; metrics and
    ledger have one line per step, traces one per trained prompt; no completion is an error or a timeout.
    """
    assert (stage / "trained.json").is_file() and (stage / "hf").is_dir(), f"{stage} has no model"
    metrics, ledger, traces = (lines(stage / name) for name in ("metrics.jsonl", "ledger.jsonl", "traces/groups.jsonl"))
    assert [line["step"] for line in metrics] == list(range(steps)), "steps are missing or there twice in metrics.jsonl"
    assert [line["step"] for line in ledger] == list(range(steps)), "steps are missing or there twice in ledger.jsonl"
    positions = [place for line in ledger for first, count in line["positions"] for place in range(first, first + count)]
    assert positions == list(range(steps * prompts)), f"positions of the schedule are skipped or repeated: {positions}"
    for line in ledger:
        assert line["trained"] + len(line["dropped"]) == prompts, f"step {line['step']} accounts for others: {line}"
        assert all(line["dropped"].values()), f"step {line['step']} dropped a prompt without a reason"
    trained = Counter({line["step"]: line["trained"] for line in ledger})
    assert Counter(trace["step"] for trace in traces) == trained, "traces are missing or there twice"
    outcomes = Counter(one["outcome"] for trace in traces for one in trace["completions"])
    assert not {"error", "timeout"} & set(outcomes), f"failures are among the completions: {dict(outcomes)}"
    return {
        "trained": trained.total(),
        "dropped": sum(len(line["dropped"]) for line in ledger),
        "sent_again": sum(len(line["sent_again"]) for line in ledger),
        "outcomes": dict(outcomes),
    }


def largest_difference(one: Path, other: Path) -> float:
    """Of the parameters of two model folders, the largest absolute difference; they must have the same names and shapes."""
    import torch
    from safetensors.torch import load_file

    parts = [{name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
             for folder in (one, other)]
    assert parts[0].keys() == parts[1].keys() and parts[0], f"{one} and {other} have other parameters"
    gaps = [float((parts[0][name].double() - parts[1][name].double()).abs().max()) for name in parts[0]]
    assert torch.isfinite(torch.tensor(gaps)).all()
    return max(gaps)
