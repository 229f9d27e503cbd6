"""The repetition penalty: exact shares, its limits, and its cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import RewardSettingsError
from rewards.repetition import MAX_CHARACTERS, repetition_reward


@pytest.mark.parametrize(
    "text, ngram, expected",
    [
        ("", 1, 0.0),
        (" \n\t ", 1, 0.0),
        ("one two", 3, 0.0),  # fewer words than the n-gram
        ("one two three", 3, 0.0),  # a single n-gram
        ("one two three four", 2, 0.0),
        ("a a", 1, -1 / 2),
        ("a a a a", 1, -3 / 4),
        ("a a a a", 2, -2 / 3),
        ("a a a a", 4, 0.0),
        ("a b a b", 2, -1 / 3),  # ab, ba, ab
        ("a b c a b c a b c", 3, -4 / 7),  # abc, bca, cab, and four again
        ("the cat the Cat THE CAT", 2, -3 / 5),
        ("Straße STRASSE", 1, -1 / 2),  # casefold, not lower
        ("wait, wait wait", 1, -1 / 3),  # punctuation belongs to the word
        ("a\nb\ta  b", 2, -1 / 3),
        ("a b c d a b c d", 40, 0.0),
    ],
)
def test_exact_shares(text, ngram, expected):
    assert repetition_reward(text, ngram) == pytest.approx(expected, abs=1e-15)


def test_nothing_repeated_is_zero_and_not_minus_zero():
    assert str(repetition_reward("a b c", 2)) == "0.0"


def test_one_word_over_and_over_comes_close_to_minus_one():
    assert repetition_reward("hmm " * 10_000, 3) == pytest.approx(-(1 - 1 / 9998), abs=1e-15)


def test_what_lies_beyond_the_limit_is_not_read():
    words = " ".join(f"{number:07d}" for number in range(MAX_CHARACTERS // 8 + 1))
    read = words[:MAX_CHARACTERS]
    assert len(words) > MAX_CHARACTERS and repetition_reward(words, 2) == 0.0
    assert repetition_reward(read + " again" * 10_000, 2) == 0.0
    assert repetition_reward("again " * 10_000 + words, 2) < -0.8


def test_a_long_text_with_a_long_ngram_is_scored():
    assert repetition_reward("a " * 1_000_000, 40) == pytest.approx(-(1 - 1 / (MAX_CHARACTERS // 2 - 39)), abs=1e-15)


@pytest.mark.parametrize("ngram", [0, -1])
def test_an_ngram_of_no_words_raises(ngram):
    with pytest.raises(RewardSettingsError, match="ngram is"):
        repetition_reward("a b", ngram)


@given(st.lists(st.sampled_from("abcAB"), max_size=30), st.integers(1, 6))
def test_equals_a_count_by_hand(words, ngram):
    text = " ".join(words)
    low = [word.lower() for word in words]
    seen, repeated, total = [], 0, 0
    for start in range(len(low) - ngram + 1):
        piece = low[start : start + ngram]
        total += 1
        repeated += piece in seen
        seen.append(piece)
    assert repetition_reward(text, ngram) == pytest.approx(-repeated / total if total else 0.0, abs=1e-15)
    assert -1.0 <= repetition_reward(text, ngram) <= 0.0


@given(st.text(max_size=200), st.integers(1, 8))
def test_model_text_never_raises(text, ngram):
    assert -1.0 <= repetition_reward(text, ngram) <= 0.0
