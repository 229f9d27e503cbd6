"""`ladder reward new`: what it writes passes its own test and the check; what is there stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

PROJECT = Path(__file__).resolve().parents[2]


def test_a_starter_passes_its_test_and_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reward", "new", "mine.py", "--name", "letters"]) == 0
    assert "ladder reward check mine.py:letters" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["mine.py", "test_mine.py"]
    texts = [(tmp_path / name).read_text() for name in os.listdir(tmp_path)]
    assert not any(word in text for text in texts for word in ("NAME(", ":NAME", "FILE:", " TEST", "'FILE'"))
    assert max(len(line) for text in texts for line in text.splitlines()) <= 125
    pytest_run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert pytest_run.returncode == 0 and "5 passed" in pytest_run.stdout, pytest_run.stdout
    assert main(["reward", "check", "mine.py:letters", "--param", "wrong=-0.2", "--timeout", "30"]) == 0
    told = capsys.readouterr().out
    assert "letters is in [-0.2, 1]" in told and "FAIL" not in told and "NOTE" not in told


def test_the_function_has_the_name_of_the_file(tmp_path):
    assert main(["reward", "new", str(tmp_path / "brevity.py")]) == 0
    assert "def brevity(completion_text" in (tmp_path / "brevity.py").read_text()


@pytest.mark.parametrize(
    "arguments, there, part",
    [
        (["mine.py"], ["mine.py"], "mine.py exists already"),
        (["mine.py"], ["test_mine.py"], "test_mine.py exists already"),
        (["mine.txt"], [], "ends in .py"),
        (["my-reward.py"], [], "'my-reward' is no name for a function"),
        (["mine.py", "--name", "class"], [], "'class' is no name for a function"),
        (["format.py"], [], "the name of a built-in reward"),
        (["nowhere/mine.py"], [], "nowhere is no folder"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is(tmp_path, monkeypatch, capsys, arguments, there, part):
    monkeypatch.chdir(tmp_path)
    for name in there:
        (tmp_path / name).write_text("mine\n")
    assert main(["reward", "new", *arguments]) == 2
    told = capsys.readouterr()
    assert part in told.err and told.out == ""
    assert os.listdir(tmp_path) == there and all((tmp_path / name).read_text() == "mine\n" for name in there)
