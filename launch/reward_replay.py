"""What a reward would have given the completions of an earlier run: its recorded groups, scored again.

What holds
    * As in a run, completions that were cut off or aborted are not scored, and a group is asked together.
    * What a trace does not hold of a row is empty there (`question`: the whole prompt), and the report names it: a reward
      that reads it may score otherwise in a run.
    * Files are read group by group; of a completion only its numbers and the beginning of its text are kept.
"""

from __future__ import annotations

import heapq
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.record import TRACES
from configs.schema import GRPOConfig
from launch.places import home
from launch.progress import Say
from launch.reward_exam import QUIET_SECONDS
from launch.reward_findings import Finding, RewardRefused, one_line, why, worth
from rewards.compose import LOCALIZATION
from rewards.rows import RewardRow
from rewards.scoring import alike
from rewards.settings import RewardSpec
from rewards.worker import Failure, RewardProcess

#: After so many calls without an answer within the deadline no more groups are asked.
MOST_TIMEOUTS = 5
EXTREMES = 3
TEXT_SHOWN = 80
#: Groups whose rewards spread by no more carry no gradient.
NO_SPREAD = GRPOConfig().zero_variance_tolerance


@dataclass(frozen=True)
class Recorded:
    """A group of a trace. `lacking`: fields of the row that it does not hold. `completions`: text and recorded total."""

    row: RewardRow
    lacking: frozenset[str]
    completions: tuple[tuple[str, float | None], ...]
    unscored: int


@dataclass
class Replay:
    """`scores`: (weighted score, recorded total, beginning of the text) per completion to which the reward applies.

    `spreads`: largest less smallest score of each group with two scores or more. `unscored`: completions that a run does
    not score. `outside`: groups to which the reward does not apply. `empty`: groups with no completion to score.
    """

    groups: int = 0
    asked: int = 0
    unscored: int = 0
    outside: int = 0
    empty: int = 0
    failed: int = 0
    first_failure: str = ""
    stopped: bool = False
    lacking: set[str] = field(default_factory=set)
    scores: list[tuple[float, float | None, str]] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)

    @property
    def without_spread(self) -> int:
        return sum(spread <= NO_SPREAD for spread in self.spreads)

    def correlation(self) -> float | None:
        """Of the scores with the recorded totals (Pearson); None where fewer than two have both, or one does not vary."""
        pairs = [(score, total) for score, total, _ in self.scores if total is not None]
        try:
            return statistics.correlation([score for score, _ in pairs], [total for _, total in pairs])
        except statistics.StatisticsError:
            return None


def trace_file(given: str) -> Path:
    """The traces of a run folder, of its name below runs/, of a stage folder, or the file itself; RewardRefused for none."""
    for path in (Path(given), home() / "runs" / given):
        for candidate in (path / "grpo" / TRACES, path / TRACES, path):
            if candidate.is_file():
                return candidate
    raise RewardRefused(f"--traces {given}: no traces there; name a run folder that has grpo/{TRACES}, or such a file")


