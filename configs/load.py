"""Reads a run configuration: YAML, optionally on top of another file (`base:`), then `a.b=c` overrides.

What holds: nothing is guessed and nothing is dropped. Every problem of all files and overrides is collected and raised
as ONE `ConfigError`, each with file (and line), dotted key, reason and the nearest valid name. Types are strict: a
quoted number is not a number. The one leniency is `1e-5`, which YAML 1.1 calls text: here it is a number.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from configs.schema import RunConfig

COMMAND_LINE = "--set"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: where (file, file:line or `--set`), dotted key, reason, suggestion."""

    where: str
    key: str
    reason: str
    nearest: str | None = None

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        nearest = f" (did you mean {self.nearest}?)" if self.nearest else ""
        return f"{self.where}: {key}{self.reason}{nearest}"


class ConfigError(ValueError):
    """A configuration that cannot be used; `problems` lists everything found, the message shows all of it."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        head = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"configuration refused, {head}:", *(f"  {problem}" for problem in self.problems)]))


@dataclass
class _Tree:
    """Plain values plus, for every dotted key, where it was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, key: str, default: str) -> str:
        """Origin of the key or of its nearest written ancestor."""
        while key:
            if key in self.origin:
                return self.origin[key]
            key = key.rpartition(".")[0]
        return default


    def blamed(self, key: str, default: str) -> str:
        """Who is to blame for a key or section: the last override in it, else `where`."""
        overrides = [place for other, place in self.origin.items()
                     if f"{other}.".startswith(f"{key}.") and place.startswith(COMMAND_LINE)]
        return overrides[-1] if overrides else self.where(key, default)


class _Loader(yaml.SafeLoader):
    """Safe YAML with `1e-5` as a number and without silent duplicate keys (see `_duplicates`)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path` with `a.b=c` overrides applied in order; values of overrides are YAML.

    Raises ConfigError with every problem found; nothing else is raised for bad input.
    """
    path = Path(path)
    tree = _read(path, ())
    for text in overrides:
        _apply_override(tree, text)
    config, problems = _validate(tree, str(path))
    problems = tree.problems + problems
    if config is None or problems:
        raise ConfigError(problems)
    return config


