"""A version over torch.distributed: the learner's rank 0 and the ranks of one engine are a group of their own.

    worker ──open──▶ learner;   then for every version   worker ──send──▶ learner ══pieces══▶ the engine's ranks

What holds
    * NCCL where both ends have GPUs, gloo elsewhere; all else is the same code.
    * What is sent is the file that was published, a piece of it at a time: the same bytes and checksums as by any other way,
      and no more memory than a piece. Under ZeRO-3 the layers were gathered once, when it was written; for sending no other
      rank is asked, and none waits.
    * The engine compares every tensor with the manifest when it has come, and the model gets it only then.
    * One group per worker. Who dies or is slow harms that one; who joins makes another. The learner's own process group is
      never touched, and training goes on: the learner sends in threads beside the one that trains.
    * A group that has failed is closed at both ends and never used again: the next version makes a new one. After `TRIES`
      failures in a row the worker asks no more, until there is another learner.

Who waits for whom: the ends for each other, `Meeting.silence` seconds to meet and as long again for every piece. NCCL's own
handshake, which comes between, knows no limit: all ends have met before, so only a death in that moment could hold it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from actors.weights import TensorSpec, WeightVersion, WeightVersionError, checksum, dtype_name

#: Bytes that are sent at a time.
PIECE_BYTES = 64 << 20
#: Failures in a row after which a worker takes a learner's versions by their files.
TRIES = 2
#: Seconds in which a sender, whose engine has all or has left, ends too; if it does not, nobody waits for it.
LAST_WORD_SECONDS = 5.0
#: The threads of a learner that send, by Ray's name for them, and how many: a worker's engine waits for its own.
SENDERS = "senders"
SENDER_THREADS = 64


class GroupError(RuntimeError):
    """A group could not be made, or a version did not come over it; says whose and why."""


@dataclass(frozen=True)
class Meeting:
    """Where the ends of a group meet: a store of the learner's, and the group's name there, which is used once. `size`: the
    sender and the ranks of the engine. `silence`: seconds that one end waits for the others, to meet and for a piece."""

    host: str
    port: int
    name: str
    size: int
    backend: Literal["nccl", "gloo"]
    silence: float


class Group:
    """One end; rank 0 sends. After a GroupError it is of no use but to be closed."""

    def __init__(self, meeting: Meeting, rank: int, store: dist.Store | None = None) -> None:
        """Returns when all ends are there. `store`: the learner's own; the others connect to it."""
        self.meeting = meeting
        self._limit = timedelta(seconds=meeting.silence)
        try:
            if store is None:
                store = dist.TCPStore(meeting.host, meeting.port, None, False, self._limit, wait_for_workers=False)
            place = dist.PrefixStore(meeting.name, store)
            place.set(f"rank {rank}", "here")
            place.wait([f"rank {other}" for other in range(meeting.size)], self._limit)
            self._group: Any = _process_group(place, rank, meeting, self._limit)
        except RuntimeError as error:
            raise GroupError(f"the ends of group {meeting.name} did not meet: {_first_line(error)}") from error

    def broadcast(self, piece: torch.Tensor) -> None:
        """Rank 0's bytes (uint8, 1-D, on the backend's device) into everybody's."""
        options, group = dist.BroadcastOptions(), self._group
        options.rootRank, options.timeout = 0, self._limit
        if group is None:
            raise GroupError(f"group {self.meeting.name} is closed")
        try:
            group.broadcast([piece], options).wait()
        except RuntimeError as error:
            raise GroupError(f"group {self.meeting.name} broke: {_first_line(error)}") from error

    def close(self) -> None:
        """The other ends notice it at their next piece, or in the one that they wait for. Idempotent."""
        group, self._group = self._group, None  # gloo hangs up when nobody holds it any more
        if group is not None:
            group.abort()


def _process_group(store: dist.Store, rank: int, meeting: Meeting, limit: timedelta) -> Any:
    """Beside the default group of this process, not of it."""
    if meeting.backend == "gloo":
        return dist.ProcessGroupGloo(store, rank, meeting.size, limit)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    # Read when the group is made: a wait then ends with an error; by default torch would end the process instead.
    with _environment("TORCH_NCCL_BLOCKING_WAIT", "1"):
        return dist.ProcessGroupNCCL(store, rank, meeting.size, options)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


# the learner's end


@dataclass
class _End:
    meeting: Meeting
    group: Group | None = None

    def close(self) -> None:
        if self.group is not None:
            self.group.close()


class GroupSender:
    """The learner's ends of the groups of all workers, which threads may use at once. `host`: this machine, as workers reach
    it."""

    def __init__(self, host: str, device: torch.device) -> None:
        self._host, self._device = host, device
        self._store = dist.TCPStore(host, 0, None, True, wait_for_workers=False)
        self._made = itertools.count()
        self._ends: dict[str, _End] = {}

    def open(self, worker: str, ranks: int, gpu: bool, silence: float) -> Meeting:
        """Where `send` will meet the worker's engine of `ranks` ranks, which has GPUs or not; an older group is closed."""
        self.close(worker)
        backend = "nccl" if gpu and self._device.type == "cuda" else "gloo"
        meeting = Meeting(self._host, self._store.port, f"{worker}/{next(self._made)}", 1 + ranks, backend, silence)
        self._ends[worker] = _End(meeting)
        return meeting

    def send(self, worker: str, version: WeightVersion) -> None:
        """Send it to the worker's engine, which receives meanwhile. GroupError; WeightVersionError for a file that is not
        what the manifest says. The group is closed then."""
        end = self._ends.get(worker)
        if end is None:
            raise GroupError(f"worker {worker} has no group here")
        try:
            if end.group is None:
                end.group = Group(end.meeting, 0, self._store)
            with _own_stream(self._device):
                for piece in _pieces(version):
                    end.group.broadcast(piece.to(self._device) if end.meeting.backend == "nccl" else piece)
        except BaseException:
            end.close()
            if self._ends.get(worker) is end:
                del self._ends[worker]
            raise

    def close(self, worker: str) -> None:
        """Drop the worker's group, if it has one."""
        if (end := self._ends.pop(worker, None)) is not None:
            end.close()

    def close_all(self) -> None:
        for worker in list(self._ends):
            self.close(worker)


