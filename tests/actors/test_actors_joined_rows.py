"""What stage 3 reads: with `grpo.joined_boxes`, questions have the boxes of their localisation rows, and stay questions."""

import json

import pytest
from pydantic import ValidationError

import actors.trainer
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


def test_the_paper_has_no_words_for_it():
    with pytest.raises(ValidationError, match="grpo.joined_boxes: data.preset paper has no words"):
        RunConfig(grpo=GRPOConfig(joined_boxes=True), data={"preset": "paper"})
