"""A real engine is sent the versions of a real learner (two ranks, ZeRO-3) over a group, on Ray; what goes wrong is caught."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import psutil
import pytest
import ray
import torch
from PIL import Image
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file, save_file

from actors.batching import TrainBatch, TrainGroup
from actors.fleet_status import FleetStatus
from actors.identities import Identities
from actors.learners import Learners
from actors.prompt_tasks import TaskMaker
from actors.ray_port import RayPort, canary_gap
from actors.rollout import StaleWorker
from actors.rollouts import POLL_SECONDS, Event, Heard, Lost, Placed, Started
from actors.schedule import PromptSchedule
from actors.types import Generation
from actors.weight_groups import SENDERS, GroupError, GroupSender, Meeting, RaySource
from actors.weights import EMBEDDING, WeightVersion, WeightVersionError
from configs.schema import (
    GRPOConfig, KLConfig, LearnerConfig, OptimizerConfig, RewardConfig, RolloutConfig, RunConfig, SamplingConfig,
)
from grpo_cases import row
from models.tiny import build_tiny

pytestmark = pytest.mark.engine

CONFIG = RunConfig(
    grpo=GRPOConfig(steps=9, prompts_per_step=1, group_size=4, kl=KLConfig(coef=0), sampling=SamplingConfig(max_new_tokens=12)),
    learner=LearnerConfig(
        ranks=2, zero_stage=3, threads=1, num_cpus=0.5,
        optimizer=OptimizerConfig(lr=3e-3, schedule="constant", warmup_ratio=0),
    ),
    reward=RewardConfig(num_cpus=0),
    rollout=RolloutConfig(num_cpus=1, kv_cache_bytes=64 << 20, max_model_len=512, transport="collective"),
)
#: Of the cluster: what the ranks and one worker reserve, and nothing else does.
CPUS = 2
TOLERANCE = CONFIG.rollout.canary_tolerance
#: A tensor in the middle of a version: before it the engine has taken others.
NORM = "model.language_model.norm.weight"


@dataclass(frozen=True)
class Lying(RaySource):
    """Sends this file in place of the version's."""

    path: str = ""

    async def send(self, worker: str, version: WeightVersion) -> None:
        await super().send(worker, replace(version, path=self.path))


