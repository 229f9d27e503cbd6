"""What an examination of a reward means: one finding per clause of the contract. Pure: nothing is called or printed.

What holds: PASS only for what was asked and held; FAIL for a breach of the contract; NOTE for what works, but hardly as
meant, and for what could not be judged. Every FAIL and NOTE says what to do.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.reward_exam import Examination, Results, kind, reason
from launch.reward_texts import RIGHT, WRONG
from rewards.loading import SERVED
from rewards.settings import RewardSpec
from rewards.worker import Components, Failure

#: Largest difference between two values that are the same.
TOLERANCE = 1e-6
#: Median seconds of a call above which scoring may hold up a run.
SLOW_CALL = 0.1
#: Characters a reward may print per call before it is a note: the log of a run has room for little.
PRINTED_PER_CALL = 2
#: The rewards of the house are within it; a component that is far larger drowns them.
USUAL_RANGE = (-1.0, 1.0)
#: Characters of a reason, and those at its end: what is said there is the place, or what to do.
_SHOWN, _SHOWN_END = 300, 140
#: What `rewards.contract` says of a list where one number is due, and of a group with a value too few or too many.
_LIST = re.compile(r"reward \S+ returned a (list|tuple),")
_OTHER_COUNT = re.compile(r"reward \S+ returned \d+ values for \d+ completions")
Status = Literal["PASS", "NOTE", "FAIL"]


class RewardRefused(ValueError):
    """`ladder reward` cannot begin: the message says why and what to do."""


@dataclass(frozen=True)
class Finding:
    """`name`: the clause; `what` was found; `remedy`: what to do, "" for a PASS."""

    status: Status
    name: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.status}  {self.name:14} {self.what}"
        return f"{line}\n      -> {self.remedy}" if self.remedy else line


def findings_of(exam: Examination) -> list[Finding]:
    """All findings, in the order of a report."""
    contract = (_values, _exceptions, _process, _deadline, _components, _repeats)
    use = (_range, _order_of_answers, _applies, _time, _children, _printing)
    return [_loads(exam), *(finding for judge in (*contract, *use) for finding in judge(exam))]


def one_line(text: str, limit: int, ending: int = 0) -> str:
    """The text on one line, without control characters, cut to `limit` characters, of which the last are its `ending`."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= limit else f"{plain[: limit - ending - 1]}…{plain[len(plain) - ending :]}"


def why(failure: Failure, spec: RewardSpec) -> str:
    """The reason of a failure on one line."""
    return one_line(reason(failure, spec), _SHOWN, _SHOWN_END)


def worth(components: Components, spec: RewardSpec) -> float:
    """What the components add to the total."""
    return spec.weight * sum(components.values())


def named_components(components: Iterable[str]) -> str:
    return ", ".join(sorted(components)) or "nothing"


def _loads(exam: Examination) -> Finding:
    form = "the texts of a group at once" if exam.batched else "a text at a time"
    return Finding("PASS", "loads", f"in {exam.loaded:.1f} s, called with {form}")


def _failures(exam: Examination) -> dict[tuple[int, str], Failure]:
    return {key: result for key, result in exam.first.items() if isinstance(result, Failure)}


def _of_kind(exam: Examination, name: str) -> dict[tuple[int, str], str]:
    """Reasons of the failures of one kind in the first round."""
    return {key: why(failure, exam.spec) for key, failure in _failures(exam).items() if kind(failure, exam.spec) == name}


def _where(exam: Examination, keys: Iterable[tuple[int, str]]) -> str:
    """Which texts, on how many rows."""
    keys = list(keys)
    names = list(dict.fromkeys(name for _, name in keys))
    rows = list(dict.fromkeys(place for place, _ in keys))
    shown = ", ".join(repr(name) for name in names[:4]) + (f" and {len(names) - 4} other texts" if len(names) > 4 else "")
    on = f"row {exam.rows[rows[0]].id}" if len(rows) == 1 else f"{len(rows)} of {len(exam.rows)} rows"
    return f"{shown} on {on}"


