"""Who may import whom: read from the source of every file, so that no import can hide in a function."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("actors", "configs", "data", "evaluation", "grpo", "launch", "models", "rewards", "sft", "viewer")

#: Room -> what it may import of the house besides itself; a dotted name allows that module alone.
ALLOWED = {
    "configs": set(),
    "models": {"configs"},
    "data": {"models", "configs"},
    "grpo": set(),
    "rewards": set(),
    "sft": {"models", "data", "configs"},
    "actors": {"grpo", "rewards", "models", "data", "configs"},
    "evaluation": {"models", "data", "rewards", "actors.rollout", "configs"},
    "viewer": {"data.coordinates"},
    "launch": set(ROOMS),
}
#: Rooms that also say which packages they may use besides the standard library.
PACKAGES = {"grpo": {"torch", "numpy"}, "rewards": {"numpy", "scipy"}}
#: Of the models, data may use the processor: nothing that holds or runs weights.
WEIGHTS = {"models.forward", "models.deepspeed_engine", "models.loading.load_policy", "models.loading.save_policy"}


def imported(source: str, package: str) -> set[str]:
    """Dotted names of everything `source`, a module of `package`, imports; `from a import b` gives `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def violations(source: str, package: str) -> list[str]:
    """Imports of `source` that its room may not make."""
    room = package.split(".")[0]
    allowed = ALLOWED[room] | {room}
    found = []
    for name in sorted(imported(source, package)):
        top = name.split(".")[0]
        if top in ROOMS:
            fits = any(f"{name}.".startswith(f"{permitted}.") for permitted in allowed)
            if not fits or (room == "data" and any(f"{name}.".startswith(f"{banned}.") for banned in WEIGHTS)):
                found.append(name)
        elif room in PACKAGES and top not in PACKAGES[room] | sys.stdlib_module_names:
            found.append(name)
    return found


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    assert modules(room), f"no module in {room}/"
    wrong = {}
    for path in modules(room):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        if found := violations(path.read_text(encoding="utf-8"), package):
            wrong[str(path.relative_to(ROOT))] = found
    assert wrong == {}


@pytest.mark.parametrize(
    "source, package, expected",
    [
        ("import ray", "grpo", ["ray"]),
        ("def f():\n    from vllm import LLM", "rewards", ["vllm.LLM"]),
        ("import torch", "rewards", ["torch"]),
        ("import torch, json\nfrom grpo.losses import token_loss", "grpo", []),
        ("from rewards import iou", "grpo", ["rewards.iou"]),
        ("from data.types import Example", "rewards", ["data.types.Example"]),
        ("from actors.rollout import Worker\nfrom actors.types import Group", "evaluation", ["actors.types.Group"]),
        ("from actors import rollout, trainer", "evaluation", ["actors.trainer"]),
        ("from ..types import Box\nfrom ...viewer import page", "data.scenes", ["viewer.page"]),
        ("from models.loading import load_processor, load_policy", "data", ["models.loading.load_policy"]),
        ("from data.types import Example", "viewer", ["data.types.Example"]),
        ("import launch", "actors", ["launch"]),
        ("import viewer.page\nimport sft", "launch", []),
    ],
)
def test_the_rule_finds_what_it_should(source, package, expected):
    assert violations(source, package) == expected


@pytest.mark.parametrize(
    "room, absent",
    [
        ("grpo", ("ray", "vllm", "deepspeed", "transformers")),
        ("rewards", ("ray", "vllm", "deepspeed", "transformers", "torch")),
    ],
)
def test_the_algorithm_and_the_rewards_load_without_the_engines(room, absent):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(room)]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
