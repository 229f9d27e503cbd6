"""Which prompt is where: every prompt that was ever asked is pending, in flight, answered, trained or dropped. Pure.

What holds
    * Positions of the schedule are given out in order, each to one step and once: `ask` takes the next ones. A step is
      trained with all prompts that were asked for it, whoever answered them, however late: nothing is left behind because
      it is long.
    * A prompt keeps its step, its place in the step and with them its sampling seed, however often it is issued.
    * What a lost worker held is pending again. Each of its prompts may be why it was lost: one that was lost before is
      suspected alone, else all are; a prompt that was suspected `attempts` times is dropped, with the last reason.
    * The state is saved with the learner's: the positions of the steps that are not trained yet, and where the next ones
      begin. What was in flight then is asked again after a resume, and no position twice.
    * A run whose learner goes back to such a state goes on with a ledger that remembers how often each prompt was sent
      (`rewound`), so that ledger.jsonl tells of those that are asked again. Of a run that was killed nobody remembers.

    PENDING ──sent──▶ IN_FLIGHT ──answered──▶ ANSWERED ──train──▶ TRAINED
       ▲                  │ lost                  (scored or not: a completion without a score is typed, `rewards.outcome`)
       └──────────────────┴── too often ──▶ DROPPED
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from actors.schedule import Stretch


class Status(str, Enum):
    PENDING = "pending"
    IN_FLIGHT = "in flight"
    ANSWERED = "answered"
    DROPPED = "dropped"


@dataclass(slots=True)
class Entry:
    """A prompt of a step that is not trained yet. `place`: in the step, from 0. `sent`: how often, also before the learner
    was lost. `losses`: how often it may have been what its worker was lost to."""

    name: str
    step: int
    place: int
    status: Status = Status.PENDING
    worker: str = ""
    sent: int = 0
    losses: int = 0
    reason: str = ""


@dataclass
class _Step:
    stretches: list[Stretch] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    open: int = 0  # neither answered nor dropped


class LedgerError(RuntimeError):
    """The ledger was told what cannot be: a bug of its caller, or a state that was not its own."""


class Ledger:
    """Names are `sSTEP-pPLACE`. Not thread-safe."""

    def __init__(
        self, attempts: int, state: Mapping[str, Any] | None = None, sent: Mapping[int, int] | None = None
    ) -> None:
        """`state`: what `state()` returned; its prompts are asked for again, by `asked`. `sent`: how often those of these
        positions were sent before; see `rewound`."""
        self._attempts = attempts
        self._before = dict(sent or {})
        self._again: dict[int, int] = {}  # positions of trained steps that were sent more than once, and how often
        self._next, self._trained = 0, -1
        self._steps: dict[int, _Step] = {}
        self._entries: dict[str, Entry] = {}
        self._waiting: list[tuple[int, int, str]] = []  # heap of (step, place, name)
        if state is not None:
            self._next = int(state["next"])
            for step, stretches in state["steps"].items():
                for first, count in stretches:
                    self._take(int(step), (int(first), int(count)))
            taken = sorted(stretch for own in self._steps.values() for stretch in own.stretches)
            ends = [0, *(first + count for first, count in taken)]
            starts = [*(first for first, _ in taken), self._next]
            if any(count < 1 for _, count in taken) or any(end > start for end, start in zip(ends, starts, strict=True)):
                raise LedgerError(f"no state of a ledger: {dict(state)}")

    @property
    def next(self) -> int:
        """The position that the next prompt will have."""
        return self._next

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that have prompts and are not trained."""
        return tuple(sorted(self._steps))

    @property
    def waiting(self) -> int:
        """Prompts that are pending."""
        return len(self._waiting)

    def asked(self, step: int) -> list[Stretch]:
        """Positions that belong to the step, in the order they were asked for."""
        return list(self._steps[step].stretches) if step in self._steps else []

    def entries(self, step: int) -> Sequence[Entry]:
        """The step's prompts, in the order of their places; none for a step that is trained or was never asked for."""
        return tuple(self._steps[step].entries) if step in self._steps else ()

    def entry(self, name: str) -> Entry | None:
        """A prompt of a step that is not trained."""
        return self._entries.get(name)

    def ask(self, step: int, count: int) -> Stretch:
        """Take the next `count` positions for the step. LedgerError for none, and for a step that is trained."""
        if count < 1 or step <= self._trained:
            raise LedgerError(f"{count} prompts for step {step}; trained up to step {self._trained}")
        stretch = (self._next, count)
        self._next += count
        self._take(step, stretch)
        return stretch

    def _take(self, step: int, stretch: Stretch) -> None:
        own = self._steps.setdefault(step, _Step())
        own.stretches.append(stretch)
        begin = len(own.entries)
        for place in range(begin, begin + stretch[1]):
            position = stretch[0] + place - begin
            entry = Entry(f"s{step}-p{place}", step, place, sent=self._before.pop(position, 0))
            own.entries.append(entry)
            self._entries[entry.name] = entry
            self._wait(entry)
        own.open += stretch[1]

    def take_pending(self, last: float = math.inf) -> str | None:
        """The prompt to be sent next, of the earliest step the first; None when none is pending up to step `last`."""
        return heapq.heappop(self._waiting)[2] if self._waiting and self._waiting[0][0] <= last else None

    def sent(self, name: str, worker: str) -> None:
        entry = self._expect(name, Status.PENDING)
        entry.status, entry.worker = Status.IN_FLIGHT, worker
        entry.sent += 1

    def lost(self, names: Iterable[str], reason: str) -> list[str]:
        """Prompts that were lost together are pending again; returns those that are dropped instead."""
        entries = [self._expect(name, Status.IN_FLIGHT) for name in sorted(names)]
        suspects = [entry for entry in entries if entry.losses] or entries
        for entry in suspects:
            entry.losses += 1
        dropped = [entry for entry in suspects if entry.losses >= self._attempts]
        for entry in entries:
            if entry in dropped:
                self._close(entry, Status.DROPPED, reason)
            else:
                entry.status, entry.worker, entry.reason = Status.PENDING, "", reason
                self._wait(entry)
        return [entry.name for entry in dropped]

    def was_lost(self, name: str) -> bool:
        """Whether a worker may have been lost to it."""
        entry = self._entries.get(name)
        return entry is not None and entry.losses > 0

    def last_chance(self, name: str) -> bool:
        """Whether it is dropped if it is suspected once more."""
        entry = self._entries.get(name)
        return entry is not None and 0 < entry.losses == self._attempts - 1

    def hold_back(self, name: str) -> None:
        """What `take_pending` has given is not sent after all."""
        self._wait(self._expect(name, Status.PENDING))

    def answered(self, name: str) -> None:
        """Its completions are there, each with a typed outcome."""
        self._close(self._expect(name, Status.IN_FLIGHT), Status.ANSWERED, "")

    def complete(self, step: int) -> bool:
        """Whether every prompt of the step is answered or dropped."""
        return step in self._steps and self._steps[step].open == 0

    def train(self, step: int) -> dict[str, Any]:
        """The step has been learned from: forget it; returns its line in ledger.jsonl."""
        if not self.complete(step):
            raise LedgerError(f"step {step} cannot be trained: some of its prompts are open, or it has none")
        own, self._trained = self._steps.pop(step), max(step, self._trained)
        for entry in own.entries:
            del self._entries[entry.name]
        dropped = {entry.name: entry.reason for entry in own.entries if entry.status is Status.DROPPED}
        again = {entry.name: entry.sent for entry in own.entries if entry.sent > 1}
        self._again |= {position: sent for position, sent in _sent(own) if sent > 1}
        return {"step": step, "positions": own.stretches, "trained": len(own.entries) - len(dropped), "dropped": dropped,
                "sent_again": again}

    def state(self) -> dict[str, Any]:
        """What `__init__` goes on from, as plain JSON data."""
        steps = {str(step): [list(stretch) for stretch in own.stretches] for step, own in sorted(self._steps.items())}
        return {"next": self._next, "steps": steps}

    def rewound(self, state: Mapping[str, Any] | None) -> Ledger:
        """The ledger of a run whose learner goes on from `state` (None: the start), an earlier one of this ledger: it
        remembers how often the prompts were sent that are asked for once more."""
        open_positions = [first for own in (state["steps"].values() if state else ()) for first, _ in own]
        begin = min([*open_positions, int(state["next"]) if state else 0])
        sent = dict.fromkeys(range(begin, self._next), 1) | self._before | self._again
        for step in self._steps.values():
            sent |= dict(_sent(step))
        return Ledger(self._attempts, state, sent)

    def _wait(self, entry: Entry) -> None:
        heapq.heappush(self._waiting, (entry.step, entry.place, entry.name))

    def _close(self, entry: Entry, status: Status, reason: str) -> None:
        entry.status, entry.reason = status, reason
        self._steps[entry.step].open -= 1

    def _expect(self, name: str, status: Status) -> Entry:
        entry = self._entries.get(name)
        if entry is None or entry.status is not status:
            raise LedgerError(f"{name} is {entry.status.value if entry else 'unknown'}, not {status.value}")
        return entry


def _sent(step: _Step) -> Iterable[tuple[int, int]]:
    """Positions of a step, and how often the prompt of each was sent."""
    positions = (position for first, count in step.stretches for position in range(first, first + count))
    return zip(positions, (entry.sent for entry in step.entries), strict=True)
