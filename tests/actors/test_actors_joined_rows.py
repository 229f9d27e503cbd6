"""What stage 3 reads: with `grpo.joined_boxes`, questions have the boxes of their localisation rows, and stay questions."""

import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

import actors.trainer
from actors.prompt_tasks import TaskMaker
from actors.schedule import PromptSchedule
from configs.schema import GRPOConfig, RunConfig

ROW = {"image": ["room/0.png"], "data_type": "single_image"}
BOX = {"bbox_2d": [1, 2, 3, 4], "label": "chair"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    asked = {**ROW, "options": None, "answer": "3", "question_type": "object size"}
    questions = [{"question_id": number, **asked, "question": question}
                 for number, question in enumerate(("How long is the chair?", "How long is the lamp?"))]
    located = {"question_id": 2, **ROW, "question": "<image>how long is the chair?", "answer": [BOX]}
    (tmp_path / "train/spld_spatial_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "train/spld_grounding_data.jsonl").write_text(json.dumps(located) + "\n")
    return tmp_path


@pytest.mark.parametrize("joined", [False, True])
def test_the_rows_of_stage_3(folder, monkeypatch, joined):
    taken, told = [], []
    monkeypatch.setattr(actors.trainer, "train_policy", lambda config, rows, *others: taken.append(rows))
    config = RunConfig(grpo=GRPOConfig(joined_boxes=joined, prompts_per_step=3))
    actors.trainer.run_grpo(config, model_folder=folder, data_folder=folder, stage_folder=folder, progress=told.append)
    ((located, chair, lamp),) = taken
    assert [row.is_localization for row in (located, chair, lamp)] == [True, False, False]
    assert chair.boxes == (located.boxes if joined else ()) and lamp.boxes == () and chair.answer == "3"
    rate = "1 of 2 single-image rows have the boxes of a localisation row (50.0%)"
    assert told == ([f"grpo: {rate}; their prompts ask for these too"] if joined else [])
    schedule = PromptSchedule(taken[0], GRPOConfig(steps=9, prompts_per_step=3, localization_share=1 / 3), seed=0)
    assert sum(row.is_localization for row in schedule.take(0, 9)) == 3  # a question with boxes is none of them


@pytest.mark.parametrize("joined", [False, True])
def test_the_prompts_of_stage_3(folder, monkeypatch, joined):
    """A question with boxes is asked for them, and only then do rewards see them; a picture of 112 x 112 is not resized."""
    taken = []
    monkeypatch.setattr(actors.trainer, "train_policy", lambda config, rows, *others: taken.append(rows))
    (folder / "train/room").mkdir()
    Image.new("RGB", (112, 112)).save(folder / "train/room/0.png")
    grpo = GRPOConfig(joined_boxes=joined, prompts_per_step=3, localization_share=1 / 3)
    config = RunConfig(grpo=grpo)
    actors.trainer.run_grpo(config, model_folder=folder, data_folder=folder, stage_folder=folder, progress=lambda line: None)
    model = Path(__file__).resolve().parents[2] / config.model.path
    tasks = TaskMaker(config, PromptSchedule(taken[0], grpo, seed=0), model).take(0, (0, 3), 0)
    found = {task.prompt.example.question: (task.prompt.mode, task.row.target_boxes, task.row.answer) for task in tasks}
    box = ("chair", (1.0, 2.0, 3.0, 4.0))
    assert found == {
        "how long is the chair?": ("think", (box,), None),
        "How long is the chair?": ("locate", (box,), "3") if joined else ("think", (), "3"),
        "How long is the lamp?": ("think", (), "3"),
    }


def test_the_paper_has_no_words_for_it():
    with pytest.raises(ValidationError, match="grpo.joined_boxes: data.preset paper has no words"):
        RunConfig(grpo=GRPOConfig(joined_boxes=True), data={"preset": "paper"})
