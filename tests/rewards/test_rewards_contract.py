"""Loading a reward of one's own: it works, or says what to change."""

import hashlib
import sys

import pytest

from rewards.contract import CustomReward, load_reward, load_rewards, main, source_hash
from rewards.errors import RewardContractError

SOURCE = '''
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Weight:
    value: float = 0.5

def brevity(completion_text, example):
    return Weight().value * (len(completion_text) < 10)

def parts(completion_text, example, *, scale=2.0):
    return {"length": len(completion_text) * scale, "known": example is not None}

def one_argument(completion_text):
    return 0.0

async def later(completion_text, example):
    return 0.0

def format(completion_text, example):
    return 0.0

NUMBER = 3
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_reward_is_loaded_and_called(file):
    brevity = load_reward(f"{file}:brevity")
    assert isinstance(brevity, CustomReward)
    assert brevity("short", None) == {"brevity": 0.5}
    assert brevity("much too long", None) == {"brevity": 0.0}
    assert load_reward(f"{file}:parts")("abc", object()) == {"parts/length": 6.0, "parts/known": 1.0}


@pytest.mark.parametrize(
    "suffix, message",
    [
        ("", "write path/to/file.py:name"),
        (":not a name", "write path/to/file.py:name"),
        (":missing", "no 'missing' in the file; its functions: brevity, format, later, one_argument, parts"),
        (":NUMBER", "it is a int, not a function"),
        (":one_argument", "must take \\(completion_text, example\\)"),
        (":later", "it is async: write a plain function"),
        (":format", "built-in component"),
    ],
)
def test_what_is_wrong_is_said(file, suffix, message):
    with pytest.raises(RewardContractError, match=message):
        load_reward(f"{file}{suffix}")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(RewardContractError, match="there is no file"):
        load_reward(f"{tmp_path}/absent.py:reward")


def test_a_file_that_does_not_import_is_said_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "broken_reward.py"
    path.write_text("import surely_no_such_package\n")
    with pytest.raises(RewardContractError, match="does not import: ModuleNotFoundError.*surely_no_such_package"):
        load_reward(f"{path}:reward")
    assert not any("broken_reward" in name for name in sys.modules)


@pytest.mark.parametrize("value", [None, "1.0", float("inf"), float("nan"), [1.0], {"a": None}, {"a": float("nan")}])
def test_what_is_no_finite_number_never_becomes_a_reward(value):
    with pytest.raises(RewardContractError, match="return a finite float or a dict"):
        CustomReward("mine", lambda text, example: value)("text", None)


def test_an_error_of_the_reward_goes_through():
    def broken(text, example):
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        CustomReward("broken", broken)("text", None)


def test_two_rewards_of_one_name_are_refused(file, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("def brevity(completion_text, example):\n    return 1.0\n")
    assert [reward.name for reward in load_rewards([f"{file}:brevity", f"{file}:parts"])] == ["brevity", "parts"]
    for second in (f"{other}:brevity", f"{file}:brevity"):
        with pytest.raises(RewardContractError, match="would both report 'brevity'"):
            load_rewards([f"{file}:brevity", second])


def test_the_source_hash_is_that_of_the_file(file, tmp_path):
    assert source_hash(f"{file}:brevity") == hashlib.sha256(SOURCE.encode()).hexdigest()
    file.write_text(SOURCE + "# changed\n")
    assert source_hash(f"{file}:brevity") == hashlib.sha256(SOURCE.encode() + b"# changed\n").hexdigest()
    with pytest.raises(RewardContractError, match="there is no file"):
        source_hash(f"{tmp_path}/absent.py:reward")


def test_the_command_says_what_it_loaded_or_why_not(file, capsys):
    assert main([f"{file}:brevity"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "loaded: brevity"
    assert main([f"{file}:missing"]) == 2
    assert "no 'missing' in the file" in capsys.readouterr().err
