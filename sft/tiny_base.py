"""Train the tiny base: the model that plays the part of the pretrained one.

A seeded, re-runnable command:

    python -m sft.tiny_base --out models/tiny_base [--vision-steps N] [--find-steps N] [--speak-steps N] [--pictures N]
                            [--seed N] [--threads 2] [--resume]

It renders generic pictures (`data.pictures`), trains the vision tower alone (`sft.tiny_vision`), then the model in
phases (`PHASES`): several questions about each picture in one conversation (`sft.tiny_turns`), loss on the answers and on
where the things are that the questions name (`sft.tiny_lookup`). None of the ladder's prompts, tags or keys appear.
Progress goes to the terminal; the state is saved after the tower and every 500 steps of a phase, so that `--resume`
continues an interrupted run with the same result.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data.pictures import FIND, SPEAK, Picture, make_picture, mirrored
from models.forward import PolicyForward
from models.loading import load_policy, save_policy
from models.packing import pack
from models.tiny import build_tiny
from sft.tiny_lookup import LOOKUP_WEIGHT, LookupHead
from sft.tiny_turns import RENDER_SIDE, SIDE, Rows
from sft.tiny_vision import train_vision

BATCH = 40
FINAL_LR, WARMUP = 2e-5, 100
SAVE_EVERY = 500


@dataclass(frozen=True)
class Phase:
    """A part of the training: what is asked, how many times per picture, how long by default, how fast, which stream of
    random numbers it draws, and whether the vision tower learns too (if not, every picture goes through it once)."""

    name: str
    kinds: Mapping[str, float]
    turns: int
    steps: int
    peak_lr: float
    stream: int
    eyes: bool = True


#: First to tell which of several things is meant and where it is, which takes many questions; then to say it in several
#: ways and to write numbers, lists and sentences.
PHASES = (
    Phase("find", FIND, 4, 4000, 1.5e-3, 4, eyes=False),
    Phase("speak", SPEAK, 2, 1000, 8e-4, 3),
)


@dataclass(frozen=True)
class Done:
    """Where an interrupted training stopped: phase, steps done in it, and the optimizer's moments."""

    phase: int
    step: int
    moments: dict[int, dict]


def _draw(seed: tuple[int, int]) -> Picture:
    return make_picture(np.random.default_rng(seed), SIDE, RENDER_SIDE)


