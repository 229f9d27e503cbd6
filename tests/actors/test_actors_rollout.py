"""RolloutWorker on a real vLLM engine: log-probs are the model's, and only proved weights are served."""

import asyncio
import copy
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from actors.engine import engine_arguments
from actors.rollout import CanaryMismatch, RolloutRequest, RolloutWorker, StaleWorker, WorkerDead, WorkerState
from actors.weights import EMBEDDING, HEAD, WeightStore, WeightVersion, WeightVersionError, this_memory
from configs.schema import RolloutConfig, SamplingConfig
from models.forward import PolicyForward
from models.inputs import MediaError, encode, load_images, prompt_token_ids
from models.loading import load_policy, load_processor
from models.packing import Tree, pack
from models.tiny import build_tiny
from models.tokens import banned_token_ids

pytestmark = pytest.mark.engine

TOLERANCE = 1e-3


class Worker(RolloutWorker):
    """The real one, which notes its states. `keeps`: what of the old weights an update leaves in the engine's caches, which
    the real one always clears: "pictures" as the vision tower has encoded them, or "all". `looks`: whether it notices."""

    def __init__(self, *values, **named):
        self.keeps, self.looks, self.states = "", True, []
        super().__init__(*values, **named)

    def _enter(self, state):
        self.states.append(state)
        super()._enter(state)

    async def _freeze(self):
        if not self.keeps:
            return await super()._freeze()
        await self._engine.pause_generation(mode="keep", clear_cache=False)
        if self.keeps == "pictures":
            await self._engine.reset_prefix_cache()

    async def _require_empty_caches(self):
        if self.looks:
            await super()._require_empty_caches()

    async def crowd_out(self, request):
        """Leave nothing but this request in the caches, as many others before it would."""
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        await self._engine.resume_generation()
        await self.generate(request)


class Bench:
    """One engine, the learner's model beside it, and a store between them."""

    def __init__(self, folder):
        self.folder = build_tiny(folder / "model", seed=0, init_std=0.15)
        self.processor = load_processor(self.folder)
        self.model = load_policy(self.folder).eval()
        self.forward = PolicyForward(self.model)
        self.banned = banned_token_ids(self.processor, self.model.lm_head.weight.shape[0])
        rng = np.random.default_rng(0)
        self.pictures = [str(folder / f"{i}.png") for i in range(4)]
        for path in self.pictures:
            Image.fromarray(rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)).save(path)
        self.store = WeightStore(folder / "weights")
        self.runner = asyncio.Runner()
        self.worker = Worker("w0", str(self.folder), RolloutConfig(kv_cache_bytes=64 << 20, max_model_len=512))
        self.info = self.run(self.worker.start())
        self.number = 0

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def messages(self, pictures, is_video):
        media = [{"type": "video"}] if is_video else [{"type": "image"}] * pictures
        return [{"role": "user", "content": [*media, {"type": "text", "text": "Where is the chair?"}]}]

    def request(self, name, pictures=1, is_video=False, n=4, tokens=16, seed=11, temperature=1.0, greedy=False):
        ids = prompt_token_ids(self.processor, self.messages(pictures, is_video))
        sampling = SamplingConfig(temperature=temperature, max_new_tokens=tokens)
        return RolloutRequest(name, ids, tuple(self.pictures[:pictures]), is_video, n, seed, sampling, greedy)

    def logprobs(self, generation, request, forward=None):
        """Of every completion's tokens, by the learner's own forward pass."""
        messages = self.messages(len(request.media), request.is_video)
        encoded = encode(self.processor, messages, load_images(request.media), request.is_video)
        assert encoded.input_ids == generation.expanded_prompt_ids
        batch = pack([Tree(encoded, tuple(c.token_ids for c in generation.completions))])
        with torch.no_grad():
            expected = (forward or self.forward)(batch, request.sampling.temperature, self.banned)
        return [row[: len(c.token_ids)] for row, c in zip(expected, generation.completions, strict=True)]

    def gap(self, generation, request):
        """Largest |learner - engine| log-prob of a generation, nats."""
        pairs = zip(self.logprobs(generation, request), generation.completions, strict=True)
        return max(float((row - torch.tensor(c.logprobs)).abs().max()) for row, c in pairs)

    def perturb(self, scale=0.03):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)

    def publish(self, state=None):
        self.number += 1
        return self.store.publish(self.number, self.model.state_dict() if state is None else state)

    def sync(self, version=None):
        """Update, canary, proof: what a trainer does. Returns the canary's gap."""
        request = self.request("canary")
        self.run(self.worker.update_weights(self.publish() if version is None else version))
        gap = self.gap(self.run(self.worker.canary(request)), request)
        self.run(self.worker.prove(gap))
        return gap


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    before = dict(os.environ)
    torch.manual_seed(0)
    bench = Bench(tmp_path_factory.mktemp("rollout"))
    yield bench
    bench.run(bench.worker.stop())
    bench.runner.close()
    bench.store.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def serving(bench):
    """The bench with the model's current weights in the engine, proved."""
    if bench.worker.health().state != "serving":
        bench.sync()
    return bench


