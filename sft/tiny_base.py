"""Train the tiny base: the model that plays the part of the pretrained one.

A seeded, re-runnable command:

    python -m sft.tiny_base --out models/tiny_base [--vision-steps N] [--see-steps N] [--find-steps N] [--speak-steps N]
                            [--pictures N] [--seed N] [--threads 2] [--resume]

It renders generic pictures (`data.pictures`), trains the vision tower alone (`sft.tiny_vision`), then the model in
phases (`PHASES`): several questions about each picture in one conversation, loss on the answers only. None of the
ladder's prompts or formats appear. Progress goes to the terminal; every 500 steps of a phase the state is saved, so that
`--resume` continues an interrupted run with the same result. What is interrupted before that begins again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.pictures import FIND, SEE, SPEAK, Picture, conversation, make_picture, mirrored
from models.forward import PolicyForward, Sample, build_batch
from models.inputs import Encoded, encode
from models.loading import load_policy, load_processor, save_policy
from models.tiny import build_tiny
from sft.tiny_vision import train_vision

SIDE, RENDER_SIDE = 112, 168
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


#: First to read places off a picture; then to tell which of several things is meant, which takes many questions; then
#: to say it in several ways and to write numbers, lists and sentences.
PHASES = (
    Phase("see", SEE, 2, 1600, 1.2e-3, 1),
    Phase("find", FIND, 4, 2000, 1.5e-3, 4, eyes=False),
    Phase("speak", SPEAK, 2, 900, 8e-4, 3),
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


@dataclass(frozen=True)
class Row:
    """A conversation: the first question as prompt, the rest as completion, which of its tokens are answers, and the place
    of its picture in `Rows.seen`."""

    sample: Sample
    answers: list[bool]
    place: tuple[int, int]


class Rows:
    """Pictures and conversations as samples; the processor runs once, on a template, and only pixels change."""

    def __init__(self, folder: Path, pictures: list[Picture]) -> None:
        self.processor = load_processor(folder)
        self.pictures = pictures
        self._prompts: dict[str, Encoded] = {}
        self._blank = Image.new("RGB", (SIDE, SIDE))
        image = self.processor.image_processor
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (image.image_mean, image.image_std))
        self._check_patches()

    def patches(self, rgb: np.ndarray) -> torch.Tensor:
        """(patches, 1176) as the image processor makes them, for a picture that needs no resize."""
        pixels = (torch.from_numpy(rgb.copy()).permute(2, 0, 1) / 255.0 - self._mean) / self._std
        n = SIDE // 28
        grid = pixels.unsqueeze(1).expand(3, 2, SIDE, SIDE).reshape(3, 2, n, 2, 14, n, 2, 14)
        return grid.permute(2, 5, 3, 6, 0, 1, 4, 7).reshape(n * n * 4, 3 * 2 * 14 * 14)

    def _check_patches(self) -> None:
        rgb = self.pictures[0].rgb
        truth = self.processor.image_processor(images=[Image.fromarray(rgb)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(self.patches(rgb), truth, atol=1e-4, rtol=0)

    def _prompt(self, question: str) -> Encoded:
        if question not in self._prompts:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            self._prompts[question] = encode(self.processor, [{"role": "user", "content": content}], [self._blank], False)
        return self._prompts[question]

    @torch.no_grad()
    def seen(self, policy: PolicyForward) -> torch.Tensor:
        """Visual tokens (2, pictures, tokens, width) of all pictures as they are, and mirrored."""
        grid = torch.tensor([[1, SIDE // 14, SIDE // 14]])
        both = [*self.pictures, *map(mirrored, self.pictures)]
        tokens = []
        for first in range(0, len(both), 64):
            patches = [self.patches(picture.rgb) for picture in both[first:first + 64]]
            tokens.append(policy.visual(torch.cat(patches), grid.expand(len(patches), 3)).unflatten(0, (len(patches), -1)))
        return torch.cat(tokens).unflatten(0, (2, -1))

    def sample(self, index: int, rng: np.random.Generator, phase: Phase) -> Row:
        """A conversation about the picture, mirrored every other time."""
        picture, flipped = self.pictures[index], rng.random() < 0.5
        if flipped:
            picture = mirrored(picture)
        turns = conversation(picture, rng, phase.turns, phase.kinds)
        prompt = self._prompt(turns[0][0])
        encoded = Encoded(prompt.prompt_ids, prompt.input_ids, prompt.token_types, self.patches(picture.rgb),
                          prompt.grid_thw, prompt.positions)
        tokenize = lambda text: self.processor.tokenizer(text, add_special_tokens=False).input_ids
        ids, answers = [], []
        for number, (question, answer) in enumerate(turns):
            if number:
                between = tokenize(f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
                ids += between
                answers += [False] * len(between)
            reply = tokenize(answer + "<|im_end|>")
            ids += reply
            answers += [True] * len(reply)
        return Row(Sample(encoded, tuple(ids)), answers, (int(flipped), index))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then cosine to FINAL_LR."""
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    return FINAL_LR + (peak - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train(out: Path, vision_steps: int, steps: Mapping[str, int], pictures: int, seed: int, threads: int, resume: bool) -> None:
    begun = time.time()
    work = out.with_name(out.name + ".work")
    if not resume:
        build_tiny(work, seed)
    print(f"drawing {pictures} pictures", flush=True)
    rows = Rows(work, draw_pictures(pictures, seed, 2))
    print(f"{time.time() - begun:6.0f} s  pictures drawn", flush=True)
    torch.set_num_threads(threads)
    policy = PolicyForward(load_policy(work))
    done = _restore(work, policy) if resume else None
    if done is None:
        train_vision(policy.model.model.visual, rows.pictures, lambda picture: rows.patches(picture.rgb), mirrored, vision_steps, seed)
    for phase in PHASES:
        if done is not None and PHASES.index(phase) < done.phase:
            continue
        resumed = done if done is not None and PHASES.index(phase) == done.phase else None
        _train_phase(phase, policy, rows, steps[phase.name], seed, resumed, work, begun)
    save_policy(policy.model, work, out)
    (out / "training.json").write_text(json.dumps({
        "command": "python -m sft.tiny_base", "vision_steps": vision_steps, "steps": dict(steps), "pictures": pictures, "seed": seed,
        "batch": BATCH}, indent=1) + "\n")


def _train_phase(phase: Phase, policy: PolicyForward, rows: Rows, steps: int, seed: int, done: Done | None, work: Path,
                 begun: float) -> None:
    """One phase with its own optimizer and schedule."""
    policy.model.model.visual.requires_grad_(phase.eyes)
    seen = None if phase.eyes else rows.seen(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=phase.peak_lr, betas=(0.9, 0.95), weight_decay=0.05)
    if done is not None:
        optimizer.load_state_dict({"state": done.moments, "param_groups": optimizer.state_dict()["param_groups"]})
    pad = rows.processor.tokenizer.pad_token_id
    shown, since = [], time.time()
    for step in range(done.step if done is not None else 0, steps):
        rng = np.random.default_rng((seed, phase.stream, step))
        drawn = [rows.sample(int(index), rng, phase) for index in rng.integers(len(rows.pictures), size=BATCH)]
        batch = build_batch([row.sample for row in drawn], pad)
        answers = torch.zeros_like(batch.mask)
        for place, row in enumerate(drawn):
            answers[place, :len(row.answers)] = torch.tensor(row.answers)
        features = None if seen is None else torch.cat([seen[row.place] for row in drawn])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, phase.peak_lr)
        loss = -policy(batch, features=features)[answers].mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        shown.append(loss.item())
        if (step + 1) % 50 == 0:
            pace = (time.time() - since) / len(shown)
            print(f"{time.time() - begun:6.0f} s  {phase.name}: step {step + 1}/{steps}  loss {np.mean(shown):.4f}  {pace:.2f} s/step  "
                  f"about {pace * (steps - step - 1) / 60:.0f} min left", flush=True)
            shown, since = [], time.time()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            _save(work, policy, optimizer, PHASES.index(phase), step + 1)


def _save(work: Path, policy: PolicyForward, optimizer: torch.optim.Optimizer, phase: int, step: int) -> None:
    """Weights, moments and the place, in safetensors, under one name or not at all."""
    state = {f"model.{k}": v.clone() for k, v in policy.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in moments.items()}
    save_file(state | {"phase": torch.tensor(phase), "step": torch.tensor(step)}, work / "state.partial")
    (work / "state.partial").rename(work / "state.safetensors")


def _restore(work: Path, policy: PolicyForward) -> Done:
    state = load_file(work / "state.safetensors")
    policy.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
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
    train(arguments.out, arguments.vision_steps, steps, arguments.pictures, arguments.seed, arguments.threads, arguments.resume)


if __name__ == "__main__":
    main()
