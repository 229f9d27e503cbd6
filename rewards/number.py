"""Numeric answers: read exactly one number out of an answer, or refuse.

What holds: the answer holds one finite ASCII number (sign, thousands separators, decimals and an exponent allowed), or
one plain fraction (`3/4`, `-1/2`, `1 / 2`) or mixed number (`1 1/2`); every unit it mentions is the expected one, nothing
is converted; ranges, lists, multiples (`3 dozens`), rates, `_` separators, digits of other scripts (`½` among them),
slashes of any other kind, inf and nan are refused. Directly behind a measured number stands its unit, a new clause, a
word of a short list, or nothing: any other word there is taken for a unit, known or not. A number word (zero … twenty)
counts only when it is the whole answer. Reading takes time linear in the answer, and an answer beyond `MAX_CHARACTERS` is
refused unread.
"""

from __future__ import annotations

import math
import re
import unicodedata

#: An answer is a number or a letter; one longer than this is prose, whatever it holds.
MAX_CHARACTERS = 1024
NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_MULTIPLES = (
    "half quarter third fourth fifth sixth seventh eighth ninth tenth hundredth thousandth pair ten dozen hundred thousand "
    "million billion trillion"
).split()
#: Beside a number these words make it another number (a sum, a multiple, a sign, no number at all), or the measure
#: another one (a rate, a prefix that stands apart: `centi meters`): refused.
_REFUSED_WORDS = frozenset(
    [*NUMBER_WORDS, *_MULTIPLES, *(f"{word}s" for word in _MULTIPLES)]
    + "halves thirty forty fifty sixty seventy eighty ninety minus negative plus inf infinity nan".split()
    + "per milli centi deci kilo".split()
)
#: What may stand directly behind a measured number that leaves its unit out. `in` may not: it may be the inch.
_BEHIND_A_MEASURE = frozenset(
    "across apart approximately away between deep from high is long or roughly tall to total wide".split()
)
#: Behind a count stands what is counted; of words as short as `k` only these.
_SHORT_BEHIND_A_COUNT = frozenset("as at by in is of on or so to tv".split())
_UNIT_NAMES = {
    "dm": "dms?|decimet(?:er|re)s?",
    "mm": "mms?|millimet(?:er|re)s?",
    "cm": "cms?|centimet(?:er|re)s?",
    "km": "kms?|kilomet(?:er|re)s?",
    "m": "m|met(?:er|re)s?",
    "ft": "ft|foot|feets?",
    "in": r"inch(?:e?s)?|in(?=[.,;:!?)\]]*$)",
    "yd": "yds?|yards?",
    "mi": "miles?",
    "deg": "degrees?|deg",
    "px": "pixels?|px",
    "percent": "percent",
    "other": "[nμ]m|(?:nano|micro|deca|hecto)met(?:er|re)s?|acres?|hectares?",  # never expected: one name will do
}
_UNIT = re.compile(
    r"(?<![^\W\d_])(?<!['’])(?:(?P<shape>square|sq|cubic)\.?[\s-]*)?(?:"
    + "|".join(f"(?P<{name}>{spelling})" for name, spelling in _UNIT_NAMES.items())
    + r")(?:\^?(?P<power>[23])|[\s-]*(?P<behind>squared?|cubed))?(?!\w)"
)
_POWERS = {"squared": "2", "cubed": "3"}  # `3 meters square` has 3 or 9 square meters: no power that is ever expected
#: Stands for the expected unit; no word of an answer, which is case-folded.
_UNIT_MARK = "UNIT"
_CLAUSE_END = tuple(".,;:!?")
_CLOSING = ".,;:!?)]"
_LETTERS = re.compile(r"[^\W\d_]+")
_PLAIN_WORD = re.compile(r"""["'“‘(\[]*([a-z][a-z-]*)(?!\w)""")
_OPERATORS = frozenset("+-−–—*^±<>%°×$€£")
_NUMBER = re.compile(r"[+-]?(?:(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII)
# Digits are bounded so that a fraction can neither overflow nor meet the interpreter's limit on long integers.
_FRACTION = re.compile(
    r"(?<!\S)[(\[~≈=:]*(?P<sign>[+-]?)(?:(?P<whole>[0-9]{1,15})\s+)?"
    r"(?P<numerator>[0-9]{1,15})\s*/\s*(?P<denominator>[0-9]{1,15})"
)


def parse_number(answer: str, unit: str | None) -> float | None:
    """The number `answer` holds, or None when it holds none or several, or a unit other than `unit`.

    `unit` is "m", "cm", "m2" or another of the table above, None for a plain count (every unit is then a wrong one).
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    text = answer.strip().casefold()
    if text.rstrip(".") in NUMBER_WORDS:
        return float(NUMBER_WORDS[text.rstrip(".")])
    text = text.replace("²", "^2").replace("³", "^3")
    if "_" in text or any(not letter.isascii() and unicodedata.category(letter).startswith("N") for letter in text):
        return None
    if any(_unit_name(match) != unit for match in _UNIT.finditer(text)):
        return None
    if "/" in text:
        return _only_fraction(text, unit)
    return _only_number(_marked(text), unit)


def _unit_name(match: re.Match) -> str:
    """Canonical name, with its power: "sq. feet", "feet squared" and "ft^2" are "ft2"."""
    name = next(name for name in _UNIT_NAMES if match[name])
    before = {"square": "2", "sq": "2", "cubic": "3"}.get(match["shape"] or "", "")
    behind = match["power"] or _POWERS.get(match["behind"] or "", match["behind"] or "")
    return name + (before if before == behind else before + behind)


def _marked(text: str) -> str:
    """`text` with a mark, a word of its own, for each unit."""
    return _UNIT.sub(f" {_UNIT_MARK} ", text)


def _only_number(text: str, unit: str | None) -> float | None:
    """The one number in `text` (lower case, its units marked), or None."""
    numbers = [word for word in re.finditer(r"\S+", text) if any(letter.isdigit() for letter in word[0])]
    if len(numbers) != 1:
        return None
    before, after = text[: numbers[0].start()], text[numbers[0].end() :]
    if not _REFUSED_WORDS.isdisjoint(_LETTERS.findall(f"{before} {after}")):
        return None
    words_before, words_after = ([word for word in part.split() if word != _UNIT_MARK] for part in (before, after))
    if any(_OPERATORS.issuperset(word) for word in (*words_before[-1:], *words_after[:1])):
        return None
    if not _may_stand_behind(numbers[0][0], after, unit):
        return None
    word = numbers[0][0].lstrip("([~≈=:").rstrip(_CLOSING)
    value = float(word.replace(",", "")) if _NUMBER.fullmatch(word) else math.inf
    return value if math.isfinite(value) else None


def _may_stand_behind(number: str, after: str, unit: str | None) -> bool:
    """Whether `after` leaves `number` the measure in `unit`, or the plain count, that it is without it.

    A clause ends with the line, too: `3` and a line below it an explanation.
    """
    words = [word for word in after.partition("\n")[0].split() if word.strip("([" + _CLOSING)]
    if number.rstrip(")]").endswith(_CLAUSE_END) or not words or words[0] == _UNIT_MARK:
        return True
    word = _PLAIN_WORD.match(words[0])
    if word is None:
        return False
    if unit is None:
        return len(word[1]) > 2 or word[1] in _SHORT_BEHIND_A_COUNT
    return word[1] in _BEHIND_A_MEASURE


def _only_fraction(text: str, unit: str | None) -> float | None:
    """The one fraction or mixed number in `text` (lower case, right units only), correctly rounded, or None.

    Refused: a denominator of 0, a mixed number whose fraction is 1 or more (`1 3/2` is rather two numbers), and any
    slash besides the fraction's own.
    """
    match = _FRACTION.search(text)
    if match is None:
        return None
    # Found before the units go: without them `1 m / 2 m` would look like a fraction.
    before, after = _marked(text[: match.start()]), _marked(text[match.end() :])
    rest = after.lstrip(_CLOSING)
    if "/" in before or "/" in after or (rest and not rest[0].isspace()):
        return None
    # The rest of the answer has to be one beside which a plain number, here 0, would be read.
    if _only_number(f"{before}0{after}", unit) is None:
        return None
    whole, numerator, denominator = (int(match[part] or 0) for part in ("whole", "numerator", "denominator"))
    if denominator == 0 or (match["whole"] and numerator >= denominator):
        return None
    value = (whole * denominator + numerator) / denominator
    return -value if match["sign"] == "-" else value
