"""One rank of the GRPO learner: a DeepSpeed engine over the policy, a frozen reference, one optimizer step per call.

What holds
    * Trained tokens are sampled tokens: ids and behaviour log-probs come from the engine that sampled them. The prompt
      is encoded here from the row's pictures and must equal, id for id, what the engine ran on (PromptMismatch).
    * The old log-probs are those of the weights before the step. With one update per batch they are the detached
      current ones: ratio 1, clip idle, and the gap to the engine's log-probs is measured on every trained token.
    * The loss is a global sum over a global count, so it does not depend on ranks or passes. Members without gradient
      (failed, truncated, groups without spread) are not sent here.
    * A picture is read and processed once per prompt; members of a group share its vision pass.
    * `step`, `logprobs`, `publish`, `save`, `load` and `export` are collective: call them on every rank, in one order.

A plain class: `ray.remote` wraps it at the edge.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.batching import Pass, TrainGroup, plan_passes
from actors.weights import WeightStore, WeightVersion, shared_memory_folder
from configs.schema import RunConfig
from data.types import Prompt
from grpo.aggregation import aggregate, step_denominator
from grpo.losses import token_loss
from grpo.stats import TokenStats, token_stats
from models.deepspeed_engine import PolicyEngine, free_port, set_rank_environment
from models.forward import PolicyForward, Sample, build_batch
from models.inputs import Encoded, encode, load_images
from models.loading import load_policy, load_processor, save_policy
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

    def address(self) -> tuple[str, int]:
        """Where the ranks meet: this machine and a port that is free now. Ask rank 0."""
        from ray.util import get_node_ip_address

        return get_node_ip_address() if self._ranks > 1 else "127.0.0.1", free_port()

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
        self._pad = self._processor.tokenizer.pad_token_id
        self._reference: PolicyForward | None = None
        if self._config.grpo.kl_coef > 0:
            frozen = load_policy(self._base, self._config.model.dtype, str(self._device))
            self._reference = PolicyForward(frozen).eval().requires_grad_(False)
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        if self._config.model.freeze_vision:
            self._model.model.visual.requires_grad_(False)
        if settings.gradient_checkpointing:
            self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._model.train()
        self._engine = PolicyEngine(
            PolicyForward(self._model), settings.optimizer, settings.zero_stage, self._steps, self._device
        )
        if checkpoint is not None:
            self._engine.load(Path(checkpoint), "engine")
        if self._rank == 0:
            self._store = WeightStore(shared_memory_folder(self._stage_folder), self._model.config.tie_word_embeddings)
        return {"pid": os.getpid(), "parameters": parameters}

    def step(self, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """One optimizer step on the groups of the whole step (all ranks get all, each takes its part).

        Returns the same numbers on every rank: loss, lr, grad_norm, kl, clip_fraction, is_ratio_*, logprob_gap_*,
        trained_tokens, and image_passes / vision_passes (reads of pictures / pictures through vision towers, policy and
        reference). ValueError without groups: there is nothing to average, leave the step out.
        """
        settings = self._config.grpo
        sequences, tokens = sum(len(group.advantages) for group in groups), sum(group.tokens for group in groups)
        denominator = step_denominator(settings.aggregation, sequences, tokens, settings.sampling.max_new_tokens)
        plan = plan_passes(
            [group.row_lengths() for group in groups], self._ranks, self._config.learner.micro_batch_tokens
        )
        encoded: dict[int, Encoded] = {}
        stats, loss, vision = TokenStats(), 0.0, 0
        for one in plan[self._rank]:
            part, part_stats = self._pass(one, groups, encoded, denominator)
            self._engine.backward(part)
            if one.counts:
                loss, stats = loss + float(part.detach()), stats.merge(part_stats)
            towers = 1 if self._reference is None else 2
            vision += towers * sum(_pictures(groups[g].prompt) for g in {piece.group for piece in one.slices})
        update = self._engine.step()
        reads = sum(_pictures(groups[group].prompt) for group in encoded)
        totals = self._engine.sum_over_ranks({"loss": loss, "image_passes": reads, "vision_passes": vision})
        return {
            **totals,
            "lr": update.learning_rate,
            "grad_norm": update.grad_norm,
            "trained_tokens": tokens,
            **self._merged(stats).metrics(),
        }

    def _pass(
        self, one: Pass, groups: Sequence[TrainGroup], encoded: dict[int, Encoded], denominator: float
    ) -> tuple[torch.Tensor, TokenStats]:
        """This pass's share of the step's loss, with gradient, and its statistics."""
        settings = self._config.grpo
        members = [
            (groups[piece.group], piece.group, member)
            for piece in one.slices
            for member in range(piece.first, piece.last)
        ]
        for group, index, _ in members:
            if index not in encoded:
                encoded[index] = self._encode(group.prompt, group.expanded_prompt_ids)
        batch = build_batch(
            [Sample(encoded[index], group.completion_ids[member]) for group, index, member in members], self._pad
        ).to(self._device)
        behaviour = torch.zeros(batch.mask.shape)
        for row, (group, _, member) in enumerate(members):
            behaviour[row, : len(group.behaviour_logprobs[member])] = torch.tensor(group.behaviour_logprobs[member])
        behaviour = behaviour.to(self._device)
        advantages = torch.tensor([group.advantages[member] for group, _, member in members], device=self._device)
        temperature = settings.sampling.temperature
        logprobs = self._engine(batch, temperature, self._banned)
        reference = None
        if self._reference is not None:
            with torch.no_grad():
                reference = self._reference(batch, temperature, self._banned)
        old = logprobs.detach()
        terms = token_loss(
            logprobs,
            old,
            behaviour,
            advantages,
            batch.mask,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            importance_cap=settings.importance_cap,
            kl_coef=settings.kl_coef,
            reference_logprobs_R_T=reference,
        )
        loss = aggregate(terms.loss_R_T, batch.mask, settings.aggregation, denominator) * float(one.counts)
        return loss, token_stats(terms, old, behaviour, batch.mask)

    def _merged(self, stats: TokenStats) -> TokenStats:
        """The stats of all ranks together."""
        own = {name: float(value) for name, value in vars(stats).items()}
        sums = self._engine.sum_over_ranks({name: value for name, value in own.items() if not name.endswith("_max")})
        largest = self._engine.max_over_ranks({name: value for name, value in own.items() if name.endswith("_max")})
        counts = {name: int(sums.pop(name)) for name in ("tokens", "clipped")}
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
        batch = build_batch([Sample(encoded, tuple(ids)) for ids in completions], self._pad).to(self._device)
        rows = self._engine(batch, self._config.grpo.sampling.temperature, self._banned).cpu()
        return [row[: len(ids)].tolist() for row, ids in zip(rows, completions, strict=True)]

    def publish(self, number: int) -> WeightVersion | None:
        """Publish the current weights as version `number`, from rank 0 (None on the others); older ones stay."""
        weights = self._engine.state_dict()
        return self._store.publish(number, weights) if self._store is not None else None

    def release_before(self, number: int) -> None:
        """Unlink the versions older than `number`: every worker has a newer one."""
        if self._store is not None:
            for old in [live for live in self._store.live if live < number]:
                self._store.release(old)

    def save(self, folder: str) -> None:
        """Weights, optimizer and schedule into `folder`."""
        self._engine.save(Path(folder), "engine", {})

    def export(self, folder: str) -> None:
        """The model with its processor in the Hugging Face layout, whole or not at all."""
        weights = self._engine.state_dict()
        if self._rank == 0:
            save_policy(self._model, self._base, folder, weights if self._engine.zero_stage == 3 else None)

    def close(self) -> None:
        """Remove the published weights."""
        if self._store is not None:
            self._store.close()


def _pictures(prompt: Prompt) -> int:
    """Media of a prompt as the vision tower counts them: a video is one."""
    return 1 if prompt.example.data_type == "video" else len(prompt.example.media)
