"""`ladder data traces`: a model answers the training rows with thoughts, and the rewards keep those that are right.

What holds
    * What the model has written is kept (`data.trace_drafts`): the same command goes on, with other filters judges again.
    * A row's drafts are drawn with seeds that only the run's seed and the row's id decide.
    * The data folder it writes is a function of rows, drafts and filters.

Imports are inside the functions: the command line answers without loading torch, Ray or vLLM.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import RunConfig
from data.types import HELDOUT, TRAIN
from launch.preflight import model_problems
from launch.problems import PreflightError, Problem
from launch.progress import Say

if TYPE_CHECKING:
    from data.trace_drafts import Draft, Drafts
    from data.trace_sampling import Writer
    from data.trace_selection import Score, Selection
    from data.types import Example, Prompt

#: Below the folder that is written: drafts, and what became of them.
WORK, TABLE = "traces", "table.txt"
#: Seeds stay below this: draft i of a row is drawn with seed + i.
_SEED_RANGE = 1 << 30


def write_traces(config: RunConfig, out: Path, say: Say) -> Selection:
    """Draws what is missing, and writes `out`: a data folder with these cold-start rows; drafts and table in `out`/traces.

    `config` has absolute paths. PreflightError, TracesRefused before anything is drawn; TraceError when drawing stops.
    """
    from data.trace_drafts import opened
    from data.trace_folder import write_folder
    from data.trace_selection import selected
    from models.inputs import frame_size
    from models.loading import load_processor

    rows = _checked_rows(config, out)
    processor = load_processor(config.model.path)
    score = _score(config, processor)
    with opened(out / WORK, drawn_with(config)) as drafts:
        _draw(config, rows, drafts, score, out, say)
        selection = selected(rows, drafts.of, score, config.traces)
    notes = {"rows": len(rows), "kept": len(selection.traces), **config.traces.model_dump(mode="json")}
    path = write_folder(Path(config.data.path), out, selection.traces, config.data.preset,
                        lambda size: frame_size(processor, size, config.model.box_frame), notes)
    (out / WORK / TABLE).write_text(selection.table() + "\n", encoding="utf-8")
    say(f"{len(selection.traces)} traces are written to {path}")
    return selection


def drawn_with(config: RunConfig) -> dict[str, Any]:
    """What decides the texts of drafts: flat JSON data."""
    from data.reading import GROUNDING_FILE, SPATIAL_FILE
    from launch.run import MODEL_FILES
    from launch.run_folder import fingerprint

    traces, endpoint = config.traces, config.traces.endpoint
    if endpoint is None:
        writer = {"model": fingerprint(Path(config.model.path), MODEL_FILES), "dtype": config.model.dtype}
    else:
        writer = {"model": endpoint.model, "extra_body": endpoint.extra_body}
    data = fingerprint(Path(config.data.path) / TRAIN, (GROUNDING_FILE, SPATIAL_FILE))
    return {"writer": "endpoint" if endpoint else "engine", **writer, "data": data, "preset": config.data.preset,
            "box_frame": config.model.box_frame, "seed": config.seed, "temperature": traces.sampling.temperature,
            "max_new_tokens": traces.sampling.max_new_tokens}


# Rows -------------------------------------------------------------------------------------------------------------


def _checked_rows(config: RunConfig, out: Path) -> tuple[Example, ...]:
    """The rows to ask. PreflightError with every problem that can be found before anything is drawn."""
    from data.checking import split_folders
    from data.checking_media import check_media
    from data.reading import DataError, load_split
    from data.trace_folder import asked_rows

    problems = [*model_problems(config), *_endpoint_problems(config)]
    if config.data.path is None:
        problems.append(Problem("there are no rows to ask", "data.path", "name a data folder: --data DIR, or data.path"))
        raise PreflightError(problems)
    if out.resolve() == Path(config.data.path).resolve():
        problems.append(Problem("this is the folder whose rows are asked", "--out", "choose another one"))
    elif out.exists() and not (out / WORK).is_dir() and (out.is_file() or any(out.iterdir())):
        problems.append(Problem(f"{out} holds something else than traces", "--out", "choose another folder, or remove it"))
    rows: tuple[Example, ...] = ()
    try:
        split_folders(Path(config.data.path))
        rows = chosen_rows(config, load_split(config.data.path, TRAIN))
        measured = _measured_rows(Path(config.data.path))
        check_media([*rows, *measured])
        if measured:
            asked_rows(Path(config.data.path) / HELDOUT)
    except DataError as error:
        problems.append(Problem(str(error).replace("\n", "\n    "), "data.path", "correct what is named"))
    if rows and not problems and config.traces.endpoint is None:
        problems += _engine_problems(config, rows)
    if not rows and not problems:
        problems.append(Problem("no row can be asked", "data.path, traces.localization_share", "take a folder with rows"))
    if problems:
        raise PreflightError(problems)
    return rows


def _measured_rows(folder: Path) -> list[Example]:
    """Held-out cold-start rows, which are written anew with the boxes' pictures opened (`data.trace_folder`)."""
    from data.reading import COLDSTART_FILE, read_rows

    return read_rows(folder, COLDSTART_FILE, HELDOUT) if (folder / HELDOUT / COLDSTART_FILE).is_file() else []


