"""What counts as a whole run: nothing lost, nothing twice, no failure with a reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.whole_runs import check, largest_difference

STEPS, PROMPTS = 3, 2
TIMEOUT = {"outcome": "timeout"}


def write(stage: Path, name: str, records: list[dict]) -> None:
    (stage / name).parent.mkdir(parents=True, exist_ok=True)
    (stage / name).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Three steps; the last prompt was dropped, one was sent again."""
    (tmp_path / "hf").mkdir()
    write(tmp_path, "trained.json", [{}])
    write(tmp_path, "metrics.jsonl", [{"step": step} for step in range(STEPS)])
    ledger = [{"step": step, "positions": [[step * PROMPTS, PROMPTS]], "trained": PROMPTS, "dropped": {}, "sent_again": {}}
              for step in range(STEPS)]
    ledger[1]["sent_again"] = {"s1-p0": 2}
    ledger[2] |= {"trained": 1, "dropped": {"s2-p1": "its workers died"}}
    write(tmp_path, "ledger.jsonl", ledger)
    traces = [{"step": step, "completions": [{"outcome": "ok"}, {"outcome": "truncated"}]} for step in (0, 0, 1, 1, 2)]
    write(tmp_path, "traces/groups.jsonl", traces)
    return tmp_path


def test_a_whole_run_is_counted(stage: Path) -> None:
    outcomes = {"ok": 5, "truncated": 5}
    assert check(stage, STEPS, PROMPTS) == {"trained": 5, "dropped": 1, "sent_again": 1, "outcomes": outcomes}


def change(name: str, own: Callable[[list[dict]], list[dict]]) -> Callable[[Path], None]:
    def go(stage: Path) -> None:
        write(stage, name, own([json.loads(line) for line in (stage / name).read_text().splitlines()]))

    return go


@pytest.mark.parametrize(
    "broken, told",
    [
        (change("metrics.jsonl", lambda own: own[:1] + own[2:]), "metrics.jsonl"),
        (change("metrics.jsonl", lambda own: [*own, own[-1]]), "metrics.jsonl"),
        (change("ledger.jsonl", lambda own: own[:2]), "ledger.jsonl"),
        (change("ledger.jsonl", lambda own: [*own[:2], own[2] | {"positions": [[3, 2]]}]), "skipped or repeated"),
        (change("ledger.jsonl", lambda own: [*own[:2], own[2] | {"dropped": {}}]), "accounts for"),
        (change("ledger.jsonl", lambda own: [*own[:2], own[2] | {"dropped": {"s2-p1": ""}}]), "without a reason"),
        (change("traces/groups.jsonl", lambda own: [*own, own[-1]]), "traces"),
        (change("traces/groups.jsonl", lambda own: [own[0] | {"completions": [TIMEOUT]}, *own[1:]]), "failures"),
        (lambda stage: (stage / "trained.json").unlink(), "no model"),
    ],
)
def test_what_is_lost_or_twice_is_found(stage: Path, broken: Callable[[Path], None], told: str) -> None:
    broken(stage)
    with pytest.raises(AssertionError, match=told):
        check(stage, STEPS, PROMPTS)


def test_the_largest_difference_of_all_parameters(tmp_path: Path) -> None:
    for name, values in {"one": (1.0, 2.0), "other": (1.0, 2.25)}.items():
        (tmp_path / name).mkdir()
        tensors = {f"p{index}": torch.full((2,), value) for index, value in enumerate(values)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert largest_difference(tmp_path / "one", tmp_path / "one") == 0.0
    assert largest_difference(tmp_path / "one", tmp_path / "other") == 0.25
