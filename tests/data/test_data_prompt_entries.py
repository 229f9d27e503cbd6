"""The entries to the template module ask alike: supervised stages, GRPO, evaluation and the writer of cold-start rows.

`ladder`: one text and one order of media for a row and a mode. `paper`: the strings of the released code, typed here again.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from actors.prompt_tasks import TaskMaker
from actors.schedule import PromptSchedule
from configs.schema import RunConfig
from data.prompts import user_text
from data.types import LOCALIZATION, Box, Example
from evaluation.evaluate import prepare
from models.inputs import encode, load_images
from models.loading import load_processor
from sft.dataset import StageRows

TINY_BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"
THINKING = "<think>Hmm.</think><answer>{}</answer>"
METRICS = {"ground": "localization_iou", "direct": "accuracy", "think": "think"}
STAGES = {"ground": "sft1", "direct": "sft2", "think": "coldstart"}

IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
WITHOUT_STOP, WITH_STOP = "You are a helpful assistant", "You are a helpful assistant."
PONDER = (
    " about this question as if you were a human pondering deeply. Engage in an internal dialogue using expressions such as "
    "'let me think', 'wait', 'Hmm', 'oh, I see', 'let's break it down', etc, or other natural language thought expressions "
    "It's encouraged to include self-reflection or verification in the reasoning process. \n"
)
TAGS = "Please provide your detailed reasoning between the <think> </think> tags, and then answer the question with "
THINK_POST = {
    "letter": TAGS + "the option's letter from the given choices (e.g., A, B, etc.) within the <answer> </answer> tags.",
    "number": TAGS + "a numerical value (e.g., 42 or 3.1) within the <answer> </answer> tags.",
}
NUMBER_POST = "\n\nPlease answer the question using a numerical value (e.g., 42 or 3.1) directly."
NEARER, COUNT = "Question: Which is nearer?", "Question: How many {chairs} are there?"
OPTIONS = "Options:\nA. sofa\nB. bed"


@pytest.fixture(scope="module")
def processor():
    return load_processor(TINY_BASE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = tuple(str(folder / f"{index}.png") for index in range(4))
    for path in paths:
        Image.new("RGB", (168, 168)).save(path)
    return {
        "letter": Example(
            "s/0", 0, "single_image", "Which is nearer?", "relative distance", paths[:1], ("A. sofa", "B. bed"), "B"
        ),
        "views": Example("s/1", 1, "multi_view", "How many {chairs} are there?", "object count", paths, None, "3"),
        "video": Example("s/2", 2, "video", "How many {chairs} are there?", "object count", paths, None, "3"),
        "boxes": Example(
            "g/3", 3, "single_image", "Where is the sofa?", LOCALIZATION, paths[:1], boxes=(Box("sofa", (9, 9, 90, 90)),)
        ),
    }


def supervised(row, mode, processor, preset):
    """Ids of the prompt, pictures unexpanded, in the supervised stage of a mode. Cold-start rows carry the text they were
    written with."""
    if mode == "think":
        row = replace(row, prompt_text=user_text(row, "think", preset), solution=THINKING.format(row.answer or "[]"))
    return StageRows(STAGES[mode], [row], processor, preset).tree(0).encoded.prompt_ids


def policy(row, preset):
    return asked_by_grpo(row, preset).request.prompt_token_ids


def asked_by_grpo(row, preset):
    config = RunConfig.model_validate({"data": {"preset": preset}, "grpo": {"prompts_per_step": 1}})
    (task,) = TaskMaker(config, PromptSchedule([row], config.grpo, 0), TINY_BASE).take(0, (0, 1), 0)
    return task


def evaluated(row, mode, processor, preset):
    (question,) = prepare([row], METRICS[mode], processor, preset)
    return question.token_ids


CASES = [("letter", "direct"), ("views", "direct"), ("video", "direct"), ("boxes", "ground"),
         ("letter", "think"), ("views", "think"), ("video", "think"), ("boxes", "think")]


@pytest.mark.parametrize("name, mode", CASES)
def test_ladder_asks_a_row_in_the_same_words_whoever_asks(rows, processor, name, mode):
    row = rows[name]
    asked = [supervised(row, mode, processor, "ladder"), evaluated(row, mode, processor, "ladder")]
    asked += [policy(row, "ladder")] if mode == "think" else []
    assert len(set(asked)) == 1
    text = processor.tokenizer.decode(asked[0])
    assert text.count(IMAGE) + text.count(VIDEO) == (1 if row.data_type == "video" else len(row.media))
    assert text.rindex("<|vision_end|>") < text.index("Question: "), "media before the text"


def chat(system, user):
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


GROUND = (
    IMAGE + "Question: Where is the sofa?\nPlease carefully observe the image first to identify the object(s) referred to in "
    "the question. Note that each object type appears only once in the image. Please provide the 2D bounding box coordinates and "
    "labels of the related objects in JSON format. "
)
LETTER_POST = "\n\nPlease answer with the option's letter from the given choices directly."
LETTER_POST_E = "\n\nPlease answer with the option's letter from the given choices (e.g., A, B, etc.) directly."
TRAINED_LETTER = NEARER + "\n" + OPTIONS + " \nPlease Think" + PONDER + THINK_POST["letter"]
TRAINED_NUMBER = COUNT + " \nPlease Think" + PONDER + THINK_POST["number"]
ASKED_LETTER = NEARER + "\n" + OPTIONS + "\nPlease think" + PONDER + "\n" + THINK_POST["letter"]
ASKED_NUMBER = COUNT + "\nPlease think" + PONDER + "\n" + THINK_POST["number"]
PAPER = [
    ("boxes", "ground", "sft", chat(WITHOUT_STOP, GROUND)),
    ("letter", "direct", "sft", chat(WITHOUT_STOP, IMAGE + NEARER + OPTIONS + LETTER_POST)),
    ("views", "direct", "sft", chat(WITHOUT_STOP, 4 * IMAGE + COUNT + NUMBER_POST)),
    ("video", "direct", "sft", chat(WITHOUT_STOP, VIDEO + COUNT + NUMBER_POST)),
    ("letter", "think", "sft", chat(WITHOUT_STOP, IMAGE + TRAINED_LETTER)),
    ("video", "think", "sft", chat(WITHOUT_STOP, VIDEO + TRAINED_NUMBER)),
    ("letter", "think", "grpo", chat(WITH_STOP, IMAGE + TRAINED_LETTER)),
    ("views", "think", "grpo", chat(WITH_STOP, 4 * IMAGE + TRAINED_NUMBER)),
    ("video", "think", "grpo", chat(WITH_STOP, TRAINED_NUMBER + VIDEO)),
    ("letter", "direct", "evaluation", chat(WITH_STOP, IMAGE + NEARER + "\n" + OPTIONS + LETTER_POST_E)),
    ("video", "direct", "evaluation", chat(WITH_STOP, VIDEO + COUNT + NUMBER_POST)),
    ("letter", "think", "evaluation", chat(WITH_STOP, IMAGE + ASKED_LETTER)),
    ("views", "think", "evaluation", chat(WITH_STOP, 4 * IMAGE + ASKED_NUMBER)),
    ("video", "think", "evaluation", chat(WITH_STOP, VIDEO + ASKED_NUMBER)),
]


@pytest.mark.parametrize("name, mode, entry, expected", PAPER, ids=["-".join(case[:3]) for case in PAPER])
def test_paper_asks_as_the_table_of_the_specification(rows, processor, name, mode, entry, expected):
    asked = {
        "sft": lambda: supervised(rows[name], mode, processor, "paper"),
        "grpo": lambda: policy(rows[name], "paper"),
        "evaluation": lambda: evaluated(rows[name], mode, processor, "paper"),
    }[entry]()
    assert processor.tokenizer.decode(asked) == expected


def test_a_video_behind_the_text_is_encoded_as_the_processor_does(rows, processor):
    """Stage 3 of `paper`: ids and positions of a prompt that ends in its video."""
    task = asked_by_grpo(rows["video"], "paper")
    encoded = encode(processor, task.prompt.messages, load_images(rows["video"].media), True)
    ids = task.request.prompt_token_ids
    assert encoded.prompt_ids == ids
    first = encoded.token_types.index(2)
    assert encoded.input_ids[:first] == ids[:first] and set(encoded.token_types[first:]) == {0, 2}
    t, h, w = encoded.grid_thw[0].tolist()
    tokens = t * h * w // 4
    assert encoded.token_types[first : first + tokens] == (2,) * tokens and 2 not in encoded.token_types[first + tokens :]
    assert encoded.positions[:, first].tolist() == [first] * 3
    behind = first + max(2 * 2 * (t - 1), h // 2 - 1, w // 2 - 1) + 1  # two seconds a time step, two positions a second
    assert encoded.positions[:, first + tokens].tolist() == [behind] * 3
