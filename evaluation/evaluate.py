"""Held-out evaluation: the same prompts, greedily, through the rollout workers; every answer on disk.

    questions = prepare(heldout_rows(...), "accuracy", processor, preset)
    before    = await evaluate([worker.generate_many], questions, ...)          # Ray: worker.generate_many.remote
    after     = await evaluate(...)
    records   = compare(before, after, seed)                                    # summary.json of the stage

Files, both written whole or not at all, the second one last:
    STAGE/eval_<when>.jsonl   one row per line, in evaluation order (fields: `_row`)
    STAGE/eval_<when>.json    `identity` (what was asked of whom, how), `metrics` {name: {mean, ci95, n}}, `flags`,
                              `seconds`

What holds
    * An evaluation that is on disk with the same identity (metric, prompts, decoding, scoring, provenance) is read, not
      run again; any difference runs it again.
    * Before and after are compared on equal row ids and equal prompts only.
    * A worker that is silent for `silence_seconds` ends the evaluation with an error that names it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Awaitable, Callable, Literal, Mapping, Protocol, Sequence

from actors.rollout import RolloutRequest
from configs.schema import BoxFrame, SamplingConfig
from data.prompts import Preset, render
from data.types import Example, Prompt
from evaluation.baseline import best_constants
from evaluation.metrics import RowMismatch, by_group, mean_ci95, paired_record
from evaluation.scoring import MODES, EvaluationError, Metric, RowScore, RowView, Scoring, score_rows
from evaluation.selection import selection_hash
from models.inputs import frame_size, image_size, prompt_token_ids
from rewards.accuracy import MraMode

When = Literal["before", "after"]
#: Prompts of one call to a worker, and calls in flight per worker: they fill an engine and show progress.
CHUNK, IN_FLIGHT = 16, 4
#: Seconds between two progress lines.
PROGRESS_SECONDS = 4.0


class Answer(Protocol):
    """The part of a Generation that is read: its first completion's text, token_ids and finish_reason."""

    @property
    def completions(self) -> Sequence: ...


#: `generate_many` of one worker, or its `.remote`: requests in, their generations in the same order out.
Ask = Callable[[Sequence[RolloutRequest]], Awaitable[Sequence[Answer]]]


