"""What stage 3 leaves in its folder: metrics and traces (append-only), checkpoints, and the mark of the end.

    STAGE/metrics.jsonl        one line per step             STAGE/traces/groups.jsonl   one line per group
    STAGE/ledger.jsonl         one line per step: the prompts it was trained with, those that were dropped and why
    STAGE/checkpoints/step-N   learner state after N steps, and where the run stood (`actors.checkpoints`)
    STAGE/traces/failed.jsonl  the groups of the step at which too many completions had no score
    STAGE/trained.json         written last

What holds: a run resumes at the newest checkpoint that is whole, or at the start; it cuts the lines of the steps it
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

from actors.checkpoints import Checkpoints, Stamps
from actors.types import Group, PromptTask, Rewards
from data.stage_files import flush, keep_steps, write_text
from rewards.extraction import extract_answer
from rewards.rows import RewardRow

METRICS, TRACES, LEDGER = "metrics.jsonl", "traces/groups.jsonl", "ledger.jsonl"
FAILED, FINISHED, MODEL = "traces/failed.jsonl", "trained.json", "hf"


class CheckpointMismatch(RuntimeError):
    """The folder holds unfinished work of other settings, rows or another model. Nothing was changed."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, weight version, the ledger's state and the checkpoint (None: the start). `remarks`:
    why it is not a newer one."""

    step: int = 0
    version: int = 0
    ledger: Mapping[str, Any] | None = None
    checkpoint: Path | None = None
    remarks: tuple[str, ...] = ()


class StageRecord:
    """The stage folder of one run, identified by `fingerprint`; `rewards`: component to version of custom rewards."""

    def __init__(self, folder: Path, fingerprint: str, rewards: Mapping[str, str]) -> None:
        self.folder, self._fingerprint, self._rewards = folder, fingerprint, dict(rewards)
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._rewards_before = self._rewards
        self._history: list[dict[str, Any]] = [{"step": 0, "rewards": self._rewards}]

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
        found = self._checkpoints.newest()
        progress = Progress(remarks=found.problems)
        if found.folder is None and found.broken:
            raise CheckpointMismatch(
                f"no checkpoint in {self._checkpoints.folder} is whole: {'; '.join(found.problems)}; put one back, or remove "
                "that folder to start the stage afresh"
            )
        if found.folder is not None:
            state, place = found.state, self._checkpoints.folder
            if state["fingerprint"] != self._fingerprint:
                raise CheckpointMismatch(
                    f"{place} belongs to other settings, rows or another model; "
                    "remove that folder to start the stage afresh, or put the old ones back"
                )
            self._rewards_before, self._history = dict(state["rewards"]), list(state["history"])
            changed = self.changed_rewards()
            if changed and not accept_changed_rewards:
                raise CheckpointMismatch(
                    f"the source of reward {', '.join(changed)} has changed since step {state['step']} of "
                    f"{place}; put the old one back, go on with the new one by --set reward.accept_changed=true, "
                    "or remove that folder to start the stage afresh"
                )
            for folder in found.broken:
                self._checkpoints.set_aside(folder)
            if changed:
                self._history.append({"step": state["step"], "rewards": self._rewards})
            progress = Progress(state["step"], state["version"], state["ledger"], found.folder, found.problems)
        for name in (METRICS, TRACES, LEDGER):
            keep_steps(self.folder / name, progress.step)
        return progress

    def changed_rewards(self) -> list[str]:
        """Custom rewards whose source is another than that of the work that is there: the model's, or the checkpoint's that
        `resume` has found."""
        path = self.folder / FINISHED
        before = json.loads(path.read_text()).get("rewards", {}) if self.finished else self._rewards_before
        return [name for name, version in self._rewards.items() if before.get(name) != version]

    def begin_checkpoint(self, step: int) -> Path:
        """Where the learner writes its state after `step` steps; made empty."""
        return self._checkpoints.begin(step)

    def commit(self, progress: Progress, files: Stamps) -> None:
        """The checkpoint of `progress.step` is complete, with these files: it is the one to resume from."""
        for name in (METRICS, TRACES, LEDGER):
            flush(self.folder / name)  # the lines of what is committed must not be lost with the machine
        state = {"step": progress.step, "version": progress.version, "ledger": progress.ledger}
        self._checkpoints.commit(progress.step, {**state, **self._identity()}, files)

    def _identity(self) -> dict[str, Any]:
        """What this work is: `history` says from which step on it had which sources of custom rewards."""
        return {"fingerprint": self._fingerprint, "rewards": self._rewards, "history": self._history}

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

    def write_failed(self, step: int, scored: Sequence[tuple[PromptTask, Group]]) -> Path:
        """The groups of a step that the run has stopped at, in the format of the traces; returns the file."""
        path = self.folder / FAILED
        lines = []
        for task, group in scored:
            totals = [score.total for score in group.scores]
            lines.append(json.dumps(trace(step, group, totals, [None] * len(totals), task.row)) + "\n")
        write_text(path, "".join(lines))
        return path

    def append_ledger(self, line: Mapping[str, Any]) -> None:
        """Which prompts of the schedule the step was trained with, as `Ledger.train` says."""
        with (self.folder / LEDGER).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """The model is written: mark the end and drop the checkpoints."""
        write_text(self.folder / FINISHED, json.dumps(self._identity()) + "\n")
        shutil.rmtree(self._checkpoints.folder, ignore_errors=True)


def trace(
    step: int, group: Group, rewards: Sequence[float | None], advantages: Sequence[float | None], row: RewardRow | None = None
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