def read_traces(path: Path) -> Iterator[Recorded]:
    """The groups of a file, in order. RewardRefused for a line that is no group."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield recorded(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise RewardRefused(
                    f"{path}:{number}: not a group as actors/record.py writes it ({type(error).__name__}: {error}); "
                    "the last line of a run that goes on may be incomplete: try again"
                ) from None


def recorded(trace: Mapping[str, Any]) -> Recorded:
    """A line of groups.jsonl. ValueError, TypeError, KeyError or AttributeError for what is none."""
    boxes, size, located = trace.get("target_boxes"), trace.get("processed_size"), trace["question_type"] == LOCALIZATION
    lacking = {name for name in ("question", "options", "metadata") if name not in trace}
    lacking |= {"processed_size"} if size is None else set()
    lacking |= {"target_boxes"} if located and boxes is None else set()
    options, truth = trace.get("options"), trace.get("truth")
    row = RewardRow(
        id=str(trace["row"]),
        question=str(trace.get("question", trace.get("prompt", ""))),
        question_type=str(trace["question_type"]),
        options=None if options is None else tuple(options),
        answer=truth if isinstance(truth, str) else None,
        target_boxes=tuple((label, tuple(corners)) for label, corners in boxes or ()),
        processed_size=None if size is None else tuple(size),
        media=tuple(trace.get("media") or ()),
        metadata=dict(trace.get("metadata") or {}),
    )
    own = [completion for completion in trace["completions"] if _is_scored(completion)]
    completions = tuple((str(completion["text"]), completion.get("total")) for completion in own)
    return Recorded(row, frozenset(lacking), completions, len(trace["completions"]) - len(own))


def _is_scored(completion: Mapping[str, Any]) -> bool:
    """Whether a run asks rewards for it; one that was cut off only where the preset scored those."""
    return completion["finish_reason"] != "abort" and completion["outcome"] != "truncated"


def replay(process: RewardProcess, spec: RewardSpec, groups: Iterator[Recorded], say: Say) -> Replay:
    """Scores of the groups. RewardContractError when the reward's file changes meanwhile."""
    seen, late, told = Replay(), 0, time.monotonic()
    for group in groups:
        if time.monotonic() - told > QUIET_SECONDS:
            say(f"{seen.groups} groups are scored again")
            told = time.monotonic()
        if late >= MOST_TIMEOUTS:
            seen.stopped = True
            break
        seen.groups += 1
        seen.asked += len(group.completions)
        seen.unscored += group.unscored
        if not group.completions:
            seen.empty += 1
            continue
        seen.lacking |= group.lacking
        results = alike(process.custom(0, group.row, [text for text, _ in group.completions]), group.row, spec)
        late += sum(isinstance(result, Failure) and result.outcome == "timeout" for result in results)
        failures = [result for result in results if isinstance(result, Failure)]
        seen.failed += len(failures)
        if failures and not seen.first_failure:
            seen.first_failure = f"row {group.row.id}: {why(failures[0], spec)}"
        if all(result == {} for result in results):
            seen.outside += 1
            continue
        scores = []
        for (text, total), result in zip(group.completions, results, strict=True):
            if not isinstance(result, Failure):
                scores.append(worth(result, spec))
                seen.scores.append((scores[-1], total, one_line(text, TEXT_SHOWN)))
        seen.spreads += [max(scores) - min(scores)] if len(scores) > 1 else []
    return seen


def replay_report(seen: Replay, path: Path) -> str:
    """The numbers of a replay, for a reader."""
    lines = [f"replay of {path}: {_groups(seen.groups)}, {seen.asked} completions asked"]
    lines[0] += f", {seen.unscored} cut off or aborted and not scored" if seen.unscored else ""
    lines[0] += f", {_groups(seen.outside)} to which it does not apply" if seen.outside else ""
    lines[0] += f", {_groups(seen.empty)} with no completion to score" if seen.empty else ""
    lines.append(f"      failed   {_share(seen.failed, seen.asked)}")
    values = [score for score, _, _ in seen.scores]
    if values:
        correlation = seen.correlation()
        shown = "none: one of them does not vary" if correlation is None else f"{correlation:+.3f}"
        mean, least, most = statistics.fmean(values), min(values), max(values)
        lines.append(f"      score    mean {mean:z.4f}  min {least:z.4f}  max {most:z.4f}")
        lines.append(f"      correlation with the recorded total: {shown}")
        if seen.spreads:
            meaning = "; by this reward alone they teach nothing" if seen.without_spread else ""
            lines.append(f"      groups without spread: {_share(seen.without_spread, len(seen.spreads))}{meaning}")
        for name, pick in (("highest", heapq.nlargest), ("lowest", heapq.nsmallest)):
            for score, _, text in pick(EXTREMES, seen.scores, key=lambda item: item[0]):
                lines.append(f"      {name:8} {score:z10.4f}  {text}")
    return "\n".join(lines)


def replay_findings(seen: Replay) -> Iterator[Finding]:
    """What the replay says about the contract, and what it could not know."""
    if seen.failed:
        what = f"{seen.failed} completions of the run have no score; the first: {seen.first_failure}"
        yield Finding("FAIL", "traces", what, "a policy has written them: give them a score")
    elif seen.asked:
        judged = _groups(seen.groups - seen.outside - seen.empty)
        yield Finding("PASS", "traces", f"a score for every completion of {judged}")
    if seen.stopped:
        what = f"stopped after {MOST_TIMEOUTS} timeouts: {_groups(seen.groups - seen.empty)} asked"
        yield Finding("NOTE", "traces", what, "mend those first")
    if seen.lacking:
        what = f"they do not hold {', '.join(sorted(seen.lacking))} of every row"
        remedy = "empty here (question: the prompt); a reward that reads them may score otherwise in a run"
        yield Finding("NOTE", "traces", what, remedy)
    if not seen.asked:
        yield Finding("NOTE", "traces", "no completion was scored in this run", "give the traces of another run")


def _groups(count: int) -> str:
    return f"{count} group" if count == 1 else f"{count} groups"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "none"
