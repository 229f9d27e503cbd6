"""Versions that were published on another machine, as files in this machine's shared memory: one copy for all its workers.

What holds
    * A copy appears complete or not at all, under a name made of the version's number and manifest. The engine compares its
      checksums as it does the original's.
    * The learner does not notice: somebody else reads its file, whenever a worker asks (`actors.file_parts`). So a joiner
      can take any version that is published. A part that cannot be read is asked for once more, before the worker is lost.
    * A copy stays while anybody here loads it. It goes when a worker takes another version, or the last worker here ends;
      one whose workers were all killed goes when the next takes a version of the run.

Who waits for whom: one worker copies, the others wait for it; both tell that bytes came. Locks are the kernel's (flock):
they end with their holder.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from ray.exceptions import RayError, RayTaskError

from actors.file_parts import PART_BYTES, read_part_on
from actors.weights import SHARED_MEMORY, WeightVersion, WeightVersionError, require_room

#: Parts that are read ahead of the one that is written.
AHEAD = 4
#: Seconds between two tries to get a lock.
NAP_SECONDS = 0.05
#: Seconds after which a part that could not be read is asked for once more.
RETRY_SECONDS = 1.0

#: Bytes of a node's file from an offset on, as many as fit a part, fewer at its end.
Read = Callable[[str, str, int], Awaitable[np.ndarray]]


class LocalCopies:
    """One worker's part in it. `moved` is called when bytes have come."""

    def __init__(self, moved: Callable[[], None], read: Read = read_part_on, memory: Path = SHARED_MEMORY) -> None:
        self._moved, self._read, self._memory = moved, read, memory
        self._member: int | None = None
        self._folder: Path | None = None

    @asynccontextmanager
    async def here(self, version: WeightVersion) -> AsyncIterator[WeightVersion]:
        """The version with the path of its copy, which stays until the block is left.

        Raises WeightVersionError: it cannot be read from here, or shared memory is too small for it.
        """
        if version.node is None:
            where = f"its machine alone can read {version.path}"
            raise WeightVersionError(f"version {version.number} was published outside Ray: {where}")
        folder = await self._join(self._memory / f"{Path(version.path).parent.name}-copies")
        path = folder / f"v{version.number}-{_fingerprint(version):08x}.safetensors"
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                await self._hold(lock, fcntl.LOCK_SH, path)
                if path.exists():
                    break
                await self._hold(lock, fcntl.LOCK_EX, path)  # nobody loads any version now
                if not path.exists():
                    for other in folder.glob("v*"):
                        other.unlink()
                    await self._copy(version, path)
            yield replace(version, path=str(path))
        finally:
            os.close(lock)

    async def _hold(self, lock: int, kind: int, coming: Path) -> None:
        """Get the lock, whatever was held before; who has it may be copying."""
        seen = None
        while not _try_lock(lock, kind):
            size = _size(_aside(coming))
            if size != seen:
                seen = size
                self._moved()
            await asyncio.sleep(NAP_SECONDS)

    async def _copy(self, version: WeightVersion, path: Path) -> None:
        require_room(path.parent, version.number, version.nbytes)
        reading: deque[asyncio.Task[np.ndarray]] = deque()
        offset, last = 0, False
        try:
            with open(_aside(path), "wb") as file:
                while not last:
                    while len(reading) < AHEAD:
                        reading.append(asyncio.ensure_future(self._part(version, offset)))
                        offset += PART_BYTES
                    part = await reading.popleft()
                    await asyncio.to_thread(file.write, memoryview(part))
                    self._moved()
                    last = len(part) < PART_BYTES
            os.replace(_aside(path), path)
        except (RayError, OSError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise WeightVersionError(
                f"version {version.number} could not be copied from {version.path} of node {version.node}: "
                f"{type(cause).__name__}: {cause}; was it released, or is that machine gone?"
            ) from error
        finally:
            for task in reading:
                task.cancel()
            _aside(path).unlink(missing_ok=True)

    async def _part(self, version: WeightVersion, offset: int) -> np.ndarray:
        assert version.node is not None
        try:
            return await self._read(version.node, version.path, offset)
        except (RayError, OSError):
            await asyncio.sleep(RETRY_SECONDS)
            return await self._read(version.node, version.path, offset)

    async def _join(self, folder: Path) -> Path:
        """Be one of those for whom the folder is kept."""
        while self._member is None or not _is(self._member, folder / "members"):
            self._leave()
            folder.mkdir(mode=0o700, exist_ok=True)
            try:
                self._member = os.open(folder / "members", os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:
                continue  # the last one has just left
            while not _try_lock(self._member, fcntl.LOCK_SH):
                await asyncio.sleep(NAP_SECONDS)
        self._folder = folder
        return folder

    def _leave(self) -> None:
        if self._member is not None:
            os.close(self._member)
            self._member = None

    def close(self) -> None:
        """Leave; the last one removes the copies. Idempotent."""
        if self._member is not None and self._folder is not None:
            if _is(self._member, self._folder / "members") and _try_lock(self._member, fcntl.LOCK_EX):
                shutil.rmtree(self._folder, ignore_errors=True)
        self._leave()


def _fingerprint(version: WeightVersion) -> int:
    """Of the manifest: a run that was started again may give the same number to other weights."""
    return zlib.crc32(repr(version.manifest).encode())


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
