"""The learner's step against the same mathematics written out row by row in plain torch; one rank and two."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from actors.batching import TrainGroup
from actors.learner import Learner, PromptMismatch
from actors.weights import read_verified
from configs.schema import GRPOConfig, LearnerConfig, OptimizerConfig, RunConfig, SamplingConfig
from data.prompts import render
from data.types import Example
from models.deepspeed_engine import free_port
from models.forward import PolicyForward, Sample, build_batch
from models.inputs import encode, load_images
from models.loading import load_policy, load_processor
from models.tiny import build_tiny
from models.tokens import banned_token_ids

pytestmark = pytest.mark.engine

TEMPERATURE, KL, CAP, LR, CLIP_NORM = 0.8, 0.1, 1.05, 3e-4, 0.7
STEPS = 3


def config(ranks: int) -> RunConfig:
    """One rank in one pass without ZeRO; two ranks in small passes with it."""
    optimizer = OptimizerConfig(lr=LR, schedule="constant", warmup_ratio=0.0, max_grad_norm=CLIP_NORM)
    learner = LearnerConfig(
        ranks=ranks,
        threads=1,
        zero_stage=0 if ranks == 1 else 3,
        optimizer=optimizer,
        micro_batch_tokens=100_000 if ranks == 1 else 300,
    )
    grpo = GRPOConfig(
        kl_coef=KL, importance_cap=CAP, sampling=SamplingConfig(temperature=TEMPERATURE, max_new_tokens=12)
    )
    return RunConfig(learner=learner, grpo=grpo)


def examples(folder: Path) -> list[Example]:
    rng, paths = np.random.default_rng(0), [str(folder / f"{index}.png") for index in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (112, 140, 3), dtype=np.uint8)).save(path)
    kinds = (("single_image", paths[:1]), ("multi_view", paths[:3]), ("video", paths))
    return [
        Example(
            id=f"train/{kind}",
            question_id=index,
            data_type=kind,
            question="How many chairs?",
            question_type="object count",
            media=tuple(media),
            answer="1",
        )
        for index, (kind, media) in enumerate(kinds)
    ]


class Plain:
    """The policy, its reference and the step, one row at a time."""

    def __init__(self, base: Path) -> None:
        self.processor, self.model = load_processor(base), load_policy(base)
        self.banned = banned_token_ids(self.processor, self.model.lm_head.weight.shape[0])
        self.reference = load_policy(base).requires_grad_(False)
        self.adamw = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)

    def encode(self, example: Example):
        prompt = render(example, "think")
        return prompt, encode(self.processor, prompt.messages, load_images(example.media), example.data_type == "video")

    def logprobs(self, model, encoded, ids) -> torch.Tensor:
        return PolicyForward(model)(build_batch([Sample(encoded, ids)], 0), TEMPERATURE, self.banned)[0]

    def groups(self, rows: list[Example], seed: int) -> tuple[TrainGroup, ...]:
        """Random completions; behaviour log-probs are those of the plain forward."""
        rng, groups = np.random.default_rng(seed), []
        allowed = [token for token in range(self.model.lm_head.weight.shape[0]) if token not in self.banned]
        for example in rows:
            prompt, encoded = self.encode(example)
            completions = [tuple(int(t) for t in rng.choice(allowed, rng.integers(1, 12))) for _ in range(3)]
            with torch.no_grad():
                behaviour = [tuple(self.logprobs(self.model, encoded, ids).tolist()) for ids in completions]
            groups.append(
                TrainGroup(
                    prompt, encoded.input_ids, tuple(completions), tuple(behaviour), tuple(rng.normal(size=3).tolist())
                )
            )
        return tuple(groups)

    def step(self, groups: tuple[TrainGroup, ...]) -> dict[str, float]:
        """(1/N) sum over completions of the mean over tokens of -w A rho + beta k3, then a clipped AdamW step."""
        rows = [(group, index) for group in groups for index in range(len(group.advantages))]
        totals = {"loss": 0.0, "kl": 0.0, "is": 0.0}
        tokens = 0
        for group, index in rows:
            encoded = self.encode(group.prompt.example)[1]
            ids, behaviour = group.completion_ids[index], torch.tensor(group.behaviour_logprobs[index])
            new = self.logprobs(self.model, encoded, ids)
            with torch.no_grad():
                difference = self.logprobs(self.reference, encoded, ids) - new
            weights = torch.tensor([min(math.exp(gap), CAP) for gap in (new.detach() - behaviour).tolist()])
            # d/d(new) of k3 = 1 - exp(ref - new); its value joins as a constant
            k3 = torch.exp(difference) - difference - 1
            surrogate = -weights * group.advantages[index] * torch.exp(new - new.detach())
            penalty = k3 + (1 - torch.exp(difference)) * (new - new.detach())
            loss = (surrogate + KL * penalty).mean() / len(rows)
            loss.backward()
            totals["loss"] += float(loss.detach())
            totals["kl"] += float(k3.sum())
            totals["is"] += sum(math.exp(gap) for gap in (new.detach() - behaviour).tolist())
            tokens += len(ids)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.adamw.step()
        self.adamw.zero_grad()
        return {
            "loss": totals["loss"],
            "kl": totals["kl"] / tokens,
            "is_ratio_mean": totals["is"] / tokens,
            "grad_norm": float(norm),
            "trained_tokens": tokens,
        }


def rank_main(rank: int, ranks: int, port: int, base: str, folder: str, groups: tuple[TrainGroup, ...]) -> None:
    """Two steps, a checkpoint, a new learner from it, the third step; version, log-probs and model are left behind."""
    first = Learner(config(ranks), base, folder, rank, ranks, STEPS)
    first.start("127.0.0.1", port)
    metrics = [first.step(groups) for _ in range(2)]
    first.save(f"{folder}/checkpoint")
    again = Learner(config(ranks), base, folder, rank, ranks, STEPS)
    again.start("127.0.0.1", port, f"{folder}/checkpoint")
    metrics.append(again.step(groups))
    version = again.publish(3)
    wrong = groups[0].expanded_prompt_ids[:-1] + (5,)
    with pytest.raises(PromptMismatch, match=rf"train/single_image.*part at token {len(wrong) - 1}"):
        again.logprobs(groups[0].prompt, wrong, groups[0].completion_ids)
    logprobs = again.logprobs(groups[1].prompt, groups[1].expanded_prompt_ids, groups[1].completion_ids)
    again.export(f"{folder}/hf")
    assert (version is None) == (rank > 0)
    torch.save(metrics, f"{folder}/metrics-{rank}.pt")
    if rank == 0:
        weights = {name: tensor.clone() for name, tensor in read_verified(version.path, version.manifest)}
        torch.save({"logprobs": logprobs, "weights": weights}, f"{folder}/result.pt")
        again.release_before(4)
        assert not Path(version.path).exists()
    again.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory):
    """The base, the groups, and what plain torch makes of them: metrics of three steps and the final model."""
    folder = tmp_path_factory.mktemp("learner")
    base = build_tiny(folder / "model", seed=0, init_std=0.15)
    plain = Plain(base)
    groups = plain.groups(examples(folder), seed=1)
    return base, groups, [plain.step(groups) for _ in range(STEPS)], plain


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_step_is_the_mathematics_row_by_row(scene, ranks: int, tmp_path: Path) -> None:
    base, groups, expected, plain = scene
    mp.spawn(rank_main, args=(ranks, free_port(), str(base), str(tmp_path), groups), nprocs=ranks)
    metrics = torch.load(tmp_path / "metrics-0.pt")
    assert all(torch.load(tmp_path / f"metrics-{rank}.pt") == metrics for rank in range(ranks))
    for mine, theirs in zip(metrics, expected, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name

    first = metrics[0]  # nothing has been learned yet: the policy is the sampler and the reference
    assert first["logprob_gap_max"] < 1e-5 and first["is_ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-9) and first["clip_fraction"] == 0
    advantages = [a for group in groups for a in group.advantages]
    assert first["loss"] == pytest.approx(-np.mean(advantages), abs=1e-5)
    assert metrics[2]["kl"] > 1e-4 and metrics[2]["is_ratio_max"] > CAP
    if ranks == 1:
        assert first["image_passes"] == 1 + 3 + 1 and first["vision_passes"] == 2 * (1 + 3 + 1)

    result = torch.load(tmp_path / "result.pt")
    trained = plain.model.state_dict()
    assert result["weights"].keys() == trained.keys()
    moved = max(float((trained[name] - tensor).abs().max()) for name, tensor in load_policy(base).state_dict().items())
    assert moved > LR
    encoded = plain.encode(groups[1].prompt.example)[1]
    for ids, row in zip(groups[1].completion_ids, result["logprobs"], strict=True):
        assert row == pytest.approx(plain.logprobs(plain.model, encoded, ids).tolist(), abs=2e-3)
    exported = load_policy(tmp_path / "hf").state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in result["weights"].items())
    load_processor(tmp_path / "hf")