@pytest.mark.parametrize(("gpus", "ranks", "executor"), [(0.5, 1, None), (1, 1, None), (2, 2, "mp")])
def test_the_ranks_of_an_engine_are_processes_of_its_actor_which_holds_all_gpus(gpus, ranks, executor):
    arguments = engine_arguments("model", RolloutConfig(num_gpus=gpus), "bfloat16", 0)
    assert arguments["tensor_parallel_size"] == ranks and arguments.get("distributed_executor_backend") == executor


def test_a_started_worker_serves_only_after_its_canary(bench):
    assert bench.info["state"] == "stale" and bench.info["tensors"][HEAD] == bench.info["tensors"][EMBEDDING]
    request = bench.request("first")
    with pytest.raises(StaleWorker, match="w0 is stale at version 0"):
        bench.run(bench.worker.generate(request))
    with pytest.raises(StaleWorker, match="run the canary first"):
        bench.run(bench.worker.prove(0.0))
    canary = bench.run(bench.worker.canary(request))
    bench.run(bench.worker.prove(bench.gap(canary, request)))
    assert bench.run(bench.worker.generate(request)).completions == canary.completions


@pytest.mark.parametrize(("pictures", "temperature"), [(1, 1.0), (3, 0.7)])
def test_image_logprobs_are_the_learners(serving, pictures, temperature):
    request = serving.request("image", pictures, temperature=temperature)
    generation = serving.run(serving.worker.generate(request))
    assert len(generation.completions) == 4
    assert (generation.worker, generation.version) == ("w0", serving.worker.version)
    assert serving.gap(generation, request) < TOLERANCE


def test_video_logprobs_are_the_learners(serving):
    request = serving.request("video", 4, is_video=True)
    assert serving.gap(serving.run(serving.worker.generate(request)), request) < TOLERANCE


def test_a_group_encodes_its_pictures_once(bench):
    bench.sync()  # empties the encoder cache, then encodes the canary's picture
    before = bench.run(bench.worker.image_passes())
    bench.run(bench.worker.generate(bench.request("group", 3, n=8)))
    assert bench.run(bench.worker.image_passes()) - before == 2


def test_new_weights_are_served_and_caches_forget_the_old_ones(serving):
    request = serving.request("same picture", n=2)
    old = serving.run(serving.worker.generate(request))
    with torch.no_grad():
        for parameter in serving.model.model.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert serving.gap(old, request) > 0.05, "the change must show, or this test shows nothing"
    assert serving.sync() < TOLERANCE
    serving.perturb()
    assert serving.sync() < TOLERANCE
    new = serving.run(serving.worker.generate(request))
    assert serving.gap(new, request) < TOLERANCE
    assert new.version == serving.number == old.version + 2


def test_a_worker_does_not_serve_between_update_and_proof(serving):
    serving.run(serving.worker.update_weights(serving.publish()))
    request = serving.request("early")
    with pytest.raises(StaleWorker):
        serving.run(serving.worker.generate(request))
    with pytest.raises(StaleWorker, match="run the canary first"):
        serving.run(serving.worker.prove(0.0))


