"""Multiple choice: read one letter out of an answer, or refuse.

What holds: only whole-answer forms count (`A`, `A.`, `(A)`, `[A]`, `A)`, `A: text`, `A. text`, `option A`, or the exact
text of one option); the letter is one of the row's options; an answer that names two options, by letter or by text, names
none. Letters in prose, the article "a" among them, are no answer. Reading takes time linear in the answer, and an answer
beyond `MAX_CHARACTERS` of rewards.number is refused unread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from rewards.errors import GroundTruthError
from rewards.number import MAX_CHARACTERS

_OPTION = re.compile(r"\s*([A-Z])[.:)](.*)", re.DOTALL)
# Letters are spelt out: without regard to case, [a-z] would also match the long s and the dotless i.
_BRACKETED = re.compile(r"(?i:option\s+)?(?:\(([A-Za-z])\)|\[([A-Za-z])\])(?!\w)[.:]?\s*(.*)", re.DOTALL)
_BARE = re.compile(r"(?i:option\s+)?([A-Za-z])(?:[.:)]\s*(.*))?", re.DOTALL)
# The "s" of "it's" is none; a letter in quotes is one.
_LONE_LETTER = re.compile(r"(?<![^\W_])(?<!\w['’])[A-Za-z](?![^\W_])")
# An "a" before a word is the article, unless it is called an option or that word follows no article: a function word, a
# verb that agrees with "a" ("is", "fits"; but "glass" and "bus" are nouns), or a negated one.
_ARTICLE = re.compile(
    r"(?<!\S)(?<!(?:option|answer|choice|letter)\s)(?-i:a)(?=\s+(?!\w*[^\Wsu]s\b|\w+n['’]t\b|(?:"
    r"or|and|nor|but|not|are|were|be|been|had|did|can|could|may|might|must|shall|should|will|would|instead|too|also|because|"
    r"since|then|than|though|if|in|on|of|for|from|to|with|the|it|that|an?)\b)\w)",
    re.IGNORECASE,
)


def option_texts(options: Sequence[str]) -> Mapping[str, str]:
    """Letter to text of options lettered `A. text`; GroundTruthError if one has no letter or a letter comes twice."""
    return _option_texts(tuple(options))


@lru_cache(1024)  # the same for every completion of a group
def _option_texts(options: tuple[str, ...]) -> Mapping[str, str]:
    texts: dict[str, str] = {}
    for option in options:
        match = _OPTION.fullmatch(option)
        if match is None or match[1] in texts:
            raise GroundTruthError(f"option {option!r}: options start with a letter of their own, such as 'A. chair'")
        texts[match[1]] = match[2].strip()
    return MappingProxyType(texts)


def parse_choice(answer: str, options: Sequence[str]) -> str | None:
    """The upper-case letter that `answer` names, or None when it names none, several, or one outside `options`.

    Raises GroundTruthError as `option_texts` does.
    """
    return _named(answer, option_texts(options))


def choice_reward(answer: str | None, truth: str, options: Sequence[str]) -> float:
    """1.0 if the answer names the letter `truth`, else 0.0; GroundTruthError if `truth` is not an option's letter."""
    texts = option_texts(options)
    if truth not in texts:
        raise GroundTruthError(f"answer {truth!r} is not the letter of one of the options {list(options)!r}")
    return 1.0 if answer is not None and _named(answer, texts) == truth else 0.0


def _named(answer: str, texts: Mapping[str, str]) -> str | None:
    """The one letter of `texts` that the answer names, by letter or by text, or None."""
    if len(answer) > MAX_CHARACTERS:
        return None
    stripped = answer.strip()
    by_letter = _named_by_letter(stripped, texts)
    plain = _plain(stripped)
    by_text = {letter for letter, text in texts.items() if plain and _plain(text) == plain}
    named = by_text | {by_letter} if by_letter else by_text  # the answer "A" where the text of option B is "A": both
    return named.pop() if len(named) == 1 else None


def _named_by_letter(stripped: str, texts: Mapping[str, str]) -> str | None:
    match = _BRACKETED.fullmatch(stripped) or _BARE.fullmatch(stripped)
    if match is None:
        return None
    *letters, rest = match.groups()
    letter = next(found for found in letters if found).upper()
    return letter if letter in texts and not (rest and _names_another(rest, letter, texts)) else None


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


@lru_cache(4096)  # the same for every completion of a group
def _whole_words(text: str) -> re.Pattern:
    return re.compile(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])")


def _names_another(rest: str, letter: str, texts: Mapping[str, str]) -> bool:
    """Whether the words after `A. ` name an option that is not `letter`: by its letter, or by its text as whole words.

    Another's text within the own one names nothing: `B. arm chair` beside an option `chair`.
    """
    plain, own = _plain(rest), _plain(texts[letter])
    if plain == own:
        return False
    letters = {found.upper() for found in _LONE_LETTER.findall(_ARTICLE.sub(" ", rest))}
    if any(found in texts and found != letter for found in letters):
        return True
    owners = [0] * len(plain)  # per character: which occurrence of the own text it belongs to
    if own:
        for number, match in enumerate(_whole_words(own).finditer(plain), start=1):
            owners[match.start() : match.end()] = [number] * len(own)
    others = {_plain(text) for text in texts.values()} - {own, ""}
    found = (match for text in others for match in _whole_words(text).finditer(plain))
    return any(owners[match.start()] == 0 or owners[match.start()] != owners[match.end() - 1] for match in found)
