"""The contract of a reward of your own.

    one completion      (completion_text, example, **params) -> float | dict[str, float]
    a group at once     (completion_texts, example, **params) -> [float | dict[str, float] | Exception, …], one each

Plain or async; `example` is a `rewards.rows.RewardRow`, `params` come from the configuration. A dict reports one
component per key, `name/key`. An empty dict says that the reward does not apply to the row, which must then be so for
every completion of it.

What holds: a value that is no number, not finite or out of all proportion never becomes a reward. What the function itself
raises goes through to the caller, whose outcome is `error`; isolation and deadlines are the caller's too (`rewards.worker`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

from rewards.errors import RewardContractError

#: Components one call may report: a dict keyed by what the model wrote would make a metric of every word.
MAX_COMPONENTS = 64
#: Characters of a key of such a dict.
MAX_NAME = 64
#: Rewards are compared by their mean and spread: a larger one leaves nothing of the others, or no number at all.
LARGEST = 1e6
RewardFunction = Callable[..., object]


@dataclass(frozen=True)
class CustomReward:
    """A loaded reward; `name` is the component it reports (a dict reports `name/key`), `version` the hash of its source.

    `files`: those of its code, in which the place of what it raises is looked for.
    """

    name: str
    function: RewardFunction
    params: Mapping[str, object] = field(default_factory=dict)
    batched: bool = False
    version: str = ""
    files: frozenset[str] = frozenset()

    @property
    def is_async(self) -> bool:
        return is_async(self.function)

    def call(self, subject: str | Sequence[str], example: object) -> object:
        """What the function returns for a text, or for the texts of a group; an awaitable if it is async."""
        return self.function(subject, example, **self.params)

    def components(self, result: object) -> dict[str, float]:
        """Components by name, all finite; RewardContractError when the function returned something else."""
        if isinstance(result, (list, tuple)) and not self.batched:
            raise RewardContractError(
                f"reward {self.name!r} returned a {type(result).__name__}, {short(result)}: return a finite float or a dict "
                "of them; one that takes the texts of a group at once needs `batched: true`"
            )
        if not isinstance(result, Mapping):
            return {self.name: self._number(result, "")}
        if len(result) > MAX_COMPONENTS:
            raise RewardContractError(f"reward {self.name!r} returned {len(result)} components: at most {MAX_COMPONENTS}")
        if strange := [key for key in result if not _is_name(key)]:
            raise RewardContractError(
                f"reward {self.name!r} returned the key {short(strange[0])}: name components by printable strings of 1 to "
                f"{MAX_NAME} characters"
            )
        return {f"{self.name}/{key}": self._number(value, f" for {key!r}") for key, value in result.items()}

    def group_components(self, results: object, count: int) -> list[dict[str, float] | Exception]:
        """As `components`, for each of the `count` completions of a batched call; a fault of one is its own."""
        several = isinstance(results, Sequence) and not isinstance(results, str)
        if not several or len(results) != count:
            got = f"{len(results)} values" if several else f"a {type(results).__name__}"
            raise RewardContractError(
                f"reward {self.name!r} returned {got} for {count} completions, so that the whole group loses its scores: "
                "return one for each, in order"
            )
        return [self._item(result) for result in results]

    def _item(self, result: object) -> dict[str, float] | Exception:
        if isinstance(result, Exception):
            return result
        try:
            return self.components(result)
        except Exception as error:  # what the user returned may raise anything when it is looked at
            return error

    def _number(self, value: object, where: str) -> float:
        if not isinstance(value, Real) or not abs(value) <= LARGEST:
            raise RewardContractError(
                f"reward {self.name!r} returned {short(value)}{where}: return a finite float or a dict of them, none beyond "
                f"{LARGEST:g} either way"
            )
        return float(value)


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isprintable() and 1 <= len(key) <= MAX_NAME


def is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))


def checked_function(function: object, named: str, params: Mapping[str, object]) -> RewardFunction:
    """`function` if it can be called by the contract with `params`; RewardContractError that says what is wrong."""
    if not callable(function):
        raise RewardContractError(f"{named}: it is a {type(function).__name__}, not a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, without one
        return function
    try:
        signature.bind("text", None, **params)
    except TypeError as error:
        given = f" and {', '.join(params)} from its params" if params else ""
        raise RewardContractError(
            f"{named}: it takes {signature} and is given (completion_text, example){given}: {error}"
        ) from error
    return function


def short(value: object) -> str:
    """A value as an error message shows it: a reward may return anything, of any length, that may not even print."""
    try:
        text = repr(value)
    except Exception:  # the user's own __repr__
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + "…"
