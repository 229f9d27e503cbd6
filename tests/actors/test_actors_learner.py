"""The learner's step against the same mathematics written out row by row with transformers' own forward."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from deepspeed.utils import safe_get_full_optimizer_state
from PIL import Image

from actors.batching import TrainBatch, TrainGroup
from actors.learner import Learner, PromptMismatch
from actors.weights import read_verified
from configs.schema import (
    GRPOConfig,
    ImportanceConfig,
    KLConfig,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
)
from data.prompts import render
from data.types import Example, Prompt
from models.adapters import add_adapters, merged
from models.deepspeed_engine import free_port
from models.inputs import encode, load_images
from models.loading import load_policy, load_processor
from models.passes import plan_passes
from models.tiny import build_tiny
from models.tokens import banned_token_ids

pytestmark = pytest.mark.engine

TEMPERATURE, KL, CAP, LR, CLIP_NORM = 0.8, 0.1, 1.01, 5e-5, 0.7
STEPS = 3
#: Tokens of a pass that leave one pass without pictures and one rank without work in its last pass.
SMALL = 130


LORA = LoraConfig(rank=4, alpha=64.0)


def config(ranks: int, zero_stage: int, way: str = "full", epochs: int = 1, freeze_vision: bool = False) -> RunConfig:
    """One rank in one pass, two ranks in small passes. `way`: one of WAYS."""
    offload, tokens = way == "offload", way == "tokens"
    optimizer = OptimizerConfig(
        lr=LR, schedule="constant", warmup_ratio=0.0, max_grad_norm=CLIP_NORM, offload=offload
    )
    learner = LearnerConfig(
        ranks=ranks,
        threads=1,
        zero_stage=zero_stage,
        offload_reference=offload,
        gradient_checkpointing=way == "checkpointing",
        optimizer=optimizer,
        micro_batch_tokens=100_000 if ranks == 1 else SMALL,
    )
    grpo = GRPOConfig(
        kl=KLConfig(coef=0.0 if tokens else KL),
        aggregation="token_mean" if tokens else "sequence_mean",
        importance=ImportanceConfig(cap=CAP),
        inner_epochs=epochs,
        sampling=SamplingConfig(temperature=TEMPERATURE, max_new_tokens=12),
    )
    dtype = "bfloat16" if way == "bfloat16" else "float32"
    model = ModelConfig(dtype=dtype, freeze_vision=freeze_vision or way == "frozen", lora=LORA if way == "lora" else None)
    return RunConfig(model=model, learner=learner, grpo=grpo)


def prompts(folder: Path) -> list[Prompt]:
    """One picture, three, a video, the first picture again, and no picture at all."""
    rng, paths = np.random.default_rng(0), [str(folder / f"{index}.png") for index in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (112, 140, 3), dtype=np.uint8)).save(path)
    kinds = (("single_image", paths[:1]), ("multi_view", paths[:3]), ("video", paths), ("single_image", paths[:1]))
    rows = [
        Example(
            id=f"train/{kind}/{index}",
            question_id=index,
            data_type=kind,
            question=f"How many chairs are there, {index}?",
            question_type="object count",
            media=tuple(media),
            answer="1",
        )
        for index, (kind, media) in enumerate(kinds)
    ]
    text = {"role": "user", "content": [{"type": "text", "text": "How many legs has a chair?"}]}
    blind = Prompt(replace(rows[0], id="train/text", media=()), "think", (text,))
    return [render(row, "think") for row in rows] + [blind]


class Plain:
    """The policy, its reference and the step: every row alone, through the library's forward."""

    def __init__(self, base: Path, way: str = "full") -> None:
        self.processor, self.model = load_processor(base), load_policy(base)
        self.banned = list(banned_token_ids(self.processor, self.model.lm_head.weight.shape[0]))
        self.reference = load_policy(base).requires_grad_(False)
        if way == "lora":
            add_adapters(self.model, LORA, seed=RunConfig().seed)
        self.model.model.visual.requires_grad_(way == "full" or way == "tokens")
        self.over_tokens = way == "tokens"
        self.adamw = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)

    def encode(self, prompt: Prompt):
        example = prompt.example
        return encode(self.processor, prompt.messages, load_images(example.media), example.data_type == "video")

    def logprobs(self, model, encoded, ids) -> torch.Tensor:
        tail = encoded.next_position + torch.arange(len(ids)).expand(3, -1)
        kind = "_videos" if 2 in encoded.token_types else ""
        grid = "video_grid_thw" if kind else "image_grid_thw"
        seen = {} if encoded.pixel_values is None else {f"pixel_values{kind}": encoded.pixel_values, grid: encoded.grid_thw}
        logits = model(
            input_ids=torch.tensor([[*encoded.input_ids, *ids]]),
            mm_token_type_ids=torch.tensor([[*encoded.token_types, *[0] * len(ids)]]),
            position_ids=torch.cat([encoded.positions, tail], 1)[:, None],
            **seen,
        ).logits[0, len(encoded.input_ids) - 1 : -1]
        logits = (logits / TEMPERATURE).index_fill(-1, torch.tensor(self.banned), float("-inf"))
        return logits.log_softmax(-1).gather(-1, torch.tensor(ids).unsqueeze(-1))[:, 0]

    def batch(self, asked: list[Prompt], seed: int) -> TrainBatch:
        """Random completions of unequal lengths; behaviour log-probs are those of the plain forward, but for every group's
        first token, which older weights drew, twice as probably. Two more completions have a reward and no gradient: they
        are in the totals only."""
        rng, groups = np.random.default_rng(seed), []
        allowed = [token for token in range(self.model.lm_head.weight.shape[0]) if token not in self.banned]
        for size, prompt in enumerate(asked, start=2):
            encoded = self.encode(prompt)
            completions = [tuple(int(t) for t in rng.choice(allowed, rng.integers(1, 12))) for _ in range(size)]
            with torch.no_grad():
                behaviour = [tuple(self.logprobs(self.model, encoded, ids).tolist()) for ids in completions]
            behaviour[0] = (behaviour[0][0] + math.log(2), *behaviour[0][1:])
            versions = (((0, 0), (1, 1))[: len(completions[0])], *[((0, 1),)] * (size - 1))
            advantages = tuple(rng.normal(size=size).tolist())
            groups.append(TrainGroup(prompt, encoded.input_ids, tuple(completions), tuple(behaviour), advantages, versions))
        lengths = [len(ids) for group in groups for ids in group.completion_ids]
        return TrainBatch(tuple(groups), len(lengths) + 2, sum(lengths) + 9, 1)

    def step(self, batch: TrainBatch, epochs: int = 1) -> dict[str, float]:
        """(1/N) sum over completions of the mean over tokens of -w min(A rho, A clip(rho)) + beta k3, `epochs` times."""
        rows = [(group, index) for group in batch.groups for index in range(len(group.advantages))]
        old: dict[int, torch.Tensor] = {}
        kl = clipped = 0.0
        for _ in range(epochs):
            total = 0.0
            for number, (group, index) in enumerate(rows):
                encoded, ids = self.encode(group.prompt), group.completion_ids[index]
                new = self.logprobs(self.model, encoded, ids)
                before = old.setdefault(number, new.detach())
                behaviour = torch.tensor(group.behaviour_logprobs[index])
                with torch.no_grad():
                    reference = self.logprobs(self.reference, encoded, ids)
                weights = torch.tensor([min(math.exp(gap), CAP) for gap in (before - behaviour).tolist()])
                rho, advantage = torch.exp(new - before), group.advantages[index]
                bounded = torch.stack([r if 0.8 < r < 1.2 else r.detach().clamp(0.8, 1.2) for r in rho])
                surrogate = torch.stack([min(r * advantage, b * advantage) for r, b in zip(rho, bounded, strict=True)])
                k3 = torch.exp(reference - new) - (reference - new) - 1
                if self.over_tokens:  # the mean over all tokens, and no divergence
                    loss = (-weights * surrogate).sum() / batch.tokens
                else:
                    loss = (-weights * surrogate + KL * k3).mean() / batch.sequences
                loss.backward()
                total += float(loss.detach())
                kl += float(k3.detach().sum())
                worse = [r > 1.2 if advantage > 0 else r < 0.8 for r in rho.tolist()]
                clipped += sum(worse)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.adamw.step()
            self.adamw.zero_grad()
        tokens = sum(len(group.completion_ids[index]) for group, index in rows)
        divergence = {} if self.over_tokens else {"kl": kl / tokens / epochs}
        return divergence | {
            "loss": total,
            "clip_fraction": clipped / tokens / epochs,
            "grad_norm": float(norm),
            "trained_tokens": tokens,
        }


