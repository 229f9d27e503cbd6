"""Copies of weight versions on another machine: whole, once for all workers there, and gone with the last of them."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.file_parts import PART_BYTES, read_part, read_part_on, remove_folder_on, this_node
from actors.weight_copies import LocalCopies
from actors.weights import EMBEDDING, WeightStore, WeightVersion, WeightVersionError, read_verified, this_memory

#: A part in these tests, bytes: a version has four, and some.
SMALL = 4096


class Machine:
    """Workers of one machine and the store of another, which they read directly; at the offset `fails_at` a read fails, as
    often as `failures` says."""

    def __init__(self, folder: Path) -> None:
        self.memory = folder / "memory"
        self.memory.mkdir()
        self.store = WeightStore(folder / "run", node="there")
        self.reads: list[int] = []
        self.fails_at, self.failures = -1, 0

    def publish(self, number: int, value: float = 0.0) -> WeightVersion:
        return self.store.publish(number, {EMBEDDING: torch.full((2048,), value)})

    def worker(self, moved=lambda: None) -> LocalCopies:
        return LocalCopies(moved, self.read, self.memory)

    async def read(self, node: str, path: str, offset: int) -> np.ndarray:
        self.reads.append(offset)
        await asyncio.sleep(0)
        if offset == self.fails_at and self.failures:
            self.failures -= 1
            raise FileNotFoundError(path)
        return read_part(path, offset, SMALL)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.memory.glob("run-copies/v*"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr("actors.weight_copies.PART_BYTES", SMALL)
    monkeypatch.setattr("actors.weight_copies.RETRY_SECONDS", 0.01)
    return Machine(tmp_path)


async def load(worker: LocalCopies, version: WeightVersion) -> str:
    """The path of its copy, which is right."""
    async with worker.here(version) as local:
        tensors = dict(read_verified(local.path, local.manifest))
        assert local == replace(version, path=local.path) and local.path != version.path
        assert torch.equal(tensors[EMBEDDING], dict(read_verified(version.path, version.manifest))[EMBEDDING])
        return local.path


def test_workers_of_a_machine_share_one_copy_which_ends_with_the_last_of_them(machine: Machine) -> None:
    moves: list[int] = []
    first, second = machine.worker(lambda: moves.append(1)), machine.worker(lambda: moves.append(2))
    version = machine.publish(1, 0.5)

    async def both() -> list[str]:
        return await asyncio.gather(load(first, version), load(second, version))

    paths = asyncio.run(both())
    assert len(set(paths)) == 1 and sorted(machine.reads) == list(range(0, SMALL * len(machine.reads), SMALL))
    assert moves.count(1) >= 5 and 2 in moves  # the one that waits sees that bytes come
    assert len(machine.files()) == 1
    first.close()
    assert len(machine.files()) == 1
    second.close()
    second.close()
    assert list(machine.memory.iterdir()) == []
    assert Path(version.path).exists()  # that one is its publisher's


def test_a_copy_stays_while_it_is_loaded_and_goes_when_the_next_comes(machine: Machine) -> None:
    first, second = machine.worker(), machine.worker()
    one, two = machine.publish(1), machine.publish(2, 1.0)

    async def scenario() -> None:
        async with AsyncExitStack() as loading:
            held = await loading.enter_async_context(first.here(one))
            other = asyncio.create_task(load(second, two))
            await asyncio.sleep(0.2)
            assert not other.done() and machine.files() == [Path(held.path).name]
            await load(machine.worker(), one)  # the same one can be loaded meanwhile
        after = await other
        assert machine.files() == [Path(after).name] and after != held.path

    asyncio.run(scenario())


def test_a_copy_that_breaks_off_is_none(machine: Machine) -> None:
    worker, version = machine.worker(), machine.publish(1)
    machine.fails_at, machine.failures = 2 * SMALL, 2
    with pytest.raises(WeightVersionError, match="version 1 could not be copied from .* of node there: FileNotFoundError: .*"):
        asyncio.run(load(worker, version))
    assert machine.files() == [] and machine.failures == 0
    asyncio.run(load(worker, version))


def test_a_part_that_could_not_be_read_is_asked_for_once_more(machine: Machine) -> None:
    version = machine.publish(1)
    machine.fails_at, machine.failures = SMALL, 1
    asyncio.run(load(machine.worker(), version))
    assert machine.failures == 0 and machine.reads.count(SMALL) == 2


def test_the_same_number_of_other_weights_is_another_copy(machine: Machine) -> None:
    worker = machine.worker()
    before = asyncio.run(load(worker, machine.publish(3)))
    machine.store.release(3)
    after = asyncio.run(load(worker, machine.publish(3, 1.0)))
    assert after != before and machine.files() == [Path(after).name]


def test_what_killed_workers_leave_goes_when_another_comes(machine: Machine) -> None:
    killed, version = machine.worker(), machine.publish(1)
    asyncio.run(load(killed, version))
    os.close(killed._member)  # what the kernel does
    assert len(machine.files()) == 1
    after = machine.worker()
    asyncio.run(load(after, machine.publish(2)))
    assert len(machine.files()) == 1 and machine.files()[0].startswith("v2-")
    after.close()
    assert list(machine.memory.iterdir()) == []


def test_a_version_that_has_no_room_or_no_node_is_refused(machine: Machine) -> None:
    version = machine.publish(1)
    with pytest.raises(WeightVersionError, match="version 1 needs .* are free; enlarge shared memory"):
        asyncio.run(load(machine.worker(), replace(version, nbytes=1 << 60)))
    with pytest.raises(WeightVersionError, match="published outside Ray: its machine alone can read"):
        asyncio.run(load(machine.worker(), replace(version, node=None)))
    assert machine.files() == [] and machine.reads == []


def test_a_version_says_where_it_is(machine: Machine) -> None:
    version = machine.publish(1)
    assert (version.memory, version.node) == (this_memory(), "there") and this_node() is None


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_parts_of_a_file_come_through_ray_and_its_errors_say_what_to_do(tmp_path: Path) -> None:
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=400 << 20, log_to_driver=False)
    try:
        store = WeightStore(tmp_path / "ray", node=this_node())
        version = store.publish(1, {EMBEDDING: torch.rand(PART_BYTES // 4 + 1000)})  # the head doubles it: three parts
        worker = LocalCopies(lambda: None, memory=tmp_path)
        asyncio.run(load(worker, version))
        gone = replace(version, number=2, path=version.path + ".gone")
        with pytest.raises(WeightVersionError, match=r"node \w+: FileNotFoundError: .*v1.safetensors.gone"):
            asyncio.run(load(worker, gone))
        with pytest.raises(WeightVersionError, match="could not be copied .* is that machine gone"):
            asyncio.run(load(worker, replace(version, number=3, node="ab" * 28)))
        worker.close()
        assert [path.name for path in tmp_path.iterdir()] == ["ray"]
        assert len(asyncio.run(read_part_on(this_node(), version.path, 2 * PART_BYTES))) < PART_BYTES
        ray.get(remove_folder_on(this_node(), str(tmp_path / "ray")))
        ray.get(remove_folder_on(this_node(), str(tmp_path / "ray")))  # it is gone
        assert list(tmp_path.iterdir()) == []
    finally:
        ray.shutdown()