class Mortal:
    """A sender that ends its process when it has sent half of a version's tensors."""

    def __init__(self) -> None:
        self._groups = GroupSender("127.0.0.1", torch.device("cpu"))

    def open_group(self, worker: str, ranks: int, gpu: bool, silence: float) -> Meeting:
        return self._groups.open(worker, ranks, gpu, silence)

    def send_version(self, worker: str, version: WeightVersion) -> None:
        self._groups.send(worker, replace(version, manifest=version.manifest[: len(version.manifest) // 2]))
        os._exit(1)


class Bench:
    def __init__(self, folder: Path) -> None:
        picture = str(folder / "a.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 140, 3), dtype=np.uint8)).save(picture)
        # The engine starts with weights that are not the learner's: it must have been given them.
        base, other = (build_tiny(folder / f"model {seed}", seed=seed, init_std=0.15) for seed in (0, 1))
        self.task = TaskMaker(CONFIG, PromptSchedule([row(0, (picture,))], CONFIG.grpo, 0), base).canary()
        self.identities = Identities()
        status = FleetStatus(folder, 9, os.getpid(), self.identities)
        self.learners = Learners(CONFIG, str(base), str(folder / "grpo"), 9, status, self.identities)
        self.said: list[str] = []
        self.events: list[Event] = []
        self.port = RayPort(CONFIG, str(other), self.learners, self.task, status, self.identities, self.said.append)
        self.port.start("w0")
        (address,) = self.learners.address().results()
        self.wait_for(Placed, "w0")
        for name in ("w1", "w2"):  # for which there is no room
            self.port.start(name)
        self.port.end("w2", "it is not wanted any more")
        self.learners.start(address, None).results()
        self.wait_for(Started, "w0")
        self.worker = self.port._workers["w0"]
        self.number = 0

    def wait_for(self, kind: type[Placed | Started | Heard | Lost], worker: str) -> Any:
        """The worker's next event of that kind. Those of other workers are passed over, as the fleet does with the ended."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event.worker == worker:
                    if isinstance(event, kind):
                        return event
                    assert not isinstance(event, Lost), event
            self.events += self.port.wait(POLL_SECONDS)

    def process(self, worker: str) -> psutil.Process:
        """Of the worker's actor."""
        self.identities.look()
        identity = self.identities.of(worker)
        assert identity is not None and identity.pid is not None
        return psutil.Process(identity.pid)

    def publish(self) -> WeightVersion:
        self.number += 1
        published, nothing = self.learners.publish(self.number).results()
        assert nothing is None
        return published

    def sync(self, version: WeightVersion, source: Any) -> tuple[str | None, Generation]:
        """The worker takes the version and proves it. Returns its remark and the canary."""
        taken = ray.get(self.worker.update_weights.remote(version, source))
        return taken.remark, self.prove()

    def prove(self) -> Generation:
        canary, gap = self.canary()
        ray.get(self.worker.prove.remote(gap))
        assert gap < TOLERANCE
        return canary

    def canary(self) -> tuple[Generation, float]:
        generation = ray.get(self.worker.canary.remote(self.task.request))
        tokens = tuple(completion.token_ids for completion in generation.completions)
        asked = self.learners.logprobs(self.task.prompt, generation.expanded_prompt_ids, tokens)
        expected = asked.results()[0]
        return generation, canary_gap(tuple(zip(tokens, expected, strict=True)), generation.completions)

    def learn(self, drawn: Generation) -> None:
        """One step on what the engine has drawn: afterwards it holds old weights."""
        members = drawn.completions
        group = TrainGroup(
            self.task.prompt,
            drawn.expanded_prompt_ids,
            tuple(own.token_ids for own in members),
            tuple(own.logprobs for own in members),
            tuple(1.0 - 2 * (index % 2) for index in range(len(members))),
            tuple(drawn.versions(index) for index in range(len(members))),
        )
        batch = TrainBatch((group,), len(members), sum(len(own.token_ids) for own in members), drawn.version)
        self.learners.step(batch).results()

    def serves(self) -> bool:
        try:
            return bool(ray.get(self.worker.generate.remote(self.task.request)).completions)
        except StaleWorker:
            return False


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not see the tests' modules
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        bench = Bench(tmp_path_factory.mktemp("groups"))
        yield bench
        bench.port.close()
        ray.wait(bench.learners.close(), num_returns=2, timeout=10)
        bench.learners.leave()
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def edited(version: WeightVersion, edit: Any) -> str:
    """The path of another file, of the same names."""
    content = load_file(version.path)
    edit(content)
    save_file(content, version.path + ".edited")
    return version.path + ".edited"


def test_an_engine_is_sent_what_two_ranks_have_learned(bench: Bench) -> None:
    source = bench.learners.source()
    assert not bench.serves()
    remark, canary = bench.sync(bench.publish(), source)
    assert remark is None and bench.serves()
    bench.learn(canary)
    _, gap = bench.canary()
    assert gap > 10 * TOLERANCE, "the step must show, or the next version shows nothing"
    remark, canary = bench.sync(bench.publish(), source)  # over the same group
    assert remark is None and canary.version == bench.number == 2


def test_the_learner_sends_while_it_is_busy(bench: Bench) -> None:
    version = bench.publish()
    busy, other = bench.learners._ranks
    gathering = busy.publish.remote(version.number + 1)  # it waits for the other rank
    taken = ray.get(bench.worker.update_weights.remote(version, bench.learners.source()))
    assert taken.remark is None and not ray.wait([gathering], timeout=0)[0]
    ray.get([gathering, other.publish.remote(version.number + 1)])
    bench.number += 1
    bench.prove()


#: What happens on the way, and what the engine or the sender says of it.
FAULTS = {
    "a changed byte": (lambda own: own[NORM].view(torch.uint8)[:1].bitwise_xor_(1), f"{NORM} came with checksum"),
    "a missing tensor": (lambda own: own.pop(NORM), f"the learner says: .*cannot be read .*{NORM}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_on_the_way_is_made_good_from_the_file(bench: Bench, fault: str) -> None:
    edit, message = FAULTS[fault]
    version, honest = bench.publish(), bench.learners.source()
    assert honest is not None
    long = SamplingConfig(max_new_tokens=300)
    flight = bench.worker.generate.remote(replace(bench.task.request, request_id="in flight", sampling=long))
    remark, _ = bench.sync(version, Lying(honest.learner, honest.silence, edited(version, edit)))
    assert remark is not None and bench.serves()
    assert all(own.token_ids for own in ray.get(flight).completions), "what was in flight is not lost for it"
    assert re.search(f"version {version.number} did not come over a group: .*{message}", remark), remark


def test_a_sender_that_dies_within_a_version_costs_nothing_but_that_group(bench: Bench) -> None:
    mortal = ray.remote(concurrency_groups={SENDERS: 2})(Mortal).options(num_cpus=0).remote()
    remark, _ = bench.sync(bench.publish(), RaySource(mortal, 30.0))
    assert remark is not None and "the engine says" in remark and bench.serves()
    remark, _ = bench.sync(bench.publish(), bench.learners.source())
    assert remark is None, "the learner, which lives, makes a new group"


def test_a_lying_version_is_served_by_no_way(bench: Bench) -> None:
    version = bench.publish()
    specs = [replace(spec, checksum="crc32:00000000") if spec.name == EMBEDDING else spec for spec in version.manifest]
    with pytest.raises(WeightVersionError, match=f"refused version {version.number}: .*{EMBEDDING} has checksum"):
        ray.get(bench.worker.update_weights.remote(replace(version, manifest=tuple(specs)), bench.learners.source()))
    assert ray.get(bench.worker.health.remote()).state == "dirty" and not bench.serves()
    lacking = replace(version, manifest=tuple(spec for spec in version.manifest if spec.name != NORM))
    with pytest.raises(WeightVersionError, match=f"missing {NORM}"):
        ray.get(bench.worker.update_weights.remote(lacking, bench.learners.source()))
    assert not bench.serves()
    remark, _ = bench.sync(version, bench.learners.source())
    assert remark is None and bench.serves()


def rooms() -> dict[str, str]:
    """The states of the workers' placement groups, as Ray knows them."""
    known = [room for room in placement_group_table().values() if room["name"] != "learner"]
    return {room["name"].split()[-1]: room["state"] for room in known}


def test_a_worker_without_room_is_told_of_once_and_one_that_was_ended_meanwhile_never(bench: Bench) -> None:
    while not (told := [said for said in bench.said if "no room" in said]):
        bench.wait_for(Heard, "w0")
    for _ in range(2):
        bench.wait_for(Heard, "w0")
    assert [said for said in bench.said if "no room" in said] == told
    assert len(told) == 1 and told[0].startswith(
        "grpo: no room in the cluster yet for rollout worker w1: each asks for 1 CPU on one node; free in all nodes "
        "together: 0 CPU."
    )


def test_a_worker_that_was_ended_waits_for_room_no_more(bench: Bench) -> None:
    assert rooms() == {"w0": "CREATED", "w1": "PENDING", "w2": "REMOVED"}


# From here on in this order: each test goes on with what the one before has left.


def test_the_death_of_an_idle_workers_engine_is_told_with_its_cause(bench: Bench) -> None:
    bench.events.clear()
    (engine,) = (own for own in bench.process("w0").children(recursive=True) if "EngineCore" in " ".join(own.cmdline()))
    engine.kill()
    assert bench.wait_for(Lost, "w0").reason == "its engine died: its process was ended by SIGKILL"


def test_the_learner_goes_on_when_a_worker_is_no_more(bench: Bench) -> None:
    source = bench.learners.source()
    assert source is not None
    version = bench.publish()
    sending = source.learner.send_version.options(concurrency_group=SENDERS)
    with pytest.raises(GroupError, match="broke"):
        for _ in range(100):  # what an engine that died has not read yet may still leave this process
            ray.get(sending.remote("w0", version))
    bench.port.end("w0", "its engine is dead")
    with pytest.raises(GroupError, match="w0 has no group here"):
        ray.get(sending.remote("w0", version))
    assert bench.publish().number == version.number + 1


def test_the_worker_that_waited_gets_the_room(bench: Bench) -> None:
    bench.wait_for(Placed, "w1")
    assert rooms() == {"w0": "REMOVED", "w1": "CREATED", "w2": "REMOVED"}