def shifted(groups: tuple[TrainGroup, ...]) -> list[TrainGroup]:
    """As if the engine had sampled every token with a higher probability, by another amount in every completion."""
    return [
        replace(
            group,
            behaviour_logprobs=tuple(
                tuple(logprob + shift(g, m) for logprob in row) for m, row in enumerate(group.behaviour_logprobs)
            ),
        )
        for g, group in enumerate(groups)
    ]


def shift(group: int, member: int) -> float:
    return 0.1 + 0.07 * group + 0.03 * member


def check_penalties(groups: tuple[TrainGroup, ...], penalties: list[list[float]]) -> None:
    """k3 of the shift per token, taken off the reward as a sum over the completion."""
    for g, (group, lost) in enumerate(zip(groups, penalties, strict=True)):
        for m, penalty in enumerate(lost):
            drawn = [shift(g, m) + math.log(2) * (version == 0) for version in group.token_versions(m)]
            assert penalty == pytest.approx(KL * sum(math.exp(-d) + d - 1 for d in drawn), rel=1e-3)


#: (ZeRO stage, way) of one and of two ranks. `tokens`: the loss is the mean over tokens and knows no divergence.
WAYS = {
    1: [(0, "full"), (0, "lora")],
    2: [(0, "full"), (1, "full"), (2, "full"), (3, "full"),
        (0, "lora"), (1, "lora"), (2, "lora"), (3, "lora"), (1, "offload"), (2, "offload"), (3, "offload"),
        (3, "frozen"), (1, "checkpointing"), (2, "tokens")],
}


