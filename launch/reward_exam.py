"""Asking a reward all that `ladder reward check` wants to know; what it means is judged in `launch.reward_findings`.

What holds
    * The reward runs in killable processes as in a run (`rewards.worker`), never in this one; no call is tried again.
    * Rounds: every row with every text, one at a time (a batched reward: the row's texts together); then those texts that
      had a value in the same process again, in reverse, and in a fresh process.
    * A batched reward may compare the texts of a call. Those that fail are therefore found one by one, and left out of
      the calls that are compared; what counts of one that returned no score either time is what it returned for all.
    * What it prints is kept from the terminal.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Literal

from launch.progress import Say
from launch.reward_texts import LONG, texts_of
from rewards.errors import RewardContractError
from rewards.loading import SERVED
from rewards.rows import RewardRow
from rewards.settings import RewardSettings, RewardSpec
from rewards.worker import Components, Failure, Limits, RewardProcess

#: After so many calls without an answer within the deadline, or that ended the process, nothing more is asked.
MOST_TIMEOUTS, MOST_ENDINGS = 2, 3
#: A reward whose first round took longer is asked again on fewer rows; a server, where a call may cost money, on one.
SLOW_SECONDS, SLOW_ROWS, SERVED_ROWS = 20.0, 2, 1
#: Characters of the longest text for a server, whose model has a context; completions of a run are seldom longer.
LONG_SERVED = 8_000
#: A check that takes longer says how far it is.
QUIET_SECONDS = 5.0
#: What a reward has started may need a moment to end.
SETTLE_SECONDS = 0.2

Result = Components | Failure
Results = dict[tuple[int, str], Result]  # by place of the row, name of the text


@dataclass
class Examination:
    """What the reward of `spec` did on `rows`, round by round.

    `loaded`: seconds until the process was ready. `seconds`: of the answered calls of the first round. `children`: by
    process, how many were below it after each row of that round. `said`: what it printed, as far as it is passed on.
    `stopped`: after too many `timeouts`, or `endings` of its process, nothing was asked any more.
    """

    spec: RewardSpec
    limits: Limits
    rows: tuple[RewardRow, ...]
    first: Results = field(default_factory=dict)
    again: Results = field(default_factory=dict)
    backwards: Results = field(default_factory=dict)
    fresh: Results = field(default_factory=dict)
    loaded: float = 0.0
    calls: int = 0
    seconds: list[float] = field(default_factory=list)
    children: dict[int, list[int]] = field(default_factory=dict)
    said: str = ""
    timeouts: int = 0
    endings: int = 0

    @property
    def batched(self) -> bool:
        return self.spec.batched or self.spec.source in SERVED

    @property
    def stopped(self) -> bool:
        return self.timeouts >= MOST_TIMEOUTS or self.endings >= MOST_ENDINGS

    def texts(self, place: int) -> dict[str, str]:
        return texts_of(self.rows[place], LONG_SERVED if self.spec.source in SERVED else LONG)

    def answered(self, place: int) -> list[str]:
        """Names of the row's texts that had a value in the first round."""
        return [name for (row, name), result in self.first.items() if row == place and not isinstance(result, Failure)]

    def asked_again(self) -> range:
        """Places of the rows of the later rounds."""
        if self.spec.source in SERVED:
            return range(min(SERVED_ROWS, len(self.rows)))
        return range(min(SLOW_ROWS, len(self.rows)) if sum(self.seconds) > SLOW_SECONDS else len(self.rows))


def reason(failure: Failure, spec: RewardSpec) -> str:
    """The detail of a failure, without the row and the reward it belongs to."""
    return failure.detail.partition(f"reward {spec.component!r}: ")[2] or failure.detail


def kind(failure: Failure, spec: RewardSpec) -> Literal["timeout", "process", "contract", "exception"]:
    """What went wrong: too late, its process ended, what it returned is no score, it raised."""
    if failure.outcome == "timeout":
        return "timeout"
    if reason(failure, spec).startswith("its process "):
        return "process"
    return "contract" if reason(failure, spec).startswith(RewardContractError.__name__) else "exception"


def started(spec: RewardSpec, limits: Limits) -> closing[RewardProcess]:
    """A process with the one reward, to be used in `with`. RewardContractError when it cannot be loaded."""
    return closing(RewardProcess(RewardSettings(), [spec], limits))