def chosen_rows(config: RunConfig, split) -> tuple[Example, ...]:
    """The rows of training that are asked, boxes and others by their share, each question once; seeded, all types."""
    from data.prompts import user_text
    from evaluation.selection import heldout_rows as stratified

    def distinct(rows: Sequence[Example]) -> list[Example]:
        return list({(row.media, user_text(row, "think", config.data.preset)): row for row in reversed(rows)}.values())

    boxes, others, share = distinct(split.grounding), distinct(split.spatial), config.traces.localization_share
    share = share if boxes and others else float(bool(boxes)) if share > 0 else 0.0
    total = config.traces.rows or len(boxes) + len(others)
    wanted = min(len(boxes), round(share * total), round(share * len(others) / (1 - share)) if share < 1 else len(boxes))
    parts = [(boxes, wanted), (others, min(len(others), total - wanted) if share < 1 else 0)]
    return tuple(row for rows, count in parts if count for row in stratified(rows, count, config.seed))


def _endpoint_problems(config: RunConfig) -> Iterator[Problem]:
    from evaluation.endpoint import Endpoint, EndpointError
    from rewards.errors import RewardSettingsError

    endpoint = config.traces.endpoint
    if endpoint is None:
        return
    if config.traces.localization_share > 0 and config.model.box_frame != "norm1000":
        yield Problem("an endpoint is asked for boxes in pixels of a picture whose size on the server is not known",
                      "traces.localization_share", "set it to 0; or model.box_frame to norm1000, if both models write so")
    try:
        Endpoint(endpoint)
    except (EndpointError, RewardSettingsError) as error:
        yield Problem(str(error), "traces.endpoint", "correct the setting, or set the variable")


def _engine_problems(config: RunConfig, rows: Sequence[Example]) -> Iterator[Problem]:
    """Rows that the engine could not take."""
    from actors.engine import MEDIA_LIMIT
    from data.prompt_length import longest_prompt
    from models.loading import load_processor

    beyond = [row for row in rows if row.data_type != "video" and len(row.media) > MEDIA_LIMIT["image"]]
    if beyond:
        yield Problem(f"row {beyond[0].id} shows {len(beyond[0].media)} pictures, the engine takes {MEDIA_LIMIT['image']}",
                      "data.path", "leave such rows out")
    tokens, row = longest_prompt(load_processor(config.model.path), rows, "think", config.data.preset)
    new, limit = config.traces.sampling.max_new_tokens, config.rollout.max_model_len
    if tokens + new > limit:
        yield Problem(f"row {row.id} takes {tokens} tokens and traces.sampling.max_new_tokens allows {new} more, the "
                      f"engine holds {limit}", "rollout.max_model_len", f"set it to {tokens + new} or more, or allow fewer")


# Drawing ----------------------------------------------------------------------------------------------------------


def _draw(config: RunConfig, rows: Sequence[Example], drafts: Drafts, score: Score, out: Path, say: Say) -> None:
    """Everything that is missing; nothing is started when nothing is."""
    from data.prompts import render
    from data.trace_sampling import draw_drafts
    from data.trace_selection import Trace, row_traces

    examples = {row.id: row for row in rows}

    def enough(row: str) -> bool:
        results = row_traces(examples[row], drafts.of(row), score, config.traces)
        return sum(isinstance(result, Trace) for result in results) >= config.traces.keep

    samples = config.traces.samples
    open_rows = [row for row in examples if len(drafts.of(row)) < samples and not enough(row)]
    there = sum(len(drafts.of(row)) for row in examples)
    say(f"traces: {len(rows)} rows, {there} drafts are there, {len(open_rows)} rows to ask")
    if not open_rows:
        return
    prompts = {row: render(examples[row], "think", config.data.preset) for row in open_rows}
    by_endpoint = config.traces.endpoint is not None
    with (_endpoint(config, prompts) if by_endpoint else _engine(config, prompts, out, say)) as writer:
        failed = asyncio.run(draw_drafts(open_rows, drafts, writer, samples, enough, say))
    if failed:
        say(f"traces: {failed} rows got no answer; the same command asks them again")


