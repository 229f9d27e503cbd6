"""The rows that walk through the ladder: one frozen type per thing, stdlib only.

What holds
    * Boxes are stored in pixels of the *original* image file, corners (x1, y1, x2, y2), x right, y down. They are
      converted to the model's frame in one place only (`data.coordinates`).
    * Media are absolute paths; nobody carries pixels in an Example.
    * `answer` is already typed text: one upper-case letter for multiple choice, a decimal string for numbers, and
      None for localisation rows, whose truth is `boxes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Mapping

DataType = Literal["single_image", "multi_view", "video"]

#: The two parts of a data folder, called as their folders are. Their order numbers them in the seeds of rooms.
TRAIN, HELDOUT = SPLITS = ("train", "heldout")

#: The seven question types of SpatialLadder-26k, spelled as in the released files, and how each is answered.
MULTIPLE_CHOICE_TYPES = ("relative distance", "relative direction", "appearance order")
NUMERIC_TYPES = ("object size", "absolute distance", "object count", "room size")
QUESTION_TYPES = MULTIPLE_CHOICE_TYPES + NUMERIC_TYPES
#: Localisation rows carry no `question_type` in the released files; inside the system they are typed like this.
LOCALIZATION = "object localization"

#: Unit of the numeric answers, as the reward expects it (None: a plain count).
UNITS: Mapping[str, str | None] = {
    "object size": "cm",
    "absolute distance": "m",
    "object count": None,
    "room size": "m2",
}


@dataclass(frozen=True)
class Box:
    """A labelled 2-D box, pixels of the original image: (x1, y1, x2, y2) with x1 < x2 and y1 < y2."""

    label: str
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True)
class Example:
    """One dataset row.

    `id` is unique over every file and split: `<split>/<file stem>/<question_id>`. `solution` is the cold-start trace
    (assistant text), present on cold-start rows only, which also carry `prompt_text`, the complete user text.
    """

    id: str
    question_id: int
    data_type: DataType
    question: str
    question_type: str
    media: tuple[str, ...]
    options: tuple[str, ...] | None = None
    answer: str | None = None
    boxes: tuple[Box, ...] = ()
    prompt_text: str | None = None
    solution: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_localization(self) -> bool:
        return self.question_type == LOCALIZATION


@dataclass(frozen=True)
class Prompt:
    """An Example rendered for the policy: a user turn with one placeholder per medium (`data.prompts` says in which order).

    `messages` is the chat (system and user turns) in the Hugging Face content-list form, with items
    `{"type": "image"}` / `{"type": "video"}` standing for `media` in order: one image item per image, or one video
    item that holds every frame of `media`. `target` is the assistant's text for SFT, None when there is none.
    """

    example: Example
    mode: Literal["ground", "direct", "think", "locate"]
    messages: tuple[dict, ...]
    target: str | None = None
