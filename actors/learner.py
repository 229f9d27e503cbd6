"""One rank of the GRPO learner: a DeepSpeed engine over the policy, a frozen reference, one step of GRPO per call.

What holds
    * Trained tokens are sampled tokens: ids and behaviour log-probs come from the engine that sampled them. The prompt
      is encoded here from the row's pictures and must equal, id for id, what the engine ran on (PromptMismatch).
    * A group is one tree (`models.packing`): its prompt, pictures included, is forwarded once for all its members, for
      the policy and for the reference.
    * The old log-probs are those of the weights before the step: of its first forward pass, detached, also for later
      inner epochs. In the first, the ratio is 1, the clip idle, and the gap to the engine is measured on every token that
      these weights drew; tokens of older ones are in the importance ratios only.
    * The loss is a global sum over a global count, so it does not depend on ranks or passes.
    * `step`, `penalties`, `logprobs`, `publish`, `save`, `load` and `export` are collective: call them on every rank, in
      one order. What is said of groups is for rank 0 alone, in other threads, while any of these runs (`weight_groups`).

A plain class: `ray.remote` wraps it at the edge.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from actors.checkpoints import Stamps, stamps
from actors.batching import TrainBatch, TrainGroup
from actors.file_parts import this_node
from actors.learner_pass import LearnerPass, pack_pass
from actors.reference import Forward, OwnReference, PolicyWithoutAdapters, Reference
from actors.weight_groups import GroupSender, Meeting
from actors.weights import WeightStore, WeightVersion, shared_memory_folder
from configs.schema import RunConfig
from data.types import Prompt
from grpo.aggregation import aggregate, step_denominator
from grpo.importance import Importance
from grpo.kl import reward_penalty
from grpo.losses import LossSettings, token_loss
from grpo.objectives import Objective
from grpo.stats import TokenStats, token_stats
from models.adapters import add_adapters, merged
from models.deepspeed_engine import PolicyEngine, free_port, leave_process_group, set_rank_environment
from models.forward import PolicyForward
from models.inputs import Encoded, encode, load_images
from models.loading import load_policy, load_processor, save_policy
from models.packing import Tree, pack
from models.passes import plan_passes
from models.tokens import banned_token_ids


class PromptMismatch(RuntimeError):
    """Engine and learner do not see the same prompt; training on it would be wrong. Says where they part."""


class Learner:
    """Rank `rank` of `ranks`. Cheap to make; `start` loads and joins."""

    def __init__(
        self, config: RunConfig, model_folder: str, stage_folder: str, rank: int, ranks: int, steps: int
    ) -> None:
        """`model_folder` is the base of the stage and its reference; `steps`: optimizer steps of the whole run."""
        self._config, self._base, self._stage_folder = config, model_folder, stage_folder
        self._rank, self._ranks, self._steps = rank, ranks, steps
        self._device = torch.device("cuda:0" if config.learner.num_gpus else "cpu")
        self._store: WeightStore | None = None
        self._groups: GroupSender | None = None
        self._pictures_read = self._pictures_seen = 0  # since the last step's report
        grpo = config.grpo
        self._loss_settings = LossSettings(
            Objective(**grpo.objective.model_dump()),
            Importance(**grpo.importance.model_dump()),
            grpo.kl.estimator,
            grpo.kl.coef if grpo.kl.place == "loss" else 0.0,
        )

    def address(self) -> tuple[str, int]:
        """Where the ranks meet: this machine and a port that is free now. Ask rank 0."""
        return _this_machine() if self._ranks > 1 else "127.0.0.1", free_port()

    def start(self, address: str, port: int, checkpoint: str | None = None) -> dict[str, Any]:
        """Load policy, reference and optimizer, join the other ranks, restore `checkpoint` (a folder `save` wrote).

        Returns {"pid", "parameters"}. Errors: ModelFolderError, FileNotFoundError for a missing checkpoint.
        """
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        settings = self._config.learner
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        set_rank_environment(self._rank, self._ranks, address, port)
        self._processor = load_processor(self._base)
        self._model = load_policy(self._base, self._config.model.dtype, str(self._device))
        self._banned = banned_token_ids(self._processor, self._model.config.get_text_config().vocab_size)
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._freeze()
        if settings.gradient_checkpointing:
            self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._model.train()
        self._engine = PolicyEngine(
            PolicyForward(
                self._model, self._config.model.attention, always_see=self._ranks > 1 and not self._shares_eyes
            ),
            settings.optimizer,
            settings.zero_stage,
            self._steps * self._config.grpo.inner_epochs,
            self._device,
        )
        self._reference = self._load_reference()
        if checkpoint is not None:
            self._engine.load(Path(checkpoint), "engine")
        if self._rank == 0:
            folder, tied = shared_memory_folder(self._stage_folder), self._model.config.tie_word_embeddings
            self._store = WeightStore(folder, tied, this_node())
            if self._config.rollout.transport == "collective":
                self._groups = GroupSender(_this_machine(), self._device)
        return {"pid": os.getpid(), "parameters": parameters}

    def _freeze(self) -> None:
        """Leave what trains. `_shares_eyes`: a frozen vision tower that is whole on this rank runs once for policy and
        reference, ahead of both; a policy in shards has none, its reference may."""
        model, sharded = self._config.model, self._config.learner.zero_stage == 3
        if model.lora is not None:
            add_adapters(self._model, model.lora, self._config.seed)
        elif model.freeze_vision:
            self._model.model.visual.requires_grad_(False)
        own_reference = self._config.grpo.kl.coef > 0 and model.lora is None
        self._shares_eyes = (model.freeze_vision or model.lora is not None) and (own_reference or not sharded)

    def _load_reference(self) -> Reference | None:
        model = self._config.model
        if self._config.grpo.kl.coef == 0:
            return None
        if model.lora is not None:
            return PolicyWithoutAdapters(self._engine)
        frozen = load_policy(self._base, model.dtype, str(self._device))
        return OwnReference(PolicyForward(frozen, model.attention), self._device, self._config.learner.offload_reference)

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """`grpo.inner_epochs` optimizer steps on the completions of the whole step (all ranks get all, each takes its part).

        Returns the same numbers on every rank: loss, lr and grad_norm of the last update; kl, clip_fraction, is_ratio_*,
        is_ratio_stale_* (of tokens of older versions than `batch.version`) and logprob_gap_* (of its own) over all updates,
        where there are such tokens; trained_tokens, and image_passes / vision_passes (reads of pictures / pictures
        through vision towers, policy and reference). ValueError without groups: there is nothing to average, leave it out.
        """
        if not batch.groups:
            raise ValueError("a step without groups has nothing to average: leave it out")
        settings = self._config.grpo
        denominator = step_denominator(
            settings.aggregation, batch.sequences, batch.tokens, settings.sampling.max_new_tokens
        )
        passes, stats = self._passes(batch.groups), TokenStats()
        self._prepare(passes, settings.kl.place == "loss")
        for _ in range(settings.inner_epochs):
            loss = 0.0
            for one in passes:
                part, part_stats = self._loss(one, denominator, batch.version)
                self._engine.backward(part)
                if one.counts:
                    loss, stats = loss + float(part.detach()), stats.merge(part_stats)
            update = self._engine.step()
        totals = self._engine.sum_over_ranks(
            {"loss": loss, "image_passes": self._pictures_read, "vision_passes": self._pictures_seen}
        )
        self._pictures_read = self._pictures_seen = 0
        numbers = self._merged(stats).metrics()
        if passes[0].reference is None:
            numbers.pop("kl", None)  # nothing to diverge from
        return {
            **totals,
            "lr": update.learning_rate,
            "grad_norm": update.grad_norm,
            "trained_tokens": sum(sum(group.size().completions) for group in batch.groups),
            **numbers,
        }

    def _passes(self, groups: Sequence[TrainGroup]) -> list[LearnerPass]:
        """This rank's part of the groups, encoded and packed; pictures are read once for each group that shows them."""
        budget = self._config.learner.micro_batch_tokens
        plan = plan_passes([group.size() for group in groups], self._ranks, budget)[self._rank]
        encoded: dict[int, Encoded] = {}
        passes = []
        for one in plan:
            for index in dict.fromkeys(piece.tree for piece in one.slices):
                if index not in encoded:
                    encoded[index] = self._encode(groups[index].prompt, groups[index].expanded_prompt_ids)
                    self._pictures_read += _pictures(groups[index].prompt)
            passes.append(pack_pass(one, groups, encoded))
        return passes

    def _loss(self, one: LearnerPass, denominator: float, version: int) -> tuple[torch.Tensor, TokenStats]:
        """This pass's share of the step's loss, with gradient, and its statistics.

        The first call on a pass comes before the first update: its log-probs are the old ones.
        """
        settings, batch = self._config.grpo, one.batch.to(self._device)
        behaviour, advantages = one.behaviour.to(self._device), one.advantages.to(self._device)
        logprobs = self._engine(batch, settings.sampling.temperature, self._banned, one.features)
        self._pictures_seen += one.pictures if one.features is None else 0
        if one.old is None:
            one.old = logprobs.detach()
        terms = token_loss(logprobs, one.old, behaviour, advantages, batch.mask, self._loss_settings, one.reference)
        loss = aggregate(terms.loss_R_T, batch.mask, settings.aggregation, denominator) * float(one.counts)
        return loss, token_stats(terms, one.old, behaviour, batch.mask, one.versions.to(self._device) == version)

    @torch.no_grad()
    def _prepare(self, passes: Sequence[LearnerPass], diverges: bool) -> None:
        """What does not change within a step: visual tokens of a frozen tower; log-probs of the reference, if `diverges`."""
        needed = diverges or (self._shares_eyes and self._config.learner.zero_stage == 3)
        with self._reference.awake() if needed and self._reference is not None else nullcontext() as reference:
            for one in passes:
                batch = one.batch.to(self._device)
                if self._shares_eyes and one.pictures:
                    one.features = self._tower(reference).visual(batch.pixel_values, batch.grid_thw)
                    self._pictures_seen += one.pictures
                if diverges and reference is not None:
                    one.reference = reference(batch, self._config.grpo.sampling.temperature, self._banned, one.features)
                    self._pictures_seen += one.pictures if one.features is None else 0

    def _tower(self, reference: Forward | None) -> PolicyForward:
        sharded = self._config.learner.zero_stage == 3
        return reference if sharded else self._engine.module

    def penalties(self, groups: Sequence[TrainGroup]) -> list[list[float]]:
        """What every completion's reward loses for its divergence from the reference (`grpo.kl`), on every rank.

        The policy's log-probs are the engine's, of the tokens it sampled.
        """
        kl = self._config.grpo.kl
        own: dict[str, float] = {f"{g}:{m}": 0.0 for g, group in enumerate(groups) for m in range(len(group.advantages))}
        passes = self._passes(groups)
        self._prepare(passes, diverges=True)
        for one in passes:
            if one.counts:
                behaviour, mask = one.behaviour.to(self._device), one.batch.mask.to(self._device)
                lost = reward_penalty(behaviour, one.reference, mask, kl.estimator, kl.coef).tolist()
                own |= {f"{g}:{m}": value for (g, m), value in zip(one.members, lost, strict=True)}
        everywhere = self._engine.sum_over_ranks(own)
        return [[everywhere[f"{g}:{m}"] for m in range(len(group.advantages))] for g, group in enumerate(groups)]

    def _merged(self, stats: TokenStats) -> TokenStats:
        """The stats of all ranks together."""
        own = {name: float(value) for name, value in vars(stats).items()}
        sums = self._engine.sum_over_ranks({name: value for name, value in own.items() if not name.endswith("_max")})
        largest = self._engine.max_over_ranks({name: value for name, value in own.items() if name.endswith("_max")})
        counts = {name: int(sums.pop(name)) for name in ("tokens", "clipped", "dropped", "fresh")}
        return TokenStats(**counts, **sums, **largest)

    def _encode(self, prompt: Prompt, expanded_prompt_ids: Sequence[int]) -> Encoded:
        example = prompt.example
        images = load_images(example.media)
        encoded = encode(
            self._processor,
            prompt.messages,
            images,
            example.data_type == "video",
            self._model.config.vision_config.tokens_per_second,
            example.media,
        )
        if encoded.input_ids != tuple(expanded_prompt_ids):
            pairs = zip(encoded.input_ids, expanded_prompt_ids, strict=False)
            place = next(
                (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs),
                min(len(encoded.input_ids), len(expanded_prompt_ids)),
            )
            raise PromptMismatch(
                f"row {example.id}: the learner's prompt has {len(encoded.input_ids)} tokens, the engine's "
                f"{len(expanded_prompt_ids)}; they part at token {place}. Do both use the same model folder?"
            )
        return encoded

    @torch.no_grad()
    def logprobs(
        self, prompt: Prompt, expanded_prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Log-probs of the completions' tokens under the current weights, at the sampling temperature: the canary."""
        encoded = self._encode(prompt, expanded_prompt_ids)
        batch = pack([Tree(encoded, tuple(map(tuple, completions)))]).to(self._device)
        rows = self._engine(batch, self._config.grpo.sampling.temperature, self._banned).cpu()
        return [row[: len(ids)].tolist() for row, ids in zip(rows, completions, strict=True)]

    def publish(self, number: int) -> WeightVersion | None:
        """Publish the current weights as version `number`, from rank 0 (None on the others); older ones stay."""
        weights = self._weights()
        return self._store.publish(number, weights) if self._store is not None else None

    def _weights(self) -> dict[str, torch.Tensor]:
        """Those of the plain model on rank 0, none on the others."""
        return merged(self._engine.state_dict(), self._config.model.lora)

    def open_group(self, worker: str, ranks: int, gpu: bool, silence: float) -> Meeting:
        """Where the worker's engine will be sent versions; see `GroupSender.open`. Ask rank 0, when it has started."""
        assert self._groups is not None
        return self._groups.open(worker, ranks, gpu, silence)

    def send_version(self, worker: str, version: WeightVersion) -> None:
        """Send a version that is published; raises as `GroupSender.send`."""
        assert self._groups is not None
        self._groups.send(worker, version)

    def close_group(self, worker: str) -> None:
        """The worker is no more."""
        if self._groups is not None:
            self._groups.close(worker)

    def release_all_but(self, numbers: Collection[int]) -> None:
        """Unlink all other versions: no worker needs them."""
        if self._store is not None:
            for old in [live for live in self._store.live if live not in numbers]:
                self._store.release(old)

    def save(self, folder: str) -> None:
        """Weights, optimizer and schedule into `folder`."""
        self._engine.save(Path(folder), "engine", {})

    def stamps(self, folder: str) -> Stamps:
        """Of the files that all ranks have saved there. Ask one rank, when `save` is done on all."""
        return stamps(Path(folder))

    def export(self, folder: str) -> None:
        """The model with its processor in the Hugging Face layout, whole or not at all."""
        weights = self._weights()
        if self._rank == 0:
            save_policy(self._model, self._base, folder, weights)

    def close(self) -> None:
        """Remove the published weights and leave the other ranks."""
        if self._store is not None:
            self._store.close()
        if self._groups is not None:
            self._groups.close_all()
        leave_process_group()


def _this_machine() -> str:
    """Its address, as other nodes reach it."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _pictures(prompt: Prompt) -> int:
    """Media of a prompt as the vision tower counts them: a video is one."""
    return 1 if prompt.example.data_type == "video" else len(prompt.example.media)
