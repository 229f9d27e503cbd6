"""What can be known to be wrong about the data of a run: settings that cannot be built, rows that do not fit the run.

What holds: nothing is written, and no picture goes through the processor; paths in the configuration are absolute
(`launch.places`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import RunConfig
from data.types import SPLITS, TRAIN, Example
from launch.problems import PreflightError, Problem

if TYPE_CHECKING:
    from data.reading import Split


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """A data folder: every row fits the schema and the run, every picture can be decoded. A source: it has a scene."""
    if config.data.path is not None and config.data.source is not None:
        yield Problem(
            "both are set", "data.path, data.source", "keep one: a built data folder, or a source to build from"
        )
        return
    if config.data.path is not None:
        yield from _folder_problems(config, Path(config.data.path))
        return
    yield from _rooms_problems(config)
    if config.data.source is not None:
        yield from _source_problems(config)
    elif config.data.source_format != "posed_frames":
        yield Problem(
            f"the scenes are {config.data.source_format}, but no data.source says where they are: rooms would be drawn",
            "data.source_format",
            "name their folder or file in data.source, or leave this out",
        )


def _rooms_problems(config: RunConfig) -> Iterator[Problem]:
    """Settings of the data to build that no room, or no engine, can follow."""
    from actors.engine import MEDIA_LIMIT

    rooms, limit = config.data.rooms, MEDIA_LIMIT["image"]
    if rooms.views > limit and config.data.construction.multi_view_per_room:
        yield Problem(
            f"rows of {rooms.views} pictures, the engine takes {limit} in one prompt",
            "data.rooms.views",
            f"at most {limit}",
        )
    if config.data.source is None and config.data.build.train_list is not None:
        yield Problem(
            "lists of scenes, but no data.source: rooms are drawn for one split or the other",
            "data.build.train_list, data.build.heldout_list",
            "leave both out, or name the source of their scenes",
        )
    fewest, most = rooms.objects
    if config.data.source is None and not 1 <= fewest <= most:
        yield Problem(
            f"from {fewest} to {most} pieces of furniture",
            "data.rooms.objects",
            "give [fewest, most] with 1 <= fewest <= most",
        )


def _source_problems(config: RunConfig) -> Iterator[Problem]:
    """Lists that do not fit the source; a source without scenes, or whose scenes are all faulty. Reads until one is good."""
    from data.reading import DataError
    from data.scenes.sources import open_source
    from data.scenes.types import SceneError, SourceError
    from data.splits import split_by_lists

    source, first = open_source(config.data, config.seed), None
    try:
        scene_ids = source.scene_ids()
        if config.data.build.train_list is not None:
            split_by_lists(scene_ids, config.data.build)
        for scene_id in scene_ids:
            try:
                source.load(scene_id)
                return
            except SceneError as error:
                first = first or error
    except DataError as error:
        yield Problem(str(error), "data.build.train_list, data.build.heldout_list",
                      "correct the lists, or leave both out: the places are then divided by data.build.heldout_share")
        return
    except (SourceError, SceneError) as error:
        first = error
    yield Problem(str(first).replace("\n", "\n    "), "data.source",
                  "correct what is named; docs/data.md describes the formats")


def _folder_problems(config: RunConfig, folder: Path) -> Iterator[Problem]:
    from data.checking_media import MediaError, check_media
    from data.reading import DataError, load_split

    if not folder.is_dir():
        yield Problem(
            f"{folder} is no folder", "data.path",
            "correct it (a relative path starts at the current directory, or at LADDER_HOME), or build one with `ladder data build`",
        )
        return
    splits = {}
    for split in SPLITS:
        try:
            splits[split] = load_split(folder, split)
        except DataError as error:
            yield Problem(
                str(error).replace("\n", "\n    "),
                f"data.path, {split}/",
                f"correct what is named (`ladder data check {folder}` lists everything), or build the folder again with "
                "`ladder data build`",
            )
    try:
        check_media(row for rows in splits.values() for row in rows.examples)
    except MediaError as error:
        yield Problem(
            str(error).replace("\n", "\n    "),
            "data.path",
            f"correct what is named (`ladder data check {folder}` lists everything), or build the folder again",
        )
        return
    if len(splits) < len(SPLITS):
        return
    yield from row_problems(config, folder, **splits)
    yield from media_problems(config, **splits)
    processor = _processor(config)
    if processor is not None:
        yield from rendering_problems(config, folder, splits[TRAIN], processor)
        yield from length_problems(config, processor=processor, **splits)


def check_rows(config: RunConfig, data: Path, run_folder: Path) -> None:
    """Raises PreflightError when a data folder that was just built lacks rows for a stage, or holds rows too long for it."""
    from data.reading import load_split

    splits = {split: load_split(data, split) for split in SPLITS}
    processor = _processor(config)
    problems = [*row_problems(config, data, **splits)]
    problems += length_problems(config, processor=processor, **splits) if processor is not None else []
    if problems:
        raise PreflightError(
            problems,
            head=f"the data is built in {data}, but no stage was started",
            closing=f"{run_folder} keeps the settings it began with: for others give --name, or remove that folder",
        )


def row_problems(config: RunConfig, folder: Path, train: Split, heldout: Split) -> Iterator[Problem]:
    """Stages that would find no rows to train on or to be measured on, or too few for one step."""
    per_step = config.grpo.prompts_per_step
    needs = {  # rows of the stage, how many one step takes, rows it is measured on
        "sft1": (len(train.grounding), 1, len(heldout.grounding), "localisation"),
        "sft2": (len(train.spatial), 1, len(heldout.spatial), "spatial"),
        "coldstart": (len(train.coldstart), 1, len(heldout.spatial) + len(heldout.grounding), "cold-start"),
        "grpo": (len(train.spatial) + len(train.grounding), per_step, len(heldout.spatial) + len(heldout.grounding),
                 "spatial or localisation"),
    }
    for stage in config.stages:
        have, want, measured, kind = needs[stage]
        if have < want:
            lower = "lower grpo.prompts_per_step, " if have else ""
            yield Problem(f"stage {stage} needs at least {want} {kind} rows to train on, there are {have}", f"{folder}/train",
                          f"{lower}build more rooms (data.rooms, data.construction), or leave the stage out of `stages`")
        if not measured:
            yield Problem(f"stage {stage} has no held-out rows to be measured on", f"{folder}/heldout",
                          "build held-out rooms (data.rooms.heldout_rooms), or leave the stage out of `stages`")


def media_problems(config: RunConfig, train: Split, heldout: Split) -> Iterator[Problem]:
    """Rows with more pictures than the engine takes: GRPO asks the training rows, the evaluation the held-out ones."""
    from actors.engine import MEDIA_LIMIT

    limit = MEDIA_LIMIT["image"]
    asked = (*(_policy_rows(config, train) if "grpo" in config.stages else ()), *heldout.spatial)
    beyond = [row for row in asked if row.data_type != "video" and len(row.media) > limit]
    if beyond:
        yield Problem(
            f"rows with more than {limit} pictures, the most the engine takes in one prompt: {len(beyond)}; "
            f"the first is {beyond[0].id} with {len(beyond[0].media)}",
            "data.path",
            "take pictures out of these rows, or leave the rows out",
        )


def rendering_problems(config: RunConfig, folder: Path, train: Split, processor) -> Iterator[Problem]:
    """Cold-start rows hold rendered prompts, and boxes in the frame of a processor: both must be those of this run.

    The manifest says what they were written for; a folder without one, or with one that does not say, is not judged.
    """
    from models.inputs import frame_size

    if "coldstart" not in config.stages or not train.coldstart:
        return
    manifest = _manifest(folder)
    again = "build the folder again with this configuration (`ladder data build`)"
    preset = manifest.get("config", {}).get("preset", config.data.preset)
    if preset != config.data.preset:
        yield Problem(
            f"the cold-start rows of {folder} were written for preset {preset!r}, the run asks for {config.data.preset!r}",
            "data.preset",
            f"set data.preset to {preset!r}, or {again}",
        )
    for size in manifest.get("processed_sizes", ()):
        ours = frame_size(processor, tuple(size["original"]), config.model.box_frame)
        if ours != tuple(size["processed"]):
            original, theirs = (" x ".join(map(str, size[key])) for key in ("original", "processed"))
            yield Problem(
                f"the cold-start boxes of {folder} are in a frame of {theirs} (original {original}), "
                f"with {config.model.path} it is {ours[0]} x {ours[1]}",
                "model.path, model.box_frame, data.path",
                f"{again}, or use the model it was built for",
            )
            return  # the other sizes come from the same processor


def length_problems(config: RunConfig, train: Split, heldout: Split, processor) -> Iterator[Problem]:
    """Prompts that leave no room for the answer in the engine's context, in GRPO and in the evaluations."""
    from evaluation.scoring import MODES
    from data.prompt_length import longest_prompt
    from launch.stages import METRICS, stage_rows

    metrics = dict.fromkeys(METRICS[stage] for stage in config.stages)
    answer = ("evaluation.max_new_tokens", config.evaluation.max_new_tokens)
    asked = [(stage_rows(config, metric, heldout), MODES[metric], "evaluation", *answer) for metric in metrics]
    if "grpo" in config.stages:
        answer = ("grpo.sampling.max_new_tokens", config.grpo.sampling.max_new_tokens)
        asked.append((_policy_rows(config, train), "think", "training", *answer))
        asked.append((_located_rows(config, train), "locate", "training", *answer))
    for rows, mode, use, key, new in asked:
        try:
            tokens, row = longest_prompt(processor, rows, mode, config.data.preset, use)
        except ValueError as error:  # a picture whose shape the processor refuses
            yield Problem(str(error), "data.path", "replace the picture, or leave its rows out")
            continue
        if row is not None and tokens + new > config.rollout.max_model_len:
            yield Problem(
                f"row {row.id} takes {tokens} tokens and {key} allows {new} more, "
                f"the engine holds {config.rollout.max_model_len}",
                "rollout.max_model_len",
                f"set it to {tokens + new} or more, lower {key}, or limit the pictures in the processor of model.path",
            )


def _policy_rows(config: RunConfig, train: Split) -> tuple[Example, ...]:
    """Training rows that GRPO may draw."""
    share = config.grpo.localization_share
    boxes = train.grounding if share > 0 or not train.spatial else ()
    others = train.spatial if share < 1 or not train.grounding else ()
    return boxes + others


def _located_rows(config: RunConfig, train: Split) -> tuple[Example, ...]:
    """Those of them that GRPO asks for boxes beside the answer."""
    from data.joining import join_boxes

    questions = join_boxes(train.spatial, train.grounding).rows if config.grpo.joined_boxes else ()
    return tuple(row for row in questions if row.boxes)


def _processor(config: RunConfig):
    """The processor of the base model; None when it cannot be loaded, which `launch.preflight` reports."""
    from models.loading import ModelFolderError, load_processor

    try:
        return load_processor(config.model.path)
    except ModelFolderError:
        return None


def _manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a data folder, which `load_split` has read too; empty when there is none."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
