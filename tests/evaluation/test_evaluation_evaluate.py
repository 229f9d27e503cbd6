"""Evaluation from rows to files: real processor and pictures; scripted workers here, the real engine at the end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

import pytest
from PIL import Image

from actors.rollout import RolloutWorker
from configs.schema import RolloutConfig
from data.types import LOCALIZATION, Box, Example
from evaluation.evaluate import CHUNK, compare, evaluate, load_evaluation, prepare
from evaluation.metrics import RowMismatch
from evaluation.scoring import EvaluationError, Scoring
from models.loading import load_processor
from models.tiny import build_tiny


@dataclass(frozen=True)
class Said:
    text: str
    finish_reason: str = "stop"
    token_ids: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Reply:
    completions: tuple[Said, ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny") / "model", init_std=0.15)


@pytest.fixture(scope="module")
def processor(model):
    return load_processor(model)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene0" / "7.png"
    path.parent.mkdir()
    Image.new("RGB", (336, 168), (10, 200, 30)).save(path)
    return str(path)


def _choices(picture, n=40):
    return [
        Example(
            f"heldout/s/{i}",
            i,
            "single_image",
            f"Which is nearest to {i}?",
            "relative distance",
            (picture,),
            ("A. bed", "B. lamp"),
            "AB"[i % 2],
        )
        for i in range(n)
    ]


def _worker(answer, log=None):
    async def generate_many(requests):
        await asyncio.sleep(0)
        if log is not None:
            log.append(requests)
        return [Reply((answer(request),)) for request in requests]

    return generate_many


def _run(asks, questions, folder, when="before", metric="accuracy", say=None, **changes):
    settings = {"max_new_tokens": 8, "provenance": {"weights": "w0"}, "silence_seconds": 20.0} | changes
    lines = [] if say is None else say
    return asyncio.run(
        evaluate(asks, questions, Scoring(metric), folder=folder, when=when, progress=lines.append, **settings)
    )


def test_prompts_hold_one_placeholder_per_picture_and_the_processed_frame(processor, picture):
    row = Example(
        "heldout/g/0",
        0,
        "single_image",
        "Where is the bed?",
        LOCALIZATION,
        (picture,),
        boxes=(Box("bed", (0, 0, 168, 84)),),
    )
    (question,) = prepare([row], "localization_iou", processor)
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert question.token_ids.count(pad) == 1
    width, height = question.view.processed_size
    grid = processor.image_processor(images=[Image.open(picture)], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert (width, height) == (14 * grid[2], 14 * grid[1])  # the tensor is the truth
    assert question.view.target_boxes == (("bed", (0, 0, width / 2, height / 2)),)


def test_prompt_hash_follows_prompt_and_picture_not_the_folder(processor, picture, tmp_path):
    row = _choices(picture, 1)[0]
    moved = tmp_path / "elsewhere" / "scene0" / "7.png"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(open(picture, "rb").read())
    hashes = [
        prepare([changed], "accuracy", processor)[0].prompt_sha256
        for changed in (
            row,
            replace(row, media=(str(moved),)),
            replace(row, question="Else?"),
            replace(row, media=(picture.replace("7", "8"),)),
        )
    ]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_files_hold_every_row_in_order(processor, picture, tmp_path):
    questions, log, lines = prepare(_choices(picture), "accuracy", processor), [], []
    says = _worker(lambda request: Said("A", "length" if request.request_id.endswith(" 3") else "stop"), log)
    result = _run([says, says], questions, tmp_path / "sft2", say=lines)
    rows = [json.loads(line) for line in (tmp_path / "sft2" / "eval_before.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [f"heldout/s/{i}" for i in range(40)]
    assert tuple(rows) == result.rows
    assert rows[0] | {"media": None} == {
        "row": "heldout/s/0",
        "mode": "direct",
        "question_type": "relative distance",
        "data_type": "single_image",
        "question": "Which is nearest to 0?",
        "options": ["A. bed", "B. lamp"],
        "media": None,
        "original_size": None,
        "processed_size": None,
        "prompt_sha256": questions[0].prompt_sha256,
        "text": "A",
        "tokens": 2,
        "finish_reason": "stop",
        "answer": "A",
        "truth": "A",
        "flag": None,
        "scores": {"accuracy": 1.0},
        "boxes_true": [],
        "boxes_predicted": None,
    }
    assert result.report["metrics"]["accuracy"]["mean"] == 0.5 and result.report["metrics"]["accuracy"]["n"] == 40
    assert result.report["flags"] == {"truncated": 1}  # row 3's truth is B: the sum stays
    assert sorted(p.name for p in (tmp_path / "sft2").iterdir()) == ["eval_before.json", "eval_before.jsonl"]
    assert sorted(len(requests) for requests in log) == [8, CHUNK, CHUNK]
    assert all(
        r.greedy and r.n == 1 and r.media == (picture,) and r.sampling.max_new_tokens == 8 for q in log for r in q
    )
    assert any("40/40 rows" in line for line in lines) and "accuracy 0.500 over 40 rows" in lines[-1]


def test_predicted_boxes_are_written_in_the_processed_frame(processor, picture, tmp_path):
    row = Example(
        "heldout/g/0", 0, "single_image", "Where?", LOCALIZATION, (picture,), boxes=(Box("bed", (0, 0, 168, 84)),)
    )
    questions = prepare([row], "localization_iou", processor)
    text = '[{"bbox_2d":[0,0,28,14],"label":"bed"},{"bbox_2d":[9,9,1,1],"label":"bed"}]'
    (written,) = _run([_worker(lambda _: Said(text))], questions, tmp_path / "sft1", metric="localization_iou").rows
    width, height = written["processed_size"]
    assert written["boxes_true"] == [{"label": "bed", "bbox": [0, 0, width / 2, height / 2]}]
    assert [box["bbox"] for box in written["boxes_predicted"]] == [[0, 0, 28, 14], None]
    assert written["scores"]["iou"] == pytest.approx((28 * 14) / (width * height / 4) / 2)


def test_a_finished_evaluation_is_read_and_a_different_one_is_run(processor, picture, tmp_path):
    questions, log = prepare(_choices(picture, 5), "accuracy", processor), []
    first = _run([_worker(lambda _: Said("A"), log)], questions, tmp_path)
    again = _run([_worker(lambda _: Said("B"), log)], questions, tmp_path)
    assert again == first and len(log) == 1
    other = _run([_worker(lambda _: Said("B"), log)], questions, tmp_path, provenance={"weights": "w1"})
    assert len(log) == 2 and other.rows[0]["answer"] == "B"
    _run([_worker(lambda _: Said("B"), log)], questions, tmp_path, provenance={"weights": "w1"}, max_new_tokens=9)
    _run([_worker(lambda _: Said("B"), log)], questions[:4], tmp_path, provenance={"weights": "w1"}, max_new_tokens=9)
    assert len(log) == 4


def test_before_and_after_become_the_record_of_the_summary(processor, picture, tmp_path):
    questions = prepare(_choices(picture), "accuracy", processor)
    before = _run([_worker(lambda _: Said("A"))], questions, tmp_path, "before")
    truths = {question.token_ids: question.view.answer for question in questions}
    after = _run([_worker(lambda request: Said(truths[request.prompt_token_ids]))], questions, tmp_path, "after")
    record = compare(before, after)["accuracy"]
    assert (record["before"], record["after"], record["n"]) == (0.5, 1.0, 40)
    assert 0.3 < record["ci95"][0] < 0.5 < record["ci95"][1] < 0.7
    assert record["by_type"] == {"relative distance": {"before": 0.5, "after": 1.0, "n": 40, "constant": 0.5}}
    assert record["constant"] == 0.5
    assert compare(load_evaluation(tmp_path, "before"), load_evaluation(tmp_path, "after"))["accuracy"] == record


def test_other_prompts_are_not_compared(processor, picture, tmp_path):
    rows = _choices(picture, 4)
    says = [_worker(lambda _: Said("A"))]
    before = _run(says, prepare(rows, "accuracy", processor), tmp_path, "before")
    after = _run(says, prepare(rows, "accuracy", processor, "paper"), tmp_path, "after")
    with pytest.raises(RowMismatch, match="prompts_sha256"):
        compare(before, after)


def test_a_silent_worker_is_named_and_nothing_is_written(processor, picture, tmp_path):
    async def silent(requests):
        await asyncio.sleep(60)

    questions = prepare(_choices(picture, 4), "accuracy", processor)
    with pytest.raises(EvaluationError, match=r"4 of 4 answers missing: rollout worker\(s\) \[0\] sent nothing"):
        _run([silent], questions, tmp_path / "s", silence_seconds=0.05)
    assert not (tmp_path / "s").exists()
    with pytest.raises(EvaluationError, match="no rollout worker"):
        _run([], questions, tmp_path / "s")


def test_a_failing_worker_fails_the_evaluation(processor, picture, tmp_path):
    async def broken(requests):
        raise RuntimeError("engine died")

    async def short(requests):
        return []

    questions = prepare(_choices(picture, 4), "accuracy", processor)
    with pytest.raises(RuntimeError, match="engine died"):
        _run([broken], questions, tmp_path / "s")
    with pytest.raises(EvaluationError, match="answered 0 of 4 prompts"):
        _run([short], questions, tmp_path / "s")


def test_mixed_up_files_are_refused(processor, picture, tmp_path):
    _run([_worker(lambda _: Said("A"))], prepare(_choices(picture, 4), "accuracy", processor), tmp_path)
    lines = (tmp_path / "eval_before.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "eval_before.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(EvaluationError, match="delete both"):
        load_evaluation(tmp_path, "before")
    assert load_evaluation(tmp_path, "after") is None


@pytest.mark.engine
def test_the_real_engine_answers_greedily_and_repeatably(model, processor, picture, tmp_path):
    questions = prepare(_choices(picture, 20), "think", processor)

    async def both():
        worker = RolloutWorker(
            "w0", str(model), RolloutConfig(max_model_len=512, max_num_seqs=32, kv_cache_bytes=64 << 20)
        )
        await worker.start(trusted=True)
        settings = {"folder": tmp_path, "max_new_tokens": 12, "provenance": {}, "silence_seconds": 120.0}
        try:
            return [
                await evaluate([worker.generate_many], questions, Scoring("think"), when=when, **settings)
                for when in ("before", "after")
            ]
        finally:
            await worker.stop()

    before, after = asyncio.run(both())
    assert [row["text"] for row in before.rows] == [row["text"] for row in after.rows]
    assert all(
        row["tokens"] <= 12 and (row["finish_reason"] == "length") == (row["flag"] == "truncated")
        for row in before.rows
    )
    records = compare(before, after)
    assert set(records) == {"format", "accuracy", "reward"} and records["reward"]["ci95"] == [0.0, 0.0]