def effective_yaml(config: RunConfig) -> str:
    """Every setting of the run, defaults included, in schema order; `load_config` reads it back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def valid_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """All dotted keys of the schema, sections included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if section := _section(info.annotation):
            yield from valid_keys(section, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation allows, alone or beside None."""
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _without_places(key: str) -> str:
    """A dotted key as the schema has it: without positions in lists."""
    return ".".join(part for part in key.split(".") if not part.isdigit())


def _annotation(key: str) -> Any:
    """What the schema allows for a dotted key; list positions in it are passed over."""
    annotation: Any = RunConfig
    for part in _without_places(key).split("."):
        if section := _section(annotation):
            annotation = section.model_fields[part].annotation
    return annotation


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested sections; lists and empty sections are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _read(path: Path, chain: tuple[Path, ...]) -> _Tree:
    """The file on top of its bases. Unreadable files and broken YAML become problems, not exceptions."""
    tree = _Tree()
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, _Loader)
        values = yaml.load(text, _Loader)
    except OSError as error:
        tree.problems.append(Problem(str(path), "", f"cannot be read: {error.strerror or error}", _nearest_file(path)))
        return tree
    except UnicodeDecodeError as error:
        tree.problems.append(Problem(str(path), "", f"is not UTF-8 text (byte {error.start})"))
        return tree
    except (yaml.YAMLError, ValueError) as error:
        tree.problems.append(_syntax_problem(path, error))
        return tree
    if values is None:
        values = {}
    if not isinstance(values, dict):
        tree.problems.append(Problem(str(path), "", f"must hold `key: value` settings, holds a {_kind(values)}"))
        return tree
    if node is not None:
        _mark(node, "", str(path), tree)
    tree.values = values
    return _on_base(tree, path, chain) if "base" in values else tree


def _on_base(tree: _Tree, path: Path, chain: tuple[Path, ...]) -> _Tree:
    base = tree.values.pop("base")
    where = tree.origin.pop("base", str(path))
    if not isinstance(base, str):
        tree.problems.append(Problem(where, "base", f"must be the path of another configuration, is a {_kind(base)}"))
        return tree
    base_path, chain = path.parent / base, (*chain, path.resolve())
    if base_path.resolve() in chain:
        tree.problems.append(Problem(where, "base", f"{base} is based on this file: a circle"))
        return tree
    below = _read(base_path, chain)
    below.problems += tree.problems
    below.values = _merge(below.values, tree.values)
    below.origin |= tree.origin
    return below


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _syntax_problem(path: Path, error: Exception) -> Problem:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    reason = error.problem if isinstance(error, yaml.MarkedYAMLError) and error.problem else str(error)
    return Problem(f"{path}:{mark.line + 1}" if mark else str(path), "", f"is not valid YAML: {reason}")


def _mark(node: yaml.Node, prefix: str, path: str, tree: _Tree) -> None:
    """Records the line of every key and reports keys written twice; sections in lists have their place as a key."""
    for place, item in enumerate(node.value if isinstance(node, yaml.SequenceNode) else ()):
        tree.origin[f"{prefix}{place}"] = f"{path}:{item.start_mark.line + 1}"
        _mark(item, f"{prefix}{place}.", path, tree)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        where = f"{path}:{key_node.start_mark.line + 1}"
        if key in seen:
            tree.problems.append(Problem(where, key, f"is written twice (first in {tree.origin[key]})"))
        else:
            seen.add(key)
            tree.origin[key] = where
        _mark(value_node, f"{key}.", path, tree)


def _apply_override(tree: _Tree, text: str) -> None:
    key, equals, raw = text.partition("=")
    key = key.strip()
    where = f"{COMMAND_LINE} {text}"
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
        tree.problems.append(Problem(where, "", "must be written key=value, for example sft1.optimizer.lr=1e-4"))
        return
    try:
        value = yaml.load(raw, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        tree.problems.append(Problem(where, key, f"the value is not valid YAML: {str(error).splitlines()[0]}"))
        return
    *sections, leaf = key.split(".")
    section = tree.values
    for depth, name in enumerate(sections):
        inner = section[name] = {} if section.get(name) is None else section[name]
        if not isinstance(inner, dict):
            whole = ".".join(sections[: depth + 1])
            told = f"is a list: give the whole of it, {COMMAND_LINE} '{whole}=[…]'" if isinstance(inner, list) else (
                "is a single value, not a section")
            tree.problems.append(Problem(where, key, f"{whole} {told}"))
            return
        section = inner
    section[leaf] = value
    tree.origin = {k: v for k, v in tree.origin.items() if not k.startswith(f"{key}.")} | {key: where}


def _validate(tree: _Tree, file: str) -> tuple[RunConfig | None, list[Problem]]:
    problems = [
        Problem(tree.where(key, file), key, f"must be a finite number, got {value}")
        for key, value in flatten(tree.values)
        if isinstance(value, float) and not math.isfinite(value)
    ]
    try:
        # JSON mode: strict about types, yet lists may fill tuples and whole numbers may fill floats.
        return RunConfig.model_validate_json(json.dumps(tree.values, default=str), strict=True), problems
    except ValidationError as error:
        found = [_problem(item, tree, file) for item in error.errors(include_url=False)]
        named = {problem.key for problem in problems}
        return None, problems + [problem for problem in found if problem.key not in named]


def _problem(item: Mapping[str, Any], tree: _Tree, file: str) -> Problem:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "value_error":  # a validator of ours that looks at several keys; one of the whole names the key itself
        reason = str(item["ctx"]["error"])
        if not key:
            key, _, reason = reason.partition(": ")
        return Problem(tree.blamed(key, file), key, reason)
    where = tree.blamed(key, file)
    if item["type"] == "extra_forbidden":
        return Problem(where, key, "unknown key", nearest_key(key))
    value = item["input"]
    reason = f"{item['msg'][0].lower()}{item['msg'][1:]}, got {_shown(value)}"
    if item["type"] == "model_type":
        reason = f"must be a section{_example(key)}, got {_shown(value)}"
    nearest = None
    if item["type"] == "literal_error" and isinstance(value, str):
        nearest = next(iter(difflib.get_close_matches(value, _choices(key), 1, 0.4)), None)
    return Problem(where, key, reason, nearest)


def nearest_key(key: str) -> str | None:
    """The valid key closest to `key`: a sibling with a similar name, else the same or a similar name elsewhere."""
    keys = list(valid_keys())
    place, _, leaf = key.rpartition(".")
    section = _without_places(place)
    siblings = [other.rpartition(".")[2] for other in keys if other.rpartition(".")[0] == section]
    initials = "".join(word[0] for word in leaf.split("_") if word)  # learning_rate -> lr
    close = difflib.get_close_matches(leaf, siblings, 1, 0.7) or [name for name in siblings if name == initials]
    if close:
        return f"{place}.{close[0]}" if place else close[0]
    same_name = [other for other in keys if other.rpartition(".")[2] == leaf]
    if same_name:
        return max(same_name, key=lambda other: difflib.SequenceMatcher(None, key, other).ratio())
    return next(iter(difflib.get_close_matches(key, keys, 1, 0.7)), None)


def _choices(key: str) -> list[str]:
    """Values a key accepts, where the schema lists them."""
    annotation = _annotation(key)
    while get_origin(annotation) not in (None, Literal):
        annotation = get_args(annotation)[0]
    return [str(choice) for choice in get_args(annotation)]


def _example(key: str) -> str:
    """The first settings of a section with their defaults, as YAML."""
    section = _section(_annotation(key))
    complete = section is not None and not any(info.is_required() for info in section.model_fields.values())
    defaults = section().model_dump(mode="json") if complete else {}
    return f" like {yaml.safe_dump(dict(list(defaults.items())[:2]), default_flow_style=True, sort_keys=False).strip()}" if defaults else ""


def _nearest_file(path: Path) -> str | None:
    names = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1, 0.6)
    return str(path.parent / close[0]) if close else None


def _kind(value: Any) -> str:
    kinds = {dict: "section", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "empty value" if value is None else type(value).__name__)


def _shown(value: Any) -> str:
    text = f"the {_kind(value)} {json.dumps(value, default=str)}" if value is not None else "an empty value"
    return text if len(text) <= 80 else text[:77] + "..."
