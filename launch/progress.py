"""Progress lines with the seconds since the command began; plain text, so that job logs and pipes show them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

Say = Callable[[str], None]


@dataclass
class Progress:
    """Callable that prints one line; `seconds()` since it was made."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    begun: float = field(default_factory=time.monotonic)

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds():7.1f} s] {text}", file=self.out, flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self.begun
