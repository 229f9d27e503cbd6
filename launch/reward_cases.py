"""Cases of one's own for a reward: rows and completions with what they are to be worth.

    {"text": "<answer>2.4</answer>", "example": {"question_type": "absolute distance", "answer": "2.4"}, "expected": 1.0}

One JSON object a line. `example`: fields of a `rewards.rows.RewardRow`, of which only `question_type` must be there;
`target_boxes` are [label, [x1, y1, x2, y2]], paths of `media` are relative to the file. `expected`: a number, or a dict as
the reward returns it ({}: it does not apply); without it the case only has to have a value.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.reward_findings import Finding, RewardRefused, same_values, why
from rewards.rows import RewardRow
from rewards.settings import RewardSpec
from rewards.worker import Components, Failure, RewardProcess

_FIELDS = tuple(field.name for field in dataclasses.fields(RewardRow))


@dataclass(frozen=True)
class Case:
    """A completion of a row. `expected` as the reward returns it; None: any value. `line`: of the file, from 1."""

    line: int
    row: RewardRow
    text: str
    expected: float | Mapping[str, float] | None


def read_cases(path: Path) -> list[Case]:
    """The cases of a file, in order. RewardRefused for a file without any, or a line that is no case."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardRefused(f"--cases {path}: cannot be read ({error}); give a file of JSON lines") from None
    cases = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                cases.append(_case(number, json.loads(line), path.absolute().parent))
            except (ValueError, TypeError, KeyError) as error:
                said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
                form = '{"text": …, "example": {"question_type": …, "answer": …}, "expected": …}'
                raise RewardRefused(f"--cases {path}:{number}: {said}; a line is {form}") from None
    if not cases:
        raise RewardRefused(f"--cases {path}: holds no cases; give a JSON object a line")
    return cases


def _case(number: int, line: Any, folder: Path) -> Case:
    if not isinstance(line, dict) or not isinstance(line["text"], str) or not isinstance(line["example"], dict):
        raise ValueError("`text` must be a text and `example` an object")
    if strange := [key for key in line if key not in ("text", "example", "expected")]:
        raise ValueError(f"unknown key {strange[0]!r}")
    return Case(number, _row(number, line["example"], folder), line["text"], _expected(line.get("expected")))


def _row(number: int, given: Mapping[str, Any], folder: Path) -> RewardRow:
    if strange := [key for key in given if key not in _FIELDS]:
        raise ValueError(f"example has no field {strange[0]!r}: it has {', '.join(_FIELDS)}")
    options, answer, size = given.get("options"), given.get("answer"), given.get("processed_size")
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"answer {answer!r} must be a text, numbers too, as in the data")
    boxes = tuple((str(label), tuple(map(float, corners))) for label, corners in given.get("target_boxes", ()))
    if any(len(corners) != 4 for _, corners in boxes):
        raise ValueError("a box of target_boxes is [label, [x1, y1, x2, y2]]")
    return RewardRow(
        id=str(given.get("id", f"case {number}")),
        question=str(given.get("question", "")),
        question_type=str(given["question_type"]),
        options=None if options is None else tuple(map(str, options)),
        answer=answer,
        target_boxes=boxes,
        processed_size=None if size is None else (int(size[0]), int(size[1])),
        media=tuple(str(folder / medium) for medium in given.get("media", ())),
        metadata=dict(given.get("metadata", {})),
    )


def _expected(value: Any) -> float | dict[str, float] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _number(part) for key, part in value.items()}
    return _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected {value!r}: a finite number, or an object of them")
    return float(value)


def judged_cases(process: RewardProcess, spec: RewardSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A finding per case, each asked alone, in order."""
    for case in cases:
        (result,) = process.custom(0, case.row, [case.text])
        yield judged(case, result, spec)


def judged(case: Case, result: Components | Failure, spec: RewardSpec) -> Finding:
    """PASS when the case has the value it is expected to have; a case that expects nothing, when it has one."""
    name = f"case line {case.line}"
    if isinstance(result, Failure):
        return Finding("FAIL", name, f"no value: {why(result, spec)}", "give this text a value")
    got = _written(result, spec)
    if case.expected is None or same_values(_as_components(case.expected, spec), result):
        return Finding("PASS", name, got)
    wanted = _written(_as_components(case.expected, spec), spec)
    return Finding("FAIL", name, f"expected {wanted}, got {got}", "correct the reward, or what the case expects")


def _as_components(expected: float | Mapping[str, float], spec: RewardSpec) -> Components:
    if isinstance(expected, Mapping):
        return {f"{spec.component}/{key}": value for key, value in expected.items()}
    return {spec.component: expected}


def _written(components: Components, spec: RewardSpec) -> str:
    """A number as it is; several with their keys."""
    if set(components) == {spec.component}:
        return f"{components[spec.component]:z.9g}"
    if not components:
        return "nothing (does not apply)"
    return ", ".join(f"{name.removeprefix(spec.component + '/')} {value:z.9g}" for name, value in sorted(components.items()))
