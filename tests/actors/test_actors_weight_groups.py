"""Groups of weights over gloo between real processes: what comes is what the manifest says, and no end waits for a lost one."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors import weight_groups
from actors.weight_groups import Group, GroupError, GroupReceiver, GroupSender, Meeting, receive
from actors.weights import EMBEDDING, HEAD, WeightStore, WeightVersion, WeightVersionError

CPU = torch.device("cpu")
BIG = "model.layers.0.weight"
STATE: dict[str, Any] = {}  # of a peer's process


class Peer:
    """A process that does what it is asked, one thing after another. It leaves gloo's threads behind without asking them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, function: Callable, *arguments: Any) -> None:
        self._pipe.send((function, arguments))

    def answer(self) -> Any:
        """Raises what the function has raised, and EOFError for a process that is no more."""
        assert self._pipe.poll(60), "a peer is silent"
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    weight_groups.PIECE_BYTES = 1 << 20
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            pipe.send(function(*arguments))
        except Exception as error:
            pipe.send(error.with_traceback(None))


# what a learner's process does


def opened(ranks: int, silence: float) -> Meeting:
    sender = STATE.setdefault("sender", None) or GroupSender("127.0.0.1", CPU)
    STATE["sender"] = sender
    return sender.open("w0", ranks, True, silence)


def send(version: WeightVersion) -> str:
    STATE["sender"].send("w0", version)
    return "sent"


# what an engine's process does


def join(meeting: Meeting) -> str:
    """All its ranks."""
    ranks = range(1, meeting.size)
    STATE["groups"] = _together([lambda rank=rank: Group(meeting, rank) for rank in ranks])
    return "joined"


def take(version: WeightVersion, dies_after: int | None = None) -> list[dict[str, Any]]:
    """What every rank has received, as arrays, which travel through the pipe."""

    def one(group: Group) -> dict[str, Any]:
        arrays = {}
        try:
            for name, tensor in receive(group, version.manifest, CPU):
                arrays[name] = tensor.view(torch.uint8).numpy()
                if len(arrays) == dies_after:
                    os._exit(1)
        except BaseException:
            group.close()
            raise
        return arrays

    return _together([lambda group=group: one(group) for group in STATE["groups"]])


def _together(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[Peer, Peer]]:
    both = Peer(), Peer()
    yield both
    for peer in both:
        peer.end()


