"""The process in which rewards run: started by `rewards.worker.RewardProcess`, killed by it, replaced by it.

It speaks over one inherited socket. In come pickled `Hello`, then `Request`s; out go JSON lists, because what a reward
has touched is never unpickled:

    ["ready", [places of rewards called one by one], [version of each reward]] or ["refused", reason]      once
    [number, [[index, {"value": …} or {"error": …} or {"timeout": seconds}], …]]     until all of the request have come

Completions are answered in their order, each before the next begins, but for a batched or async reward. A reward's own
print goes to the pipe behind standard output and error. The process dies with its supervisor, and when the actor closes the
socket; what it forks has no socket, so that nobody answers twice. It imports numpy, scipy and this package only, so that a
killed one is replaced within a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rewards.compose import built_in
from rewards.contract import CustomReward
from rewards.errors import REASON_LIMIT, RewardContractError, reason_of
from rewards.loading import load_rewards
from rewards.rows import RewardRow
from rewards.settings import RewardSettings, RewardSpec

#: `Request.reward` of the built-in rewards.
BUILT_IN = -1


@dataclass(frozen=True)
class Hello:
    """What a child needs to begin. `memory_bytes` 0: no limit."""

    settings: RewardSettings
    specs: tuple[RewardSpec, ...]
    timeout_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Request:
    """Completions of one row, responses without their end tokens, for one reward (its place among the specs). Every
    answer names the `number` of the request."""

    number: int
    reward: int
    row: RewardRow
    texts: tuple[str, ...]


class Server:
    """Answers the requests of one socket."""

    def __init__(self, connection: Connection, hello: Hello, rewards: Sequence[CustomReward]) -> None:
        self._connection, self._hello, self._rewards = connection, hello, rewards
        # One loop for all requests: ending it waits for threads that a late call has left behind.
        self._runner = asyncio.Runner()
        self._number = 0

    def serve(self) -> None:
        """Until the parent closes the socket."""
        while True:
            try:
                request = self._connection.recv()
            except EOFError:
                return
            self._number = request.number
            if request.reward == BUILT_IN:
                self._send([[index, self._built_in(text, request.row)] for index, text in enumerate(request.texts)])
                continue
            reward = self._rewards[request.reward]
            if reward.batched:
                self._batched(reward, request)
            elif reward.is_async:
                self._runner.run(self._concurrent(reward, request))
            else:
                for index, text in enumerate(request.texts):
                    self._send([[index, self._one(reward, text, request.row)]])

    def _send(self, answers: list) -> None:
        self._connection.send_bytes(json.dumps([self._number, answers]).encode())

    def _built_in(self, text: str, row: RewardRow) -> dict[str, Any]:
        try:
            own = built_in(text, row, self._hello.settings)
        except ValueError as error:  # a row that cannot be scored
            return {"error": reason_of(error)}
        return {"value": [own.components, own.counted, own.others_count]}

    def _one(self, reward: CustomReward, text: str, row: RewardRow) -> dict[str, Any]:
        try:
            return {"value": reward.components(reward.call(text, row))}
        except Exception as error:  # the user's code: it may raise anything
            return {"error": reason_of(error, reward.files)}

    def _batched(self, reward: CustomReward, request: Request) -> None:
        texts = list(request.texts)
        try:
            called = reward.call(texts, request.row)
            results = self._runner.run(_awaited(called)) if reward.is_async else called
            items = reward.group_components(results, len(texts))
            answers = [
                {"error": reason_of(item, reward.files)} if isinstance(item, Exception) else {"value": item}
                for item in items
            ]
        except (Exception, asyncio.CancelledError) as error:  # the user's code
            answers = [{"error": reason_of(error, reward.files)}] * len(texts)
        self._send([[index, answer] for index, answer in enumerate(answers)])

    async def _concurrent(self, reward: CustomReward, request: Request) -> None:
        """All completions at once, each with the whole deadline."""
        limit = self._hello.timeout_seconds

        async def one(index: int, text: str) -> None:
            begun = time.monotonic()
            try:
                result = await asyncio.wait_for(reward.call(text, request.row), limit)
                answer = {"value": reward.components(result)}
            except (Exception, asyncio.CancelledError) as error:  # the user's code; nobody here cancels but the deadline
                answer = {"error": reason_of(error, reward.files)}
            # Whatever it came back with: a coroutine may catch what ends it and return a number.
            late = time.monotonic() - begun >= limit
            self._send([[index, {"timeout": limit} if late else answer]])

        await asyncio.gather(*(one(index, text) for index, text in enumerate(request.texts)))


async def _awaited(called: Any) -> Any:
    return await called


def _first_to_go() -> None:
    """When the machine runs out of memory, a reward is replaced more easily than a learner."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # not Linux, or not allowed


def main() -> None:
    """What the supervisor's child does: the number of the inherited socket is the only argument."""
    os.set_inheritable(int(sys.argv[1]), False)
    connection = Connection(int(sys.argv[1]))
    os.register_at_fork(after_in_child=connection.close)
    hello = connection.recv()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hello.memory_bytes:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = hello.memory_bytes if hard == resource.RLIM_INFINITY else min(hello.memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    _first_to_go()
    try:
        rewards = load_rewards(hello.specs)
    except RewardContractError as error:
        connection.send_bytes(json.dumps(["refused", str(error)[:REASON_LIMIT]]).encode())
        return
    one_by_one = [place for place, reward in enumerate(rewards) if not (reward.batched or reward.is_async)]
    connection.send_bytes(json.dumps(["ready", one_by_one, [reward.version for reward in rewards]]).encode())
    Server(connection, hello, rewards).serve()