def rank_main(rank: int, ranks: int, port: int, base: str, folder: str, batch: TrainBatch) -> None:
    """Every way in one process, whose start takes longer than what it computes."""
    learners = [three_steps(rank, ranks, stage, way, port, base, f"{folder}/{stage}-{way}", batch) for stage, way in WAYS[ranks]]
    if ranks == 1:
        learners += [inner_epochs(port, base, f"{folder}/frozen-{frozen}", batch, frozen) for frozen in (False, True)]
        half = Learner(config(1, 0, "bfloat16"), base, folder, 0, 1, STEPS)
        half.start("127.0.0.1", port)
        torch.save((half.step(batch), half.publish(1).nbytes), f"{folder}/half.pt")
        learners.append(half)
    for learner in learners:
        learner.close()
    assert not dist.is_initialized()  # else gloo's threads may abort the process as it exits


def three_steps(
    rank: int, ranks: int, stage: int, way: str, port: int, base: str, folder: str, batch: TrainBatch
) -> Learner:
    """Two steps, a checkpoint, a new learner from it, the third step; version, log-probs and model are left behind."""
    Path(folder).mkdir(exist_ok=True)
    first = Learner(config(ranks, stage, way), base, folder, rank, ranks, STEPS)
    first.start("127.0.0.1", port)
    assert bool(first._engine.engine.zero_offload_optimizer()) == (way == "offload")
    metrics = [first.step(batch) for _ in range(2)]
    moments = {name: second_moment(p, first._engine.engine) for name, p in first._model.named_parameters() if p.requires_grad}
    first.save(f"{folder}/checkpoint")
    again = Learner(config(ranks, stage, way), base, folder, rank, ranks, STEPS)
    again.start("127.0.0.1", port, f"{folder}/checkpoint")
    metrics.append(again.step(batch))
    version = again.publish(3)
    groups = batch.groups
    wrong = groups[0].expanded_prompt_ids[:-1] + (5,)
    with pytest.raises(PromptMismatch, match=rf"train/single_image/0.*part at token {len(wrong) - 1}"):
        again.logprobs(groups[0].prompt, wrong, groups[0].completion_ids)
    logprobs = again.logprobs(groups[1].prompt, groups[1].expanded_prompt_ids, groups[1].completion_ids)
    penalties = None if way == "tokens" else again.penalties(shifted(groups))
    again.export(f"{folder}/hf")
    assert (version is None) == (rank > 0)
    torch.save((metrics, penalties, moments), f"{folder}/metrics-{rank}.pt")
    if rank == 0:
        weights = {name: tensor.clone() for name, tensor in read_verified(version.path, version.manifest)}
        torch.save({"logprobs": logprobs, "weights": weights}, f"{folder}/result.pt")
        again.release_all_but({4})
        assert not Path(version.path).exists()
    return again


