"""Which drafts of a model become cold-start traces: pure rules over a draft and what the rewards say of it.

What holds: a kept draft ended by itself, keeps the strict format, and is right by the rewards' own measure; its reasoning
has a length, a script and no special token in it, and does not conclude with another option than the answer names. Each
draft that is not kept has one reason, the first that applies.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from configs.schema import TracesConfig
from data.trace_drafts import Draft
from data.types import Example

CUT = "cut off at the length limit"
STOPPED = "stopped by the server"
FORMAT = "format"
WRONG = "wrong answer"
SPECIAL = "special token in the text"
LENGTH = "reasoning too short or too long"
SCRIPT = "other script"
CONTRADICTION = "reasoning concludes another option"
DUPLICATE = "said before"
SURPLUS = "more than are kept of a row"
REASONS = (CUT, STOPPED, FORMAT, WRONG, SPECIAL, LENGTH, SCRIPT, CONTRADICTION, DUPLICATE, SURPLUS)

_THOUGHT = re.compile(r"<think>(.*)</think>", re.DOTALL)
#: Tokens of chat templates, and what is left of characters that were cut in two.
_SPECIAL = re.compile("<\\|[^<>|]*\\|>|[\ufffd\ud800-\udfff]")


@dataclass(frozen=True)
class Scored:
    """What the rewards say of a draft: strict format and accuracy (or IoU) in [0, 1], and the answer as a trace states it
    (a choice as its bare letter)."""

    format: float
    right: float
    answer: str


def rejection(draft: Draft, scored: Scored, example: Example, config: TracesConfig) -> str | None:
    """Why the draft is no trace, one of REASONS; None for a trace."""
    if draft.finish_reason == "length":
        return CUT
    if draft.finish_reason != "stop":
        return STOPPED
    if scored.format < 1:
        return FORMAT
    if scored.right < (config.min_iou if example.is_localization else config.min_accuracy):
        return WRONG
    if _SPECIAL.search(draft.text):
        return SPECIAL
    thought = reasoning(draft.text)
    if not config.words[0] <= len(thought.split()) <= config.words[1]:
        return LENGTH
    if latin_share(thought) < config.min_latin:
        return SCRIPT
    if example.options and concluded(thought, len(example.options)) not in (None, scored.answer):
        return CONTRADICTION
    return None


def reasoning(text: str) -> str:
    """What stands between the think tags of a text of strict format."""
    return _THOUGHT.search(text).group(1).strip()


def solution(draft: Draft, scored: Scored) -> str:
    """The assistant's text of the cold-start row."""
    return f"<think>{reasoning(draft.text)}</think><answer>{scored.answer}</answer>"


def sameness(solution_text: str) -> str:
    """Equal for two traces that say the same in the same words, whatever the case, space and punctuation."""
    return " ".join(re.findall(r"\w+", solution_text.casefold()))


def latin_share(text: str) -> float:
    """Share of Latin letters among all letters; 1 without letters."""
    letters = [character for character in text if character.isalpha()]
    latin = sum(character.isascii() or unicodedata.name(character, "").startswith("LATIN") for character in letters)
    return latin / len(letters) if letters else 1.0


def concluded(thought: str, options: int) -> str | None:
    """The letter that the reasoning says last is the answer, or that ends it ('option B.'); None where it says none."""
    found = [*_conclusions(options).finditer(thought)]
    return next(letter for letter in found[-1].groups() if letter) if found else None


@lru_cache
def _conclusions(options: int) -> re.Pattern[str]:
    letter = rf"[(\[\"'*]*\b([A-{chr(ord('A') + options - 1)}])\b(?!')"
    said = r"\b(?i:answer|correct (?:option|choice)|choose|select|pick)\b[^.!?\n]{0,30}?"
    return re.compile(rf"{said}{letter}|\b(?i:option|choice)\s+{letter}\W*$")
