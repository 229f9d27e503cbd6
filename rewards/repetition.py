"""Repetition reward: the share of a text's word n-grams that say again what the text already said, as a penalty.

    R = -(1 - distinct n-grams / all n-grams)

Source: the repetition penalty of Yeo et al. 2025 (Demystifying long chain-of-thought reasoning in LLMs, appendix C.2),
as one number per completion with a greatest penalty of 1, the form open-r1 uses. What holds: words are what whitespace
separates, compared without case; time and memory are linear in the characters read (times `ngram`), and no more than
`MAX_CHARACTERS` of a text are read, so a longer text is judged by its beginning.
"""

from __future__ import annotations

from rewards.errors import RewardSettingsError

MAX_CHARACTERS = 65_536


def repetition_reward(text: str, ngram: int) -> float:
    """R in (-1, 0]; 0.0 for a text of fewer than `ngram` words. RewardSettingsError when `ngram` is less than 1."""
    if ngram < 1:
        raise RewardSettingsError(f"ngram is {ngram!r}: repetition is counted over 1 or more words")
    words = text[:MAX_CHARACTERS].casefold().split()
    total = len(words) - ngram + 1
    if total < 1:
        return 0.0
    distinct = len(set(zip(*(words[start:] for start in range(ngram)))))
    return (distinct - total) / total
