"""Multiple choice: read one letter out of an answer, or refuse.

What holds: only whole-answer forms count (`A`, `A.`, `(A)`, `[A]`, `A)`, `A: text`, `A. text`, `option A`, or the exact
text of one option); the letter is one of the row's options; an answer that names two options names none. Letters in
prose, the article "a" among them, are no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.errors import GroundTruthError

_OPTION = re.compile(r"\s*([A-Z])[.:)]\s*(.*?)\s*", re.DOTALL)
_BRACKETED = re.compile(r"(?:option\s+)?(?:\(([a-z])\)|\[([a-z])\])[.:]?\s*(.*)", re.IGNORECASE | re.DOTALL)
_BARE = re.compile(r"(?:option\s+)?([a-z])(?:[.:)]\s*(.*))?", re.IGNORECASE | re.DOTALL)
_LONE_LETTER = re.compile(r"(?<![\w'])[A-Za-z](?![\w'])")


def option_texts(options: Sequence[str]) -> dict[str, str]:
    """Letter to text of options lettered `A. text`; GroundTruthError if one has no letter or a letter comes twice."""
    texts: dict[str, str] = {}
    for option in options:
        match = _OPTION.fullmatch(option)
        if match is None or match[1] in texts:
            raise GroundTruthError(f"option {option!r}: options start with a letter of their own, such as 'A. chair'")
        texts[match[1]] = match[2]
    return texts


def parse_choice(answer: str, options: Sequence[str]) -> str | None:
    """The upper-case letter that `answer` names, or None when it names none, several, or one outside `options`."""
    texts = option_texts(options)
    plain = answer.strip()
    same_text = [letter for letter, text in texts.items() if _plain(text) and _plain(text) == _plain(plain)]
    if same_text:
        return same_text[0] if len(same_text) == 1 else None
    match = _BRACKETED.fullmatch(plain) or _BARE.fullmatch(plain)
    if match is None:
        return None
    *letters, rest = match.groups()
    letter = next(found for found in letters if found).upper()
    return letter if letter in texts and not (rest and _names_another(rest, letter, texts)) else None


def choice_reward(answer: str | None, truth: str, options: Sequence[str]) -> float:
    """1.0 if the answer names the letter `truth`, else 0.0; GroundTruthError if `truth` is not an option's letter."""
    if truth not in option_texts(options):
        raise GroundTruthError(f"answer {truth!r} is not the letter of one of the options {list(options)!r}")
    return 1.0 if answer is not None and parse_choice(answer, options) == truth else 0.0


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _names_another(rest: str, letter: str, texts: dict[str, str]) -> bool:
    """Whether the words after `A. ` name an option that is not `letter`: by its letter, or by its exact text."""
    if _plain(rest) == _plain(texts[letter]):
        return False
    named = {word.upper() for word in _LONE_LETTER.findall(rest) if word != "a" or rest.rstrip(".") == "a"}
    other_letter = any(found in texts and found != letter for found in named)
    return other_letter or any(_plain(rest) == _plain(text) for text in texts.values())