def examine(spec: RewardSpec, limits: Limits, rows: Sequence[RewardRow], say: Say) -> Examination:
    """All rounds. RewardContractError when the reward cannot be loaded, or its file changes meanwhile."""
    exam = Examination(spec, limits, tuple(rows))
    with printing_kept() as said:
        begun = time.perf_counter()
        with started(spec, limits) as process:
            exam.loaded = time.perf_counter() - begun
            _first_round(process, exam, say)
            _later_round(process, exam, exam.again)
            _later_round(process, exam, exam.backwards, reverse=True)
        if not exam.stopped:
            with started(spec, limits) as process:
                _later_round(process, exam, exam.fresh)
        exam.said = said.getvalue()
    return exam


@contextmanager
def printing_kept() -> Iterator[io.StringIO]:
    """Keeps what rewards print, which their process passes on to standard error, out of the report."""
    with redirect_stderr(io.StringIO()) as said:
        yield said


def _first_round(process: RewardProcess, exam: Examination, say: Say) -> None:
    for place in range(len(exam.rows)):
        if sum(exam.seconds) > QUIET_SECONDS:
            say(f"{place} of {len(exam.rows)} rows are asked; then {len(exam.asked_again())} of them three times more")
        texts = exam.texts(place)
        results = _together(process, exam, place, texts) if exam.batched else _singly(process, exam, place, texts)
        exam.first |= {(place, name): result for name, result in results.items()}
        if process.pid is not None:
            exam.children.setdefault(process.pid, []).append(_children(process))


def _later_round(process: RewardProcess, exam: Examination, round_: Results, reverse: bool = False) -> None:
    for place in reversed(exam.asked_again()) if reverse else exam.asked_again():
        names = exam.answered(place)
        names = names[::-1] if reverse else names
        if names and not exam.stopped:
            texts = exam.texts(place)
            results = _ask(process, exam, place, [texts[name] for name in names])
            round_ |= {(place, name): result for name, result in zip(names, results, strict=True)}


def _singly(process: RewardProcess, exam: Examination, place: int, texts: Mapping[str, str]) -> dict[str, Result]:
    results = {}
    for name, text in texts.items():
        if exam.stopped:
            break
        begun = time.perf_counter()
        (results[name],) = _ask(process, exam, place, [text])
        if not isinstance(results[name], Failure):
            exam.seconds.append(time.perf_counter() - begun)
    return results


def _together(process: RewardProcess, exam: Examination, place: int, texts: Mapping[str, str]) -> dict[str, Result]:
    """Of one call; when some fail, of single calls for these, and of another joint call for the rest."""
    if exam.stopped:
        return {}
    begun = time.perf_counter()
    results = dict(zip(texts, _ask(process, exam, place, list(texts.values())), strict=True))
    failed = [name for name, result in results.items() if isinstance(result, Failure)]
    if not failed:
        exam.seconds.append(time.perf_counter() - begun)
        return results
    alone = _singly(process, exam, place, {name: texts[name] for name in failed})
    # A text that has a value when it comes alone may have failed for the others only.
    good = [name for name in texts if not isinstance(alone.get(name, results[name]), Failure)]
    if good and not exam.stopped:
        alone |= dict(zip(good, _ask(process, exam, place, [texts[name] for name in good]), strict=True))
    for name in failed:
        if _is_fault(results[name], exam.spec) and _is_fault(alone.get(name), exam.spec):
            alone[name] = results[name]  # a run asks for groups: `0 values for 1` would hide `20 for 21`
    return results | alone


def _is_fault(result: Result | None, spec: RewardSpec) -> bool:
    """Whether something was returned that is no score."""
    return isinstance(result, Failure) and kind(result, spec) == "contract"


def _ask(process: RewardProcess, exam: Examination, place: int, texts: Sequence[str]) -> list[Result]:
    """One call, or one call per text of a reward that is not batched."""
    results = process.custom(0, exam.rows[place], texts)
    kinds = [kind(result, exam.spec) for result in results if isinstance(result, Failure)]
    calls = {name: min(1, kinds.count(name)) if exam.batched else kinds.count(name) for name in ("timeout", "process")}
    exam.calls += 1 if exam.batched else len(texts)
    exam.timeouts += calls["timeout"]
    exam.endings += calls["process"]
    return results


def _children(process: RewardProcess) -> int:
    if process.helpers():
        time.sleep(SETTLE_SECONDS)
    return process.helpers()
