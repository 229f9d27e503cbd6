"""`ladder reward new`: what it writes passes its own test and the check; what is there stays."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.reward_new import starter_files

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


@pytest.mark.parametrize("form", ["async", "batched", "async batched"])
def test_the_written_test_takes_the_reward_in_every_form(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    assert main(["reward", "new", "mine.py"]) == 0
    reward, test = Path("mine.py"), Path("test_mine.py")
    assert "params={}" in test.read_text()
    if "batched" in form:
        own = "\n\ndef mine(texts, example, **params):\n    return [one(text, example, **params) for text in texts]\n"
        reward.write_text(reward.read_text().replace("def mine", "def one") + own)
        test.write_text(test.read_text().replace("batched=False", "batched=True"))
    if "async" in form:
        reward.write_text(reward.read_text().replace("def mine", "async def mine"))
    module = runpy.run_path("test_mine.py")
    module["test_a_completion_has_the_value_it_should"]("<answer>2.4</answer>", 1.0)
    module["test_a_completion_has_the_value_it_should"]("2.4", 0.0)
    module["test_it_does_not_apply_to_rows_that_ask_for_boxes"]()


def test_the_head_of_the_file_is_a_table(tmp_path):
    path = tmp_path / "a_long_name_of_a_file.py"
    assert starter_files(path, "mine")[path].splitlines()[2:6] == [
        "    ladder reward check a_long_name_of_a_file.py:mine  does it keep the contract?",
        "    python -m pytest test_a_long_name_of_a_file.py     does it do what it should?",
        "    reward: {custom: [a_long_name_of_a_file.py:mine]}  in a configuration; with weight and params:",
        "    reward: {custom: [{source: a_long_name_of_a_file.py:mine, weight: 0.5, params: {wrong: -0.2}}]}",
    ]


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
