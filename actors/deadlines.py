"""Waiting that ends: deadlines on silence, not on total time, and errors that say who waited for what.

A wait fails when nothing has progressed for `silence_seconds`. Progress is any change of the value that `progress`
returns (tokens generated, rows scored, files written), or the arrival of one of several results. What reports no
progress in between (an optimizer step, a checkpoint) has the limit for itself.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Hashable, Mapping, Sequence, TypeVar

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

Label = TypeVar("Label", bound=Hashable)
#: How Ray says that an actor is no more: it died, its node did, or its node killed it for memory.
DEATHS = (RayActorError, NodeDiedError, OutOfMemoryError)
POLL_SECONDS = 1.0


class DeadlineExceeded(TimeoutError):
    """Nothing progressed for too long. The message names who waited, for what, and what was still missing."""


def _exceeded(who: str, what: str, silence: "Silence", missing: str = "") -> DeadlineExceeded:
    wait = f"{who} waited for {what}" + (f" ({missing})" if missing else "")
    return DeadlineExceeded(f"{wait}: no progress for {silence.limit:g} s; last value {silence.last!r}")


class Silence:
    """Seconds since a value last changed. The clock is injectable."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic):
        if limit <= 0:
            raise ValueError(f"a deadline needs a positive number of seconds, got {limit}")
        self.limit = limit
        self._clock = clock
        self._since = clock()
        self.last: object = None

    def observe(self, value: object) -> None:
        """Report the current progress value; a change starts the silence anew."""
        if value != self.last:
            self.last = value
            self._since = self._clock()

    @property
    def seconds(self) -> float:
        return self._clock() - self._since

    @property
    def exceeded(self) -> bool:
        return self.seconds >= self.limit


class Calls:
    """Calls that belong together, such as one to every rank: done when all are, failed when one has failed.

    `who` waits for `what`; the silence of all of them, in which none has ended, may take `limit` seconds.
    """

    def __init__(
        self, refs: Sequence[Any], who: str, what: str, limit: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.refs = tuple(refs)
        self.missing = self.refs
        self._who, self._what, self._silence = who, what, Silence(limit, clock)

    def done(self) -> bool:
        """Looks, and does not wait; `missing` are those without a result then. Raises the first remote error that is
        there, and DeadlineExceeded."""
        import ray

        if self.missing:
            ready, missing = ray.wait(list(self.missing), num_returns=len(self.missing), timeout=0)
            ray.get(ready)
            self.missing = tuple(missing)
        self._silence.observe(len(self.missing))
        if self.missing and self._silence.exceeded:
            raise _exceeded(self._who, self._what, self._silence, f"{len(self.missing)} of {len(self.refs)} missing")
        return not self.missing

    def results(self) -> list[Any]:
        """Of calls that are done, in their order."""
        import ray

        return ray.get(list(self.refs))


class RayWait:
    """Waits of one process on Ray results. `who` is the name that its errors carry."""

    def __init__(self, who: str, poll_seconds: float = POLL_SECONDS):
        self.who = who
        self.poll_seconds = poll_seconds

    def one(self, ref: Any, what: str, silence_seconds: float, progress: Callable[[], object] | None = None) -> Any:
        """The result of one reference; re-raises what the remote call raised."""
        return self.all({what: ref}, what, silence_seconds, progress)[what]

    def all(
        self,
        refs: Mapping[Label, Any],
        what: str,
        silence_seconds: float,
        progress: Callable[[], object] | None = None,
        arrived: Callable[[Label, Any], None] | None = None,
    ) -> dict[Label, Any]:
        """The results of all references by label, `arrived(label, result)` called as each one comes in.

        Every arrival is progress, and so is a change of `progress()`. Raises DeadlineExceeded with the labels still
        missing, or the first remote error.
        """
        import ray

        silence = Silence(silence_seconds)
        labels = {ref: label for label, ref in refs.items()}
        results: dict[Label, Any] = {}
        while labels:
            ready, _ = ray.wait(list(labels), num_returns=1, timeout=min(self.poll_seconds, silence_seconds))
            for ref in ready:
                label = labels.pop(ref)
                results[label] = ray.get(ref)
                if arrived is not None:
                    arrived(label, results[label])
            silence.observe((len(results), progress() if progress is not None else None))
            if labels and silence.exceeded:
                missing = ", ".join(str(label) for label in list(labels.values())[:5])
                raise _exceeded(self.who, what, silence, f"{len(labels)} missing: {missing}")
        return results
