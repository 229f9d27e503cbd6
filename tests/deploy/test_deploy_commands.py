"""The two commands of the README and the CI script: what they would run."""

import os
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def dry_run(*arguments: str) -> str:
    # `make test` runs this under make itself: the inner make must know nothing of the outer one.
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", "-n", *arguments], cwd=PROJECT, env=alone, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "target, command",
    [
        ("quickstart", "v/bin/python -m launch quickstart --smoke"),
        ("test", "v/bin/python -m pytest --smoke"),
    ],
)
def test_both_commands_set_up_first(target, command):
    lines = dry_run(target, "VENV=v", "PYTHON=py", "ARGS=--smoke").splitlines()
    assert lines == ["py deploy/setup_env.py --venv v", command]


def test_the_ci_script_parses_and_calls_both_commands():
    script = PROJECT / ".ci" / "run"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert script.stat().st_mode & 0o111
    text = script.read_text()
    assert text.index("make test VENV=") < text.index("make quickstart VENV=") and "--smoke" in text
    closing = re.search(r"grep -E '(.*?)'", text).group(1)
    for line in (
        "===== 3 passed in 1.20s =====",
        "= 1 failed, 2 passed, 1 warning in 61.0s (0:01:01) =",
        "== no tests ran in 0.1s ==",
    ):
        assert re.fullmatch(closing, line)


def test_the_readme_names_both_commands():
    text = (PROJECT / "README.md").read_text()
    for command in (
        "make quickstart",
        "make test",
        "ray job submit --working-dir . -- python -m launch run configs/tiny.yaml",
    ):
        assert command in text


def test_jobs_do_not_carry_environments_and_runs():
    ignored = (PROJECT / ".rayignore").read_text().split()
    assert {"/.git/", "/.venv/", "/runs/"} <= set(ignored)
