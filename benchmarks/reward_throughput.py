"""How many completions a RewardActor scores per second, isolation included, and what a reward of one's own adds.

    python -m benchmarks.reward_throughput [--json FILE]

One RewardActor with two scorer processes, fed by four callers with groups of 8 and of 64 completions: choices, numbers and
lists of four boxes in turn, 60 words of thought each. `built_in` is completions per second; `plug_in_us` what a reward
that does nothing adds to one completion, microseconds: called one by one, async, or with a group at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors.reward import RewardActor
from actors.types import Completion, Generation
from benchmarks.measure import report
from configs.schema import RewardConfig
from rewards.rows import RewardRow

CALLERS = 4
SECONDS = 5.0
THOUGHT = " ".join(["the chair stands left of the table and"] * 8)
PLUG_INS = """
def one(text, example):
    return 0.0

async def concurrent(text, example):
    return 0.0

def group(texts, example):
    return [0.0] * len(texts)
"""


def groups(size: int) -> list[tuple[RewardRow, Generation]]:
    """A group of each kind of row; half of the answers are right."""
    boxes = [("chair", (10.0 * n, 10.0, 10.0 * n + 30, 60.0)) for n in range(4)]
    written = [
        json.dumps([{"bbox_2d": [10 * n + shift, 10, 10 * n + 30, 60], "label": "chair"} for n in range(4)]) for shift in (0, 3)
    ]
    options = ("A. chair", "B. table", "C. lamp", "D. bed")
    rows = [
        (RewardRow("c", "Which?", "relative distance", options, "B"), ("B", "A. chair")),
        (RewardRow("n", "How far?", "absolute distance", None, "1.4"), ("1.4", "about 2.5 m")),
        (RewardRow("b", "Where?", "object localization", None, None, tuple(boxes), (168, 168)), tuple(written)),
    ]
    return [
        (row, Generation(row.id, (1,), tuple(_completion(answers[n % 2]) for n in range(size)), 0, "w0", 0.1))
        for row, answers in rows
    ]


def _completion(answer: str) -> Completion:
    return Completion((1,), (-0.1,), f"<think>{THOUGHT}</think>\n<answer>{answer}</answer>", "stop")


def rate(config: RewardConfig, size: int) -> float:
    """Completions per second."""
    actor, work = RewardActor(config), groups(size)
    actor.start()
    end = time.perf_counter() + SECONDS

    def call(first: int) -> int:
        for done in itertools.count():
            if time.perf_counter() > end:
                return done
            scores = actor.score(*work[(first + done) % len(work)])
            assert all(score.outcome == "ok" for score in scores), scores
        raise AssertionError

    with ThreadPoolExecutor(CALLERS) as callers:
        begun = time.perf_counter()
        done = sum(callers.map(call, range(CALLERS)))
        seconds = time.perf_counter() - begun
    actor.close()
    return done * size / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    results: dict[str, Any] = {"built_in": {}, "plug_in_us": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plug_ins.py"
        path.write_text(PLUG_INS)
        for size in (8, 64):
            alone = rate(RewardConfig(processes=2), size)
            results["built_in"][f"groups of {size}"] = round(alone)
            own = results["plug_in_us"][f"groups of {size}"] = {}
            for name in ("one", "concurrent", "group"):
                custom = ({"source": f"{path}:{name}", "batched": name == "group"},)
                with_it = rate(RewardConfig(processes=2, custom=custom), size)
                own[name] = round(2e6 / with_it - 2e6 / alone, 1)  # of one process: two work side by side
    report("reward_throughput", options, results)


if __name__ == "__main__":
    main()