def _values(exam: Examination) -> Iterator[Finding]:
    faults = _of_kind(exam, "contract")
    if faults:
        said = next(iter(faults.values())).removeprefix("RewardContractError: ")
        remedy = "return a finite float or a dict of them, whatever the text; 0.0 is usual for one without an answer"
        if several := _LIST.match(said):
            remedy = f"it returned a {several[1]}: if it takes a list of texts, use --batched (in a run: `batched: true`)"
        elif _OTHER_COUNT.match(said):
            remedy = "leave no text out: an exception object in the list stands in for a text without a score"
        elif len(faults) == len(exam.first) and exam.batched:
            remedy += "; does it take one text, not a list (no --batched)?"
        what = f"{len(faults)} of {len(exam.first)} completions have no finite number ({_where(exam, faults)}): {said}"
        yield Finding("FAIL", "values", what, remedy)
    elif len(_failures(exam)) < len(exam.first):
        yield Finding("PASS", "values", f"finite numbers for {len(exam.first) - len(_failures(exam))} completions")
    else:
        yield Finding("NOTE", "values", "not judged: no completion has a value", "mend what fails below first")


def _exceptions(exam: Examination) -> Iterator[Finding]:
    faults = _of_kind(exam, "exception")
    by_type: dict[str, dict[tuple[int, str], str]] = {}
    for key, said in faults.items():
        by_type.setdefault(said.partition(":")[0], {})[key] = said
    remedy = "a policy writes such texts: give them a score; where the reward raises there is none, and too many stop a run"
    if len(faults) == len(exam.first) and exam.spec.source in SERVED:
        remedy = "no call has an answer of use: start the server (or correct its address) and ask again"
    elif len(faults) == len(exam.first) and not exam.batched:
        remedy = "every call raises: does it take a list of texts (--batched), or rows like yours (--cases)?"
    elif len(faults) == len(exam.first):
        remedy = "every call raises: it is given a list of texts and the row; does it need rows like yours (--cases)?"
    for some in by_type.values():
        what = f"{len(some)} of {len(exam.first)} calls raise, {_where(exam, some)}: {next(iter(some.values()))}"
        yield Finding("FAIL", "exceptions", what, remedy)
    if not faults:
        yield Finding("PASS", "exceptions", f"none, on {len({name for _, name in exam.first})} kinds of text")


def _process(exam: Examination) -> Iterator[Finding]:
    if faults := _of_kind(exam, "process"):
        said = next(iter(faults.values()))
        what = f"{len(faults)} calls end the process, {_where(exam, faults)}: {said}{_stopped(exam)}"
        limit = f"{exam.limits.memory_mib} MiB, reward.memory_mib" if exam.limits.memory_mib else "none"
        yield Finding("FAIL", "process", what, f"no exit, no crash in C code, and memory within the limit ({limit})")


def _deadline(exam: Examination) -> Iterator[Finding]:
    limit = exam.limits.timeout_seconds
    if faults := _of_kind(exam, "timeout"):
        yield Finding(
            "FAIL",
            "deadline",
            f"no value within {limit:g} s, {_where(exam, faults)}{_stopped(exam)}",
            "bound its loops, regular expressions and waits; or raise reward.timeout_seconds (here --timeout)",
        )
    elif exam.timeouts:
        yield Finding(
            "FAIL",
            "deadline",
            f"no value within {limit:g} s for texts that had one before{_stopped(exam)}",
            "make its time depend on the text alone; or raise reward.timeout_seconds (here --timeout)",
        )
    elif exam.first and not exam.endings:
        yield Finding("PASS", "deadline", f"every call is answered within {limit:g} s")


def _stopped(exam: Examination) -> str:
    return "; then the rest was not asked" if exam.stopped else ""


