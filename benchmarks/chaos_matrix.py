"""The chaos matrix: everything of which a run of stage 3 consists is killed in the midst of it, and the run ends well.

    python -m benchmarks.chaos_matrix [--case NAME ...] [--repeat 3] [--json FILE [--add]]

A victim is chosen by its actor id and its state in the trainer's fleet.json; that it was lost in that state is read from
fleet.jsonl. After each case every prompt is trained once or dropped with a reason, metrics are continuous, no failure has a
reward, and of what the run has started nothing runs. Seconds count from the kill to the replacement at work: a worker that
serves, a reward actor or a learner that is ready; where the run itself was lost, to the first new step of the next.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from actors.deadlines import DeadlineExceeded
from benchmarks.chaos_cases import PROMPTS, RunEnded, Shown, actors
from benchmarks.chaos_jobs import job, node, trainer
from benchmarks.digit_run import make_model
from benchmarks.measure import report
from benchmarks.processes import Family
from benchmarks.victims import AIMS, fleet
from benchmarks.whole_runs import check

Case = Callable[[Path, Path, Family, int], Shown]
#: Steps of a run and, of these, those for each kill: a worker is replaced while the others go on.
SHORT, PER_KILL, PER_WORKER = 6, 4, 10

#: Several updates of every step, so that it can be seen that the learner works.
ONE_RANK: dict[str, dict[str, Any]] = {"grpo": {"inner_epochs": 6}, "rollout": {"workers": 1}}
#: Sequences of a prompt run one at a time, so that it can be seen that a worker generates: fleet.json is written five times
#: a second.
ONE_BY_ONE: dict[str, dict[str, Any]] = {"grpo": {"group_size": 8}, "rollout": {"max_num_seqs": 1}}
TWO_RANKS = ONE_RANK | {"learner": {"ranks": 2}}


def cases(repeat: int) -> Mapping[str, Case]:
    """By name. Runs are long enough for `repeat` kills."""
    many, few = SHORT + PER_WORKER * repeat, SHORT + PER_KILL * repeat
    return {
        **{name: partial(actors, aim=name, steps=many, **ONE_BY_ONE) for name in AIMS if name.startswith("worker_")},
        "reward_scoring": partial(actors, aim="reward_scoring", steps=few),
        "learner_learning": partial(actors, aim="learner_learning", steps=few, **ONE_RANK),
        "rank_1_of_2_learning": partial(actors, aim="learner_learning", steps=few, name="rank 1", **TWO_RANKS),
        "trainer_killed": partial(trainer, steps=few, interrupt=False, **ONE_RANK),
        "interrupted": partial(trainer, steps=few, interrupt=True, **ONE_RANK),
        "job_killed": partial(job, steps=few, stop=False, **ONE_RANK),
        "job_stopped": partial(job, steps=few, stop=True, **ONE_RANK),
        "node_killed": partial(node, steps=SHORT + PER_WORKER, **ONE_BY_ONE),
    }


def measured(name: str, case: Case, model: Path, place: Path, repeat: int) -> dict[str, Any]:
    """A case of the matrix, checked. AssertionError says what did not hold."""
    with Family() as family:
        try:
            shown = case(place, model, family, repeat)
        finally:
            family.kill()
    stages = sorted(path.parent for path in place.rglob("metrics.jsonl"))
    prompts = [check(stage, steps_of(stage), PROMPTS) for stage in stages]
    assert len(shown.seconds) == repeat, f"{name}: {len(shown.seconds)} of {repeat} kills hit in {shown.attempts} attempts"
    return {
        "attempts": shown.attempts,
        "kills": [
            {"name": own.name, "actor": own.actor, "step": own.step, "doing": own.doing, "was": dict(own.state)}
            for own in shown.kills
        ],
        "recovery_seconds": {
            "all": shown.seconds,
            "median": round(statistics.median(shown.seconds), 2),
            "worst": round(max(shown.seconds), 2),
        },
        "prompts": prompts[0] if len(prompts) == 1 else prompts,
        "gone_after_seconds": shown.gone_after_seconds,
    }


def steps_of(stage: Path) -> int:
    seen = fleet(stage)
    assert seen is not None and seen["doing"] == "finished", f"{stage} says of itself: {seen}"
    return seen["steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=tuple(cases(1)), help="repeatable; default: all")
    parser.add_argument("--repeat", type=int, default=3, help="kills of each")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the runs stay, with their logs; default: nowhere")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--add", action="store_true", help="to the cases that are in that file")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends what it has started
    results = json.loads(options.json.read_text())["results"] if options.add else {}
    failed = results.pop("failed", {})
    with tempfile.TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch)
        model = make_model(place / "policy")
        for name, case in cases(options.repeat).items():
            if options.case is not None and name not in options.case:
                continue
            results.pop(name, None)
            failed.pop(name, None)
            try:
                results[name] = measured(name, case, model, place / name, options.repeat)
                print(f"{name}: {results[name]['recovery_seconds']}", flush=True)
            except (AssertionError, RunEnded, DeadlineExceeded, subprocess.TimeoutExpired) as error:
                failed[name] = str(error)
                print(f"{name} FAILED: {error}", flush=True)
            report("chaos_matrix", options, results | ({"failed": failed} if failed else {}))  # after each: it takes long
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
