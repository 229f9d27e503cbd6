"""The contract of a reward of your own: `(completion_text, example) -> float | dict[str, float]`, named by
`path/to/file.py:name` in the configuration. `python -m rewards.contract path/to/file.py:name` tries one.

What holds: loading fails before a run starts, with what to change; a value that is no finite number never becomes a
reward. An empty dict says that the reward does not apply to the row. What the function itself raises goes through to
the caller, whose outcome is `error`; isolation and deadlines are the caller's too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType

from rewards.errors import RewardContractError

BUILT_IN = ("format", "answer", "iou")
#: What `main` prints before the names of the rewards it loaded: a file that ends the process early cannot seem to load.
LOADED = "loaded: "
RewardFunction = Callable[[str, object], float | Mapping[str, float]]


@dataclass(frozen=True)
class CustomReward:
    """A loaded reward; `name` is the component it reports (a dict reports `name/key`)."""

    name: str
    function: RewardFunction

    def __call__(self, completion_text: str, example: object) -> dict[str, float]:
        """Components by name, all finite; RewardContractError when the function returned something else."""
        result = self.function(completion_text, example)
        if isinstance(result, Mapping):
            return {f"{self.name}/{key}": self._number(value, f" for {key!r}") for key, value in result.items()}
        return {self.name: self._number(result, "")}

    def _number(self, value: object, where: str) -> float:
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardContractError(
                f"reward {self.name!r} returned {value!r}{where}: return a finite float or a dict of them"
            )
        return float(value)


def load_rewards(locations: Sequence[str]) -> list[CustomReward]:
    """The rewards at all locations, in order. Raises RewardContractError as `load_reward` and `check_names` do."""
    check_names(locations)
    return [load_reward(location) for location in locations]


def check_names(locations: Sequence[str]) -> None:
    """RewardContractError when two locations name the same component: one score would hide the other."""
    first: dict[str, str] = {}
    for location in locations:
        name = location.rpartition(":")[2]
        if name in first:
            raise RewardContractError(
                f"rewards {first[name]!r} and {location!r} would both report {name!r}: rename one of the functions"
            )
        first[name] = location


def load_reward(location: str) -> CustomReward:
    """The reward at `path/file.py:name`, its file executed once per call.

    Raises RewardContractError for a malformed location, a missing file or name, a file that does not import, and
    something that is not a plain function of two positional arguments.
    """
    path, name = _parts(location)
    if name in BUILT_IN:
        raise RewardContractError(f"reward {location!r}: {name!r} is a built-in component, choose another name")
    module = _execute(path, location)
    members = vars(module)
    if name not in members:
        found = inspect.getmembers(module, inspect.isfunction)
        functions = [key for key, function in found if function.__module__ == module.__name__]
        known = ", ".join(functions) or "none"
        raise RewardContractError(f"reward {location!r}: no {name!r} in the file; its functions: {known}")
    return CustomReward(name, _checked(members[name], location))


def source_hash(location: str) -> str:
    """SHA-256 of the file of a location; what that file imports is not seen. RewardContractError when it is missing."""
    return hashlib.sha256(_parts(location)[0].read_bytes()).hexdigest()


def _parts(location: str) -> tuple[Path, str]:
    """The file of a location, which exists, and the name in it. RewardContractError otherwise."""
    path, separator, name = location.rpartition(":")
    if not separator or not path.endswith(".py") or not name.isidentifier():
        raise RewardContractError(f"reward {location!r}: write path/to/file.py:name")
    if not Path(path).is_file():
        raise RewardContractError(f"reward {location!r}: there is no file {Path(path).resolve()}")
    return Path(path).resolve(), name


def _execute(path: Path, location: str) -> ModuleType:
    """The module of a file, registered under a name of its own (dataclasses and pickle look modules up by name)."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module_name = f"custom_reward_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code: it may raise anything
        del sys.modules[module_name]
        reason = f"{type(error).__name__}: {error}"
        raise RewardContractError(f"reward {location!r}: the file does not import: {reason}") from error
    return module


def _checked(function: object, location: str) -> RewardFunction:
    if not callable(function):
        raise RewardContractError(f"reward {location!r}: it is a {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise RewardContractError(f"reward {location!r}: it is async: write a plain function")
    try:
        inspect.signature(function).bind("text", None)
    except TypeError as error:
        raise RewardContractError(
            f"reward {location!r}: it must take (completion_text, example) by position: {error}"
        ) from error
    return function


def main(locations: Sequence[str]) -> int:
    """Loads the rewards. 0 and their names as the last line, or 2 and the reason on standard error."""
    try:
        rewards = load_rewards(locations)
    except RewardContractError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{LOADED}{', '.join(reward.name for reward in rewards)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
