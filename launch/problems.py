"""What a check finds, and the error that carries all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING_STARTED = "nothing was started"


@dataclass(frozen=True)
class Problem:
    """What is wrong, where it was said or found, what to do."""

    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n      -> {self.remedy}"


class PreflightError(RuntimeError):
    """A run that cannot work; `problems` lists everything found.

    `head` says how far the run had come, `closing` what else is to be known about the way out.
    """

    def __init__(self, problems: Sequence[Problem], head: str = NOTHING_STARTED, closing: str = ""):
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{head}, {count}:", *(f"  {problem}" for problem in self.problems), *([closing] if closing else [])]
        super().__init__("\n".join(lines))
