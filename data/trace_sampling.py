"""Drafts are drawn until every row has enough traces or as many drafts as are allowed. Knows no model.

What holds
    * Drafts are stored as they arrive; a start goes on with what is there. Which drafts of a row are drawn depends on its
      earlier ones only, never on other rows or on what is drawn at the same time.
    * A row whose request fails for good is left as it is, for the next start, until more have failed than are allowed.

Who waits for whom: this loop for the requests in flight. It ends with an error when nothing has come and nothing has moved
(`pulse`) for `silence_seconds`, however long the whole takes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from data.trace_drafts import Draft, Drafts, TraceError

#: Seconds between two looks at the pulse, and between two progress lines.
LOOK_SECONDS, PROGRESS_SECONDS = 5.0, 10.0


class DrawFailed(RuntimeError):
    """One request brought no draft; another row's may. The message says why."""


@dataclass(frozen=True)
class Writer:
    """Who writes drafts. `draw(row, first, count)`: drafts first … first + count - 1 of a row; DrawFailed where it is tried
    again at the next start. `pulse`: a number that changes while requests move on."""

    draw: Callable[[str, int, int], Awaitable[Sequence[Draft]]]
    pulse: Callable[[], Awaitable[int]]
    per_request: int
    in_flight: int
    silence_seconds: float
    failures: int


async def draw_drafts(
    rows: Sequence[str],
    drafts: Drafts,
    writer: Writer,
    samples: int,
    enough: Callable[[str], bool],
    progress: Callable[[str], None],
) -> int:
    """At most `samples` drafts of each row, none after `enough(row)`; the number of rows whose request has failed.

    TraceError on silence, and when more requests than `writer.failures` have failed.
    """
    waiting = deque(row for row in rows if len(drafts.of(row)) < samples and not enough(row))
    running: dict[asyncio.Task, str] = {}
    done_rows, failed, drawn = len(rows) - len(waiting), 0, 0
    pulse, moved, told = -1, time.monotonic(), time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < writer.in_flight:
                row = waiting.popleft()
                first = len(drafts.of(row))
                count = min(writer.per_request, samples - first)
                running[asyncio.create_task(_call(writer, row, first, count))] = row
            done, _ = await asyncio.wait(running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            seen = pulse if done else await _pulse(writer)
            now = time.monotonic()
            if done or seen not in (None, pulse):
                moved, pulse = now, seen
            elif now - moved > writer.silence_seconds:
                raise TraceError(f"nothing has come for {writer.silence_seconds:g} s; {len(running)} requests wait, among "
                                 f"them row {min(running.values())}: look at the model's log; the same command goes on")
            for task in sorted(done, key=lambda own: own.exception() is not None):  # what has come is kept, whatever failed
                row = running.pop(task)
                try:
                    new = task.result()
                except DrawFailed as error:
                    failed += 1
                    if failed > writer.failures:
                        raise TraceError(f"{failed} requests failed, {writer.failures} may; the last, of row {row}: "
                                         f"{error}. The same command goes on") from error
                    continue
                drafts.append(new)
                drawn += len(new)
                if len(drafts.of(row)) < samples and not enough(row):
                    waiting.appendleft(row)
                else:
                    done_rows += 1
            if now - told >= PROGRESS_SECONDS:
                told = now
                progress(f"traces: {done_rows}/{len(rows)} rows, {drawn} drafts" + (f", {failed} failed" if failed else ""))
    finally:
        for task in running:
            task.cancel()
    return failed


async def _pulse(writer: Writer) -> int | None:
    """None when there is no answer: that counts as no movement."""
    try:
        return await asyncio.wait_for(writer.pulse(), LOOK_SECONDS)
    except TimeoutError:
        return None


async def _call(writer: Writer, row: str, first: int, count: int) -> list[Draft]:
    new = list(await writer.draw(row, first, count))
    if [(draft.row, draft.sample) for draft in new] != [(row, first + index) for index in range(count)]:
        raise TraceError(f"row {row}: asked for drafts {first} to {first + count - 1}, got {len(new)}")
    return new
