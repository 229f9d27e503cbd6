"""The reward of `benchmarks.asynchrony`: something that a policy which writes digits learns within a few steps."""

from __future__ import annotations

from rewards.rows import RewardRow


def sevens(completion_text: str, example: RewardRow) -> float:
    """The share of sevens among the digits; 0 without one."""
    digits = [letter for letter in completion_text if letter.isdigit()]
    return digits.count("7") / len(digits) if digits else 0.0