def second_moment(parameter: torch.nn.Parameter, engine) -> float:
    """Norm of Adam's average of squared gradients: it shows the scale of every parameter's own, which the update hides."""
    plain = engine.zero_optimization_stage() == 0
    own = engine.optimizer.state[parameter]["exp_avg_sq"] if plain else safe_get_full_optimizer_state(parameter, "exp_avg_sq")
    return float(own.norm())


def inner_epochs(port: int, base: str, folder: str, batch: TrainBatch, frozen: bool) -> Learner:
    Path(folder).mkdir()
    learner = Learner(config(1, 0, epochs=3, freeze_vision=frozen), base, folder, 0, 1, STEPS)
    learner.start("127.0.0.1", port)
    metrics = [learner.step(batch) for _ in range(2)]
    torch.save((metrics, learner.penalties(shifted(batch.groups))), f"{folder}/metrics.pt")
    return learner


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory):
    """The base and the batch."""
    folder = tmp_path_factory.mktemp("learner")
    base = build_tiny(folder / "model", seed=0, init_std=0.1)
    return base, Plain(base).batch(prompts(folder), seed=1)


@pytest.fixture(scope="module")
def worked(scene):
    """What plain torch makes of a way: metrics of three steps, second moments after two, and itself."""
    base, batch = scene

    @cache
    def work(way: str) -> tuple[list[dict[str, float]], dict[str, float], Plain]:
        plain = Plain(base, way)
        metrics = [plain.step(batch) for _ in range(2)]
        state, named = plain.adamw.state, plain.model.named_parameters()
        moments = {name: float(state[p]["exp_avg_sq"].norm()) for name, p in named if p.requires_grad}
        return [*metrics, plain.step(batch)], moments, plain

    return work


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory: pytest.TempPathFactory):
    """The folder of what so many ranks left behind."""
    base, batch = scene

    @cache
    def train(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        mp.spawn(rank_main, args=(ranks, free_port(), str(base), str(folder), batch), nprocs=ranks)
        return folder

    return train


@pytest.mark.parametrize("ranks, stage, way", [(ranks, *way) for ranks, ways in WAYS.items() for way in ways])
def test_the_step_is_the_mathematics_row_by_row(scene, worked, trained, ranks: int, stage: int, way: str) -> None:
    """Whatever the sharding, though one pass of a rank has no picture and ranks have unequal tokens."""
    base, batch = scene
    expected, expected_moments, plain = worked(way if way in ("lora", "frozen", "tokens") else "full")
    folder = trained(ranks) / f"{stage}-{way}"
    metrics, penalties, moments = torch.load(folder / "metrics-0.pt")
    assert all(torch.load(folder / f"metrics-{rank}.pt") == (metrics, penalties, moments) for rank in range(ranks))
    assert moments == pytest.approx(expected_moments, rel=2e-3, abs=1e-6 * max(expected_moments.values()))
    for mine, theirs in zip(metrics, expected, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name

    first = metrics[0]  # nothing has been learned yet: the policy is the sampler and the reference
    tokens, stale = batch.tokens - 9, len(batch.groups)
    assert first["logprob_gap_max"] < 1e-5  # of the tokens that these weights drew
    assert first["is_ratio_stale_mean"] == pytest.approx(0.5, abs=1e-5) == first["is_ratio_stale_max"]
    assert first["is_ratio_mean"] == pytest.approx((tokens - stale + 0.5 * stale) / tokens, abs=1e-5)
    assert first["clip_fraction"] == 0 and metrics[2]["is_ratio_max"] > CAP
    if way == "tokens":
        assert "kl" not in first
    else:
        assert first["kl"] == pytest.approx(0, abs=1e-9) and metrics[2]["kl"] > 1e-6
        check_penalties(batch.groups, penalties)
    if ranks == 1:  # three of single_image's pictures are one: it is read for each prompt and seen once
        assert first["image_passes"] == 1 + 3 + 1 + 1 and first["vision_passes"] == (1 if way == "lora" else 2) * (3 + 1)

    result = torch.load(folder / "result.pt")
    trained = merged(plain.model.state_dict(), LORA if way == "lora" else None)
    assert result["weights"].keys() == trained.keys()
    start = load_policy(base).state_dict()
    assert max(float((trained[name] - tensor).abs().max()) for name, tensor in start.items()) > 2 * LR
    for name, tensor in trained.items():
        assert float((result["weights"][name] - tensor).abs().max()) < 1e-5, name
    encoded = plain.encode(batch.groups[1].prompt)
    for ids, row in zip(batch.groups[1].completion_ids, result["logprobs"], strict=True):
        assert row == pytest.approx(plain.logprobs(plain.model, encoded, ids).tolist(), abs=1e-3)
    exported = load_policy(folder / "hf").state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in result["weights"].items())
    load_processor(folder / "hf")


def test_in_bfloat16_a_step_is_the_same_to_its_rounding(worked, trained) -> None:
    (expected, *_), _, plain = worked("full")
    metrics, nbytes = torch.load(trained(1) / "half.pt")
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=0.02)
    assert 1e-4 < metrics["logprob_gap_max"] < 0.1 and metrics["kl"] == 0  # policy and reference round alike
    assert nbytes == 2 * sum(tensor.numel() for tensor in plain.model.state_dict().values())


