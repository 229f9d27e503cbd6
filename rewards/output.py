"""What a reward prints: passed on up to a limit, its end kept for error messages, the rest dropped.

What holds: the pipe is always read, so that no amount of printing makes a reward wait; the thread ends when the last
process that holds the pipe has ended.
"""

from __future__ import annotations

import sys
import threading
from typing import BinaryIO

PASSED_ON = 64 << 10
KEPT = 1000


class OutputTail:
    """Reads `pipe` to its end in a thread of its own."""

    def __init__(self, pipe: BinaryIO, label: str) -> None:
        self._pipe, self._label, self._tail = pipe, label, b""
        self._thread = threading.Thread(target=self._drain, name=f"output of {label}", daemon=True)
        self._thread.start()

    def last_line(self, wait: float) -> str:
        """The last line that is not empty, after at most `wait` seconds for the end of the pipe; "" for none."""
        self._thread.join(wait)
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def _drain(self) -> None:
        passed = 0
        with self._pipe:
            while chunk := self._pipe.read1(1 << 16):
                self._tail = (self._tail + chunk)[-KEPT:]
                if passed < PASSED_ON:
                    self._pass_on(chunk[: PASSED_ON - passed], last=passed + len(chunk) >= PASSED_ON)
                passed += len(chunk)

    def _pass_on(self, chunk: bytes, last: bool) -> None:
        try:
            sys.stderr.write(chunk.decode(errors="replace"))
            if last:
                sys.stderr.write(f"\n{self._label}: it printed {PASSED_ON >> 10} KiB; what follows is dropped\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody listens any more; the pipe must be read all the same