@dataclass(frozen=True)
class Question:
    """A held-out row, rendered: what is asked, how it is scored, and the hash that says two prompts are the same."""

    view: RowView
    prompt: Prompt
    token_ids: tuple[int, ...]
    prompt_sha256: str


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on disk. `rows`: the lines of the JSONL file; `report`: the JSON file beside it."""

    path: Path
    rows: tuple[dict, ...]
    report: dict

    def scores(self, name: str) -> dict[str, float]:
        """Row id -> score, over the rows to which the component `name` applies."""
        return {row["row"]: row["scores"][name] for row in self.rows if name in row["scores"]}


def prepare(
    examples: Sequence[Example], metric: Metric, processor, preset: Preset = "ladder", box_frame: BoxFrame = "absolute"
) -> tuple[Question, ...]:
    """Render the prompts of a metric. `processor`: of the evaluated model (models.loading.load_processor).

    Raises MediaError for an unreadable picture, ValueError where the metric does not fit the row.
    """
    questions = []
    for example in examples:
        prompt = render(example, MODES[metric], preset, "evaluation")
        original = frame = None
        if example.is_localization:
            original = image_size(example.media[0])
            frame = frame_size(processor, original, box_frame)
        view = RowView(example, original, frame)
        questions.append(Question(view, prompt, prompt_token_ids(processor, prompt.messages), _prompt_hash(prompt)))
    return tuple(questions)


async def evaluate(
    asks: Sequence[Ask],
    questions: Sequence[Question],
    scoring: Scoring,
    *,
    folder: Path,
    when: When,
    max_new_tokens: int,
    provenance: Mapping[str, object],
    silence_seconds: float,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Evaluation:
    """Ask, score and write `folder`/eval_<when>.jsonl and .json; returns what is on disk.

    `provenance` is plain JSON data that says which weights and which data were evaluated (hashes, revisions).
    Raises EvaluationError for aborted generations, rows that cannot be scored, and silence.
    """
    identity = _identity(questions, scoring, max_new_tokens, provenance, seed)
    done = load_evaluation(folder, when)
    name = f"{folder.name} evaluation {when}"
    if done is not None and done.report["identity"] == identity:
        progress(f"{name}: {len(done.rows)} rows already answered")
        return done
    started = time.monotonic()
    requests = [_request(f"{name} {index}", question, max_new_tokens, seed) for index, question in enumerate(questions)]
    answers = await _ask_all(asks, requests, silence_seconds, lambda text: progress(f"{name}: {text}"))
    completions = [answer.completions[0] for answer in answers]
    scored = score_rows(
        [question.view for question in questions],
        [completion.text for completion in completions],
        [completion.finish_reason for completion in completions],
        scoring,
    )
    rows = tuple(_row(*parts, scoring.metric) for parts in zip(questions, completions, scored, strict=True))
    report = {
        "identity": identity,
        "metrics": _means(rows, seed),
        "flags": dict(Counter(row["flag"] for row in rows if row["flag"])),
        "seconds": round(time.monotonic() - started, 3),
    }
    _write(folder, when, rows, report)
    means = ", ".join(f"{key} {value['mean']:.3f}" for key, value in report["metrics"].items())
    progress(f"{name}: {means} over {len(rows)} rows in {report['seconds']:.1f} s")
    return Evaluation(folder / f"eval_{when}.jsonl", rows, report)


def compare(before: Evaluation, after: Evaluation, seed: int = 0) -> dict[str, dict]:
    """Metric name -> record of summary.json (`metrics.paired_record`), with the means by question type in `by_type`.

    Accuracies also say, as `constant`, what the best fixed answer per question type would score (`baseline`).
    Raises RowMismatch when rows or prompts differ.
    """
    for key in ("metric", "prompts_sha256", "decoding", "scoring"):
        one, other = before.report["identity"][key], after.report["identity"][key]
        if one != other:
            raise RowMismatch(f"{before.path} and {after.path} differ in {key}: {one} and {other}; evaluate both alike")
    types = {row["row"]: row["question_type"] for row in before.rows}
    records = {}
    for name in before.report["metrics"]:
        first, second = before.scores(name), after.scores(name)
        record = paired_record(first, second, seed) | {"by_type": by_group(first, second, types)}
        if name == "accuracy":
            _add_constants(record, before.rows, before.report["identity"]["scoring"]["mra_mode"])
        records["localization_iou" if before.report["identity"]["metric"] == "localization_iou" else name] = record
    return records


def _add_constants(record: dict, rows: Sequence[Mapping[str, Any]], mra_mode: MraMode) -> None:
    constants, total = best_constants(rows, mra_mode), 0.0
    for kind, means in record["by_type"].items():
        means["constant"] = constants[kind]
        total += constants[kind] * means["n"]
    record["constant"] = total / record["n"]


def load_evaluation(folder: Path, when: When) -> Evaluation | None:
    """A finished evaluation from disk, or None. EvaluationError when the files are there but do not belong together."""
    path, report_path = folder / f"eval_{when}.jsonl", folder / f"eval_{when}.json"
    if not report_path.is_file() or not path.is_file():
        return None
    rows = tuple(json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
    report = json.loads(report_path.read_text(encoding="utf-8"))
    if selection_hash([row["row"] for row in rows]) != report["identity"]["rows_sha256"]:
        raise EvaluationError(f"{path} does not hold the rows that {report_path} describes: delete both and run again")
    return Evaluation(path, rows, report)


async def _ask_all(
    asks: Sequence[Ask], requests: Sequence[RolloutRequest], silence_seconds: float, progress: Callable[[str], None]
) -> list[Answer]:
    """Spread chunks over the workers, a new one whenever one returns; answers in the order of `requests`."""
    if not asks:
        raise EvaluationError("no rollout worker to ask: start at least one")
    waiting = deque(range(0, len(requests), CHUNK))
    answers: list[Answer | None] = [None] * len(requests)
    running: dict[asyncio.Task, tuple[int, int]] = {}  # task -> (worker, first request of the chunk)
    told = started = time.monotonic()
    answered = 0

    def launch(worker: int) -> None:
        start = waiting.popleft()
        running[asyncio.create_task(_call(asks[worker], requests[start : start + CHUNK]))] = (worker, start)

    try:
        for slot in range(min(IN_FLIGHT * len(asks), len(waiting))):
            launch(slot % len(asks))
        while running:
            done, _ = await asyncio.wait(running, timeout=silence_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                workers = sorted({worker for worker, _ in running.values()})
                raise EvaluationError(
                    f"{len(requests) - answered} of {len(requests)} answers missing: rollout worker(s) {workers} sent "
                    f"nothing for {silence_seconds:g} s; look at their logs or raise deadlines.generation"
                )
            for task in done:
                worker, start = running.pop(task)
                chunk = task.result()
                answers[start : start + len(chunk)] = chunk
                answered += len(chunk)
                if waiting:
                    launch(worker)
            if (now := time.monotonic()) - told >= PROGRESS_SECONDS or not running:
                told = now
                progress(f"{answered}/{len(requests)} rows, {answered / max(now - started, 1e-9):.1f} rows/s")
    finally:
        for task in running:
            task.cancel()
    return answers


async def _call(ask: Ask, chunk: Sequence[RolloutRequest]) -> list[Answer]:
    answers = list(await ask(chunk))
    if len(answers) != len(chunk):
        raise EvaluationError(f"a rollout worker answered {len(answers)} of {len(chunk)} prompts")
    return answers


def _request(request_id: str, question: Question, max_new_tokens: int, seed: int) -> RolloutRequest:
    example = question.view.example
    return RolloutRequest(
        request_id=request_id,
        prompt_token_ids=question.token_ids,
        media=example.media,
        is_video=example.data_type == "video",
        n=1,
        seed=seed,
        sampling=SamplingConfig(max_new_tokens=max_new_tokens),
        greedy=True,
    )


def _identity(
    questions: Sequence[Question], scoring: Scoring, max_new_tokens: int, provenance: Mapping[str, object], seed: int
) -> dict:
    """What must be equal for a finished evaluation to count as this one; plain JSON."""
    identity = {
        "metric": scoring.metric,
        "mode": MODES[scoring.metric],
        "n": len(questions),
        "rows_sha256": selection_hash([question.view.example.id for question in questions]),
        "prompts_sha256": selection_hash([question.prompt_sha256 for question in questions]),
        "decoding": {"greedy": True, "repetition_penalty": 1.0, "max_new_tokens": max_new_tokens},
        "scoring": asdict(scoring.settings),
        "seed": seed,
        "provenance": dict(provenance),
    }
    return json.loads(json.dumps(identity))


def _prompt_hash(prompt: Prompt) -> str:
    """SHA-256 of the chat and of the pictures' names (scene/frame), which survive a move of the data folder."""
    media = ["/".join(Path(path).parts[-2:]) for path in prompt.example.media]
    return hashlib.sha256(json.dumps([prompt.messages, media], sort_keys=True).encode()).hexdigest()