@pytest.mark.parametrize("gap", [0.5, float("nan")])
def test_a_gap_above_the_tolerance_keeps_the_worker_out(serving, gap):
    serving.run(serving.worker.canary(serving.request("canary")))
    with pytest.raises(CanaryMismatch, match="differ from the learner's"):
        serving.run(serving.worker.prove(gap))
    with pytest.raises(StaleWorker, match="dirty"):
        serving.run(serving.worker.generate(serving.request("after")))


def without(version, *names):
    """The version with a manifest that lacks these tensors; its file has them."""
    return replace(version, manifest=tuple(spec for spec in version.manifest if spec.name not in names))


def rewritten(version, edit):
    """The version, its file changed by `edit` after it was published."""
    content = load_file(version.path)
    edit(content)
    save_file(content, version.path)
    return version


def mistaken(bench):
    """A version whose manifest has a wrong checksum for one tensor."""
    version = bench.publish()
    specs = [replace(spec, checksum="crc32:00000000") if spec.name == EMBEDDING else spec for spec in version.manifest]
    return replace(version, manifest=tuple(specs))


def of_old_head(bench):
    """A version whose embedding is new and whose head, which is tied to it, is the old one: every checksum is right."""
    old = bench.model.lm_head.weight.detach().clone()
    bench.perturb(0.05)
    return bench.publish({**bench.model.state_dict(), HEAD: old})


