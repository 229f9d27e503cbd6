"""One killable process that scores, and what its misbehaviour costs: the call under way, nothing else.

What holds
    * Every call is answered: by what the reward returned, or by a `Failure` that says whether it took too long
      (`timeout`) or went wrong (`error`), with the exception or the way its process ended.
    * A process that is silent for the deadline, ends, or says what is no answer is killed with all it started, and
      replaced. Its call is tried again `retries` times, then it has failed; calls behind it go to the new process.
    * What the process sends is JSON, never unpickled, and checked; nothing waits for it without a limit.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from rewards.child import BUILT_IN, Hello, Request
from rewards.compose import BuiltIn
from rewards.errors import RewardContractError
from rewards.output import OutputTail
from rewards.process_tree import descendants, kill_tree
from rewards.rows import RewardRow
from rewards.settings import RewardSettings, RewardSpec

#: A child imports numpy and scipy and the user's files before it is ready.
START_SECONDS = 60.0
#: A child that has closed its socket needs a moment to exit.
EXIT_SECONDS = 2.0
#: An async call keeps its own deadline; this is the room it has to say so.
GRACE_SECONDS = 1.0
_LONGEST_ANSWER = 16 << 20


@dataclass(frozen=True)
class Limits:
    """Of the calls of a reward: the deadline of one, how often it is tried again, and the memory of its process (0: any)."""

    timeout_seconds: float = 10.0
    retries: int = 0
    memory_mib: int = 0


@dataclass(frozen=True)
class Failure:
    """A call without a value."""

    outcome: Literal["timeout", "error"]
    detail: str


Components = dict[str, float]


class RewardProcess:
    """Not thread-safe: it belongs to the thread that made it, and its child dies with that thread."""

    def __init__(self, settings: RewardSettings, specs: Sequence[RewardSpec], limits: Limits) -> None:
        """Starts the child; RewardContractError when a reward cannot be loaded."""
        self._specs, self._limits = tuple(specs), limits
        self._hello = Hello(settings, self._specs, limits.timeout_seconds, limits.memory_mib << 20)
        self._process: subprocess.Popen | None = None
        self._versions: list[str] = []
        self._asked = 0
        self._start()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def versions(self) -> dict[str, str]:
        """Component to hash of the source it was loaded from."""
        return {spec.component: version for spec, version in zip(self._specs, self._versions, strict=True)}

    def helpers(self) -> int:
        """Processes that rewards have started and that still run."""
        return 0 if self.pid is None else max(0, len(descendants(self.pid)) - 1)  # one is the server

    def built_in(self, row: RewardRow, texts: Sequence[str]) -> list[BuiltIn | Failure]:
        """The built-in components of completions of a row."""
        answers = self._call(BUILT_IN, row, texts)
        return [own if isinstance(own, Failure) else BuiltIn(own[0], tuple(own[1]), own[2]) for own in answers]

    def custom(self, place: int, row: RewardRow, texts: Sequence[str]) -> list[Components | Failure]:
        """What the reward of the spec at `place` gives completions of a row."""
        return self._call(place, row, texts)

    def _call(self, reward: int, row: RewardRow, texts: Sequence[str]) -> list[Any]:
        results: dict[int, Any] = {}
        attempts = [0] * len(texts)
        # The house's own scoring ends a process only where a reward has left it full or broken: no fault of these texts.
        retries = max(1, self._limits.retries) if reward == BUILT_IN else self._limits.retries
        while missing := [index for index in range(len(texts)) if index not in results]:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # it ended between two calls, which is the fault of neither
            if self._process is None:
                self._start()
            self._asked += 1
            request = Request(self._asked, reward, row, tuple(texts[index] for index in missing))
            answers, failure = self._ask(request)
            for place, answer in answers.items():
                index = missing[place]
                # An async call says itself that it took too long; all else that is tried again has ended the process.
                again = isinstance(answer, Failure) and answer.outcome == "timeout" and attempts[index] < retries
                if not again:
                    results[index] = answer
                attempts[index] += again
            if any(_is_stain(answer) for answer in answers.values()):
                self.close()
            if failure is not None:
                for index in self._blamed(reward, [missing[place] for place in range(len(missing)) if place not in answers]):
                    attempts[index] += 1
                    if attempts[index] > retries:
                        results[index] = failure
        return [self._told(reward, row, results[index]) for index in range(len(texts))]

    def _blamed(self, reward: int, unanswered: list[int]) -> list[int]:
        """Of the completions without an answer those whose call was under way: the first, or all of a joint call."""
        return unanswered[:1] if reward in self._one_by_one else unanswered

    def _told(self, reward: int, row: RewardRow, result: Any) -> Any:
        if not isinstance(result, Failure):
            return result
        named = "the built-in rewards" if reward == BUILT_IN else f"reward {self._specs[reward].component!r}"
        return Failure(result.outcome, f"row {row.id}: {named}: {result.detail}")

    def _ask(self, request: Request) -> tuple[dict[int, Any], Failure | None]:
        """Answers by their place in the request, and what ended the process before all had come."""
        answers: dict[int, Any] = {}
        limit = self._limits.timeout_seconds
        joint = request.reward not in self._one_by_one
        try:
            self._connection.send(request)
            while len(answers) < len(request.texts):
                if not self._connection.poll(limit + GRACE_SECONDS * joint):
                    raise BlockingIOError
                number, answered = json.loads(self._connection.recv_bytes(_LONGEST_ANSWER))
                for index, answer in answered:
                    if number != request.number or index in answers or index not in range(len(request.texts)):
                        raise ValueError(f"answer {index} to request {number}")
                    answers[index] = self._checked(answer, request)
                    if not joint and _is_stain(answers[index]):
                        return answers, None  # those behind it are asked in another process
        except BlockingIOError:  # silent, or in the middle of a message
            self.close()
            return answers, Failure("timeout", f"no score within {limit:g} s; its process was killed{self._said}")
        except (EOFError, OSError):
            return answers, Failure("error", f"its process {self.close(EXIT_SECONDS)}{self._said}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # not written by the child's server
            self.close()
            return answers, Failure("error", f"its process sent what is no answer and was killed{self._said}")
        return answers, None

    def _checked(self, answer: dict[str, Any], request: Request) -> Any:
        """A value or a Failure. ValueError, TypeError or KeyError for what is neither."""
        if "timeout" in answer:
            return Failure("timeout", f"no score within {float(answer['timeout']):g} s")
        if "error" in answer:
            return Failure("error", _printable(str(answer["error"])))
        value = answer["value"]
        own = None if request.reward == BUILT_IN else self._specs[request.reward].component
        components = value[0] if own is None else value
        for name, number in components.items():
            if type(number) is not float or not math.isfinite(number) or (own and name.partition("/")[0] != own):
                raise ValueError(f"component {name!r} is {number!r}")
        return value

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        limit = struct.pack("ll", math.ceil(max(self._limits.timeout_seconds, EXIT_SECONDS)), 0)
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # of one system call; Connection knows no timeout
            ours.setsockopt(socket.SOL_SOCKET, direction, limit)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUNBUFFERED": "1",  # what it printed before it crashed is worth reading
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                # -P: a folder `rewards` in the working directory is not this package.
                [sys.executable, "-P", "-c", "from rewards.supervisor import main; main()", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._output = OutputTail(self._process.stdout, f"reward process {self._process.pid}")
        self._connection = Connection(ours.detach())
        try:
            self._connection.send(self._hello)
            answer = json.loads(self._connection.recv_bytes()) if self._connection.poll(START_SECONDS) else ["silent", None]
        except (EOFError, OSError, ValueError):  # ValueError: a file of the user's wrote to the socket
            answer = ["died", None]
        if answer[0] == "ready":
            self._one_by_one = frozenset(answer[1])
            self._unchanged(answer[2])
            return
        ending = self.close(EXIT_SECONDS if answer[0] == "died" else 0.0)
        if answer[0] == "refused":
            raise RewardContractError(answer[1])
        named = f" ({', '.join(spec.source for spec in self._specs)})" if self._specs else ""
        raise RewardContractError(
            f"the reward process{named} was not ready within {START_SECONDS:.0f} s: {ending}{self._said}; "
            "does a file of yours hang or exit when it is imported?"
        )

    def _unchanged(self, versions: list[str]) -> None:
        """RewardContractError when a process that replaces another has loaded other sources than that."""
        old, self._versions = self._versions or versions, versions
        changed = [spec.source for spec, before, now in zip(self._specs, old, versions, strict=True) if before != now]
        if changed:
            self.close()
            raise RewardContractError(
                f"reward {changed[0]!r} has changed since the run began: completions of one step would be scored by two "
                "rewards; start the run again to go on with the new one"
            )

    def close(self, grace: float = 0.0) -> str:
        """Kill the child and all it started; says how it ended. Idempotent.

        `grace`: seconds to wait for the end of a child that has closed its socket, to learn how it ended.
        """
        if self._process is None:
            return "not running"
        process, self._process = self._process, None
        self._connection.close()
        try:
            ended = process.wait(timeout=grace) is not None
        except subprocess.TimeoutExpired:
            ended = False
        code = kill_tree(process)
        line = _printable(self._output.last_line(wait=0.2))
        self._said = f"; it last printed: {line}" if line else ""
        if not ended or code is None:
            return "was killed"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _printable(text: str) -> str:
    """Without line ends and escapes, which do not belong in a log."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _is_stain(answer: Any) -> bool:
    """Whether a call has left something behind in its process: filled memory, or threads that nobody waits for."""
    return isinstance(answer, Failure) and (answer.outcome == "timeout" or answer.detail.startswith("MemoryError"))