def _row(question: Question, completion, score: RowScore, metric: Metric) -> dict:
    """One JSONL line. A box: {"label", "bbox": [x1, y1, x2, y2] in the frame of `processed_size`, null if malformed}."""
    view, example = question.view, question.view.example
    predicted = None
    if score.boxes is not None:
        predicted = [{"label": box.label, "bbox": list(box.corners) if box.corners else None} for box in score.boxes]
    return {
        "row": example.id,
        "mode": MODES[metric],
        "question_type": example.question_type,
        "data_type": example.data_type,
        "question": example.question,
        "options": list(example.options) if example.options else None,
        "media": list(example.media),
        "original_size": list(view.original_size) if view.original_size else None,
        "processed_size": list(view.processed_size) if view.processed_size else None,
        "prompt_sha256": question.prompt_sha256,
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "answer": score.answer,
        "truth": example.answer,
        "flag": score.flag,
        "scores": dict(score.scores),
        "boxes_true": [{"label": label, "bbox": list(bbox)} for label, bbox in view.target_boxes],
        "boxes_predicted": predicted,
    }


def _means(rows: Sequence[dict], seed: int) -> dict[str, dict]:
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    means = {}
    for name in names:
        values = [row["scores"][name] for row in sorted(rows, key=lambda row: row["row"]) if name in row["scores"]]
        mean, ci95 = mean_ci95(values, seed)
        means[name] = {"mean": mean, "ci95": ci95, "n": len(values)}
    return means


def _write(folder: Path, when: When, rows: Sequence[dict], report: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path, report_path = folder / f"eval_{when}.jsonl", folder / f"eval_{when}.json"
    report_path.unlink(missing_ok=True)  # a crash in between leaves no finished evaluation, never a mixed one
    for target, text in (
        (path, "".join(json.dumps(row) + "\n" for row in rows)),
        (report_path, json.dumps(report, indent=2) + "\n"),
    ):
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
