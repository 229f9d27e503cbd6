"""What stage 3 leaves in its folder: metrics and traces (append-only), checkpoints, and the mark of the end.

    STAGE/metrics.jsonl        one line per step             STAGE/traces/groups.jsonl   one line per group
    STAGE/checkpoints/step-N   learner state after N steps   STAGE/checkpoints/latest.json   {"step", "version", ...}
    STAGE/trained.json         written last

What holds: `latest.json` names a checkpoint only when that is complete; a resumed run cuts the lines of the steps it
will do again, so no line is missing or there twice.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.types import Group, Rewards
from data.stage_files import keep_steps, write_text
from rewards.extraction import extract_answer
from rewards.rows import RewardRow

METRICS, TRACES, FINISHED, MODEL = "metrics.jsonl", "traces/groups.jsonl", "trained.json", "hf"


class CheckpointMismatch(RuntimeError):
    """The folder holds unfinished work of other settings, rows or another model. Nothing was changed."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, weight version, prompts taken from the schedule, checkpoint (None: the start)."""

    step: int = 0
    version: int = 0
    prompts: int = 0
    checkpoint: Path | None = None


class StageRecord:
    """The stage folder of one run, identified by `fingerprint`; `rewards`: component to version of custom rewards."""

    def __init__(self, folder: Path, fingerprint: str, rewards: Mapping[str, str]) -> None:
        self.folder, self._fingerprint, self._rewards = folder, fingerprint, dict(rewards)
        self._checkpoints = folder / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether this very run has left its model."""
        path = self.folder / FINISHED
        return (
            path.is_file()
            and json.loads(path.read_text())["fingerprint"] == self._fingerprint
            and (self.folder / MODEL).is_dir()
        )

    def resume(self, accept_changed_rewards: bool = False) -> Progress:
        """The last committed state; cuts the records behind it.

        CheckpointMismatch for the work of other settings, and for that of other rewards unless they are accepted.
        """
        (self.folder / "traces").mkdir(parents=True, exist_ok=True)
        self._checkpoints.mkdir(exist_ok=True)
        latest = self._checkpoints / "latest.json"
        progress = Progress()
        if latest.is_file():
            state = json.loads(latest.read_text())
            if state["fingerprint"] != self._fingerprint:
                raise CheckpointMismatch(
                    f"{self._checkpoints} belongs to other settings, rows or another model; "
                    "remove that folder to start the stage afresh, or put the old ones back"
                )
            changed = self.changed_rewards(latest)
            if changed and not accept_changed_rewards:
                raise CheckpointMismatch(
                    f"the source of reward {', '.join(changed)} has changed since step {state['step']} of "
                    f"{self._checkpoints}; put the old one back, go on with the new one by --set reward.accept_changed=true, "
                    "or remove that folder to start the stage afresh"
                )
            checkpoint = self._checkpoints / f"step-{state['step']}"
            progress = Progress(state["step"], state["version"], state["prompts"], checkpoint)
        for name in (METRICS, TRACES):
            keep_steps(self.folder / name, progress.step)
        return progress

    def changed_rewards(self, path: Path | None = None) -> list[str]:
        """Custom rewards whose source is another than that of the work in `path` (default: the last checkpoint's)."""
        path = path or self._checkpoints / "latest.json"
        versions = json.loads(path.read_text()).get("rewards", {}) if path.is_file() else self._rewards
        return [name for name, version in self._rewards.items() if versions.get(name) != version]

    def checkpoint_folder(self, step: int) -> Path:
        """Where the learner writes its state after `step` steps; made empty."""
        folder = self._checkpoints / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def commit(self, progress: Progress) -> None:
        """The checkpoint of `progress.step` is complete: make it the one to resume from and remove the others."""
        write_text(
            self._checkpoints / "latest.json",
            json.dumps(
                {
                    "step": progress.step,
                    "version": progress.version,
                    "prompts": progress.prompts,
                    "fingerprint": self._fingerprint,
                    "rewards": self._rewards,
                }
            )
            + "\n",
        )
        for folder in self._checkpoints.glob("step-*"):
            if folder.name != f"step-{progress.step}":
                shutil.rmtree(folder)

    def append(
        self,
        metrics: Mapping[str, Any],
        groups: Sequence[Group],
        rewards: Sequence[Rewards],
        advantages: Sequence[Sequence[float]],
        rows: Sequence[RewardRow] = (),
    ) -> None:
        """The lines of one step; numbers that are not finite become null. `rows`: the groups', as rewards saw them."""
        seen = rows or [None] * len(groups)
        # Half a surrogate pair, which a row's metadata may hold, has no UTF-8; as an escape it is JSON.
        with (self.folder / TRACES).open("a", encoding="utf-8", errors="backslashreplace") as file:
            for group, *numbers, row in zip(groups, rewards, advantages, seen, strict=True):
                file.write(json.dumps(trace(metrics["step"], group, *numbers, row), ensure_ascii=False) + "\n")
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _finite(value) for key, value in metrics.items()}) + "\n")

    def finish(self) -> None:
        """The model is written: mark the end and drop the checkpoints."""
        write_text(self.folder / FINISHED, json.dumps({"fingerprint": self._fingerprint, "rewards": self._rewards}) + "\n")
        shutil.rmtree(self._checkpoints)


def trace(
    step: int, group: Group, rewards: Rewards, advantages: Sequence[float], row: RewardRow | None = None
) -> dict[str, Any]:
    """A group as a reader wants it; pictures by path. `reward` is what a completion was compared by: its total, shaped.

    Boxes: `truth` has them in pixels of the original picture, `target_boxes` in those of the processed one, of
    `processed_size` (width, height), as `row` has them; both are null without it.
    """
    example, generation = group.prompt.example, group.generation
    return {
        "step": step,
        "version": generation.version,
        "worker": generation.worker,
        "seconds": generation.seconds,
        "row": example.id,
        "question_type": example.question_type,
        "media": example.media,
        "question": example.question,
        "options": example.options,
        "metadata": dict(example.metadata),
        "target_boxes": None if row is None else row.target_boxes,
        "processed_size": None if row is None else row.processed_size,
        "prompt": "\n".join(
            item["text"] for message in group.prompt.messages for item in message["content"] if "text" in item
        ),
        "truth": (
            example.answer
            if not example.is_localization
            else [{"label": box.label, "bbox": box.bbox} for box in example.boxes]
        ),
        "completions": [
            {
                "text": completion.text,
                "answer": extract_answer(completion.text),
                "tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "outcome": score.outcome,
                "total": score.total,
                "components": dict(score.components),
                "detail": score.detail,
                "reward": reward,
                "advantage": advantage,
            }
            for completion, score, reward, advantage in zip(
                generation.completions, group.scores, rewards, advantages, strict=True
            )
        ],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
