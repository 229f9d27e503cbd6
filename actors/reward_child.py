"""The process in which rewards run: started by `actors.reward.Scorer`, killed by it, replaced by it.

It speaks over one inherited socket: first it receives the settings and answers ("ready", None) or ("refused", reason);
then it receives lists of jobs and answers every job in order with ("score", Score). A reward's own print goes to
standard error. The process dies with its parent thread, and when the parent closes the socket.

It imports rewards and numpy only, so that a killed one is replaced within a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from rewards.compose import score_completion
from rewards.contract import CustomReward, load_rewards
from rewards.errors import RewardContractError
from rewards.outcome import Score
from rewards.settings import RewardSettings

_PR_SET_PDEATHSIG = 1
#: Longest reason that travels back: a reward may raise with a whole document in its message.
_REASON_LIMIT = 2000


@dataclass(frozen=True)
class RewardRow:
    """What scoring may read of a row: `rewards.compose.ExampleView`, and what rewards of one's own ask for.

    `target_boxes`: (label, (x1, y1, x2, y2)) in pixels of the processed picture of `processed_size` (width, height);
    present only where the prompt asks for boxes. `media`: paths.
    """

    id: str
    question: str
    question_type: str
    options: tuple[str, ...] | None
    answer: str | None
    target_boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    processed_size: tuple[int, int] | None = None
    media: tuple[str, ...] = ()
    metadata: dict[str, object] | None = None


@dataclass(frozen=True)
class Job:
    """One completion to score: the response without its end token, and how it ended."""

    text: str
    finish_reason: str
    row: RewardRow


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _score(job: Job, settings: RewardSettings, custom: Sequence[CustomReward]) -> Score:
    try:
        return score_completion(job.text, job.finish_reason, job.row, settings, custom)
    except Exception as error:  # a reward of the user's own may raise anything; the outcome carries what it said
        reason = f"row {job.row.id}: {type(error).__name__}: {error}"
        return Score("error", detail=reason[:_REASON_LIMIT])


def serve(connection: Connection) -> None:
    """Answer until the parent closes the socket."""
    settings, locations = connection.recv()
    try:
        custom = load_rewards(locations)
    except RewardContractError as error:
        connection.send(("refused", str(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            jobs = connection.recv()
        except EOFError:
            return
        for job in jobs:
            connection.send(("score", _score(job, settings, custom)))


def main() -> None:
    """Entry of the child: the number of the inherited socket is its only argument."""
    _die_with_parent()
    os.dup2(2, 1)
    serve(Connection(int(sys.argv[1])))