def test_the_reference_chooses_its_attention_on_the_learners_device(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("actors.learner.load_policy", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("actors.learner.PolicyForward", lambda model, attention: torch.nn.Module())
    learner = Learner(config(1, 0), "base", "stage", 0, 1, STEPS)
    learner._device = torch.device("cuda:0")
    learner._load_reference()
    assert asked == [("base", "float32", "cuda:0")]


def test_the_small_passes_hold_the_hard_cases(scene) -> None:
    """A pass without pictures beside one with, a rank that repeats a piece, a picture in two groups."""
    groups = scene[1].groups
    plans = plan_passes([group.size() for group in groups], 2, SMALL)
    passes = [one for plan in plans for one in plan]
    blind = [all(not groups[piece.tree].prompt.example.media for piece in one.slices) for one in passes]
    assert len(plans[0]) == len(plans[1]) == 3
    assert sum(blind) >= 1 and not all(blind) and [one.counts for one in passes].count(False) == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_inner_epochs_keep_the_log_probs_before_the_first_update(scene, trained, frozen: bool) -> None:
    base, batch = scene
    plain = Plain(base, "frozen" if frozen else "full")
    expected = [plain.step(batch, epochs=3) for _ in range(2)]
    metrics, penalties = torch.load(trained(1) / f"frozen-{frozen}" / "metrics.pt")
    for mine, theirs in zip(metrics, expected, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name
    assert metrics[0]["clip_fraction"] > 0 and metrics[0]["logprob_gap_max"] < 1e-5
    # The policy's tower in every epoch, the reference's once; a frozen one, which they share, once.
    assert metrics[0]["vision_passes"] == (1 if frozen else 3 + 1) * (3 + 1)
    check_penalties(batch.groups, penalties)
