"""Which groups a step trains on when those without spread are replaced (DAPO, section 3.2: dynamic sampling).

What holds: a step asks in rounds, each for as many prompts as still lack a group with a learning signal, so no group
with one is ever thrown away; after the last round it takes what it has. With one round nothing is replaced, and every
group of the step stays in it, because the average of the loss is over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo.advantages import GroupOutcome


def prompts_to_ask(outcomes: Sequence[GroupOutcome], rounds_done: int, target: int, rounds: int) -> int:
    """How many prompts the next round asks for, 0 if there is none.

    `outcomes`: of all groups of the step so far. `target`: groups a step should train on. `rounds`: the most it may ask.
    """
    return target - outcomes.count("signal") if rounds_done < rounds else 0


def groups_to_keep(outcomes: Sequence[GroupOutcome], rounds: int) -> list[int]:
    """Indices of the groups that make up the step's loss: all of them, or with replacement those with a signal."""
    return [index for index, outcome in enumerate(outcomes) if rounds == 1 or outcome == "signal"]
