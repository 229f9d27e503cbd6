"""Which settings decide what a run computes, in which of them two configurations differ, and what may differ after all.

What holds: a setting that decides no result is in no difference. Of the others, an unfinished stage 3 may go on with new
ones where nobody else has read them, if whoever starts it accepts that (`--accept-changes`); never with those from which
its checkpoint, its prompts or its learning-rate schedule could not go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.load import flatten
from configs.schema import OPERATIONAL_REWARD, RunConfig, StageName

#: Settings (or sections) that change where and how a run works but not what it computes: a resumed run may change them.
OPERATIONAL = (
    "root", "traces", "deadlines", "failures", "rollout.workers", "rollout.transport", "model.attention",
    *(f"reward.{name}" for name in OPERATIONAL_REWARD),
)
#: What stage 3 alone is trained with, but for `SHARED`, which the supervised stages read too. Evaluations run in engines of
#: `rollout`, whose size is no part of what they measure, and are scored by `reward`; each says in its file by which.
STAGE_3 = ("grpo", "rollout", "learner", "reward")
SHARED = ("learner.num_gpus", "learner.threads")
#: Of these, what an unfinished stage 3 cannot go on with anew, and why.
FIXED = {
    "learner.ranks": "a checkpoint is divided among the learner's ranks",
    "learner.zero_stage": "a checkpoint is laid out for its ZeRO stage",
    "grpo.inner_epochs": "the learning-rate schedule counts optimizer steps",
    "grpo.localization_share": "it decides which rows have been asked: some would be skipped, others come twice",
    "grpo.joined_boxes": "it decides what the prompts ask for, among them those that have been asked",
}
_DECAY = "learner.optimizer.weight_decay"


@dataclass(frozen=True)
class Change:
    """A setting that decides results and differs. `obstacle`: why stage 3 cannot go on with it; None: it can."""

    key: str
    before: Any
    after: Any
    obstacle: str | None

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"


def deciding(config: RunConfig) -> dict[str, Any]:
    """The settings that decide results (all but `OPERATIONAL` and `OPERATIONAL_PARAMS`): plain JSON data by dotted key, in
    schema order."""
    custom = tuple(own.model_copy(update={"params": own.deciding_params}) for own in config.reward.custom)
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"custom": custom})})
    return {key: value for key, value in flatten(config.model_dump(mode="json")) if not _in(key, OPERATIONAL)}


def of_stage_3(key: str) -> bool:
    """Whether stage 3 alone reads the setting."""
    return _in(key, STAGE_3) and not _in(key, SHARED)


def config_hash(config: RunConfig, stage: StageName | str) -> str:
    """SHA-256 of the settings that decide a stage's results; for another stage than 3, of those that are not its alone."""
    settings = {key: value for key, value in deciding(config).items() if stage == "grpo" or not of_stage_3(key)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """How settings as `deciding` gives them differ, in their order."""
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return tuple(Change(key, before.get(key), after.get(key), _obstacle(key, before, after)) for key in keys)


def _obstacle(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    if not of_stage_3(key):
        return "not stage 3 alone is made with it"
    if key == _DECAY and bool(before.get(key)) != bool(after.get(key)):
        return "the optimizer's state is divided into other groups without weight decay"
    if key == "grpo.prompts_per_step" and after.get("grpo.steps") is None:
        return "the number of steps would be another one; set grpo.steps, which counts the steps that are done too"
    return FIXED.get(key)


def listed(differences: Sequence[Change]) -> str:
    """One line for each, indented, with what stands against it."""
    return "\n".join(f"  {own}" + (f"  (cannot be accepted: {own.obstacle})" if own.obstacle else "") for own in differences)


def _in(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of the names, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
