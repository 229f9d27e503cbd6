"""The template module: both presets, every mode, and the coordinates in the text targets."""

import json

import pytest

from data.prompts import SYSTEM, boxes_json, render, user_text
from data.types import LOCALIZATION, Box, Example

CHOICE = Example("train/x/1", 1, "single_image", "Which is closer?", "relative distance", ("a.png",), ("A. sofa", "B. bed"), "B")
NUMBER = Example("train/x/2", 2, "video", "How many chair(s) are in this room?", "object count", ("a.png", "b.png"), None, "3")
VIEWS = Example("train/x/3", 3, "multi_view", "How large?", "object size", tuple("abcdefgh"), None, "84")
PLACE = Example("train/g/4", 4, "single_image", "Where is the sofa?", LOCALIZATION, ("a.png",), boxes=(Box("sofa", (10, 20, 200, 160)),))


def test_ladder_direct_prompt_is_one_string_per_answer_mode():
    assert user_text(CHOICE, "direct") == "Question: Which is closer?\nOptions:\nA. sofa\nB. bed\nAnswer with the option's letter."
    assert user_text(NUMBER, "direct") == "Question: How many chair(s) are in this room?\nAnswer with a number."


def test_paper_prompts_byte_for_byte():
    assert user_text(CHOICE, "direct", "paper") == (
        "Question: Which is closer?Options:\nA. sofa\nB. bed\n\nPlease answer with the option's letter from the given choices directly.")
    think = user_text(NUMBER, "think", "paper")
    assert think.startswith("Question: How many chair(s) are in this room? \nPlease Think about this question as if")
    assert think.endswith("in the reasoning process. \nPlease provide your detailed reasoning between the <think> </think> tags, "
                          "and then answer the question with a numerical value (e.g., 42 or 3.1) within the <answer> </answer> tags.")
    assert user_text(PLACE, "ground", "paper").endswith("labels of the related objects in JSON format. ")


@pytest.mark.parametrize("example, kinds", [(CHOICE, ["image"]), (VIEWS, ["image"] * 8), (NUMBER, ["video"])])
def test_media_stand_before_the_text(example, kinds):
    system, user = render(example, "think").messages
    assert [item["type"] for item in user["content"]] == [*kinds, "text"]
    assert system["content"][0]["text"] == SYSTEM


def test_targets_of_the_modes():
    assert render(CHOICE, "direct").target == "B"
    assert render(CHOICE, "think").target is None
    target = render(PLACE, "ground", original_size=(200, 160), frame=(112, 84)).target
    assert target == '[{"bbox_2d":[6,10,112,84],"label":"sofa"}]'


def test_the_paper_target_is_encoded_once():
    text = boxes_json(PLACE.boxes, (200, 160), (200, 160), "paper")
    assert text.startswith("```json\n[\n    {\n") and text.endswith("\n```")
    assert json.loads(text[8:-4]) == [{"bbox_2d": [10, 20, 200, 160], "label": "sofa"}]


def test_a_mode_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="train/x/1.*'ground' does not fit"):
        render(CHOICE, "ground")
    with pytest.raises(ValueError, match="'direct' does not fit"):
        render(PLACE, "direct")


def test_a_cold_start_row_keeps_its_own_prompt():
    row = Example("train/c/5", 5, "single_image", "", "cold start", ("a.png",), prompt_text="As it was.", solution="<think>a</think><answer>A</answer>")
    prompt = render(row, "think")
    assert prompt.messages[1]["content"][1]["text"] == "As it was." and prompt.target == row.solution

