"""What may go wrong in scoring that is *not* the model's fault. Model text never raises; these do."""

from __future__ import annotations


class GroundTruthError(ValueError):
    """The row itself cannot be scored: its answer, options or boxes are unusable. Fix the data."""


class RewardContractError(ValueError):
    """A reward of the user's own cannot be loaded, or returned something that is not a finite number."""


class RewardSettingsError(ValueError):
    """The weights, the gate or the mode of the rewards make no sense."""
