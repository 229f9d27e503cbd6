"""Whoever ends a command lets it clean up: SIGTERM (batch schedulers, `timeout`) and a closed terminal count as Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def terminations_interrupt(notice: str | None = None) -> Iterator[None]:
    """KeyboardInterrupt where the block is when one of them comes, unless it was ignored from the start (nohup). `notice` is
    said on standard error at once, also after Ctrl-C: cleaning up takes a while, and silence invites another."""
    heard = [name for name in (*TERMINATIONS, signal.SIGINT) if signal.getsignal(name) is not signal.SIG_IGN]

    def interrupt(number: int, frame: object) -> None:
        if notice is not None:
            os.write(2, f"{notice}\n".encode())  # a print may be interrupted in the midst of another
        raise KeyboardInterrupt

    before = {name: signal.signal(name, interrupt) for name in heard}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)  # None: a handler of C, such as Ray's
