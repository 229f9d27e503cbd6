"""`ladder data traces`: through the command with a simulated endpoint over real HTTP, and through the real engine."""

import asyncio
import json
import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from trace_server import KEY, serving

from actors.rollout import RolloutRequest
from configs.schema import RunConfig, SamplingConfig
from data.checking_media import check_media
from data.prompts import render, user_text
from data.reading import COLDSTART_FILE, FILES, load_split, read_rows
from data.trace_drafts import DRAFTS, Draft, opened
from data.trace_folder import asked_rows
from data.trace_sampling import draw_drafts
from data.trace_selection import selected
from launch.cli import main
from launch.data_traces import WORK, _checked_rows, _score, chosen_rows, drawn_with, engine_writer
from models.forward import PolicyForward
from models.inputs import encode, load_images, processed_size
from models.loading import load_policy, load_processor, save_policy
from models.packing import Tree, pack
from models.tiny import build_tiny
from models.tokens import end_token_id
from rewards.compose import score_completion
from rewards.rows import RewardRow
from rewards.settings import RewardSettings

TINY_BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"
CHOICES, COUNTS = 12, 6


@pytest.fixture
def data(tmp_path):
    """Twelve choices and six counts about pictures of one room, one question twice, and one localisation row."""
    shared = {"image": ["room/f.png"], "data_type": "single_image"}
    rows = [{**shared, "question": f"Which is nearer to lamp {index}?", "options": ["A. sofa", "B. bed"],
             "answer": "AB"[index % 2], "question_type": "relative distance"} for index in range(CHOICES)]
    rows += [{"image": ["room/f.png", "room/g.png"], "data_type": "video", "options": None, "answer": str(index + 1),
              "question": f"How many chairs of kind {index} are there?", "question_type": "object count"}
             for index in range(COUNTS)]
    rows.append(dict(rows[0]))
    boxes = [{**shared, "question": "Where is the chair?", "answer": [{"bbox_2d": [4, 4, 40, 40], "label": "chair"}]}]
    folder = tmp_path / "data"
    for split in ("train", "heldout"):
        (folder / split / "images" / "room").mkdir(parents=True)
        for name, own in (("spatial", rows), ("grounding", boxes), ("coldstart", [])):
            lines = [json.dumps({"question_id": index + 100 * (name == "grounding"), **row}) for index, row in enumerate(own)]
            (folder / split / f"spld_{name}_data.jsonl").write_text("".join(f"{line}\n" for line in lines))
        for picture in ("f", "g"):
            Image.new("RGB", (64, 48), (200, 30, 90)).save(folder / split / "images" / "room" / f"{picture}.png")
    counts = {"rows": {name: len(own) for name, own in zip(FILES, (boxes, rows, []), strict=True)}}
    manifest = {"counts": {"train": counts, "heldout": counts}, "config": {"preset": "paper"}, "seed": 5,
                "processed_sizes": [{"original": [64, 48], "processed": [64, 48]}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def ask(data, tmp_path, monkeypatch):
    """The command with the endpoint's address; returns its exit code."""
    monkeypatch.setenv("TRACES_KEY", KEY)
    monkeypatch.setattr("rewards.http_calls.BACKOFF_SECONDS", 0.01)

    def run(url, out="traced", **traces):
        endpoint = {"base_url": url, "model": "teacher", "api_key_variable": "TRACES_KEY", "concurrency": 4, "retries": 2,
                    **traces.pop("endpoint", {})}
        settings = {"localization_share": 0.0, "samples": 6, "sampling": {"max_new_tokens": 64}, "endpoint": endpoint, **traces}
        (tmp_path / "c.yaml").write_text(json.dumps({"seed": 3, "traces": settings}))
        return main(["data", "traces", str(tmp_path / "c.yaml"), "--data", str(data), "--out", str(tmp_path / out)])

    return run


def truths(data):
    rows = [json.loads(line) for line in (data / "train" / "spld_spatial_data.jsonl").read_text().splitlines()]
    return {row["question"]: row["answer"] for row in rows}


def test_an_endpoint_writes_a_data_folder_whose_traces_are_right(data, tmp_path, ask, capsys):
    with serving(truths(data), busy=3) as server:
        assert ask(server.url) == 0
    said = capsys.readouterr().out
    split = load_split(tmp_path / "traced", "train")
    check_media(split.examples)
    right = truths(data)
    kept = {}
    for row in split.coldstart:
        question = re.match(r"Question: (.*)\n", row.prompt_text).group(1)
        answer = re.fullmatch(r"<think>I look .* The answer is (.+)\.</think><answer>(.+)</answer>", row.solution)
        assert answer.groups() == (right[question],) * 2 and question not in kept
        (asked,) = [own for own in split.spatial if own.question == question][:1]
        assert row.prompt_text == user_text(asked, "think") and row.media == asked.media
        kept[question] = row
    texts = {question: [server.text(question, body["seed"])[0] for body in server.asked if f"{question}\\n" in json.dumps(body)]
             for question in right}
    solvable = {question for question, own in texts.items() if any("The answer is" in text for text in own)}
    assert set(kept) == solvable and 5 < len(kept) < len(right), "some rows are solved within six drafts, not all"
    drafts = [json.loads(line) for line in (tmp_path / "traced" / WORK / DRAFTS).read_text().splitlines()]
    assert len(server.asked) == len(drafts) + 3 and 1 < server.most <= 4, "three were refused first; four at a time"
    assert min(row.question_id for row in split.coldstart) == 101, "numbered behind the rows of the split"
    assert f"{len(right):>8}{len(kept):>12}{len(drafts):>8}{len(kept):>8}" in said
    written = [path for path in (tmp_path / "traced").glob("**/*.*") if path.suffix != ".png"]
    assert len(written) >= 9 and not any(KEY in text for text in [said, *(path.read_text() for path in written)])
    before, manifest = (json.loads((folder / "manifest.json").read_text()) for folder in (data, tmp_path / "traced"))
    assert before["counts"]["heldout"] == manifest["counts"]["heldout"] and manifest["seed"] == 5
    assert manifest["counts"]["train"]["rows"][COLDSTART_FILE] == len(kept) == manifest["traces"]["kept"]
    assert manifest["config"]["preset"] == "ladder", "that of the new rows"
    assert manifest["processed_sizes"][0]["processed"] == list(processed_size(load_processor(TINY_BASE), (64, 48)))
    assert [part["type"] for part in server.asked[-1]["messages"][1]["content"]][-1] == "text"
    videos = [body for body in server.asked if "How many" in body["messages"][1]["content"][-1]["text"]]
    assert {len(body["messages"][1]["content"]) for body in videos} == {3}, "a video is its frames"


def test_the_result_does_not_depend_on_how_many_are_asked_at_a_time_or_on_starts(data, tmp_path, ask, capsys):
    def folder(name):
        return (tmp_path / name / "train" / COLDSTART_FILE).read_bytes()

    with serving(truths(data)) as server:
        assert ask(server.url, "one", endpoint={"concurrency": 1}) == 0
        asked = len(server.asked)
        assert ask(server.url, "many", endpoint={"concurrency": 8}) == 0
        assert folder("one") == folder("many") and len(server.asked) == 2 * asked
        server.down = True
        assert ask(server.url, "torn", endpoint={"failures": 0, "retries": 0}) == 1
        error = capsys.readouterr().err
        assert "1 requests failed, 0 may" in error and "status 500" in error and KEY not in error
        server.down = False
        assert ask(server.url, "torn") == 0 and folder("torn") == folder("one")
        before = len(server.asked)
        assert ask(server.url, "one", endpoint={"concurrency": 2}) == 0
        assert len(server.asked) == before and folder("one") == folder("many")
        assert ask(server.url, "one", sampling={"max_new_tokens": 32}) == 2
        assert "max_new_tokens: 64 -> 32" in capsys.readouterr().err
        assert ask(server.url, "one", min_latin=0.0) == 0 and len(server.asked) == before
        assert len(folder("one").splitlines()) > len(folder("many").splitlines()), "other filters judge the same drafts again"


def test_refusals_name_what_to_do_and_draw_nothing(data, tmp_path, ask, capsys, monkeypatch):
    with serving(truths(data)) as server:
        assert ask(server.url, localization_share=0.3) == 2
        assert "traces.localization_share: an endpoint is asked for boxes in pixels" in capsys.readouterr().err
        assert ask(server.url, "data") == 2
        assert "--out: this is the folder whose rows are asked" in capsys.readouterr().err
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "mine.txt").touch()
        assert ask(server.url, "kept") == 2
        assert "kept holds something else than traces" in capsys.readouterr().err
        row = {"question_id": 500, "image": ["room/f.png"], "data_type": "single_image", "prompt": "Where is the chair?",
               "solution": "<think>There.</think><answer>A</answer>"}
        (data / "heldout" / "spld_coldstart_data.jsonl").write_text(json.dumps(row) + "\n")
        boxes = data / "heldout" / "spld_grounding_data.jsonl"
        one = read_rows(data, boxes.name, "heldout")[0]
        asked = row | {"prompt": user_text(one, "think", "paper"), "solution": "<think>There.</think><answer>[]</answer>"}
        coldstart = data / "heldout" / "spld_coldstart_data.jsonl"
        kept = [path.read_text() for path in (boxes, coldstart)]
        other = json.loads(kept[0]) | {"question_id": 600, "answer": [{"bbox_2d": [4, 4, 41, 40], "label": "chair"}]}
        boxes.write_text(kept[0] + json.dumps(other) + "\n")
        assert asked_rows(data / "heldout") == {}, "no trace asks that"
        coldstart.write_text(json.dumps(asked) + "\n")
        assert ask(server.url) == 2
        assert "spld_grounding_data/100 and heldout/spld_grounding_data/600 draw different boxes" in capsys.readouterr().err
        for path, text in zip((boxes, coldstart), kept, strict=True):
            path.write_text(text)
        (tmp_path / "c.yaml").write_text("{}")
        assert main(["data", "traces", str(tmp_path / "c.yaml"), "--data", str(tmp_path / "nowhere"), "--out",
                     str(tmp_path / "traced")]) == 2
        assert "nowhere is no data folder: it holds neither train/ and heldout/ nor" in capsys.readouterr().err
        (data / "heldout" / "images" / "room" / "f.png").unlink()
        assert ask(server.url) == 2
        assert "heldout/images/room/f.png" in capsys.readouterr().err
        monkeypatch.delenv("TRACES_KEY")
        assert ask("http://:80/v1") == 2
        assert ask(server.url) == 2
        assert "environment variable TRACES_KEY is not set or empty" in capsys.readouterr().err
        assert server.asked == [] and not (tmp_path / "traced").exists()


def test_rows_are_chosen_by_share_and_type(data):
    split = load_split(data, "train")
    config = RunConfig.model_validate({"traces": {"localization_share": 0.25, "rows": 4}})
    rows = chosen_rows(config, split)
    types = ["object count", "object localization", "relative distance", "relative distance"]
    assert sorted(row.question_type for row in rows) == types
    assert rows == chosen_rows(config, split)
    everything = chosen_rows(RunConfig.model_validate({"traces": {"localization_share": 0.0}}), split)
    assert len(everything) == CHOICES + COUNTS, "the question that comes twice is asked once"
    boxes = chosen_rows(RunConfig.model_validate({"traces": {"localization_share": 1.0}}), split)
    assert [row.question for row in boxes] == ["Where is the chair?"]


@pytest.mark.parametrize("box_frame, size", [("absolute", None), ("norm1000", (1000, 1000))])
def test_boxes_are_judged_in_the_frame_of_the_model(data, box_frame, size):
    (row,) = load_split(data, "train").grounding
    processor = load_processor(TINY_BASE)
    config = RunConfig.model_validate({"model": {"box_frame": box_frame}})
    width, height = size or processed_size(processor, (64, 48))
    assert size or (width, height) != (64, 48)
    corners = [round(4 / 64 * width), round(4 / 48 * height), round(40 / 64 * width), round(40 / 48 * height)]
    score = _score(config, processor)
    for own, right in ((corners, True), ([4, 4, 40, 40], False)):
        answer = json.dumps([{"bbox_2d": own, "label": "chair"}])
        scored = score(row, Draft(row.id, 0, f"<think>There.</think><answer>{answer}</answer>", "stop"))
        assert (scored.right > 0.95) == right and scored.format == 1.0 and scored.answer == answer


def taught(folder, rows):
    """A tiny model that answers with a fixed thought and a random digit: some of its answers are right."""
    base = build_tiny(folder / "base", seed=0, init_std=0.05)
    processor, model = load_processor(base), load_policy(base)
    prompts = [render(row, "think").messages for row in rows]
    encoded = [encode(processor, own, load_images(row.media), row.data_type == "video") for own, row in zip(prompts, rows)]
    policy, draw, adamw = PolicyForward(model), random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(110):
        texts = [f"<think>I see it {draw.choice(['here', 'there'])}.</think><answer>{draw.randint(1, 4)}</answer>" for _ in range(8)]
        ids = [(*processor.tokenizer(text).input_ids, end_token_id(processor)) for text in texts]
        batch = pack([Tree(encoded[(step + place) % len(encoded)], (own,)) for place, own in enumerate(ids)])
        (-policy(batch).sum() / batch.mask.sum()).backward()
        adamw.step()
        adamw.zero_grad()
    return save_policy(model, base, folder / "taught")


def _a_video_behind_the_text_reaches_the_engine_as_the_learner(worker, row, model):
    """GRPO's prompt in the preset `paper`."""
    import ray

    processor, prompt = load_processor(model), render(row, "think", "paper")
    assert [item["type"] for item in prompt.messages[1]["content"]] == ["text", "video"]
    encoded = encode(processor, prompt.messages, load_images(row.media), True)
    request = RolloutRequest("paper", encoded.prompt_ids, row.media, True, 1, 0, SamplingConfig(max_new_tokens=2))
    assert ray.get(worker.generate.remote(request)).expanded_prompt_ids == encoded.input_ids


@pytest.mark.engine
def test_an_engine_writes_drafts_and_the_rewards_keep_what_is_right(data, tmp_path):
    import ray

    from launch.evaluators import Evaluators

    split = load_split(data, "train")
    counts = [row for row in split.spatial if row.question_type == "object count"]
    model = taught(tmp_path, counts[:4])
    config = RunConfig.model_validate({
        "stages": ["coldstart"], "model": {"path": str(model)}, "data": {"path": str(data)},
        "traces": {"localization_share": 0.0, "samples": 4, "words": [3, 20], "sampling": {"max_new_tokens": 48}},
        "rollout": {"max_model_len": 384, "kv_cache_bytes": 32 << 20, "max_num_seqs": 8},
    })
    out = tmp_path / "out"
    rows = [row for row in _checked_rows(config, out) if row.question_type == "object count"]
    prompts = {row.id: render(row, "think") for row in rows}
    ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    evaluators = Evaluators(config, out, lambda line: None)
    try:
        with evaluators.serving(model) as workers, opened(out, drawn_with(config)) as drafts:
            writer = engine_writer(config, prompts, workers)
            assert asyncio.run(draw_drafts(list(prompts), drafts, writer, 4, lambda row: False, print)) == 0
            again = asyncio.run(writer.draw(rows[0].id, 2, 2))
            assert [own.text for own in again] == [own.text for own in drafts.of(rows[0].id)[2:]], "draft i has its own seed"
            assert asyncio.run(writer.pulse()) > 0
            _a_video_behind_the_text_reaches_the_engine_as_the_learner(workers[0], rows[0], model)
            score = _score(config, load_processor(model))
            selection = selected(rows, drafts.of, score, config.traces)
            texts = {row.id: [own.text for own in drafts.of(row.id)] for row in rows}
    finally:
        evaluators.close()
        ray.shutdown()
    assert all(len(own) == 4 for own in texts.values())
    assert sum(count.drafts for count in selection.counts.values()) == 4 * COUNTS
    assert 0 < len(selection.traces) < 4 * COUNTS
    for trace in selection.traces:
        own = RewardRow(trace.example.id, trace.example.question, trace.example.question_type, None, trace.example.answer)
        assert score_completion(trace.solution, "stop", own, RewardSettings()).total == 2.0, "format and answer"
        assert any(trace.solution == text for text in texts[trace.example.id])