def draw_pictures(count: int, seed: int, processes: int) -> list[Picture]:
    """`count` pictures, each from its own seed, so that the number of processes changes nothing."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_draw, [(seed, index) for index in range(count)], chunksize=100))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then cosine to FINAL_LR."""
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    return FINAL_LR + (peak - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train(out: Path, vision_steps: int, steps: Mapping[str, int], pictures: int, seed: int, threads: int,
          resume: bool) -> None:
    """The whole training into `out`; what is under way lies beside it in OUT.work.

    ValueError if `resume` finds nothing to continue, or what was begun with other settings."""
    begun = time.time()
    work = out.with_name(out.name + ".work")
    settings = {"vision_steps": vision_steps, "steps": dict(steps), "pictures": pictures, "seed": seed, "batch": BATCH}
    if resume:
        _check_resumable(work, settings)
    else:
        shutil.rmtree(work, ignore_errors=True)
        build_tiny(work, seed)
        (work / "settings.json").write_text(json.dumps(settings))
    print(f"drawing {pictures} pictures", flush=True)
    rows = Rows(work, draw_pictures(pictures, seed, 2))
    print(f"{time.time() - begun:6.0f} s  pictures drawn", flush=True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    policy = PolicyForward(load_policy(work))
    learning = nn.ModuleDict({"policy": policy, "lookup": LookupHead(policy)})
    done = _restore(work, learning) if resume else None
    if done is None:
        train_vision(policy.model.model.visual, rows.pictures, lambda picture: rows.patches(picture.rgb), mirrored,
                     vision_steps, seed)
        done = Done(0, 0, {})
        _save(work, learning, done)
    for number, phase in enumerate(PHASES):
        if number >= done.phase:
            resumed = done if number == done.phase else Done(number, 0, {})
            _train_phase(phase, learning, rows, steps[phase.name], seed, resumed, work, begun)
    save_policy(policy.model, work, out)
    (out / "training.json").write_text(json.dumps({"command": "python -m sft.tiny_base"} | settings, indent=1) + "\n")


def _check_resumable(work: Path, settings: Mapping) -> None:
    if not (work / "state.safetensors").exists():
        raise ValueError(f"nothing to resume in {work}: the state is saved once the vision tower is trained. "
                         "Start without --resume")
    begun_with = json.loads((work / "settings.json").read_text())
    if begun_with != settings:
        raise ValueError(f"{work} was begun with {begun_with}, not with {settings}. Use those, or start without --resume")


def _train_phase(phase: Phase, learning: nn.ModuleDict, rows: Rows, steps: int, seed: int, done: Done, work: Path,
                 begun: float) -> None:
    """One phase with its own optimizer and schedule."""
    policy, lookup = learning["policy"], learning["lookup"]
    policy.model.model.visual.requires_grad_(phase.eyes)
    seen = None if phase.eyes else rows.seen(policy)
    optimizer = torch.optim.AdamW(learning.parameters(), lr=phase.peak_lr, betas=(0.9, 0.95), weight_decay=0.05)
    optimizer.load_state_dict({"state": done.moments, "param_groups": optimizer.state_dict()["param_groups"]})
    shown, since = [], time.time()
    for step in range(done.step, steps):
        rng = np.random.default_rng((seed, phase.stream, step))
        indices = rng.integers(len(rows.pictures), size=BATCH)
        drawn = [rows.sample(int(index), rng, phase.turns, phase.kinds) for index in indices]
        batch = pack([row.tree for row in drawn])
        answers = torch.zeros_like(batch.mask)
        for place, row in enumerate(drawn):
            answers[place, :len(row.answers)] = torch.tensor(row.answers)
        features = None if seen is None else torch.cat([seen[row.place] for row in drawn])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, phase.peak_lr)
        loss, error = -policy(batch, features=features)[answers].mean(), lookup.error(drawn, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss + LOOKUP_WEIGHT * error).backward()
        torch.nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        optimizer.step()
        shown.append((loss.item(), error.item()))
        if (step + 1) % 50 == 0:
            mean, pace = np.mean(shown, axis=0), (time.time() - since) / len(shown)
            print(f"{time.time() - begun:6.0f} s  {phase.name}: step {step + 1}/{steps}  loss {mean[0]:.4f}  "
                  f"lookup error {mean[1]:.3f} of the side  {pace:.2f} s/step  "
                  f"about {pace * (steps - step - 1) / 60:.0f} min left", flush=True)
            shown, since = [], time.time()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            _save(work, learning, Done(PHASES.index(phase), step + 1, optimizer.state_dict()["state"]))


def _save(work: Path, learning: nn.Module, done: Done) -> None:
    """Weights, moments and the place, in safetensors, under one name or not at all."""
    state = {f"model.{k}": v.clone() for k, v in learning.state_dict().items()}
    for index, moments in done.moments.items():
        state |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in moments.items()}
    save_file(state | {"phase": torch.tensor(done.phase), "step": torch.tensor(done.step)}, work / "state.partial")
    (work / "state.partial").rename(work / "state.safetensors")


def _restore(work: Path, learning: nn.Module) -> Done:
    state = load_file(work / "state.safetensors")
    learning.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    moments: dict[int, dict] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = value
    return Done(int(state["phase"]), int(state["step"]), moments)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny base model on generic procedural pictures")
    parser.add_argument("--out", type=Path, default=Path("models/tiny_base"))
    parser.add_argument("--vision-steps", type=int, default=5000)
    for phase in PHASES:
        parser.add_argument(f"--{phase.name}-steps", type=int, default=phase.steps)
    parser.add_argument("--pictures", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    steps = {phase.name: vars(arguments)[f"{phase.name}_steps"] for phase in PHASES}
    train(arguments.out, arguments.vision_steps, steps, arguments.pictures, arguments.seed, arguments.threads,
          arguments.resume)


if __name__ == "__main__":
    main()