NORM = "model.language_model.norm.weight"
#: What is planted, and what the worker says of it.
LIES = {
    "a tensor missing in the manifest": (lambda bench: without(bench.publish(), NORM), f"missing {NORM}"),
    "the tied head missing in the manifest": (lambda bench: without(bench.publish(), HEAD), f"missing {HEAD}"),
    "a tensor missing in the file": (
        lambda bench: rewritten(bench.publish(), lambda own: own.pop(NORM)), f"missing .*{NORM}"
    ),
    "of another machine, outside Ray": (
        lambda bench: replace(bench.publish(), memory="another machine"), "its machine alone can read .*v[0-9]+.safetensors"
    ),
    "no file": (lambda bench: replace(bench.publish(), path="/nowhere"), "cannot be read"),
    "a changed byte": (
        lambda bench: rewritten(bench.publish(), lambda own: own[NORM].view(torch.uint8)[:1].bitwise_xor_(1)),
        f"{NORM} has checksum",
    ),
    "a wrong checksum": (mistaken, f"{EMBEDDING} has checksum .* the manifest says crc32:00000000"),
    "an old tied head": (of_old_head, "canary log-probs differ .* does not hold the published weights"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_sync_is_caught_before_a_sample_is_served(serving, lie):
    plant, message = LIES[lie]
    caught(serving, plant(serving), message)


@pytest.mark.parametrize("keeps", ["pictures", "all"])
@pytest.mark.parametrize(
    ("looks", "crowded_out", "message"),
    [
        (True, False, "pictures as the old weights have encoded them are still in the engine's cache"),
        (True, True, "2 pictures as the old weights have encoded them are still in the engine's cache"),
        (False, False, "canary log-probs differ .* or answers from a cache of older ones"),
    ],
)
def test_an_uncleared_cache_is_caught_by_the_update_and_by_the_canary(serving, keeps, looks, crowded_out, message):
    """By the update also when others have pushed the canary's picture out, which the canary then could not see."""
    request = replace(serving.request("others", 2), media=tuple(serving.pictures[2:]))
    serving.run(serving.worker.crowd_out(request) if crowded_out else serving.worker.generate(request))
    with torch.no_grad():
        for parameter in serving.model.model.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    serving.worker.keeps, serving.worker.looks = keeps, looks
    caught(serving, serving.publish(), message)
    assert serving.gap(serving.run(serving.worker.generate(request)), request) < TOLERANCE


def caught(bench, version, message):
    """The version is not served, nor is anything else before a right one has come."""
    bench.worker.states.clear()
    with pytest.raises((WeightVersionError, CanaryMismatch), match=message):
        bench.sync(version)
    assert WorkerState.SERVING not in bench.worker.states and bench.worker.health().state == "dirty"
    with pytest.raises(StaleWorker, match="w0 is dirty .*serves proved versions only"):
        bench.run(bench.worker.generate(bench.request("refused")))
    bench.worker.keeps, bench.worker.looks = "", True
    assert bench.sync() < TOLERANCE
    assert bench.worker.states[-1] is WorkerState.SERVING


def test_the_engine_itself_refuses_a_version_that_leaves_a_parameter_unfilled(serving, monkeypatch):
    whole = serving.publish()
    content = load_file(whole.path)
    del content[HEAD]
    save_file(content, whole.path)
    monkeypatch.delitem(serving.worker._expected, HEAD)  # past the worker's own check
    with pytest.raises(WeightVersionError, match="lm_head.weight.* got no weights"):
        serving.run(serving.worker.update_weights(without(whole, HEAD)))
    monkeypatch.undo()
    assert serving.sync() < TOLERANCE


def test_requests_in_flight_survive_an_update_and_say_which_tokens_are_of_which_weights(serving):
    worker, request, canary = serving.worker, serving.request("long", tokens=300), serving.request("canary")
    old, before = worker.version, PolicyForward(copy.deepcopy(serving.model))

    async def scenario():
        start = worker.health().generated_tokens
        task = asyncio.create_task(worker.generate(request))
        while worker.health().generated_tokens < start + 40:
            await asyncio.sleep(0.01)
        serving.perturb()
        await worker.update_weights(serving.publish())
        await worker.prove(serving.gap(await worker.canary(canary), canary))
        return await task

    generation = serving.run(scenario())
    assert generation.version == old == worker.version - 1
    both = 0
    rows = [serving.logprobs(generation, request, forward) for forward in (before, serving.forward)]
    for member, (completion, ours, theirs) in enumerate(zip(generation.completions, *rows, strict=True)):
        drawn, ends = torch.tensor(completion.logprobs), [first for first, _ in generation.versions(member)[1:]]
        assert [version for _, version in generation.versions(member)] == [old, old + 1][: 1 + len(ends)]
        boundary = ends[0] if ends else len(drawn)
        # Exactly, on both sides: the new weights have computed the prompt and the first tokens again.
        assert float((drawn - ours)[:boundary].abs().max()) < TOLERANCE
        if ends:
            both += 1
            assert float((drawn - theirs)[boundary:].abs().max()) < TOLERANCE
            assert float((drawn - theirs)[:boundary].abs().max()) > TOLERANCE < float((drawn - ours)[boundary:].abs().max())
    assert both > 0


def test_a_completion_that_began_late_survives_an_update_when_the_first_of_its_prompt_are_gone(serving):
    """192 sequences in an engine that runs 128: the last ones found the prompt in the cache, which the update clears."""
    worker, canary, request = serving.worker, serving.request("canary"), serving.request("late", n=192, tokens=40)
    # The cache knows whole blocks of 128 tokens: one has to lie behind the picture.
    request = replace(request, prompt_token_ids=request.prompt_token_ids + request.prompt_token_ids[-1:] * 160)

    async def scenario():
        start = worker.health().generated_tokens
        task = asyncio.create_task(worker.generate(request))
        while worker.health().generated_tokens < start + 128 * 40 + 200 and not task.done():
            await asyncio.sleep(0.01)
        assert not task.done()
        await worker.update_weights(serving.publish())
        await worker.prove(serving.gap(await worker.canary(canary), canary))
        return await task

    generation = serving.run(scenario())
    spans = [[version for _, version in generation.versions(member)] for member in range(192)]
    old = worker.version - 1
    assert spans[0] == [old] and [old, old + 1] in spans


def test_a_canary_waits_for_none_of_the_prompts_that_wait_for_its_proof(serving):
    """192 sequences of 300 tokens in an engine that runs 128: behind them it would come after some 30,000 tokens."""
    worker, canary = serving.worker, serving.request("canary", tokens=8)

    async def scenario():
        start = worker.health().generated_tokens
        tasks = [asyncio.create_task(worker.generate(serving.request(f"crowd {k}", n=64, tokens=300))) for k in range(3)]
        while worker.health().generated_tokens < start + 1000:
            await asyncio.sleep(0.01)
        await worker.update_weights(serving.publish())
        before = worker.health().generated_tokens
        generation = await worker.canary(canary)
        taken = worker.health().generated_tokens - before
        await worker.abandon()
        return generation, taken, await asyncio.gather(*tasks, return_exceptions=True)

    generation, taken, given_up = serving.run(scenario())
    assert serving.gap(generation, canary) < TOLERANCE
    assert taken < 128 * 40 and all(isinstance(error, StaleWorker) for error in given_up)
    assert serving.sync() < TOLERANCE


def test_requests_in_flight_fail_when_the_update_does(serving):
    worker, request = serving.worker, serving.request("doomed", tokens=300)

    async def scenario():
        start = worker.health().generated_tokens
        task = asyncio.create_task(worker.generate(request))
        while worker.health().generated_tokens < start + 8:
            await asyncio.sleep(0.01)
        with pytest.raises(WeightVersionError):
            await worker.update_weights(WeightVersion(99, (), "nowhere", 0, this_memory(), None))
        with pytest.raises(StaleWorker):
            await asyncio.wait_for(task, 60)

    serving.run(scenario())
    assert worker.health().in_flight == 0


def test_samples_repeat_with_the_seed_and_children_differ(serving):
    first, again, other = (
        serving.run(serving.worker.generate(serving.request("seeded", seed=seed))).completions for seed in (5, 5, 500)
    )
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert [c.token_ids for c in first] != [c.token_ids for c in other]
    assert len({c.token_ids for c in first}) == 4


def test_seeded_prompts_beyond_a_default_step_budget_do_not_kill_the_engine(serving):
    requests = [serving.request(f"wide {k}", 4, n=8, tokens=2, seed=k) for k in range(16)]
    generations = serving.run(serving.worker.generate_many(requests))
    assert sum(len(g.expanded_prompt_ids) * 8 for g in generations) > 8192
    alone = serving.run(serving.worker.generate(requests[-1]))
    assert [c.token_ids for c in alone.completions] == [c.token_ids for c in generations[-1].completions]


def test_banned_tokens_are_never_sampled(serving):
    request = serving.request("hot", n=64, tokens=100, temperature=2.0)  # some 20 in 6,000 if not banned
    tokens = [t for c in serving.run(serving.worker.generate(request)).completions for t in c.token_ids]
    assert len(tokens) > 4000 and not set(tokens) & set(serving.banned)


def test_many_greedy_generations_keep_their_order_and_are_the_most_likely(serving):
    requests = [serving.request(f"eval {k}", 1 + k % 3, n=1, tokens=8, greedy=True) for k in range(9)]
    generations = serving.run(serving.worker.generate_many(requests))
    assert [g.request_id for g in generations] == [r.request_id for r in requests]
    assert generations[0].completions[0].token_ids == generations[3].completions[0].token_ids
    assert all(serving.gap(g, r) < TOLERANCE for g, r in zip(generations, requests))
    assert all(value >= -np.log(serving.info["vocab_size"]) for g in generations for value in g.completions[0].logprobs)


def test_an_unreadable_picture_is_named(serving, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    request = serving.request("broken")
    broken = RolloutRequest(**{**vars(request), "media": (str(tmp_path / "broken.png"),)})
    with pytest.raises(MediaError, match="broken.png"):
        serving.run(serving.worker.generate(broken))


def test_a_request_the_engine_refuses_is_a_value_error(serving):
    request = serving.request("too long", tokens=16)
    endless = RolloutRequest(**{**vars(request), "prompt_token_ids": request.prompt_token_ids + (300,) * 600})
    with pytest.raises(ValueError, match="worker w0: request too long was refused"):
        serving.run(serving.worker.generate(endless))
    assert serving.worker.health().in_flight == 0


def test_the_death_of_the_engine_is_an_error_not_a_wait(serving):  # last: it kills the module's engine
    worker = serving.worker

    async def scenario():
        start = worker.health().generated_tokens
        task = asyncio.create_task(worker.generate(serving.request("last", tokens=400)))
        while worker.health().generated_tokens < start + 8:
            await asyncio.sleep(0.01)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(WorkerDead, match="request last: its process was ended by SIGKILL"):
            await asyncio.wait_for(task, 60)

    serving.run(scenario())
    assert (worker.health().state, worker.health().reason) == ("dead", "its process was ended by SIGKILL")
    with pytest.raises(StaleWorker, match="dead"):
        serving.run(worker.generate(serving.request("after")))
