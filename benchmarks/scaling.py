"""A run of stage 3 whose fleet grows from one worker to three and shrinks again while it goes on.

    python -m benchmarks.scaling [--steps 40] [--json FILE]

Sampling is what takes the time of a step, as in a run that somebody scales up: an engine computes one sequence at a time, and
the next step's prompts wait while the learner works (`grpo.staleness` 1). No step fails and no prompt is sent twice: who
leaves answers first what it holds. Seconds of each joiner count from the command; its first sample is told when fleet.json
shows it at work for the first time, and that group's own seconds are over. The file is written five times a second, so what a
worker holds is seen if it takes longer than that.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos_cases import Run, finish, folder_of, gone_after, started
from benchmarks.digit_run import make_model
from benchmarks.measure import report
from benchmarks.processes import Family
from benchmarks.victims import Line, fleet, lines, lives
from benchmarks.whole_runs import check
from launch.run_folder import RunFolder
from launch.scale import scale

SMALL, LARGE = 1, 3
PROMPTS, GROUP = 6, 16
#: Of a worker: three have room beside the learner on two cores.
WORKER_CPUS = 0.4
#: Steps before the fleet grows, and with all of them before it shrinks.
BEFORE, BETWEEN = 3, 4


def asked(folder: RunFolder, workers: int) -> float:
    """`ladder scale`, which does not wait; returns the time, unix seconds."""
    begun = time.time()
    assert scale(folder, workers, print, wait=False) == 0
    return begun


def grow(run: Run) -> dict[str, float]:
    """Until every joiner has been given something; returns when, by name."""
    first: dict[str, float] = {}

    def look() -> bool | None:
        now = fleet(run.stage)
        for own in now["workers"] if now is not None else ():
            if own["holds"]:
                first.setdefault(own["name"], time.time())
        return True if len(first) >= LARGE else None

    run.until("all joiners have samples to make", look)
    return first


def joiner(name: str, commanded: float, given: float, told: Sequence[Line], traces: Sequence[Line]) -> dict[str, Any]:
    """Seconds of one that joined."""
    at = {line["after"]: line["time"] for line in reversed(told) if line["name"] == name}  # the first time of each
    generated = next(trace["seconds"] for trace in traces if trace["worker"] == name)
    start, first = at["stale"] - at["joining"], given + generated - commanded
    parts = {
        "command_to_joining": at["joining"] - commanded,
        "engine_start": start,
        "ready_to_serving": at["serving"] - at["stale"],
        "serving_to_given": given - at["serving"],
        "generated": generated,
        "seconds_to_first_sample": first,
        "seconds_to_first_sample_less_engine_start": first - start,
    }
    return {"name": name} | {key: round(value, 3) for key, value in parts.items()}


def scaled(folder: Path, steps: int, family: Family) -> dict[str, Any]:
    """One run; AssertionError when something was lost on the way."""
    own = RunFolder.existing(folder)
    with started(folder) as (run, process):
        run.until("the first steps", lambda: True if run.steps() >= BEFORE else None)
        up = asked(own, LARGE)
        given = grow(run)
        reached = run.steps()
        run.until("some steps of all", lambda: True if run.steps() >= reached + BETWEEN else None)
        down = asked(own, SMALL)
        run.until("they have left", run.seen(lambda now: len(now["workers"]) == SMALL == now["target"]))
        left = round(time.time() - down, 3)
        finish(run, process)
    gone_after(family.alive)
    told, traces = lives(run.stage), lines(run.stage / "traces" / "groups.jsonl")
    prompts = check(run.stage, steps, PROMPTS)
    assert prompts["sent_again"] == prompts["dropped"] == 0, f"workers left something behind: {prompts}"
    assert not [line for line in told if line["after"] == "dead"], "a worker died"
    joined = [joiner(name, up, when, told, traces) for name, when in given.items() if name != "w0"]
    drained = [line["name"] for line in told if line["before"] == "draining"]
    work = Counter(trace["worker"] for trace in traces)
    return {"joiners": joined, "drained": drained, "seconds_to_shrink": left, "groups_of": dict(work), "prompts": prompts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends what it has started
    with tempfile.TemporaryDirectory() as scratch, Family() as family:
        model = make_model(Path(scratch) / "policy")
        fleet_of = {"workers": SMALL, "num_cpus": WORKER_CPUS, "max_num_seqs": 1}
        asked_of = {"staleness": 1, "prompts_per_step": PROMPTS, "group_size": GROUP}
        folder = folder_of(Path(scratch) / "run", model, options.steps, reward_seconds=0.0, rollout=fleet_of, grpo=asked_of)
        try:
            result = scaled(folder, options.steps, family)
        finally:
            family.kill()
    report("scaling", options, result)


if __name__ == "__main__":
    main()
