"""The one template module: what the policy reads in SFT, GRPO and evaluation, and what SFT wants it to write.

`render` is used by every entry point, so a prompt cannot drift between stages. Two presets:

* `ladder` - ours: one text for a row and a mode, whoever asks; media before text everywhere, one system prompt, one string
  per answer mode, compact JSON.
* `paper`  - the strings of the released code, needed for the released checkpoint, but not its double encoding
  of stage 1's answers. There training and evaluation word the same question differently, supervised stages have a
  system prompt of their own, and stage 3 puts a video behind the text: all of that is kept. What the paper does not have
  (localisation rows that think, an evaluation of stage 1) is worded like its neighbours.

Modes: `ground` asks for boxes as JSON (stage 1), `direct` for the bare answer (stage 2), `think` for
`<think>…</think><answer>…</answer>` (cold start, GRPO; on a localisation row the JSON stands inside `<answer>`), `locate` for
the same of a question row that has boxes (`data.joining`), which are to stand at the beginning of `<think>`; ours alone.
"""

from __future__ import annotations

import json
from typing import Literal, Sequence, get_args

from data.coordinates import Size, as_text_target, in_frame
from data.types import MULTIPLE_CHOICE_TYPES, Box, Example, Prompt

Mode = Literal["ground", "direct", "think", "locate"]
Preset = Literal["ladder", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
#: Who asks. Only `paper` makes a difference.
Use = Literal["training", "evaluation"]
Kind = Literal["letter", "number", "boxes"]

SYSTEM = "You are a helpful assistant."

_LADDER_GROUND = "Locate the objects named in the question. Answer with a JSON list of bbox_2d and label."
_LADDER_DIRECT = {"letter": "Answer with the option's letter.", "number": "Answer with a number."}
_LADDER_THINK = {
    "letter": "Think between <think> and </think>, then give the option's letter between <answer> and </answer>.",
    "number": "Think between <think> and </think>, then give a number between <answer> and </answer>.",
    "boxes": "Think between <think> and </think>, then give a JSON list of bbox_2d and label between <answer> and </answer>.",
}

#: Where things are is to be said before anything is concluded from it.
_LADDER_LOCATE = {
    kind: text.replace("</think>,", "</think>, beginning with a JSON list of bbox_2d and label of the objects named,")
    for kind, text in _LADDER_THINK.items() if kind != "boxes"
}

_PAPER_SYSTEM_SFT = "You are a helpful assistant"
_PAPER_GROUND = (
    "Question: {q}\nPlease carefully observe the image first to identify the object(s) referred to in the question. "
    "Note that each object type appears only once in the image. Please provide the 2D bounding box coordinates and "
    "labels of the related objects in JSON format. "
)
_PAPER_DIRECT = {
    "letter": "Please answer with the option's letter from the given choices directly.",
    "number": "Please answer the question using a numerical value (e.g., 42 or 3.1) directly.",
}
_PAPER_DIRECT_EVALUATION = {
    **_PAPER_DIRECT,
    "letter": "Please answer with the option's letter from the given choices (e.g., A, B, etc.) directly.",
}
_PAPER_THINK = (
    "Please {verb} about this question as if you were a human pondering deeply. Engage in an internal dialogue using "
    "expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', 'let's break it down', etc, or other natural "
    "language thought expressions It's encouraged to include self-reflection or verification in the reasoning process. \n"
)
_PAPER_TAGS = "Please provide your detailed reasoning between the <think> </think> tags, and then answer the question "
_PAPER_THINK_POST = {
    "letter": _PAPER_TAGS + "with the option's letter from the given choices (e.g., A, B, etc.) within the <answer> </answer> tags.",
    "number": _PAPER_TAGS + "with a numerical value (e.g., 42 or 3.1) within the <answer> </answer> tags.",
    "boxes": _PAPER_TAGS + "with the 2D bounding box coordinates and labels in JSON format within the <answer> </answer> tags.",
}


def answer_kind(example: Example) -> Kind:
    """How the row is answered, by its question type."""
    if example.is_localization:
        return "boxes"
    return "letter" if example.question_type in MULTIPLE_CHOICE_TYPES else "number"


def boxes_json(boxes: Sequence[Box], original_size: Size, frame: Size, preset: Preset = "ladder") -> str:
    """The boxes as the text target of stage 1: integers in the model's frame, encoded exactly once."""
    items = [{"bbox_2d": list(as_text_target(corners, frame)), "label": label}
             for label, corners in in_frame(boxes, original_size, frame)]
    if preset == "paper":
        return "```json\n" + json.dumps(items, indent=4) + "\n```"
    return json.dumps(items, separators=(",", ":"))


def user_text(example: Example, mode: Mode, preset: Preset = "ladder", use: Use = "training") -> str:
    """The text of the user turn, media not included.

    ValueError when the mode does not fit the row, or its options do not fit its question type.
    """
    if mode == "think" and example.prompt_text is not None:
        return example.prompt_text
    kind = answer_kind(example)
    if (mode == "ground") != (kind == "boxes") and mode != "think":
        raise ValueError(f"row {example.id}: mode {mode!r} does not fit a {example.question_type!r} question")
    if bool(example.options) != (kind == "letter"):
        raise ValueError(f"row {example.id}: a {example.question_type!r} question with options {example.options!r}")
    options = "\n".join(example.options or ())
    if mode == "locate" and (preset == "paper" or not example.boxes):
        raise ValueError(f"row {example.id}: mode 'locate' needs a row with boxes and the preset 'ladder'")
    if preset == "paper":
        return _paper_text(example.question, options, mode, kind, use)
    question = f"Question: {example.question}\n" + (f"Options:\n{options}\n" if options else "")
    if mode == "ground":
        return question + _LADDER_GROUND
    return question + {"direct": _LADDER_DIRECT, "think": _LADDER_THINK, "locate": _LADDER_LOCATE}[mode][kind]


def _paper_text(question: str, options: str, mode: Mode, kind: Kind, use: Use) -> str:
    if mode == "ground":
        return _PAPER_GROUND.format(q=question)
    asked, on_a_line = f"Question: {question}", f"\nOptions:\n{options}" if options else ""
    if mode == "direct" and use == "training":
        return asked + on_a_line.removeprefix("\n") + "\n\n" + _PAPER_DIRECT[kind]
    if mode == "direct":
        return asked + on_a_line + "\n\n" + _PAPER_DIRECT_EVALUATION[kind]
    if use == "training":
        return asked + on_a_line + " \n" + _PAPER_THINK.format(verb="Think") + _PAPER_THINK_POST[kind]
    return asked + on_a_line + "\n" + _PAPER_THINK.format(verb="think") + "\n" + _PAPER_THINK_POST[kind]


def render(example: Example, mode: Mode, preset: Preset = "ladder", use: Use = "training", *,
           original_size: Size | None = None, frame: Size | None = None) -> Prompt:
    """An Example as a chat, with the SFT target of that mode. Media come first, but for a video in `paper`'s stage 3.

    `original_size` (width, height) of the single image and `frame`, that of the model's boxes on it, are needed only for
    the target of a `ground` prompt; without them the target is None. ValueError as `user_text`.
    """
    policy = mode == "locate" or mode == "think" and example.solution is None  # stage 3 has no target
    supervised = use == "training" and not policy
    medium = [{"type": "video"}] if example.data_type == "video" else [{"type": "image"}] * len(example.media)
    content = [*medium, {"type": "text", "text": user_text(example, mode, preset, use)}]
    if preset == "paper" and use == "training" and policy and example.data_type == "video":
        content.reverse()
    system = _PAPER_SYSTEM_SFT if preset == "paper" and supervised else SYSTEM
    messages = (
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    )
    target = None
    if mode == "direct":
        target = example.answer
    elif mode == "think":
        target = example.solution
    elif mode == "ground" and original_size is not None and frame is not None:
        target = boxes_json(example.boxes, original_size, frame, preset)
    return Prompt(example, mode, messages, target)
