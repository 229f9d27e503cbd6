"""The engine against a plain torch loop: same weights, same norms, whatever the ZeRO stage and the number of ranks."""

from __future__ import annotations

import math
import os
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from configs.schema import OptimizerConfig
from models.deepspeed_engine import (
    GradientNotFinite,
    PolicyEngine,
    free_port,
    leave_process_group,
    learning_rate_factor,
    set_rank_environment,
)

OPTIMIZER = OptimizerConfig(lr=1e-2, schedule="cosine", warmup_ratio=0.25, weight_decay=0.1, max_grad_norm=0.5)
#: What a run goes on with, half way: with twice the steps, its rates of steps 2 and 3 are 4e-3 times 6/8 and 5/8.
CHANGED = OptimizerConfig(
    lr=4e-3, schedule="linear", warmup_ratio=0.0, weight_decay=0.3, max_grad_norm=0.1, betas=(0.8, 0.95)
)
STEPS, ROWS = 4, 6
STAGES, TYPES = (0, 1, 2, 3), (torch.float32, torch.bfloat16)


class Toy(torch.nn.Module):
    """Two blocks, a norm and a head tied to the input embedding, under the names a policy has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.norm = torch.nn.LayerNorm(8)
        self.lm_head = torch.nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.lm_head(self.norm(hidden))


class Wrapper(torch.nn.Module):
    """Summed cross-entropy of the rows it is given."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(ids), labels, reduction="sum")


def toy(dtype: torch.dtype = torch.float32) -> Toy:
    torch.manual_seed(3)
    return Toy().to(dtype)


