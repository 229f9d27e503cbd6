"""A group's completions in, their Scores out: every reward is asked for those that no other has failed on.

What holds
    * A completion that one reward fails on has that outcome and no number, whatever the others say.
    * A reward of one's own applies to a row, not to a completion: when the components it reports differ within a group,
      none of the group's completions has a number, because the group's mean would compare different sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.compose import BuiltIn, FinishReason, composed, unscored
from rewards.errors import RewardSettingsError
from rewards.outcome import Score
from rewards.rows import RewardRow
from rewards.settings import RewardSettings, RewardSpec
from rewards.worker import Components, Failure, RewardProcess


def score_group(
    process: RewardProcess,
    row: RewardRow,
    completions: Sequence[tuple[str, FinishReason]],
    settings: RewardSettings,
    specs: Sequence[RewardSpec],
) -> list[Score]:
    """Scores of the completions (response without end token, how it ended) of one row, in their order.

    RewardContractError when a process cannot be started again.
    """
    scores = [unscored(finish_reason, settings) for _, finish_reason in completions]
    waiting = [place for place, score in enumerate(scores) if score is None]
    own: dict[int, BuiltIn] = {}
    others: dict[int, Components] = {place: {} for place in waiting}

    def failed(place: int, failure: Failure) -> None:
        scores[place] = Score(failure.outcome, detail=failure.detail)

    for place, result in zip(waiting, process.built_in(row, [completions[place][0] for place in waiting]), strict=True):
        if isinstance(result, Failure):
            failed(place, result)
        else:
            own[place] = result
    for number, spec in enumerate(specs):
        asked = [place for place in waiting if scores[place] is None]
        results = process.custom(number, row, [completions[place][0] for place in asked])
        for place, result in zip(asked, alike(results, row, spec), strict=True):
            if isinstance(result, Failure):
                failed(place, result)
            else:
                others[place] |= result
    weights = {name: spec.weight for spec in specs for name in _names(spec, others)}
    for place in [place for place in waiting if scores[place] is None]:
        try:
            scores[place] = composed(row, own[place], others[place], settings, weights)
        except RewardSettingsError as error:
            scores[place] = Score("error", detail=f"row {row.id}: {error}")
    return scores


def _names(spec: RewardSpec, others: dict[int, Components]) -> set[str]:
    """The components that belong to a spec: its name, and `name/key`."""
    return {name for parts in others.values() for name in parts if name.partition("/")[0] == spec.component}


def alike(results: list[Components | Failure], row: RewardRow, spec: RewardSpec) -> list[Components | Failure]:
    """The results, or a Failure for each value when the values name different components."""
    kinds = {frozenset(result): None for result in results if not isinstance(result, Failure)}
    if len(kinds) < 2:
        return results
    one, other, *_ = (", ".join(sorted(kind)) or "nothing" for kind in kinds)
    reason = Failure("error", f"row {row.id}: reward {spec.component!r}: it reports {one} for one completion of the group and "
                              f"{other} for another: report the same components for every completion of a row")
    return [result if isinstance(result, Failure) else reason for result in results]
