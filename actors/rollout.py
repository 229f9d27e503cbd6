"""RolloutWorker: one vLLM engine that samples groups and takes new weights. A plain async class; Ray wraps it outside.

    NEW --start--> STALE --canary, prove--> SERVING --update_weights--> UPDATING --> STALE ...
                     any failed update or proof --> DIRTY --complete update--> STALE;  engine death --> DEAD

What holds
    * It answers `generate` only in SERVING: with weights whose manifest was complete, whose checksums were equal, and
      whose canary log-probs agreed with the learner's. The one exception is explicit:
      `start(trusted=True)` serves the checkpoint's own weights, for evaluation, where there is no learner to ask.
    * Requests in flight during an update are frozen and continue on the new weights, which compute their prompt and their
      first tokens again; their answers are handed out only after the proof. A completion says which of its tokens are of
      which version.
    * A version that was published on another machine is copied to this one first (`actors.weight_copies`); requests in
      flight go on meanwhile. From a learner that sends it comes over a group (`actors.weight_groups`); if it does not, from
      its file all the same, while requests in flight stay frozen.
    * Caches that depend on weights (prefix, encoder, multimodal) are cleared as part of every update, which fails if one is
      not empty then. The canary alone could miss it: if other prompts have pushed its own out, it is computed afresh.
    * Log-probs are those the tokens were drawn from: after temperature and bans.
    * A prompt is one request with n = G; its pictures are read from disk once and encoded once.

The engine belongs to the event loop that ran `start`: under Ray, use one plain async actor with `max_concurrency` > 1
and no concurrency groups, else calls never return.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Sequence

from actors.engine import Progress, build, engine_ranks, prepare_environment
from actors.engine_death import fatal_error, own_output, why_dead
from actors.types import Completion, Generation, RolloutRequest
from actors.weight_copies import LocalCopies
from actors.weight_groups import GroupError, GroupReceiver, Source
from actors.weights import WeightVersion, WeightVersionError, check_complete, expected_shapes, this_memory
from configs.schema import RolloutConfig
from models.inputs import engine_media, load_images
from models.loading import load_processor
from models.tokens import banned_token_ids, end_token_id

#: vLLM adds this to a banned token's logit; after softmax nothing is left of it.
BAN_BIAS = -100.0
#: Of a canary; of others 0, lower goes first. All prompts in the engine wait for its proof, so it does not wait for them.
CANARY_PRIORITY = -1


class StaleWorker(RuntimeError):
    """The worker was asked to serve, but its weights are not a proved version."""


class WorkerDead(RuntimeError):
    """The engine's process is gone; start a new worker."""


class CanaryMismatch(RuntimeError):
    """The learner's log-probs of the canary differ from the worker's by more than the tolerance."""


class WorkerState(str, Enum):
    NEW = "new"
    STALE = "stale"
    SERVING = "serving"
    UPDATING = "updating"
    DIRTY = "dirty"
    DEAD = "dead"


@dataclass(frozen=True)
class WorkerHealth:
    """A worker's own view. `progress` grows while the engine computes; `in_flight` counts requests not yet answered;
    `reason`: of a dead engine's death."""

    worker: str
    state: str
    version: int
    in_flight: int
    progress: int
    prompts: int
    generated_tokens: int
    reason: str = ""


@dataclass(frozen=True)
class Taken:
    """How a version was taken: seconds, and why it did not come over a group although the learner would send it."""

    seconds: float
    remark: str | None = None


