"""A run of stage 3 whose whole job is killed again and again at random moments, and the same run undisturbed beside it.

    python -m benchmarks.random_kills [--steps 40] [--kills 20] [--seed 0] [--json FILE]

After every SIGKILL to the whole tree of processes the same command is run again, and at last left to finish. Then no
position of the schedule was skipped or repeated, metrics are continuous, and with staleness 0 the parameters are those of the
undisturbed run. Sequences run one at a time in the engine: products of another number of rows have other last bits, and
which sequences share a step of the engine depends on when requests happen to arrive.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.chaos_cases import Run, finish, gone_after, started
from benchmarks.digit_run import make_model, prepare, small
from benchmarks.measure import report
from benchmarks.processes import Family
from benchmarks.victims import fleet
from benchmarks.whole_runs import check, largest_difference

PROMPTS = 3
#: Largest absolute difference of a parameter that counts as none.
TOLERANCE = 1e-5
#: Of the kills: a share while the run starts, within so many seconds, and a share while a checkpoint is written.
STARTING, START_SECONDS, SAVING = 0.2, 20.0, 0.2
#: The others: after one or two new steps, and so many seconds.
NEW_STEPS, STEP_SECONDS = (1, 2), 1.0


@dataclass(frozen=True)
class Moment:
    """When to kill: `seconds` after the command (starting), or after `steps` new steps are told (running), or at the first
    checkpoint behind them (saving)."""

    kind: Literal["starting", "running", "saving"]
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Fell:
    """Where a kill fell: the trainer's step and what it did, as fleet.json said a moment before (None: nothing yet);
    checkpoints that were not finished; how many processes it ended."""

    kind: str
    seconds_since_start: float
    step: int | None
    doing: str | None
    unfinished: list[str]
    processes: int


def moments(kills: int, seed: int) -> list[Moment]:
    """Random ones, the same for the same seed."""
    draw, found = random.Random(seed), list[Moment]()
    for turn in range(kills):
        kind: Any = "starting" if turn < STARTING * kills else "saving" if turn < (STARTING + SAVING) * kills else "running"
        seconds = draw.uniform(0.5, START_SECONDS) if kind == "starting" else draw.uniform(0.0, STEP_SECONDS)
        found.append(Moment(kind, draw.randint(*NEW_STEPS), round(seconds, 3)))
    draw.shuffle(found)
    return found


def config(steps: int):
    """Of both runs. Checkpoints of every other step: some of what is killed is done again."""
    return small(
        {"grpo": {"steps": steps, "checkpoint_steps": 2}, "rollout": {"workers": 1, "max_num_seqs": 1}}
    )


def undisturbed(folder: Path, family: Family) -> Path:
    """Runs the work of the folder; returns the stage."""
    with started(folder) as (run, process):
        finish(run, process)
    gone_after(family.alive)
    return run.stage


def disturbed(folder: Path, when: Sequence[Moment], family: Family) -> tuple[Path, list[Fell]]:
    """Runs the work of the folder, killed at these moments; RunEnded when it is over before the last of them."""
    fell = []
    for moment in when:
        with started(folder) as (run, process):
            begun = time.monotonic()
            _wait_for(moment, run)
            ended, since = family.kill(), round(time.monotonic() - begun, 2)
        seen = fleet(run.stage)
        own = seen if seen is not None and seen["pid"] == process.pid else {}
        fell.append(Fell(moment.kind, since, own.get("step"), own.get("doing"), unfinished(run.stage), ended))
        print(f"kill {len(fell)} of {len(when)}: {fell[-1]}", flush=True)
    return undisturbed(folder, family), fell


def _wait_for(moment: Moment, run: Run) -> None:
    before = run.steps()
    if moment.kind != "starting":
        run.until(f"{moment.steps} new steps", lambda: True if run.steps() >= before + moment.steps else None)
    if moment.kind == "saving":
        run.until("a checkpoint is written", lambda: unfinished(run.stage) or None)
    else:
        time.sleep(moment.seconds)


def unfinished(stage: Path) -> list[str]:
    """Checkpoints that are being written."""
    return [own.name for own in (stage / "checkpoints").glob("step-*") if not (own / "state.json").exists()]


def compared(one: Path, other: Path, steps: int) -> dict[str, Any]:
    """What the two runs have left: their prompts, and how far their parameters are apart; AssertionError beyond
    `TOLERANCE`."""
    prompts = [check(stage, steps, PROMPTS) for stage in (one, other)]
    gap = largest_difference(one / "hf", other / "hf")
    assert gap <= TOLERANCE, f"the parameters of {one} and {other} differ by {gap:.3g}, {TOLERANCE:g} is allowed"
    return {"undisturbed": prompts[0], "disturbed": prompts[1], "largest_difference": gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends what it has started
    with tempfile.TemporaryDirectory() as scratch, Family() as family:
        place = Path(scratch)
        model, seconds = make_model(place / "policy"), {}
        for name in ("undisturbed", "disturbed"):
            prepare(place / name, config(options.steps), model)
        begun = time.monotonic()
        try:
            one = undisturbed(place / "undisturbed", family)
            seconds["undisturbed"] = round(time.monotonic() - begun, 1)
            other, fell = disturbed(place / "disturbed", moments(options.kills, options.seed), family)
        finally:
            family.kill()
        seconds["disturbed"] = round(time.monotonic() - begun - seconds["undisturbed"], 1)
        result = compared(one, other, options.steps)
    fallen = Counter(own.doing or "before it said so" for own in fell)
    kills = {"fell_while": dict(fallen), "kills": [asdict(own) for own in fell]}
    report("random_kills", options, {"seconds": seconds, **result, **kills})


if __name__ == "__main__":
    main()
