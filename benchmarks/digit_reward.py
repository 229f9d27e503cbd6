"""Rewards for policies that write digits: something that such a policy learns within a few steps."""

from __future__ import annotations

import time

from rewards.rows import RewardRow


def sevens(completion_text: str, example: RewardRow) -> float:
    """The share of sevens among the digits; 0 without one."""
    digits = [letter for letter in completion_text if letter.isdigit()]
    return digits.count("7") / len(digits) if digits else 0.0


def high(completion_text: str, example: RewardRow, seconds: float = 0.0) -> float:
    """The mean of the words that are a digit, as a share of 9. Takes `seconds`: a step then has a time of rewards alone."""
    time.sleep(seconds)
    digits = [int(word) for word in completion_text.split() if word in set("0123456789")]
    return sum(digits) / len(digits) / 9 if digits else 0.0
