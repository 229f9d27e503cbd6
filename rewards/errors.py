"""What may go wrong in scoring that is *not* the model's fault, and how it is told. Model text never raises; these do."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from pathlib import Path

#: Longest reason of a failure: a reward may raise with a whole document in its message.
REASON_LIMIT = 2000
_LONGEST_PLACE = 200


class GroundTruthError(ValueError):
    """The row itself cannot be scored: its answer, options or boxes are unusable. Fix the data."""


class RewardContractError(ValueError):
    """A reward of the user's own cannot be loaded, or returned something that is not a finite number."""


class RewardSettingsError(ValueError):
    """The weights, the gate or the mode of the rewards make no sense."""


def reason_of(error: BaseException, files: Collection[str] = (), limit: int = REASON_LIMIT) -> str:
    """An exception of the user's code on one line of at most `limit` characters, which ends with its place in `files`."""
    try:
        said = str(error)
    except Exception:  # the user's own __str__
        said = "(its message does not print)"
    hint = " (the limit is reward.memory_mib)" if isinstance(error, MemoryError) else ""
    end = hint + _place(error, files)
    line = " ".join(f"{type(error).__name__}: {said[:limit]}".split())
    return line[: limit - len(end)] + end


def _place(error: BaseException, files: Collection[str]) -> str:
    """The deepest frame in one of the files, as ` (mine.py:5, in helper)`; "" without one."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename in files:
            within = "" if code.co_name == "<module>" else f", in {code.co_name}"
            place = f" ({Path(code.co_filename).name}:{line}{within})"
    return place if len(place) <= _LONGEST_PLACE else f"{place[: _LONGEST_PLACE - 2]}…)"
