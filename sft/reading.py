"""The steps of a supervised stage, read and packed, by a thread while the steps before them train.

What holds
    * A step's passes are a function of rows, order, rank and token budget: reading ahead changes nothing but time.
    * The thread is at most `ahead` steps ahead, and it alone uses the rows, which remember what they read. With 0 there
      is no thread: where a CPU trains it would only take cores (a step of 16 small rows: 0.31 s with it, 0.21 without).
    * The trainer waits for the thread at the beginning of a step, at most `READ_SECONDS`; an error of the thread is
      raised there, at the step whose rows it was reading.

A thread and not processes: decoding, resizing and tokenising leave the interpreter free, nothing is forked beside Ray's
and CUDA's threads, and no batch goes through /dev/shm, which is small in containers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.packing import PackedBatch, pack
from models.passes import plan_passes
from sft.dataset import RowOrder, StageRows

#: Below the limit of collective calls, so that this is what the other ranks' failure is traced to.
READ_SECONDS = 300.0


@dataclass(frozen=True)
class StepRows:
    """One optimizer step as one rank sees it. `samples`, `tokens`: rows and supervised tokens of all ranks. `passes`: this
    rank's, and whether each counts."""

    samples: int
    tokens: int
    passes: tuple[tuple[PackedBatch, bool], ...]


class StepReader:
    """What rank `rank` of `ranks` trains on, passes of at most `budget` tokens."""

    def __init__(self, rows: StageRows, order: RowOrder, rank: int, ranks: int, budget: int) -> None:
        self._rows, self._order = rows, order
        self._rank, self._ranks, self._budget = rank, ranks, budget

    def read(self, step: int) -> StepRows:
        """The step with index `step`. MediaError when a picture cannot be read."""
        rows = self._order.batch(step)
        plan = plan_passes([self._rows.size(row) for row in rows], self._ranks, self._budget)[self._rank]
        passes = ((pack([self._rows.tree(rows[piece.tree]) for piece in one.slices]), one.counts) for one in plan)
        return StepRows(len(rows), sum(len(self._rows.target(row)) for row in rows), tuple(passes))

    def steps(self, first: int, ahead: int) -> Iterator[StepRows]:
        """The steps from `first` to the last, in order. Errors: those of `read`; TimeoutError."""
        if ahead == 0:
            yield from map(self.read, range(first, self._order.steps))
            return
        thread = ThreadPoolExecutor(1, "sft-reader")
        try:
            reading = deque(thread.submit(self.read, step) for step in range(first, min(first + ahead, self._order.steps)))
            for step in range(first, self._order.steps):
                if step + ahead < self._order.steps:
                    reading.append(thread.submit(self.read, step + ahead))
                try:
                    yield reading.popleft().result(READ_SECONDS)
                except TimeoutError:
                    raise TimeoutError(
                        f"the rows of step {step} were not read within {READ_SECONDS:.0f} s: is the data folder reachable?"
                    ) from None
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
