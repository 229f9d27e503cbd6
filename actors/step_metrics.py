"""What a step leaves in metrics.jsonl and in the log."""

from __future__ import annotations

import pickle
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.sampling import Sampled
from actors.step_batch import StepBatch
from actors.types import Sync
from rewards.settings import RewardSettings

#: Steps whose durations say how long the others will take; the middle one does, so that one slow step changes nothing.
RECENT_STEPS = 8
BUILT_IN = frozenset(RewardSettings().weights)
#: Keys of a step in which nothing could be learned; they are null there.
LEARNER_KEYS = (
    "loss",
    "lr",
    "grad_norm",
    "kl",
    "clip_fraction",
    "is_dropped_fraction",
    "is_ratio_mean",
    "is_ratio_max",
    "is_ratio_stale_mean",
    "is_ratio_stale_max",
    "logprob_gap_mean",
    "logprob_gap_max",
    "trained_tokens",
)


@dataclass(frozen=True)
class FleetFigures:
    """Of a step: workers that serve or will in a moment, how often engines have run their vision towers for each picture
    (None: not known), and the slowest control call, seconds."""

    workers: int
    passes_per_picture: float | None
    slowest_control: float


def step_metrics(
    step: int,
    sampled: Sampled,
    batch: StepBatch,
    learned: dict[str, float],
    synced: Sync,
    seconds: dict[str, float],
    fleet: FleetFigures,
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """The line of metrics.jsonl; `weights`: of the reward components. What it has beside `reward_figures`:

    `prompts_dropped` are in no other number. `version`: of the learner's weights before the step. `tokens_by_age`: tokens
    that were trained on, by how many versions older than these the weights were that drew them; `logprob_gap_*` are of
    those of age 0, `is_ratio_stale_*` of the others. `image_passes_per_prompt`: how often a picture was read and
    processed, engine and learner together, over the step's pictures (a video is one); `vision_passes_per_prompt` counts
    every vision tower it went through, the reference's included. `seconds_wait`: what the learner had nothing to do.
    `seconds_reward`: scoring that was left when the last generation came. `wire_bytes`: requests, generations and
    batches through the trainer; weights are `weight_bytes`, per worker. `seconds_control_max`: the longest that a worker at
    work let a control call wait.
    """
    lengths = [len(completion.token_ids) for group in sampled.groups for completion in group.generation.completions]
    pictures = sum(task.request.pictures for task in sampled.tasks)
    engines = fleet.passes_per_picture
    current, total = synced.version - bool(batch.train), sum(seconds.values())
    generations = tuple(group.generation for group in sampled.groups)
    wire = (tuple(task.request for task in sampled.tasks), generations, batch.train)
    return {
        "step": step,
        "version": current,
        **reward_figures(batch, weights),
        "prompts": len(sampled.tasks),
        "prompts_dropped": len(sampled.dropped),
        **dict.fromkeys(LEARNER_KEYS),
        **{key: value for key, value in learned.items() if key in LEARNER_KEYS},
        **({"kl": sampled.kl_sum / sampled.kl_tokens} if sampled.kl_tokens else {}),
        "staleness_max": current - min(generation.version for generation in generations),
        "tokens_by_age": batch.train.tokens_by_age() if batch.train else None,
        "canary_gap": synced.canary_gap,
        "completion_tokens": _mean(lengths),
        "completion_tokens_max": max(lengths),
        "samples_per_s": sum(len(group.scores) for group in batch.groups) / total,
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "seconds_wait": seconds["generate"] + seconds["reward"],
        "seconds": total,
        "wire_bytes": len(pickle.dumps(wire)),
        "weight_bytes": synced.nbytes if batch.train else 0,
        **{
            f"{kind}_passes_per_prompt": None if engines is None else engines + learned.get(f"{kind}_passes", 0.0) / pictures
            for kind in ("image", "vision")
        },
        "seconds_control_max": fleet.slowest_control,
        "workers": fleet.workers,
    }


def reward_figures(batch: StepBatch, weights: Mapping[str, float]) -> dict[str, float | None]:
    """What the completions were worth, and how many had no worth.

    `reward_NAME` is the mean of a component over the completions it applies to (null for none), their share `applies_NAME`,
    what it counts in the total `weight_NAME` (a gate may keep it out of some totals).
    """
    scores = [score for group in batch.groups for score in group.scores]
    ok = [score for score in scores if score.outcome == "ok"]
    measured = {name for score in ok for name in score.components}
    parted = {name.partition("/")[0] for name in measured}
    switched_on = {name for name, weight in weights.items() if weight or name not in BUILT_IN}
    names = sorted(measured | (switched_on - parted))
    outcomes = [advantage.outcome for advantage in batch.advantages]
    return {
        "reward": _mean([score.total for score in ok]),
        "reward_std": _mean([advantage.std for advantage in batch.advantages if advantage.std is not None]),
        **{
            f"reward_{name}": _mean([score.components[name] for score in ok if name in score.components])
            for name in names
        },
        **{f"applies_{name}": _mean([name in score.components for score in ok]) for name in names},
        **{f"weight_{name}": weights[name.partition("/")[0]] for name in names},
        "valid_fraction": len(ok) / len(scores),
        **{
            f"{outcome}_fraction": sum(score.outcome == outcome for score in scores) / len(scores)
            for outcome in ("truncated", "timeout", "error")
        },
        "zero_variance_fraction": outcomes.count("zero_variance") / len(outcomes),
    }


def seconds_left(recent: Sequence[float], steps: int) -> float:
    """What `steps` more steps take if they are as long as the median of the `RECENT_STEPS` last of `recent`, durations in
    seconds, the newest last."""
    return statistics.median(recent[-RECENT_STEPS:]) * steps


def progress_line(metrics: dict[str, Any], steps: int, recent: Sequence[float]) -> str:
    """What a reader of the log wants to know about a step; `recent`: seconds of the last steps, its own included."""
    parts = "  ".join(
        f"{key.removeprefix('reward_')} {value:.2f}"
        for key, value in metrics.items()
        if key.startswith("reward_") and key != "reward_std" and value is not None
    )
    left = seconds_left(recent, steps - metrics["step"] - 1)
    gap = f"  gap {metrics['logprob_gap_max']:.1e}" if metrics["logprob_gap_max"] is not None else ""
    gap = "  nothing to learn" if metrics["loss"] is None else gap
    reward = f"{metrics['reward']:.3f}" if metrics["reward"] is not None else "none"
    return (
        f"grpo: step {metrics['step'] + 1}/{steps}  reward {reward}  {parts}  tokens {metrics['completion_tokens']:.0f}"
        f"{gap}  {metrics['seconds']:.1f} s  {left:.0f} s left"
    )


def gap_alarm(metrics: dict[str, Any], tolerance: float) -> str | None:
    """What to say when engine and learner disagreed by more than the canary may about a token that the step trained on and
    the learner's own weights drew; only the canary compares the two where all are of older ones."""
    gap = metrics["logprob_gap_max"]
    if gap is None or gap <= tolerance:
        return None
    return (
        f"grpo: WARNING: step {metrics['step'] + 1}: engine and learner differ by {gap:.2g} nats on a sampled token "
        f"(rollout.canary_tolerance is {tolerance:g}); compare their prompts, positions and types before trusting this run"
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