def rows(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randint(11, (ROWS,), generator=generator), torch.randint(11, (ROWS,), generator=generator)


def reference(dtype: torch.dtype, changed: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Plain AdamW over the mean of all rows, on weights in float32; the schedule is written out again from its definition.
    `changed`: half way it goes on with `CHANGED`."""
    model, masters = toy(dtype), toy(dtype).float()
    vectors = [p for p in masters.parameters() if p.ndim < 2]
    matrices = [p for p in masters.parameters() if p.ndim >= 2]
    adamw = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    rates = [1e-2, 1e-2, 0.75e-2, 0.25e-2]  # one warm-up step of four, then half a cosine over three: 1, 3/4, 1/4
    if changed:
        rates[2:] = [4e-3 * 6 / 8, 4e-3 * 5 / 8]
    norms = []
    for step in range(STEPS):
        late = changed and step >= 2
        for group, decay in zip(adamw.param_groups, (0.3 if late else 0.1, 0.0), strict=True):
            group.update(lr=rates[step], weight_decay=decay, betas=(0.8, 0.95) if late else (0.9, 0.999))
        ids, labels = rows(step)
        (Wrapper(model)(ids, labels) / ROWS).backward()
        norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters())))
        for parameter, master in zip(model.parameters(), masters.parameters(), strict=True):
            master.grad = parameter.grad.float() * min(1.0, (0.1 if late else 0.5) / norms[-1])
            parameter.grad = None
        adamw.step()
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters.parameters(), strict=True):
                parameter.copy_(master)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, norms


def train(engine: PolicyEngine, first: int, last: int, rank: int, world: int) -> list[float]:
    """Each rank takes its rows one by one (uneven backward counts would be padded by the callers under test)."""
    norms = []
    for step in range(first, last):
        ids, labels = rows(step)
        for row in range(rank, ROWS, world):
            engine.backward(engine(ids[row : row + 1], labels[row : row + 1]) / ROWS)
        norms.append(engine.step().grad_norm)
    return norms


def end_process() -> None:
    """At once: a thread of torch that is still there when a process exits by itself aborts it now and then."""
    leave_process_group()
    sys.stdout.flush()
    os._exit(0)


def all_stages(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    set_rank_environment(rank, world, "127.0.0.1", port, local_rank=rank, local_size=world)
    results = {}
    for dtype, stage in product(TYPES, STAGES):
        engine = PolicyEngine(Wrapper(toy(dtype)), OPTIMIZER, stage, STEPS)
        norms = train(engine, 0, 2, rank, world)
        checkpoint = Path(folder) / f"zero{stage}-{dtype}"
        engine.save(checkpoint, "half", {"step": 2})
        for settings, steps in ((OPTIMIZER, STEPS), (CHANGED, 2 * STEPS)):
            fresh = PolicyEngine(Wrapper(toy(dtype)), settings, stage, steps)
            state = fresh.load(checkpoint, "half")
            later = train(fresh, state["step"], STEPS, rank, world)
            weights = fresh.state_dict()
            assert bool(weights) == (rank == 0)
            own = {name: tensor.clone() for name, tensor in weights.items()}
            results[dtype, stage, settings is CHANGED] = (own, norms + later)
        with pytest.raises(FileNotFoundError, match="no DeepSpeed checkpoint"):
            fresh.load(Path(folder) / "elsewhere", "half")
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    end_process()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """(type, stage) to the weights and norms of so many ranks."""

    @cache
    def train_all(world: int) -> dict:
        folder = tmp_path_factory.mktemp(f"world{world}")
        mp.spawn(all_stages, args=(world, free_port(), str(folder)), nprocs=world)
        return torch.load(folder / "results.pt")

    return train_all


@pytest.mark.engine
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("changed", [False, True])
def test_every_zero_stage_trains_like_plain_torch_and_resumes_also_with_other_settings(
    trained, changed: bool, world: int, dtype: torch.dtype
) -> None:
    expected, expected_norms = reference(dtype, changed)
    exact = dtype == torch.float32
    for stage in STAGES:
        weights, norms = trained(world)[dtype, stage, changed]
        assert norms == pytest.approx(expected_norms, rel=1e-4 if exact else 2e-2), f"ZeRO-{stage}"
        assert weights.keys() == expected.keys(), f"ZeRO-{stage}"
        for name, tensor in expected.items():
            off = (weights[name].float() - tensor.float()).abs()
            assert float(off.max() if exact else off.mean()) < (1e-5 if exact else 1e-4), f"ZeRO-{stage} {name}"


def test_schedules_warm_up_and_end_as_stated() -> None:
    def factors(schedule: str, warmup: float) -> list[float]:
        config = OptimizerConfig(schedule=schedule, warmup_ratio=warmup)
        return [learning_rate_factor(step, 8, config) for step in range(8)]

    assert factors("constant", 0.25) == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert factors("linear", 0.0) == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert factors("cosine", 0.5)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors("cosine", 0.5)[5:] == pytest.approx([(1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3)])


@pytest.mark.engine
def test_a_frozen_model_mixed_types_and_a_gradient_without_end_are_refused() -> None:
    """What is asserted stands in `_refusals`: spawn raises what fails there."""
    mp.spawn(_refusals, args=(free_port(),), nprocs=1)


def _refusals(_rank: int, port: int) -> None:
    set_rank_environment(0, 1, "127.0.0.1", port)
    frozen = Wrapper(toy()).requires_grad_(False)
    with pytest.raises(ValueError, match="everything is frozen"):
        PolicyEngine(frozen, OPTIMIZER, 0, STEPS)
    for stage in (0, 1):
        engine = PolicyEngine(Wrapper(toy()), OPTIMIZER, stage, STEPS)
        before = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
        engine.backward(engine(*rows(0)) * float("inf"))
        with pytest.raises(GradientNotFinite, match="lower the learning rate"):
            engine.step()
        assert stage == 1 or all(torch.equal(before[name], tensor) for name, tensor in engine.state_dict().items())
    mixed = Wrapper(toy())
    mixed.model.norm.to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32"):
        PolicyEngine(mixed, OPTIMIZER, 0, STEPS)
    end_process()