def _components(exam: Examination) -> Iterator[Finding]:
    for place, row in enumerate(exam.rows):
        kinds: dict[frozenset[str], str] = {}
        for name in exam.answered(place):
            kinds.setdefault(frozenset(exam.first[place, name]), name)
        if len(kinds) > 1:
            (one, first), (other, second), *_ = kinds.items()
            yield Finding(
                "FAIL",
                "components",
                f"row {row.id}: {named_components(one)} for {first!r}, {named_components(other)} for {second!r}",
                "report the same components for every completion of a row, by the row alone; an empty dict for all or none",
            )
            return
    names = {frozenset(result) for result in exam.first.values() if not isinstance(result, Failure)} - {frozenset()}
    if names:
        reported = named_components(set().union(*names))
        yield Finding("PASS", "components", f"the same for every completion of a row: {reported}")


def _repeats(exam: Examination) -> Iterator[Finding]:
    if not (exam.again and exam.fresh and exam.backwards):
        because = "the rest was not asked" if exam.stopped else "no completion has a value"
        what = f"not judged, neither in a fresh process nor in another order: {because}"
        yield Finding("NOTE", "repeatable", what, "mend what fails above first")
        return
    remedy = "no random numbers, no clock, and nothing that is kept from call to call"
    repeatable = _same(exam, exam.again, "repeatable", "asked twice in one process", remedy)
    yield repeatable
    if repeatable.status == "FAIL":  # the same cause would show in both
        yield Finding("NOTE", "fresh process", "not judged: values differ in one process already", "mend that first")
        yield Finding("NOTE", "order", "not judged: values differ in one order already", "mend that first")
        return
    remedy = (
        "nothing of the process may count: hash() of a text and the order of a set change with it (sort, use hashlib), "
        "as may seeds and files of its own"
    )
    yield _same(exam, exam.fresh, "fresh process", "asked in another process", remedy)
    remedy = "a completion's score may depend on its group, but not on its place in it, nor on what was scored before"
    yield _same(exam, exam.backwards, "order", "asked in the reverse order", remedy)


def _same(exam: Examination, later: Results, name: str, how: str, remedy: str) -> Finding:
    judged = {key: result for key, result in later.items() if getattr(result, "outcome", "ok") != "timeout"}
    differing = {key: result for key, result in judged.items() if not same_values(exam.first[key], result)}
    if differing:
        key, result = next(iter(differing.items()))
        shown = why(result, exam.spec) if isinstance(result, Failure) else _shown(result)
        return Finding(
            "FAIL",
            name,
            f"{how}, {len(differing)} of {len(judged)} values differ: {key[1]!r} on row {exam.rows[key[0]].id} has "
            f"{_shown(exam.first[key])}, then {shown}",
            remedy,
        )
    if not judged:
        return Finding("NOTE", name, "not judged: every call timed out", "mend what fails above first")
    rows = f" on {len(exam.asked_again())} of {len(exam.rows)} rows" if len(exam.asked_again()) < len(exam.rows) else ""
    return Finding("PASS", name, f"{how}, {len(judged)} values are the same{rows}")


def same_values(one: Components | Failure, other: Components | Failure) -> bool:
    """Whether both are values, of the same components, that differ by no more than `TOLERANCE`."""
    if isinstance(one, Failure) or isinstance(other, Failure) or one.keys() != other.keys():
        return False
    return all(abs(one[name] - other[name]) <= TOLERANCE for name in one)


def _shown(components: Components | Failure) -> str:
    if isinstance(components, Failure):
        return "no value"
    return one_line(", ".join(f"{name} {value:zg}" for name, value in sorted(components.items())) or "nothing", 80)


