"""What stage 3 leaves in its folder: metrics and traces (append-only), checkpoints, and the mark of the end.

    STAGE/metrics.jsonl        one line per step             STAGE/traces/groups.jsonl   one line per group
    STAGE/ledger.jsonl         one line per step: the prompts it was trained with, those that were dropped and why
    STAGE/checkpoints/step-N   learner state after N steps, and where the run stood (`actors.checkpoints`)
    STAGE/traces/failed.jsonl  the groups of the step at which too many completions had no score
    STAGE/trained.json         written last

What holds: a run resumes at the newest checkpoint that is whole, or at the start; it cuts the lines of the steps it
will do again, so no line is missing or there twice. Work of other rows or another model is never continued, that of other
settings only if they are accepted and can be (`configs.changes`); what was accepted, and at which step, stays on record.
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
from configs.changes import Change, changes, listed
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


@dataclass(frozen=True)
class Work:
    """What a stage is to do. `fingerprint`: of rows and model; `settings`: what decides the rest, plain JSON data by dotted
    key; `rewards`: component to version of custom rewards."""

    fingerprint: str
    settings: Mapping[str, Any]
    rewards: Mapping[str, str]


@dataclass(frozen=True)
class Accepted:
    """What an unfinished stage may go on with: other settings; custom rewards of another source."""

    settings: bool = False
    rewards: bool = False


class StageRecord:
    """The stage folder of one run. `changes`: the accepted ones, since the checkpoint that `resume` has found."""

    def __init__(self, folder: Path, work: Work, accepted: Accepted = Accepted()) -> None:
        self.folder, self._work, self._accepted = folder, work, accepted
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._rewards_before = work.rewards
        self._history: list[dict[str, Any]] = [_since(0, work.rewards, ())]
        self.changes: tuple[Change, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether this very run has left its model."""
        trained = self._trained()
        same = ("fingerprint", self._work.fingerprint), ("settings", self._work.settings)
        return trained is not None and all(trained.get(key) == value for key, value in same)

    def resume(self) -> Progress:
        """The last committed state; cuts the records behind it.

        CheckpointMismatch for other work, for a model that is already there with other settings, and for other settings or
        rewards that are not accepted.
        """
        self._refuse_trained()
        (self.folder / "traces").mkdir(parents=True, exist_ok=True)
        found = self._checkpoints.newest()
        progress = Progress(remarks=found.problems)
        if found.folder is None and found.broken:
            raise CheckpointMismatch(
                f"no checkpoint in {self._checkpoints.folder} is whole: {'; '.join(found.problems)}; put one back, or remove "
                "that folder to start the stage afresh"
            )
        if found.folder is not None:
            state = found.state
            self._compare(state)
            for folder in found.broken:
                self._checkpoints.set_aside(folder)
            if self.changes or self.changed_rewards():
                self._history.append(_since(state["step"], self._work.rewards, self.changes))
            progress = Progress(state["step"], state["version"], state["ledger"], found.folder, found.problems)
        for name in (METRICS, TRACES, LEDGER):
            keep_steps(self.folder / name, progress.step)
        return progress

    def _compare(self, state: Mapping[str, Any]) -> None:
        """Take over what was before from a checkpoint's state; CheckpointMismatch when it cannot be gone on from."""
        place, afresh = self._checkpoints.folder, "remove that folder to start the stage afresh"
        if "settings" not in state:
            raise CheckpointMismatch(
                f"{place} was written by an earlier version of this program, which did not note the settings: {afresh}, or "
                "finish the run with that version"
            )
        if state["fingerprint"] != self._work.fingerprint:
            raise CheckpointMismatch(f"{place} belongs to other rows or another model; {afresh}, or put the old ones back")
        self.changes = changes(state["settings"], self._work.settings)
        impossible = any(change.obstacle for change in self.changes)
        if self.changes and (impossible or not self._accepted.settings):
            way = "" if impossible else "go on with the new ones by --accept-changes, "
            raise CheckpointMismatch(
                f"{place} has {state['step']} steps of other settings:\n{listed(self.changes)}\n"
                f"{way}put the old ones back, or {afresh}"
            )
        self._rewards_before, self._history = dict(state["rewards"]), list(state["history"])
        changed = self.changed_rewards()
        if changed and not self._accepted.rewards:
            raise CheckpointMismatch(
                f"the source of reward {', '.join(changed)} has changed since step {state['step']} of "
                f"{place}; put the old one back, go on with the new one by --set reward.accept_changed=true, or {afresh}"
            )

    def _refuse_trained(self) -> None:
        """A model that other settings have made is never replaced unasked, nor taken for that of these."""
        trained = self._trained()
        if trained is None or trained.get("fingerprint") != self._work.fingerprint and "settings" in trained:
            return
        told = "with settings that an earlier version of this program did not note"
        if "settings" in trained:
            if not (differences := changes(trained["settings"], self._work.settings)):
                return
            told = "with other settings:\n" + "\n".join(f"  {change}" for change in differences)
        raise CheckpointMismatch(
            f"{self.folder} holds a model that was trained {told}\nPut the old ones back, give the run another name, or "
            "remove that folder to train again"
        )

    def _trained(self) -> Mapping[str, Any] | None:
        """What the mark of the end says of the model that is there, if one is."""
        path = self.folder / FINISHED
        return json.loads(path.read_text()) if path.is_file() and (self.folder / MODEL).is_dir() else None

    def changed_rewards(self) -> list[str]:
        """Custom rewards whose source is another than that of the work that is there: the model's, or the checkpoint's that
        `resume` has found. One that is not in both is a change of the settings."""
        trained = self._trained() if self.finished else None
        before = self._rewards_before if trained is None else trained["rewards"]
        return [name for name, version in self._work.rewards.items() if before.get(name, version) != version]

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
        """What this work is: `history` says from which step on it had which custom rewards, and what else changed then."""
        work = self._work
        own = {"fingerprint": work.fingerprint, "settings": dict(work.settings), "rewards": dict(work.rewards)}
        return {**own, "history": self._history}

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

    Boxes: `truth` has them in pixels of the original picture, `target_boxes` in the model's frame, of `processed_size`
    (width, height), as `row` has them; both are null without it.
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


def _since(step: int, rewards: Mapping[str, str], changed: Sequence[Change]) -> dict[str, Any]:
    """A line of the history: what holds from `step` on."""
    return {"step": step, "rewards": dict(rewards), "changed": [str(change) for change in changed]}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
