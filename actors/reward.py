"""The RewardActor: typed scores for completions, whatever the rewards do.

What holds
    * Rewards run in child processes with a deadline per completion. A child that hangs, crashes or exits is killed
      with its whole process group and replaced; that completion gets the outcome `timeout` or `error`, and the others
      of its group are scored as if nothing had happened.
    * A failure never becomes a number (`rewards.outcome.Score`).
    * Rewards that cannot be loaded are refused when the actor starts, not when the first group arrives.
    * Children live and die with the actor: each belongs to one thread of it and is killed by the kernel with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from actors.reward_child import Job, RewardRow
from actors.types import Generation
from configs.schema import RewardConfig
from data.coordinates import to_processed
from data.types import Prompt
from rewards.errors import RewardContractError
from rewards.outcome import Score
from rewards.settings import RewardSettings

#: A child imports numpy and scipy and the user's files before it is ready.
START_SECONDS = 60.0
#: A child that has closed its socket needs a moment to exit.
EXIT_SECONDS = 2.0


def reward_settings(config: RewardConfig) -> RewardSettings:
    return RewardSettings(
        format=config.format, answer=config.answer, iou=config.iou, gate=config.gate, mra_mode=config.mra_mode
    )


def reward_row(prompt: Prompt, original_size: tuple[int, int], processed_size: tuple[int, int]) -> RewardRow:
    """The row as rewards see it; sizes are (width, height) of its first picture, before and after processing."""
    example = prompt.example
    boxes = (
        tuple((box.label, tuple(to_processed(box.bbox, original_size, processed_size))) for box in example.boxes)
        if example.is_localization
        else ()
    )
    return RewardRow(
        example.id,
        example.question,
        example.question_type,
        example.options,
        example.answer,
        boxes,
        processed_size,
        example.media,
        dict(example.metadata),
    )


class Scorer:
    """One killable child process. Not thread-safe: it belongs to the thread that made it."""

    def __init__(self, settings: RewardSettings, custom: Sequence[str], deadline: float) -> None:
        """Starts the child; RewardContractError when a custom reward cannot be loaded."""
        self._settings, self._custom, self._deadline = settings, tuple(custom), deadline
        self._process: subprocess.Popen | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from actors.reward_child import main; main()", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        try:
            self._connection.send((self._settings, self._custom))
            answer = self._connection.recv() if self._connection.poll(START_SECONDS) else ("silent", None)
        except (EOFError, OSError):
            answer = ("died", None)
        if answer[0] == "ready":
            return
        ending = self.close(EXIT_SECONDS if answer[0] == "died" else 0.0)
        if answer[0] == "refused":
            raise RewardContractError(answer[1])
        named = f" (reward.custom: {', '.join(self._custom)})" if self._custom else ""
        raise RewardContractError(
            f"the reward process{named} was not ready within {START_SECONDS:.0f} s: {ending}; "
            "does a file of yours hang or exit when it is imported?"
        )

    def close(self, grace: float = 0.0) -> str:
        """Kill the child and its process group; says how it ended. Idempotent.

        `grace`: seconds to wait for the end of a child that has closed its socket, to learn how it ended.
        """
        if self._process is None:
            return "not running"
        process, self._process = self._process, None
        self._connection.close()
        try:
            code = process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            code = None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the whole group is gone
        process.wait()
        if code is None:
            return "killed"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def score(self, jobs: Sequence[Job]) -> list[Score]:
        """One Score per job, in order; a job that takes the child down costs only itself."""
        scores: list[Score] = []
        while len(scores) < len(jobs):
            if self._process is None:
                self._start()
            scores += self._run(jobs[len(scores) :])
        return scores

    def _run(self, jobs: Sequence[Job]) -> list[Score]:
        """Scores up to and including the first job that ended the child."""
        scores: list[Score] = []
        try:
            self._connection.send(list(jobs))
            for job in jobs:
                if not self._connection.poll(self._deadline):
                    self.close()
                    reason = f"row {job.row.id}: no score within {self._deadline:g} s; the process was killed"
                    return [*scores, Score("timeout", detail=reason)]
                scores.append(self._connection.recv()[1])
        except (EOFError, OSError):
            reason = f"row {jobs[len(scores)].row.id}: the reward process {self.close(EXIT_SECONDS)}"
            scores.append(Score("error", detail=reason))
        return scores


class RewardActor:
    """Scores groups in `config.processes` child processes. A plain class; `ray.remote` wraps it at the edge.

    As a Ray actor give it `max_concurrency=config.processes`.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Cheap; `start` starts the children."""
        self._config = config
        self._local = threading.local()
        self._scorers: list[Scorer] = []
        self._threads = ThreadPoolExecutor(config.processes, thread_name_prefix="scorer")

    def start(self) -> tuple[int, ...]:
        """Start the children; returns their process ids. RewardContractError when a custom reward cannot be loaded."""
        barrier = threading.Barrier(self._config.processes)
        try:
            for start in [self._threads.submit(self._prepare, barrier) for _ in range(self._config.processes)]:
                start.result()
        except RewardContractError:
            self.close()
            raise
        return self.pids()

    def _prepare(self, barrier: threading.Barrier) -> None:
        """On every thread once: the barrier keeps one thread from taking two turns."""
        barrier.wait()
        self._local.scorer = Scorer(reward_settings(self._config), self._config.custom, self._config.timeout_seconds)
        self._scorers.append(self._local.scorer)

    def pids(self) -> tuple[int, ...]:
        """Process ids of the children."""
        return tuple(scorer.pid for scorer in self._scorers if scorer.pid is not None)

    def score(self, row: RewardRow, generation: Generation) -> tuple[Score, ...]:
        """Scores of the group's completions, in their order."""
        jobs = [Job(completion.text, completion.finish_reason, row) for completion in generation.completions]
        return tuple(self._threads.submit(lambda: self._local.scorer.score(jobs)).result())

    def close(self) -> None:
        """Kill the children. Call it when no score is under way."""
        self._threads.shutdown(wait=True)
        for scorer in self._scorers:
            scorer.close()
