"""From drafts to traces: at most N of a row, none twice, counted. Pure, and a function of the drafts alone.

What holds: rows are visited in their order and drafts in theirs, so neither the order in which answers arrived nor the
number of requests at a time changes anything. The counts add up: every draft is kept or has one reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from configs.schema import TracesConfig
from data.trace_drafts import Draft
from data.trace_filters import DUPLICATE, REASONS, SURPLUS, Scored, rejection, sameness, solution
from data.types import Example

#: What the rewards say of a draft of a row.
Score = Callable[[Example, Draft], Scored]


@dataclass(frozen=True)
class Trace:
    """A kept draft: its row, and the assistant's text."""

    example: Example
    solution: str


@dataclass
class TypeCount:
    """Of one question type: rows, rows with a trace, drafts, and drafts by reason for which they were not kept."""

    rows: int = 0
    solved: int = 0
    drafts: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Selection:
    """The traces in row order, and what became of all drafts, by question type."""

    traces: tuple[Trace, ...]
    counts: Mapping[str, TypeCount]

    def table(self) -> str:
        """What was kept of what, and why the rest was not: plain text."""
        lines = [f"{'question type':22}{'rows':>8}{'with trace':>12}{'drafts':>8}{'kept':>8}"]
        total = TypeCount()
        for kind, own in sorted(self.counts.items()):
            lines.append(_line(kind, own))
            total.rows, total.solved = total.rows + own.rows, total.solved + own.solved
            total.drafts, total.kept = total.drafts + own.drafts, total.kept + own.kept
            total.reasons += own.reasons
        lines += [_line("all", total), "", f"{'why drafts were not kept':42}{'drafts':>8}"]
        lines += [f"{reason:42}{total.reasons[reason]:>8}" for reason in REASONS if total.reasons[reason]]
        return "\n".join(lines)


def _line(kind: str, count: TypeCount) -> str:
    return f"{kind:22}{count.rows:>8}{count.solved:>12}{count.drafts:>8}{count.kept:>8}"


def row_traces(example: Example, drafts: Sequence[Draft], score: Score, config: TracesConfig) -> list[str | Trace]:
    """Of each draft the trace, or the reason for which it is none, within its row."""
    results: list[str | Trace] = []
    said: set[str] = set()
    for draft in drafts:
        scored = score(example, draft)
        result: str | Trace | None = rejection(draft, scored, example, config)
        if result is None:
            text = solution(draft, scored)
            result = DUPLICATE if sameness(text) in said else SURPLUS if len(said) >= config.keep else Trace(example, text)
            said.add(sameness(text)) if isinstance(result, Trace) else None
        results.append(result)
    return results


def selected(
    rows: Sequence[Example], drafts_of: Callable[[str], Sequence[Draft]], score: Score, config: TracesConfig
) -> Selection:
    """The traces of all rows; one that another row has in the same words is `said before`."""
    traces: list[Trace] = []
    counts: dict[str, TypeCount] = {}
    said: set[str] = set()
    for example in rows:
        count = counts.setdefault(example.question_type, TypeCount())
        results = row_traces(example, drafts_of(example.id), score, config)
        fresh = [result for result in results if isinstance(result, Trace) and sameness(result.solution) not in said]
        said |= {sameness(trace.solution) for trace in fresh}
        traces += fresh
        count.reasons.update(result for result in results if isinstance(result, str))
        count.reasons[DUPLICATE] += sum(isinstance(result, Trace) for result in results) - len(fresh)
        count.rows += 1
        count.solved += bool(fresh)
        count.drafts += len(results)
        count.kept += len(fresh)
    return Selection(tuple(traces), counts)