def _pieces(version: WeightVersion) -> Iterator[torch.Tensor]:
    """The bytes of the version's tensors in the manifest's order, mapped from its file."""
    try:
        with safe_open(version.path, "pt") as content:
            for spec in version.manifest:
                tensor = content.get_tensor(spec.name)
                if (dtype_name(tensor.dtype), tuple(tensor.shape)) != (spec.dtype, spec.shape):
                    raise WeightVersionError(f"{version.path}: {spec.name} is not of the manifest's type and shape")
                yield from tensor.reshape(-1).view(torch.uint8).split(PIECE_BYTES)
    except (OSError, SafetensorError) as error:
        raise WeightVersionError(f"{version.path}: cannot be read ({error})") from error


def _own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Copies to the GPU must not queue behind what trains there."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


# the engine's end


def receive(group: Group, specs: Sequence[TensorSpec], device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a version as they come, each compared with its checksum. `device`: of the engine.

    Raises GroupError, and WeightVersionError for the first tensor that is not what the manifest says.
    """
    place = device if group.meeting.backend == "nccl" else torch.device("cpu")
    for spec in specs:
        tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=place)
        for piece in tensor.reshape(-1).view(torch.uint8).split(PIECE_BYTES):
            group.broadcast(piece)
        if (actual := checksum(tensor)) != spec.checksum:
            raise WeightVersionError(f"{spec.name} came with checksum {actual}, the manifest says {spec.checksum}")
        yield spec.name, tensor


# the worker's end, which asks the two others


class Source(Protocol):
    """A learner, as far as a worker asks it; equal when it is the same one. `silence`: seconds."""

    silence: float

    async def open(self, worker: str, ranks: int, gpu: bool) -> Meeting: ...

    async def send(self, worker: str, version: WeightVersion) -> None: ...


@dataclass(frozen=True)
class RaySource:
    """Rank 0 of the learner, a Ray actor whose `SENDERS` answer while it trains."""

    learner: Any
    silence: float

    async def open(self, worker: str, ranks: int, gpu: bool) -> Meeting:
        return await self.learner.open_group.options(concurrency_group=SENDERS).remote(worker, ranks, gpu, self.silence)

    async def send(self, worker: str, version: WeightVersion) -> None:
        await self.learner.send_version.options(concurrency_group=SENDERS).remote(worker, version)


class GroupReceiver:
    """A worker's way to have versions sent to its engine of `ranks` ranks."""

    def __init__(self, worker: str, ranks: int, gpu: bool) -> None:
        self._worker, self._ranks, self._gpu = worker, ranks, gpu
        self._source: Source | None = None
        self._meeting: Meeting | None = None
        self._failures = 0  # in a row

    def wants(self, source: Source | None) -> bool:
        """Whether to ask it: not one that has failed too often."""
        if source != self._source:
            self._source, self._meeting, self._failures = source, None, 0
        return source is not None and self._failures < TRIES

    async def take(self, version: WeightVersion, load: Callable[[dict], Awaitable[None]]) -> None:
        """Have the version sent by the source that is wanted; `load` tells the engine to receive it, and returns when it has.

        GroupError: the engine may then hold half of it.
        """
        assert self._source is not None
        try:
            meeting = self._meeting = self._meeting or await self._opened(self._source)
            await self._both(version, self._source, meeting, load)
            self._failures = 0
        except Exception as error:  # whatever the learner, Ray and the engine have raised
            self._meeting = None
            self._failures += 1
            more = "" if self._failures < TRIES else "; groups with this learner are not tried any more"
            raise GroupError(f"version {version.number} did not come over a group: {_told(error)}{more}") from error

    async def _opened(self, source: Source) -> Meeting:
        try:
            return await asyncio.wait_for(source.open(self._worker, self._ranks, self._gpu), source.silence)
        except TimeoutError:
            raise GroupError(f"the learner did not say for {source.silence:g} s where to meet") from None

    async def _both(
        self, version: WeightVersion, source: Source, meeting: Meeting, load: Callable[[dict], Awaitable[None]]
    ) -> None:
        sending = asyncio.ensure_future(source.send(self._worker, version))
        try:
            await load(version.wire() | {"path": None, "group": asdict(meeting)})
        except Exception as error:
            why = [f"the engine says: {_told(error)}"]
            if (sent := await _failure(sending)) is not None:
                why.append(f"the learner says: {_told(sent)}")
            raise GroupError("; ".join(why)) from error
        if await _failure(sending) is not None:  # all has come, but the group is no more
            self._meeting = None


async def _failure(sending: asyncio.Future[None]) -> BaseException | None:
    """What the learner has failed with, now that the engine has ended; TimeoutError when it does not say."""
    done, _ = await asyncio.wait([sending], timeout=LAST_WORD_SECONDS)
    if done:
        return sending.exception()
    sending.cancel()
    return TimeoutError("nothing")


def _told(error: BaseException) -> str:
    """One line; of an error from another process its cause, without the trace."""
    return _first_line(getattr(error, "cause", None) or error) or type(error).__name__
