"""Supervised stages: what is supervised, in which order, and the real Ray Train job with a DeepSpeed engine inside."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from configs.schema import LearnerConfig, LoraConfig, ModelConfig, OptimizerConfig, RunConfig, SFTConfig
from data.types import Box, Example
from models.adapters import add_adapters, merged
from models.forward import PolicyForward
from models.inputs import MediaError
from models.loading import load_policy, load_processor
from models.packing import pack
from models.passes import TreeSize
from models.tiny import build_tiny
from models.tokens import end_token_id
from sft.dataset import RowOrder, StageRows, TargetError
from sft.reading import StepReader
from sft.stage import SFTTask, StageFailed, rank_device, train_rows

ROWS = 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("base") / "model", seed=0, init_std=0.15)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [str(folder / f"{index}.png") for index in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (140, 168, 3), dtype=np.uint8)).save(path)
    return paths


def grounding(pictures: list[str]) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"train/grounding/{index}",
            question_id=index,
            data_type="single_image",
            question="Where is the chair?",
            question_type="object localization",
            media=(pictures[index % 4],),
            boxes=(Box("chair", (3.0 * index, 7.0, 84.0, 140.0)),) * (1 + index % 2),
        )
        for index in range(ROWS)
    )


def spatial(pictures: list[str]) -> tuple[Example, ...]:
    """One row of each kind of media."""

    def row(index: int, data_type: str, media: list[str]) -> Example:
        return Example(
            id=f"train/spatial/{index}",
            question_id=index,
            data_type=data_type,
            question="How many chairs?",
            question_type="object count",
            media=tuple(media),
            answer=str(index),
        )

    return (row(0, "single_image", pictures[:1]), row(1, "multi_view", pictures), row(2, "video", pictures))


def rows_media(pictures: list[str]) -> list[tuple[str, ...]]:
    return [row.media for row in spatial(pictures)]


def task(base: Path, folder: Path, rows: tuple[Example, ...], stage: str = "sft1", **settings) -> SFTTask:
    section = SFTConfig(
        **{
            "epochs": 1.2,
            "batch_size": 4,
            "micro_batch_tokens": 256,
            "checkpoint_steps": 2,
            "optimizer": OptimizerConfig(lr=5e-4),
            **settings,
        }
    )
    run = RunConfig(seed=5, learner=LearnerConfig(threads=1))
    return SFTTask(stage, rows, str(base), str(folder), run, section)


def test_rows_of_all_media_are_supervised_on_the_answer_and_its_end_only(base: Path, pictures: list[str]) -> None:
    processor = load_processor(base)
    rows = StageRows("sft2", spatial(pictures), processor)
    for row, visual_tokens in ((0, 12), (1, 48), (2, 24)):  # 4 x 3 per picture; two frames merge
        sample = rows.tree(row)
        (target,) = sample.completions
        assert processor.tokenizer.decode(target) == f"{row}<|im_end|>"
        assert target[-1] == end_token_id(processor)
        assert sum(kind > 0 for kind in sample.encoded.token_types) == visual_tokens
        prompt = processor.tokenizer.decode(sample.encoded.prompt_ids)
        assert prompt.endswith("Answer with a number.<|im_end|>\n<|im_start|>assistant\n")
        assert rows.size(row) == TreeSize(len(sample.encoded.input_ids), (len(target),), rows_media(pictures)[row])
    batch = pack([rows.tree(row) for row in range(3)])
    assert batch.mask.sum() == sum(len(rows.target(row)) for row in range(3))
    assert len(batch.grid_thw) == len(set(pictures)) + 1  # the first picture is also one of the views; and the video
    assert rows.tree(1).encoded is rows.tree(1).encoded  # encoded once


def test_boxes_are_written_in_the_frame_of_the_processed_picture(base: Path, pictures: list[str]) -> None:
    rows = StageRows("sft1", grounding(pictures)[:1], load_processor(base))
    text = load_processor(base).tokenizer.decode(rows.target(0), skip_special_tokens=True)
    # 168 x 140 is processed at 112 x 84: (0, 7, 84, 140) becomes (0, 4.2, 56, 84).
    assert json.loads(text) == [{"bbox_2d": [0, 4, 56, 84], "label": "chair"}]


def test_a_row_without_target_or_with_a_media_token_is_refused(base: Path, pictures: list[str]) -> None:
    processor, row = load_processor(base), grounding(pictures)[0]
    empty = Example(**{**vars(row), "question_type": "object count", "boxes": (), "answer": None})
    with pytest.raises(TargetError, match="train/grounding/0.*no target"):
        StageRows("sft2", [empty], processor)
    with pytest.raises(TargetError, match="media token"):
        StageRows("sft2", [Example(**{**vars(empty), "answer": "<|image_pad|>"})], processor)


def test_the_order_is_a_permutation_per_epoch_and_depends_on_the_seed_only() -> None:
    config = SFTConfig(epochs=2.5, batch_size=4)
    views = [(str(row),) for row in range(6)]
    order = RowOrder(views, config, seed=1)
    assert order.steps == 4  # 15 rows
    seen = [row for step in range(4) for row in order.batch(step)]
    assert len(seen) == 15 and sorted(seen[:6]) == sorted(seen[6:12]) == list(range(6)) and seen[:6] != seen[6:12]
    assert RowOrder(views, config, seed=1).batch(3) == tuple(seen[12:])
    assert [RowOrder(views, config, seed=2).batch(step) for step in range(4)] != [order.batch(step) for step in range(4)]
    assert RowOrder(views, SFTConfig(epochs=2.5, batch_size=4, max_steps=3), seed=1).steps == 3


def test_rows_with_the_same_views_come_together_as_far_as_asked() -> None:
    views = [("a",), ("b",), ("a",), ("b",), ("a",), ("c",)]
    plain = RowOrder(views, SFTConfig(batch_size=6), seed=3).batch(0)
    pairs = RowOrder(views, SFTConfig(batch_size=6, views_together=2), seed=3).batch(0)
    assert sorted(pairs) == list(range(6)) and pairs[0] == plain[0]
    of_a = [place for place, row in enumerate(pairs) if views[row] == ("a",)]
    of_b = [place for place, row in enumerate(pairs) if views[row] == ("b",)]
    assert of_a[1] == of_a[0] + 1 and of_b[1] == of_b[0] + 1  # the third "a" stands where it was drawn
    assert [row for row in pairs if views[row] == ("a",)] == [row for row in plain if views[row] == ("a",)]


def reader(base: Path, examples: tuple[Example, ...], budget: int = 256) -> StepReader:
    rows = StageRows("sft1", examples, load_processor(base))
    order = RowOrder([row.media for row in examples], SFTConfig(batch_size=4, epochs=1.2), 5)
    return StepReader(rows, order, 0, 1, budget)


def test_steps_read_ahead_are_the_steps_read_when_needed(base: Path, pictures: list[str]) -> None:
    now, ahead = (list(reader(base, grounding(pictures)).steps(1, ahead)) for ahead in (0, 2))
    assert len(now) == len(ahead) == 2  # 12 rows, the first four left out
    for one, other in zip(now, ahead, strict=True):
        assert (one.samples, one.tokens, len(one.passes)) == (other.samples, other.tokens, len(other.passes))
        for (mine, _), (theirs, _) in zip(one.passes, other.passes, strict=True):
            assert torch.equal(mine.input_ids, theirs.input_ids) and torch.equal(mine.pixel_values, theirs.pixel_values)


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_unreadable_picture_stops_at_its_step(base: Path, pictures: list[str], tmp_path: Path, ahead: int) -> None:
    examples = list(grounding(pictures))
    (last,) = set(RowOrder([()] * ROWS, SFTConfig(batch_size=9), 5).batch(1))  # the tenth row of the epoch
    copy = tmp_path / "gone.png"
    copy.write_bytes(Path(pictures[0]).read_bytes())
    examples[last] = Example(**{**vars(examples[last]), "media": (str(copy),)})
    steps = reader(base, tuple(examples)).steps(0, ahead)
    copy.unlink()
    assert [next(steps).samples for _ in range(2)] == [4, 4]
    with pytest.raises(MediaError, match="gone.png does not exist"):
        next(steps)


@pytest.fixture(scope="module")
def cluster():
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected_losses(base: Path, one: SFTTask, model: Qwen2_5_VLForConditionalGeneration | None = None) -> list[float]:
    """The stage in plain torch: whole batches, AdamW, the cosine schedule with warm-up written out. `model` is trained."""
    processor, model = load_processor(base), model or load_policy(base)
    rows, order, forward = (
        StageRows(one.stage, one.examples, processor),
        RowOrder([row.media for row in one.examples], one.config, 5),
        PolicyForward(model),
    )
    adamw, losses = torch.optim.AdamW(model.parameters(), weight_decay=0.0), []
    for step, factor in enumerate([1.0, 1.0, 0.5]):  # 3 steps: ceil(0.1 * 3) = 1 of warm-up, then half a cosine over 2
        adamw.param_groups[0]["lr"] = 5e-4 * factor
        trees = [rows.tree(row) for row in order.batch(step)]
        loss = -forward(pack(trees)).sum() / sum(len(tree.completions[0]) for tree in trees)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.engine
def test_a_stage_trains_like_plain_torch_resumes_and_leaves_a_model(
    base: Path, pictures: list[str], tmp_path: Path, cluster
) -> None:
    one = task(base, tmp_path / "one", grounding(pictures))
    lines: list[str] = []
    model_folder = train_rows(one, lines.append)
    losses = [record["loss"] for record in records(tmp_path / "one")]
    assert losses == pytest.approx(expected_losses(base, one), abs=1e-4)
    assert [record["samples"] for record in records(tmp_path / "one")] == [4, 4, 4]
    assert any("step 3/3" in line for line in lines)
    assert not (tmp_path / "one" / "ray_train").exists()

    trained, start = load_policy(model_folder).state_dict(), load_policy(base).state_dict()
    assert trained.keys() == start.keys() and any(not torch.equal(trained[name], start[name]) for name in start)
    assert load_processor(model_folder).chat_template == load_processor(base).chat_template

    before = (tmp_path / "one" / "metrics.jsonl").stat().st_mtime_ns
    train_rows(one, lines.append)
    assert lines[-1] == "sft1: already trained" and (tmp_path / "one" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.engine
def test_adapters_train_and_leave_a_plain_model(base: Path, pictures: list[str], tmp_path: Path, cluster) -> None:
    lora = LoraConfig(rank=4, alpha=64.0)
    one = task(base, tmp_path / "lora", grounding(pictures), gradient_checkpointing=True)
    one = replace(one, run=RunConfig(seed=5, learner=LearnerConfig(threads=1), model=ModelConfig(lora=lora)))
    folder = train_rows(one, lambda line: None)
    plain = load_policy(base)
    add_adapters(plain, lora, seed=5)
    expected = expected_losses(base, one, plain)
    assert [record["loss"] for record in records(tmp_path / "lora")] == pytest.approx(expected, abs=1e-4)
    trained, wanted, start = (load_policy(folder).state_dict(), merged(plain.state_dict(), lora), load_policy(base).state_dict())
    assert trained.keys() == start.keys()
    moved = [name for name in start if not torch.equal(trained[name], start[name])]
    assert moved and all(".language_model.layers." in name and name.endswith("_proj.weight") for name in moved)
    assert max(float((trained[name] - wanted[name]).abs().max()) for name in moved) < 1e-4


def test_a_rank_trains_on_the_gpu_that_ray_train_gives_it(monkeypatch) -> None:
    import ray.train.torch

    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda:3"))
    assert rank_device(RunConfig(learner=LearnerConfig(num_gpus=1))) == "cuda:3"
    assert rank_device(RunConfig()) == "cpu"


@pytest.mark.engine
def test_two_ranks_under_zero_3_give_the_losses_of_one_and_a_failed_stage_resumes(
    base: Path, pictures: list[str], tmp_path: Path, cluster
) -> None:
    late = tmp_path / "late.png"
    mixed = {1: {"data_type": "multi_view", "media": tuple(pictures)}, 2: {"data_type": "video", "media": tuple(pictures)}}
    rows = tuple(
        Example(**{**vars(row), "question_type": "object count", "boxes": (), "answer": str(row.question_id)} | mixed.get(index, {}))
        for index, row in enumerate(grounding(pictures))
    )
    one = task(base, tmp_path / "two", rows, "sft2", ranks=2, zero_stage=3, gradient_checkpointing=True)
    order = RowOrder([row.media for row in rows], one.config, one.run.seed)
    victim = next(row for row in order.batch(2) if row not in order.batch(0) + order.batch(1) + tuple(mixed))
    rows = tuple(
        Example(**{**vars(row), "media": (str(late),)}) if index == victim else row for index, row in enumerate(rows)
    )
    one = SFTTask(one.stage, rows, one.model_folder, one.stage_folder, one.run, one.config)

    with pytest.raises(StageFailed, match=r"stage sft2: rank [01] failed: .*late\.png does not exist"):
        train_rows(one, lambda line: None)  # the third step meets a missing picture, after the checkpoint of two
    assert [record["step"] for record in records(tmp_path / "two")] == [0, 1]
    assert not (tmp_path / "two" / "hf").exists()

    late.write_bytes(Path(pictures[0]).read_bytes())
    train_rows(one, lambda line: None)
    assert [record["step"] for record in records(tmp_path / "two")] == [0, 1, 2]
    assert [record["loss"] for record in records(tmp_path / "two")] == pytest.approx(
        expected_losses(base, one), abs=1e-4
    )
    assert load_policy(tmp_path / "two" / "hf").state_dict().keys() == load_policy(base).state_dict().keys()
