"""Finding a reward of one's own: it loads, or says what to change."""

import hashlib
import importlib
import inspect
import sys
from pathlib import Path

import pytest

from configs.schema import OPERATIONAL_PARAMS
from rewards import http_reward
from rewards.errors import RewardContractError
from rewards.loading import SERVED, check_names, load_reward, load_rewards
from rewards.settings import RewardSpec

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

def format(completion_text, example):
    return 0.0

NUMBER = 3
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_reward_is_loaded_with_its_params_and_called(file):
    brevity = load_reward(RewardSpec(f"{file}:brevity"))
    assert brevity.components(brevity.call("short", None)) == {"brevity": 0.5}
    parts = load_reward(RewardSpec(f"{file}:parts", "length", params={"scale": 3.0}))
    assert parts.components(parts.call("abc", object())) == {"length/length": 9.0, "length/known": 1.0}


@pytest.mark.parametrize(
    "suffix, message",
    [
        ("", "rewards.py:FUNCTION; its functions: brevity, parts, one_argument, format$"),
        (":not a name", "write path/to/file.py:name"),
        (":missing", "no 'missing' in the file; its functions: brevity, format, one_argument, parts"),
        (":NUMBER", "it is a int, not a function"),
        (":one_argument", "it takes \\(completion_text\\) and is given \\(completion_text, example\\)"),
    ],
)
def test_what_is_wrong_is_said(file, suffix, message):
    with pytest.raises(RewardContractError, match=message):
        load_reward(RewardSpec(f"{file}{suffix}"))


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(RewardContractError, match="there is no file"):
        load_reward(RewardSpec(f"{tmp_path}/absent.py:reward"))


def test_a_file_that_does_not_import_is_said_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "broken_reward.py"
    path.write_text("import surely_no_such_package\n")
    with pytest.raises(RewardContractError, match="does not import: ModuleNotFoundError.*surely_no_such_package"):
        load_reward(RewardSpec(f"{path}:reward"))
    assert not any("broken_reward" in name for name in sys.modules)


def test_a_file_that_is_named_alone_is_not_executed_to_list_its_functions(tmp_path):
    path = tmp_path / "near.py"
    refused = pytest.raises(RewardContractError)
    path.write_text("raise SystemExit\n\nasync def near(text, example):\n    return 1.0\n")
    with refused as told:
        check_names([RewardSpec(str(path))])
    assert str(told.value) == f"reward '{path}': write {path}:FUNCTION; its functions: near"
    path.write_text("def near(:\n")
    with refused as told:
        check_names([RewardSpec(str(path))])
    assert str(told.value) == f"reward '{path}': write {path}:FUNCTION"


def test_the_place_in_a_file_that_does_not_import_is_said_however_long_the_reason(tmp_path):
    path = tmp_path / "broken_reward.py"
    path.write_text("import json\n\ndef table():\n    raise ValueError('x\\n' * 9000)\n\nTABLE = table()\n")
    with pytest.raises(RewardContractError) as told:
        load_reward(RewardSpec(f"{path}:reward"))
    reason = str(told.value).partition("does not import: ")[2]
    assert len(reason) == 1000 and reason.startswith("ValueError: x x x")
    assert reason.endswith("x (broken_reward.py:4, in table)")
    path.write_text("import json\njson.loads('{')\n")
    with pytest.raises(RewardContractError, match=r"JSONDecodeError: .* \(broken_reward.py:2\)$"):
        load_reward(RewardSpec(f"{path}:reward"))
    path.write_text("def reward(:\n")
    with pytest.raises(RewardContractError, match=r"SyntaxError: invalid syntax \(broken_reward.py, line 1\)$"):
        load_reward(RewardSpec(f"{path}:reward"))


def test_two_components_of_one_name_are_refused_and_another_name_helps(file):
    brevity, again = RewardSpec(f"{file}:brevity"), RewardSpec(f"{file}:brevity", "terse")
    assert [reward.name for reward in load_rewards([brevity, again])] == ["brevity", "terse"]
    with pytest.raises(RewardContractError, match="would both report 'brevity': give it another `name`"):
        check_names([brevity, brevity])
    for name in ("format", "answer", "iou", "repetition"):
        with pytest.raises(RewardContractError, match="a built-in reward would both report"):
            check_names([RewardSpec(f"{file}:brevity", name)])


def installed(tmp_path, monkeypatch, target):
    """A distribution on the path whose entry point `tidy` is `target`."""
    (tmp_path / "tidy_rewards.py").write_text("def tidy(text, example):\n    return 1.0\n")
    info = tmp_path / "tidy_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tidy-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[spatialladder.rewards]\ntidy = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_installed_entry_point_is_found_by_name(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "tidy_rewards:tidy")
    reward = load_reward(RewardSpec("tidy"))
    assert reward.components(reward.call("", None)) == {"tidy": 1.0}
    assert reward.version == hashlib.sha256((tmp_path / "tidy_rewards.py").read_bytes()).hexdigest()
    with pytest.raises(RewardContractError, match="spatialladder.rewards; there is: http, judge, tidy"):
        load_reward(RewardSpec("tidi"))


def test_an_entry_point_that_does_not_load_is_said(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "tidy_rewards:gone")
    with pytest.raises(RewardContractError, match="the entry point tidy_rewards:gone does not load: AttributeError"):
        load_reward(RewardSpec("tidy"))


def test_rewards_over_the_network_are_there_by_name_and_take_groups():
    served = load_reward(RewardSpec("http", "quality", params={"url": "http://localhost:1"}))
    assert served.name == "quality" and served.batched
    with pytest.raises(RewardContractError, match="missing a required argument: 'url'"):
        load_reward(RewardSpec("http"))
    assert load_reward(RewardSpec("judge", params={"base_url": "http://localhost:1", "model": "m"})).name == "judge"
    assert served.version == hashlib.sha256(Path(http_reward.__file__).read_bytes()).hexdigest()


def test_the_hash_is_that_of_the_file(file):
    assert load_reward(RewardSpec(f"{file}:brevity")).version == hashlib.sha256(SOURCE.encode()).hexdigest()
    file.write_text(SOURCE + "\n")
    assert load_reward(RewardSpec(f"{file}:brevity")).version == hashlib.sha256((SOURCE + "\n").encode()).hexdigest()


@pytest.mark.parametrize(
    "source, params, message",
    [
        ("http", {"url": "ftp://x"}, "reward 'http': url"),
        ("http", {"url": "http://x", "headers": {"Authorization": "Bearer hunter2"}}, "reward 'http': "),
        ("http", {"url": "http://x", "headers": {"Authorization": "Bearer $SURELY_NOT_SET"}}, "SURELY_NOT_SET"),
        ("judge", {"base_url": "http://x", "model": "m", "low": 3.0, "high": 3.0}, "reward 'judge': "),
    ],
)
def test_settings_of_rewards_over_the_network_are_checked_when_they_are_loaded(source, params, message):
    with pytest.raises(RewardContractError, match=message) as told:
        load_reward(RewardSpec(source, params=params))
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("name", ["std", "a/b", "near by"])
def test_a_name_that_is_none_for_a_component_is_refused(file, name):
    with pytest.raises(RewardContractError, match="give it a `name`"):
        check_names([RewardSpec(f"{file}:brevity", name)])


@pytest.mark.parametrize("source", OPERATIONAL_PARAMS)
def test_what_may_change_in_a_resumed_run_is_a_param_of_the_served_reward(source: str) -> None:
    module, name = SERVED[source]
    parameters = inspect.signature(vars(importlib.import_module(module))[name]).parameters
    assert set(OPERATIONAL_PARAMS[source]) <= set(parameters)