@pytest.fixture
def published(tmp_path: Path) -> WeightVersion:
    """Its second tensor is of many pieces, more than sockets hold by themselves."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.visual.norm.weight": torch.randn(7, generator=generator),
        BIG: torch.randn(5_000_001, generator=generator).to(torch.bfloat16),
        EMBEDDING: torch.randn(30, 11, generator=generator),
    }
    store = WeightStore(tmp_path / "store")
    version = store.publish(1, tensors)
    return version


def meet(peers: tuple[Peer, Peer], version: WeightVersion, ranks: int = 1, silence: float = 30.0) -> None:
    """The learner's end is about to send the version, the engine's is there."""
    learner, engine = peers
    learner.ask(opened, ranks, silence)
    meeting = learner.answer()
    assert (meeting.backend, meeting.size) == ("gloo", 1 + ranks)  # no NCCL with a learner on the CPU, whatever engines have
    learner.ask(send, version)
    engine.ask(join, meeting)
    assert engine.answer() == "joined"


def edited(version: WeightVersion, edit: Callable[[dict], Any]) -> WeightVersion:
    """Another file of the same manifest."""
    content = load_file(version.path)
    edit(content)
    path = version.path + ".edited"
    save_file(content, path)
    return replace(version, path=path)


def test_every_rank_of_an_engine_receives_one_version_after_another(peers, published) -> None:
    learner, engine = peers
    meet(peers, published, ranks=2)
    expected = load_file(published.path)
    for version in (published, replace(published, manifest=published.manifest[::-1])):
        if version is not published:
            learner.ask(send, version)
        engine.ask(take, version)
        received = engine.answer()
        assert learner.answer() == "sent" and len(received) == 2
        for arrays in received:
            assert list(arrays) == [spec.name for spec in version.manifest] and HEAD in arrays
            for name, tensor in expected.items():
                assert (arrays[name] == tensor.view(torch.uint8).numpy()).all(), name


def test_a_byte_that_changed_on_the_way_is_found_before_the_tensor_is_used(peers, published) -> None:
    learner, engine = peers
    changed = edited(published, lambda own: own[EMBEDDING].view(torch.uint8)[:1].bitwise_xor_(1))
    meet(peers, changed)
    engine.ask(take, published)
    with pytest.raises(WeightVersionError, match=f"{EMBEDDING} came with checksum"):
        engine.answer()
    sent_it = _ends(learner)
    learner.ask(send, published)
    with pytest.raises(GroupError, match="broke" if sent_it else "w0 has no group here"):
        learner.answer()


def _ends(learner: Peer) -> bool:
    """Whether the learner had sent all before the engine left."""
    try:
        return learner.answer() == "sent"
    except GroupError:
        return False


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda own: own.pop(EMBEDDING), "cannot be read"),
        (lambda own: own.update({EMBEDDING: own[EMBEDDING][:3].clone()}), "not of the manifest's type and shape"),
    ],
)
def test_a_file_that_lacks_a_tensor_breaks_the_group_at_both_ends(peers, published, edit, message) -> None:
    learner, engine = peers
    meet(peers, edited(published, edit))
    engine.ask(take, published)
    with pytest.raises(WeightVersionError, match=message):
        learner.answer()
    with pytest.raises(GroupError, match="broke"):
        engine.answer()


def test_the_learner_waits_for_no_engine_for_ever(peers, published) -> None:
    learner, engine = peers
    learner.ask(opened, 1, 1.0)
    learner.answer()
    learner.ask(send, published)
    with pytest.raises(GroupError, match="the ends of group w0/[0-9]+ did not meet"):
        learner.answer()  # nobody came
    meet(peers, published, silence=1.0)
    with pytest.raises(GroupError, match="broke: .*imed out"):
        learner.answer()  # one came, and takes nothing
    engine.ask(take, published)
    with pytest.raises(GroupError, match="broke"):
        engine.answer()  # too late


def test_an_engine_waits_for_no_learner_for_ever(peers) -> None:
    learner, engine = peers
    learner.ask(opened, 1, 1.0)
    engine.ask(join, learner.answer())
    with pytest.raises(GroupError, match="did not meet"):
        engine.answer()


def test_a_group_is_replaced_and_closed_while_it_sends(peers, published) -> None:
    learner, engine = peers
    meet(peers, published)
    engine.ask(take, published)
    assert len(engine.answer()) == 1 and learner.answer() == "sent"
    meet(peers, published)  # another group of the same worker
    engine.ask(take, published)
    assert len(engine.answer()) == 1 and learner.answer() == "sent"


def test_an_engine_that_dies_within_a_version_is_noticed(peers, published) -> None:  # last of these: it ends a peer
    learner, engine = peers
    meet(peers, published)
    engine.ask(take, published, 1)
    with pytest.raises(EOFError):
        engine.answer()
    with pytest.raises(GroupError, match="broke"):
        learner.answer()


# the worker between the two


class Learner:
    """Says where to meet, if it is not silent, and ends to send as it is told: None, or what it fails with."""

    silence = 0.05

    def __init__(self, silent: bool = False) -> None:
        self.silent, self.fails, self.opened = silent, None, 0

    async def open(self, worker: str, ranks: int, gpu: bool) -> Meeting:
        if self.silent:
            await asyncio.Event().wait()
        self.opened += 1
        return Meeting("127.0.0.1", 1, f"{worker}/{self.opened}", 1 + ranks, "gloo", self.silence)

    async def send(self, worker: str, version: WeightVersion) -> None:
        if self.fails is not None:
            raise self.fails


VERSION = WeightVersion(7, (), "nowhere", 0, "this", None)


def taken(receiver: GroupReceiver, source: Learner, error: Exception | None = None) -> dict:
    """What the engine was told, which fails with `error`."""
    told: dict = {}

    async def load(update: dict) -> None:
        told.update(update)
        if error is not None:
            raise error

    assert receiver.wants(source)
    asyncio.run(receiver.take(VERSION, load))
    return told


def test_a_group_serves_until_it_fails_at_either_end() -> None:
    receiver, source = GroupReceiver("w3", 2, True), Learner()
    first = taken(receiver, source)
    assert first == {"path": None, "manifest": [], "group": asdict(Meeting("127.0.0.1", 1, "w3/1", 3, "gloo", 0.05))}
    assert taken(receiver, source) == first
    source.fails = GroupError("w3 is gone")
    assert taken(receiver, source) == first  # the engine has all of it, which is what counts
    source.fails = None
    assert taken(receiver, source)["group"]["name"] == "w3/2"
    message = "version 7 did not come over a group: the engine says: full; the learner says: w3 is gone"
    source.fails = GroupError("w3 is gone\nand more")
    with pytest.raises(GroupError, match=f"^{message}$"):
        taken(receiver, source, RuntimeError("full\nof what"))
    source.fails = None
    assert taken(receiver, source)["group"]["name"] == "w3/3"


def test_a_learner_whose_groups_fail_is_asked_no_more_but_the_next_one_is() -> None:
    receiver, source = GroupReceiver("w3", 1, False), Learner(silent=True)
    assert not receiver.wants(None)
    for more in ("$", "; groups with this learner are not tried any more$"):
        with pytest.raises(GroupError, match=f"the learner did not say for 0.05 s where to meet{more}"):
            taken(receiver, source)
    assert not receiver.wants(source)
    assert taken(receiver, Learner())["group"]["name"] == "w3/1"