def row_seed(config: RunConfig, row: str) -> int:
    """Draft i of a row is drawn with this seed + i."""
    return zlib.crc32(f"{config.seed}:{row}".encode()) % _SEED_RANGE


@contextmanager
def _endpoint(config: RunConfig, prompts: Mapping[str, Prompt]) -> Iterator[Writer]:
    from data.trace_drafts import Draft
    from data.trace_sampling import DrawFailed, Writer
    from evaluation.endpoint import Endpoint, EndpointError

    settings = config.traces.endpoint
    endpoint = Endpoint(settings)

    async def draw(row: str, first: int, count: int) -> list[Draft]:
        drawn = []
        for sample in range(first, first + count):
            try:
                own = await endpoint.complete(prompts[row], config.traces.sampling, row_seed(config, row) + sample)
            except EndpointError as error:
                raise DrawFailed(str(error)) from None
            drawn.append(Draft(row, sample, own.text, own.finish_reason, own.tokens))
        return drawn

    async def pulse() -> int:
        return 0  # a request shows nothing until it ends; it has deadlines of its own

    yield Writer(draw, pulse, 1, settings.concurrency, endpoint.longest_silence, settings.failures)


@contextmanager
def _engine(config: RunConfig, prompts: Mapping[str, Prompt], out: Path, say: Say) -> Iterator[Writer]:
    """Engines of `rollout` on the model of model.path, all drafts of a row in one request: its pictures are encoded once."""
    from launch.run import connected

    with connected(config, say):
        from launch.evaluators import Evaluators  # not before: it imports Ray, which reads the authentication mode then

        evaluators = Evaluators(config, out, say)
        try:
            with evaluators.serving(Path(config.model.path)) as workers:
                yield engine_writer(config, prompts, workers)
        finally:
            evaluators.close()


def engine_writer(config: RunConfig, prompts: Mapping[str, Prompt], workers: Sequence) -> Writer:
    """Drafts by rollout workers that serve, whoever has the fewest requests."""
    import ray

    from actors.rollout import RolloutRequest
    from data.trace_drafts import Draft, TraceError
    from data.trace_sampling import Writer
    from models.inputs import prompt_token_ids
    from models.loading import load_processor

    processor, traces = load_processor(config.model.path), config.traces
    load = [0] * len(workers)

    async def draw(row: str, first: int, count: int) -> list[Draft]:
        example, prompt = prompts[row].example, prompts[row]
        request = RolloutRequest(f"{row} {first}", prompt_token_ids(processor, prompt.messages), example.media,
                                 example.data_type == "video", count, row_seed(config, row) + first, traces.sampling)
        worker = load.index(min(load))
        load[worker] += 1
        try:
            generation = await workers[worker].generate.remote(request)
        except ray.exceptions.RayError as error:
            cause = str(getattr(error, "cause", None) or error).strip().splitlines()[0]
            raise TraceError(f"engine {worker} gave no drafts of row {row}: {cause}; the same command goes on") from error
        finally:
            load[worker] -= 1
        return [Draft(row, first + index, own.text, own.finish_reason, len(own.token_ids))
                for index, own in enumerate(generation.completions)]

    async def pulse() -> int:
        return sum(health.progress for health in await asyncio.gather(*(worker.health.remote() for worker in workers)))

    in_flight = len(workers) * max(2, 2 * config.rollout.max_num_seqs // traces.samples)
    return Writer(draw, pulse, traces.samples, in_flight, config.deadlines.generation, 0)


# Judging ----------------------------------------------------------------------------------------------------------


def _score(config: RunConfig, processor) -> Score:
    """The rewards' own measure of a draft: the scoring of held-out answers."""
    from actors.reward import reward_settings
    from data.trace_filters import Scored
    from evaluation.scoring import RowView, Scoring, score_rows
    from models.inputs import frame_size, image_size
    from rewards.choice import parse_choice

    scoring = Scoring("think", reward_settings(config.reward))
    views: dict[str, RowView] = {}

    def view(example: Example) -> RowView:
        if example.id not in views:
            original = image_size(example.media[0]) if example.is_localization else None
            frame = frame_size(processor, original, config.model.box_frame) if original else None
            views[example.id] = RowView(example, original, frame)
        return views[example.id]

    def score(example: Example, draft: Draft) -> Scored:
        reason = draft.finish_reason if draft.finish_reason == "stop" else "length"  # others are no answers either
        (own,) = score_rows([view(example)], [draft.text], [reason], scoring)
        right = own.scores["iou" if example.is_localization else "accuracy"]
        letter = parse_choice(own.answer, example.options) if example.options and own.answer else None
        return Scored(own.scores["format"], right, letter or own.answer or "")

    return score
