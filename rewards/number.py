"""Numeric answers: read exactly one number out of an answer, or refuse.

What holds: the answer holds one finite ASCII number (sign, thousands separators, decimals and an exponent allowed), or
one plain fraction (`3/4`, `-1/2`, `1 / 2`) or mixed number (`1 1/2`); every unit it mentions is the expected one, nothing
is converted; ranges, lists, `_` separators, digits of other scripts (`½` among them), slashes of any other kind, inf and
nan are refused. A number word (zero … twenty) counts only when it is the whole answer. Reading takes time linear in the
answer, and an answer beyond `MAX_CHARACTERS` is refused unread.
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
#: Beside a number these words make it another number (a sum, a multiple, a sign, no number at all): refused.
_REFUSED_WORDS = frozenset(NUMBER_WORDS) | frozenset(
    "half quarter third dozen hundred thousand million billion minus negative plus inf infinity nan".split()
)
_UNIT_NAMES = {
    "dm": "dm|decimet(?:er|re)s?",
    "mm": "mm|millimet(?:er|re)s?",
    "cm": "cm|centimet(?:er|re)s?",
    "km": "km|kilomet(?:er|re)s?",
    "m": "m|met(?:er|re)s?",
    "ft": "ft|foot|feet",
    "in": r"inch|inches|in(?=\.?$)",
    "yd": "yd|yards?",
    "mi": "miles?",
    "deg": "degrees?|deg",
    "px": "pixels?|px",
    "percent": "percent",
}
_UNIT = re.compile(
    r"(?<![a-z'])(?:(?P<shape>square|sq|cubic)\.?[\s-]*)?(?:"
    + "|".join(f"(?P<{name}>{spelling})" for name, spelling in _UNIT_NAMES.items())
    + r")(?:\^?(?P<power>[23]))?(?![a-z0-9])"
)
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
        return _only_fraction(text)
    return _only_number(_UNIT.sub(" ", text).split())


def _unit_name(match: re.Match) -> str:
    """Canonical name, with its power: "sq. feet" and "ft^2" are "ft2"."""
    name = next(name for name in _UNIT_NAMES if match[name])
    power = {"square": "2", "sq": "2", "cubic": "3"}.get(match["shape"] or "")
    return name + (power or match["power"] or "")


def _only_number(words: list[str]) -> float | None:
    """The one number among `words` (lower case, units removed), or None."""
    places = [place for place, word in enumerate(words) if any(letter.isdigit() for letter in word)]
    others = [word.strip(".,;:!?()[]") for place, word in enumerate(words) if place not in places]
    if len(places) != 1 or any(part in _REFUSED_WORDS for word in others for part in word.split("-")):
        return None
    neighbours = words[max(places[0] - 1, 0) : places[0] + 2]
    if any(_OPERATORS.issuperset(word) for word in neighbours):
        return None
    word = words[places[0]].lstrip("([~≈=:").rstrip(".,;:!?)]")
    value = float(word.replace(",", "")) if _NUMBER.fullmatch(word) else math.inf
    return value if math.isfinite(value) else None


def _only_fraction(text: str) -> float | None:
    """The one fraction or mixed number in `text` (lower case, right units only), correctly rounded, or None.

    Refused: a denominator of 0, a mixed number whose fraction is 1 or more (`1 3/2` is rather two numbers), and any
    slash besides the fraction's own.
    """
    match = _FRACTION.search(text)
    if match is None:
        return None
    # Found before the units go: without them `1 m / 2 m` would look like a fraction.
    before, after = _UNIT.sub(" ", text[: match.start()]), _UNIT.sub(" ", text[match.end() :]).lstrip(".,;:!?)]")
    if "/" in before or "/" in after or (after and not after[0].isspace()):
        return None
    # The rest of the answer has to be one beside which a plain number, here 0, would be read.
    if _only_number([*before.split(), "0", *after.split()]) is None:
        return None
    whole, numerator, denominator = (int(match[part] or 0) for part in ("whole", "numerator", "denominator"))
    if denominator == 0 or (match["whole"] and numerator >= denominator):
        return None
    value = (whole * denominator + numerator) / denominator
    return -value if match["sign"] == "-" else value
