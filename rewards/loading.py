"""From what a configuration declares to rewards that can be called.

What holds: loading fails before a run starts, with what to change; every reward has a component name of its own; what a
reward is, is stamped by the hash of the very source that was executed, so that a run that goes on notices another one.
Everything here runs code of the user's: call it in a process that may be killed (`rewards.child`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rewards.contract import CustomReward, RewardFunction, checked_function
from rewards.errors import RewardContractError, RewardSettingsError, reason_of
from rewards.http_calls import RewardCallError
from rewards.settings import RewardSettings, RewardSpec

ENTRY_POINTS = "spatialladder.rewards"
#: Rewards of the house that are declared like one's own, because they need params: all take a group at once.
SERVED = {"http": ("rewards.http_reward", "http_reward"), "judge": ("rewards.judge", "judge_reward")}
#: Of the reason why a file does not import: what is said before it must leave its end within the limit of a refusal.
_REASON_LIMIT = 1000


def load_rewards(specs: Sequence[RewardSpec]) -> list[CustomReward]:
    """The rewards of all specs, in order. Raises RewardContractError as `load_reward` and `check_names` do."""
    check_names(specs)
    return [load_reward(spec) for spec in specs]


def check_names(specs: Sequence[RewardSpec]) -> None:
    """RewardContractError when two components have one name: one score would hide the other."""
    first = dict.fromkeys(RewardSettings().weights, "a built-in reward")
    for spec in specs:
        if not spec.component.isidentifier() or spec.component == "std":  # reward_std is another metric
            if spec.component == spec.source and spec.source.endswith(".py"):
                raise RewardContractError(_without_function(spec))
            raise RewardContractError(f"{_named(spec)}: {spec.component!r} is no name for a component: give it a `name`")
        if spec.component in first:
            raise RewardContractError(
                f"{_named(spec)} and {first[spec.component]} would both report {spec.component!r}: give it another `name`"
            )
        first[spec.component] = f"reward {spec.source!r}"


def load_reward(spec: RewardSpec) -> CustomReward:
    """The reward of a spec; a file is executed once per call.

    Raises RewardContractError for a malformed source, a missing file, name or entry point, code that does not import,
    and something that cannot be called as the contract says.
    """
    batched = spec.batched or spec.source in SERVED
    found, source, path = _found(spec)
    function = checked_function(found, _named(spec), spec.params)
    if spec.source in SERVED:
        _check_settings(function, spec)
    files = frozenset() if spec.source in SERVED else frozenset((path, _file_of(function) or path))
    return CustomReward(spec.component, function, spec.params, batched, hashlib.sha256(source).hexdigest(), files)


def served_seconds(spec: RewardSpec) -> float:
    """What a request of `http` or `judge` may take with its retries; 0 for other rewards. Their params are checked."""
    if spec.source not in SERVED:
        return 0.0
    defaults = inspect.signature(_served(spec)).parameters
    timeout, retries = (spec.params.get(name, defaults[name].default) for name in ("timeout_seconds", "retries"))
    return timeout * (retries + 1)


def _check_settings(function: RewardFunction, spec: RewardSpec) -> None:
    """Rewards of the house look at their params before they look at the texts, of which there are none here."""
    try:
        function([], None, **spec.params)
    except (RewardSettingsError, RewardCallError) as error:
        raise RewardContractError(f"{_named(spec)}: {error}") from None


def _named(spec: RewardSpec) -> str:
    return f"reward {spec.source!r}"


def _file_of(function: object) -> str:
    """The file of the module that defines a function, or the class of a callable object; "" where there is none."""
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    return str(getattr(module, "__file__", None) or "")


def _found(spec: RewardSpec) -> tuple[object, bytes, str]:
    """What the source names, the file that holds it, and that file's path; what that file imports is not seen."""
    if spec.source in SERVED:
        function = _served(spec)
        return function, Path(_file_of(function)).read_bytes(), _file_of(function)
    if ":" not in spec.source and not spec.source.endswith(".py"):
        point = _entry_point(spec)
        try:
            found, path = point.load(), str(sys.modules[point.module].__file__)
            return found, Path(path).read_bytes(), path
        except Exception as error:  # another package's code: it may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise RewardContractError(f"{_named(spec)}: the entry point {point.value} does not load: {reason}") from error
    path, name = _parts(spec)
    source = path.read_bytes()
    module = _execute(path, source, spec)
    members = vars(module)
    if name not in members:
        found = inspect.getmembers(module, inspect.isfunction)
        functions = [key for key, function in found if function.__module__ == module.__name__]
        known = ", ".join(functions) or "none"
        raise RewardContractError(f"{_named(spec)}: no {name!r} in the file; its functions: {known}")
    return members[name], source, str(path)


def _served(spec: RewardSpec) -> RewardFunction:
    module, name = SERVED[spec.source]
    return vars(importlib.import_module(module))[name]


def _entry_point(spec: RewardSpec) -> importlib.metadata.EntryPoint:
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    for point in points:
        if point.name == spec.source:
            return point
    known = ", ".join(sorted({point.name for point in points} | set(SERVED)))
    raise RewardContractError(
        f"{_named(spec)}: write path/to/file.py:name, or the name of an entry point of the group {ENTRY_POINTS}; "
        f"there is: {known}"
    )


def _without_function(spec: RewardSpec) -> str:
    """What is said of a file that is named alone; its functions are found without executing it."""
    write = f"{_named(spec)}: write {spec.source}:FUNCTION"
    try:
        statements = ast.parse(Path(spec.source).read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # not there, or no Python
        return write
    functions = [one.name for one in statements if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return f"{write}; its functions: {', '.join(functions) or 'none'}"


def _parts(spec: RewardSpec) -> tuple[Path, str]:
    """The file of a source, which exists, and the name in it. RewardContractError otherwise."""
    path, separator, name = spec.source.rpartition(":")
    if not separator:
        raise RewardContractError(_without_function(spec))
    if not path.endswith(".py") or not name.isidentifier():
        raise RewardContractError(f"{_named(spec)}: write path/to/file.py:name")
    if not Path(path).is_file():
        raise RewardContractError(f"{_named(spec)}: there is no file {Path(path).resolve()}")
    return Path(path).resolve(), name


def _execute(path: Path, source: bytes, spec: RewardSpec) -> ModuleType:
    """The module of a file, registered under a name of its own (dataclasses and pickle look modules up by name).

    `source` is executed as it was read: the import system would take an older compilation of the file for it when both
    were written within a second.
    """
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module_name = f"custom_reward_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{digest}"
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None  # a .py file always has a spec
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except Exception as error:  # the user's code: it may raise anything
        del sys.modules[module_name]
        reason = reason_of(error, (str(path),), _REASON_LIMIT)
        raise RewardContractError(f"{_named(spec)}: the file does not import: {reason}") from error
    return module