def _numbers(exam: Examination) -> Mapping[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    for result in exam.first.values():
        for name, value in result.items() if not isinstance(result, Failure) else ():
            numbers.setdefault(name, []).append(value)
    return numbers


def _range(exam: Examination) -> Iterator[Finding]:
    for name, values in sorted(_numbers(exam).items()):
        least, most = min(values), max(values)
        seen = f"{name} is in [{least:zg}, {most:zg}]"
        if least == most:
            remedy = "a group whose rewards are equal teaches nothing"
            yield Finding("NOTE", "range", f"{name} is {least:zg} for everything", remedy)
        elif least < USUAL_RANGE[0] or most > USUAL_RANGE[1]:
            remedy = "the built-in rewards are in [-1, 1]: scale it, or lower its weight, unless it is to outweigh them"
            yield Finding("NOTE", "range", seen, remedy)
        else:
            yield Finding("PASS", "range", seen)


def _order_of_answers(exam: Examination) -> Iterator[Finding]:
    """Whether right answers are worth more than wrong ones, by the rows to which the reward applies."""
    higher, equal, lower = [], [], []
    for place, row in enumerate(exam.rows):
        right, wrong = exam.first.get((place, RIGHT)), exam.first.get((place, WRONG))
        if right and wrong and not isinstance(right, Failure) and not isinstance(wrong, Failure):
            more = worth(right, exam.spec) - worth(wrong, exam.spec)
            (higher if more > 0 else lower if more < 0 else equal).append(row.id)
    compared = len(higher) + len(equal) + len(lower)
    if higher and len(higher) == compared:
        what = f"the right completion is worth more than the wrong one on all {compared} rows"
        yield Finding("PASS", "right or wrong", what)
    elif compared:
        found = [f"worth less on {len(lower)} of {compared} rows (is its sign turned?): {_some(lower)}"] if lower else []
        found += [f"equal on {len(equal)} of {compared} rows: {_some(equal)}"] if equal else []
        remedy = "fine for a reward that does not judge the answer (length, style); otherwise see how it reads it"
        remedy += ", and at the signs of its values and its weight" if lower else ""
        yield Finding("NOTE", "right or wrong", f"the right completion against the wrong one: {'; '.join(found)}", remedy)


def _applies(exam: Examination) -> Iterator[Finding]:
    judged = [place for place in range(len(exam.rows)) if exam.answered(place)]
    silent = [
        exam.rows[place].id for place in judged if not any(exam.first[place, name] for name in exam.answered(place))
    ]
    if silent and len(silent) == len(judged):
        remedy = "try rows like yours with --cases; where it applies to none it only costs time"
        yield Finding("NOTE", "applies", "to none of the rows: it returns an empty dict for all", remedy)
    elif judged:
        without = f"; not to {_some(silent)}" if silent else ""
        yield Finding("PASS", "applies", f"to {len(judged) - len(silent)} of {len(judged)} rows{without}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _time(exam: Examination) -> Iterator[Finding]:
    if not exam.seconds:
        return
    median, slowest = statistics.median(exam.seconds), max(exam.seconds)
    what = f"a call takes {_duration(median)} (median), {_duration(slowest)} (slowest)"
    if median > SLOW_CALL:
        remedy = "score a group at once (batched), make it async, or raise reward.processes and reward.actors"
        yield Finding("NOTE", "time", what, remedy)
    else:
        yield Finding("PASS", "time", what)


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _children(exam: Examination) -> Iterator[Finding]:
    remedy = "wait for what it starts and close it: such processes gather until the run has none left"
    growing = [counts for counts in exam.children.values() if counts[-1] > counts[0]]
    most = max((max(counts) for counts in exam.children.values()), default=0)
    if growing:
        counts = max(growing, key=lambda some: some[-1])
        what = f"after the calls of one row {counts[0]} processes are left, after those of {len(counts)} rows {counts[-1]}"
        yield Finding("FAIL", "processes", what, remedy)
    elif most:
        remedy = "fine for helpers that it starts once; they end with the reward's process"
        yield Finding("NOTE", "processes", f"{most} are left after its calls, no more after many", remedy)
    elif exam.children:
        yield Finding("PASS", "processes", "none is left after its calls")


def _printing(exam: Examination) -> Iterator[Finding]:
    if len(exam.said) > PRINTED_PER_CALL * max(1, exam.calls):
        first = next((one_line(line, 80) for line in exam.said.splitlines() if line.strip()), "")
        what = f"{len(exam.said)} characters or more in {exam.calls} calls, beginning: {first}"
        yield Finding("NOTE", "printing", what, "print less: a run keeps no more than 64 KiB of it per process")


def report(findings: Sequence[Finding]) -> str:
    """The findings, a line each and one more where there is something to do."""
    return "\n".join(map(str, findings))