class RolloutWorker:
    """See the module docstring. `version` counts published weight versions; the checkpoint itself is version 0."""

    def __init__(self, worker_id: str, model_path: str, config: RolloutConfig, dtype: str = "float32", seed: int = 0):
        prepare_environment(config)
        self.worker_id = worker_id
        self.model_path = model_path
        self.config = config
        self.dtype = dtype
        self.seed = seed
        self.version = 0
        self.state = WorkerState.NEW
        self._engine = None
        self._progress = Progress()
        self._copies = LocalCopies(self._progress.moved)
        self._group = GroupReceiver(worker_id, engine_ranks(config), config.num_gpus > 0)
        self._prompts = 0
        self._in_flight = 0
        self._canary_version: int | None = None
        self._canary_images = 0
        self._expected: dict[str, tuple[int, ...]] = {}
        self._update_lock = asyncio.Lock()
        self._settled = asyncio.Event()

    async def start(self, trusted: bool = False) -> dict:
        """Start the engine on the model folder; returns what it is (plain data, "tensors": expected name -> shape).

        `trusted` serves the checkpoint's weights without a canary. Raises what the loaders and vLLM raise.
        """
        if self.state is not WorkerState.NEW:
            raise RuntimeError(f"worker {self.worker_id} was already started")
        started = time.monotonic()
        processor = load_processor(self.model_path)
        self._expected = expected_shapes(self.model_path)
        try:
            self._engine = build(self.model_path, self.config, self.dtype, self.seed, self._progress)
        except RuntimeError as error:  # vLLM's names no cause: that is in the output of the engine's process
            cause = fatal_error(own_output())
            raise RuntimeError(f"{error}{'' if cause is None else f': {cause}'}") from error
        vocabulary = self._engine.model_config.get_vocab_size()
        self._banned = tuple(banned_token_ids(processor, vocabulary))
        self._end = end_token_id(processor)
        await self._engine.collective_rpc("ladder_count_images")
        await self._engine.update_weight_version(str(self.version))
        self._enter(WorkerState.SERVING if trusted else WorkerState.STALE)
        return {
            "worker": self.worker_id,
            "state": self.state.value,
            "version": self.version,
            "pid": os.getpid(),
            "seconds": time.monotonic() - started,
            "vocab_size": vocabulary,
            "banned_token_ids": self._banned,
            "tensors": dict(self._expected),
        }

    async def generate(self, request: RolloutRequest) -> Generation:
        """Sample the G completions of one prompt.

        Raises StaleWorker unless the worker serves a proved version (also when a version that some of the tokens came
        from fails its proof), WorkerDead when the engine died, MediaError for an unreadable picture, ValueError for a
        request the engine refuses (too long, bad sampling values).
        """
        self._require_serving()
        generation = await self._sample(request)
        await self._settled.wait()
        self._require_serving()
        return generation

    async def generate_many(self, requests: Sequence[RolloutRequest]) -> list[Generation]:
        """The generations of many requests, in their order, at most `max_num_seqs` prompts at a time."""
        slots = asyncio.Semaphore(self.config.max_num_seqs)

        async def one(request: RolloutRequest) -> Generation:
            async with slots:
                return await self.generate(request)

        return list(await asyncio.gather(*(one(request) for request in requests)))

    async def canary(self, request: RolloutRequest) -> Generation:
        """Sample the canary prompt with the current weights, proved or not, for the learner to recompute.

        Use a prompt with a picture, temperature 1 and a few completions of some tokens: greedy tokens of a confident
        model have log-probs near 0 under any weights.
        """
        if self.state not in (WorkerState.STALE, WorkerState.SERVING):
            raise StaleWorker(f"worker {self.worker_id} is {self.state.value}: no complete weights to run a canary on")
        fresh = self._canary_version is None  # since the last update, which has cleared the encoder's cache
        generation = await self._sample(request, CANARY_PRIORITY)
        self._canary_images += fresh * request.pictures
        self._canary_version = generation.version
        return generation

    async def prove(self, gap: float) -> None:
        """Admit the current version: `gap` is the largest |learner - worker| log-prob of its canary, in nats.

        Raises CanaryMismatch (and stays out of service) when the gap exceeds `canary_tolerance` or is no number, and
        StaleWorker when no canary was run since the last update.
        """
        if self.state not in (WorkerState.STALE, WorkerState.SERVING) or self._canary_version != self.version:
            raise StaleWorker(
                f"worker {self.worker_id} is {self.state.value} at version {self.version}; "
                f"its last canary was of version {self._canary_version}: run the canary first"
            )
        if not gap <= self.config.canary_tolerance or not math.isfinite(gap):
            self._enter(WorkerState.DIRTY)
            raise CanaryMismatch(
                f"worker {self.worker_id}, version {self.version}: canary log-probs differ from the learner's by "
                f"{gap:.3g} nats, {self.config.canary_tolerance:g} are allowed; the engine does not hold the published "
                "weights, or answers from a cache of older ones"
            )
        self._enter(WorkerState.SERVING)

    async def update_weights(
        self, version: WeightVersion, source: Source | None = None, trusted: bool = False
    ) -> Taken:
        """Take a published version, sent by `source` if there is one. The worker is then STALE until `prove`.

        `trusted` serves it at once, checksums verified but without a canary: a checkpoint to evaluate has no learner
        to ask.

        Raises WeightVersionError when the manifest is incomplete, a checksum is wrong, or the engine could not load
        it; the worker is then DIRTY, its frozen requests are ended, and it serves nothing before a complete update.
        """
        async with self._update_lock:
            if self.state in (WorkerState.NEW, WorkerState.DEAD):
                raise StaleWorker(f"worker {self.worker_id} is {self.state.value}: it cannot take weights")
            started = time.monotonic()
            self._enter(WorkerState.UPDATING)
            self._canary_version = None
            try:
                check_complete(version.manifest, self._expected)
                remark = await self._take(version, source)
            except Exception as error:  # the engine reports a worker's failure as a bare Exception
                await self._end_frozen_requests()
                death = self._why_dead()
                cause = f"its engine died: {death}" if death else str(error)
                refusal = f"worker {self.worker_id} refused version {version.number}: {cause}"
                raise WeightVersionError(refusal) from error
            self.version = version.number
            self._enter(WorkerState.SERVING if trusted else WorkerState.STALE)
            return Taken(time.monotonic() - started, remark)

    async def _take(self, version: WeightVersion, source: Source | None) -> str | None:
        """Over the group, else from its file; returns why not over the group."""
        remark = None
        if self._group.wants(source):
            try:
                await self._group.take(version, lambda update: self._transfer(version.number, update))
                return None
            except GroupError as error:
                remark = str(error)
                self._progress.moved()
        async with self._here(version) as local:
            await self._transfer(version.number, local.wire())
        return remark

    def _here(self, version: WeightVersion) -> AbstractAsyncContextManager[WeightVersion]:
        """The version with a path that can be read here."""
        transport = self.config.transport
        copied = transport == "objects" or (transport != "memory" and version.memory != this_memory())
        return self._copies.here(version) if copied else nullcontext(version)

    async def _transfer(self, number: int, update: dict) -> None:
        """vLLM's four phases, between two tokens of the requests in flight. `update`: of the backend's `VersionUpdate`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._freeze()
        await self._require_empty_caches()
        await self._engine.start_weight_update()
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=update))
        await self._engine.finish_weight_update(str(number))
        await self._engine.resume_generation()

    async def _freeze(self) -> None:
        """Stop every request where it is, and clear every cache that depends on weights."""
        await self._engine.pause_generation(mode="keep", clear_cache=True)

    async def _require_empty_caches(self) -> None:
        """WeightVersionError when the engine, which is paused, still has something that the old weights have made."""
        if not await self._engine.reset_prefix_cache(reset_running_requests=True):
            raise WeightVersionError("prompts as the old weights have computed them are still in the engine's prefix cache")
        if pictures := max(await self._engine.collective_rpc("ladder_cached_pictures")):
            kept = f"{pictures} pictures as the old weights have encoded them"
            raise WeightVersionError(f"{kept} are still in the engine's cache")

    async def _end_frozen_requests(self) -> None:
        self._enter(WorkerState.DEAD if self._engine.errored else WorkerState.DIRTY)
        if self.state is WorkerState.DIRTY:
            await self._engine.pause_generation(mode="abort", clear_cache=True)
            await self._engine.resume_generation()

    async def abandon(self) -> None:
        """Nobody wants what is running: end it. The worker serves again after a complete update and its proof."""
        async with self._update_lock:
            if self.state in (WorkerState.STALE, WorkerState.SERVING, WorkerState.DIRTY):
                await self._end_frozen_requests()

    def health(self) -> WorkerHealth:
        """Answers at once, whatever the engine is doing."""
        if self._engine is not None and self._engine.errored:
            self._enter(WorkerState.DEAD)
        return WorkerHealth(
            worker=self.worker_id,
            state=self.state.value,
            version=self.version,
            in_flight=self._in_flight,
            progress=self._progress.value,
            prompts=self._prompts,
            generated_tokens=self._progress.generated_tokens,
            reason=self._why_dead(),
        )

    def _why_dead(self) -> str:
        return why_dead(self._engine) if self.state is WorkerState.DEAD and self._engine is not None else ""

    async def image_passes(self) -> int:
        """Pictures (a video counts as one) that went through the engine's vision tower since the start, but for canaries."""
        return (await self._engine.collective_rpc("ladder_images"))[0] - self._canary_images

    async def stop(self) -> None:
        """End the engine's process. The worker cannot be started again."""
        self._enter(WorkerState.DEAD)
        self._copies.close()
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.shutdown()

    def _enter(self, state: WorkerState) -> None:
        """Change state; waiters of finished requests wake when the weights are proved, or known to be useless."""
        self.state = state
        if state in (WorkerState.STALE, WorkerState.UPDATING):
            self._settled.clear()
        else:
            self._settled.set()

    def _require_serving(self) -> None:
        if self.state is not WorkerState.SERVING:
            raise StaleWorker(
                f"worker {self.worker_id} is {self.state.value} at version {self.version}; "
                "it serves proved versions only"
            )

    async def _sample(self, request: RolloutRequest, priority: int = 0) -> Generation:
        started = time.monotonic()
        prompt: dict = {"prompt_token_ids": list(request.prompt_token_ids)}
        if request.media:
            images = await asyncio.to_thread(load_images, request.media)
            prompt["multi_modal_data"] = engine_media(images, request.is_video)
        self._in_flight += 1
        try:
            final, encoded = await self._ask_engine(request, prompt, priority)
        finally:
            self._in_flight -= 1
        completions = tuple(_completion(output) for output in sorted(final.outputs, key=lambda o: o.index))
        versions = [version for completion in completions for _, version in completion.versions]
        return Generation(
            request_id=request.request_id,
            expanded_prompt_ids=tuple(final.prompt_token_ids),
            completions=completions,
            version=min(versions, default=self.version),
            worker=self.worker_id,
            seconds=time.monotonic() - started,
            pictures_encoded=encoded,
        )

    async def _ask_engine(self, request: RolloutRequest, prompt: dict, priority: int):
        """The engine's final RequestOutput, and how many pictures it has encoded by then.

        vLLM's error types end here: the caller's process may not know them.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._engine is None:
            raise WorkerDead(f"worker {self.worker_id} was stopped")
        self._prompts += 1
        # Ids are the caller's to choose; the engine's must be unique also when a prompt is issued again.
        engine_id = f"{request.request_id}#{self._prompts}"
        final = None
        try:
            async for output in self._engine.generate(prompt, self._parameters(request), engine_id, priority=priority):
                final = output
            encoded = await self.image_passes()
        except EngineDeadError as error:
            self._enter(WorkerState.DEAD)
            cause = self._why_dead() or str(error)  # of one that was stopped
            raise WorkerDead(
                f"worker {self.worker_id}: the engine died during request {request.request_id}: {cause}"
            ) from None
        except (ValueError, VLLMClientError) as error:
            raise ValueError(f"worker {self.worker_id}: request {request.request_id} was refused: {error}") from None
        return final, encoded

    def _parameters(self, request: RolloutRequest):
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            n=request.n,
            seed=request.seed,
            temperature=0.0 if request.greedy else request.sampling.temperature,
            max_tokens=request.sampling.max_new_tokens,
            stop_token_ids=[self._end],
            logit_bias={token: BAN_BIAS for token in self._banned},
            logprobs=0,
            skip_special_tokens=False,  # the format reward must see what the policy really wrote
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _completion(output) -> Completion:
    """Ids, log-probs and version spans of one finished vLLM CompletionOutput."""
    token_ids = tuple(output.token_ids)
    logprobs = tuple(entry[token].logprob for token, entry in zip(token_ids, output.logprobs or (), strict=True))
    versions = tuple((span.start, int(span.version)) for span in output.weight_versions or ())
    return Completion(token_ids, logprobs, output.text, output.finish_reason, versions)
