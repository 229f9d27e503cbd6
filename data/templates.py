"""Wording of the questions, that of the released rows, and lettering of the options. Strings only, no geometry."""

from __future__ import annotations

from typing import Sequence

import numpy as np

SINGLE_IMAGE = {
    "object size": "What is the length of the longest dimension of the {a}, measured in centimeters?",
    "absolute distance": "Measuring from the closest point of each object, what is the direct distance between the {a} "
                         "and the {b} (in meters)?",
    "relative distance": "Measuring from the closest point of each object, which of these two objects ({a}, {b}) is "
                         "closer to the {target}?",
    "relative direction": "From the camera's perspective, is the {a} to the {b}'s left-front, left-back, right-front, "
                          "or right-back?",
}

SCENE = {
    "object size": "What is the length of the longest dimension (length, width, or height) of the {a}, measured in "
                   "centimeters?",
    "absolute distance": SINGLE_IMAGE["absolute distance"],
    "relative distance": "Measuring from the closest point of each object, which of these objects ({candidates}) is "
                         "the closest to the {target}?",
    "object count": "How many {a}(s) are in this room?",
    "room size": "What is the size of this room (in square meters)? If multiple rooms are shown, estimate the size of "
                 "the combined space.",
    "appearance order": "What will be the first-time appearance order of the following categories in the video: "
                        "{categories}?",
}
SEVERAL_INSTANCES = " If there are multiple instances of an object category, measure to the closest."

DIRECTION = {
    "easy": "If I am standing by the {stand} and facing the {face}, is the {query} to the left or the right of the "
            "{face}?",
    "medium": "If I am standing by the {stand} and facing the {face}, is the {query} to my left, right, or back? An "
              "object is to my back if I would have to turn at least 135 degrees in order to face it.",
    "hard": "If I am standing by the {stand} and facing the {face}, is the {query} to my front-left, front-right, "
            "back-left, or back-right? The directions refer to the quadrants of a Cartesian plane (if I am standing at "
            "the origin and facing along the positive y-axis).",
}

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lettered(texts: Sequence[str], correct: str, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    """Options in random order as 'A. text', and the letter of `correct`, which is one of `texts`."""
    shuffled = [texts[i] for i in rng.permutation(len(texts))]
    return tuple(f"{LETTERS[i]}. {text}" for i, text in enumerate(shuffled)), LETTERS[shuffled.index(correct)]


def option_text(option: str) -> str:
    """'B. left-back' -> 'left-back'."""
    return option.split(". ", 1)[1]
