"""What a submitted job is told and carries, and which signals end a followed one."""

import signal
from pathlib import Path

import pytest

from launch.cli import HOUSE
from launch.interrupts import terminations_interrupt
from launch.jobs import PROJECT, home_variable


@pytest.mark.parametrize("own_cluster", [True, False])
def test_the_current_directory_is_sent_to_our_own_cluster_only(monkeypatch, tmp_path, own_cluster):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LADDER_HOME", raising=False)
    assert home_variable(own_cluster) == ({"LADDER_HOME": str(tmp_path)} if own_cluster else {})
    monkeypatch.setenv("LADDER_HOME", "/shared/x")
    assert home_variable(own_cluster) == {"LADDER_HOME": "/shared/x"}


def uploaded(folder: Path) -> set[str]:
    """Files below a folder that Ray would pack as the working directory of a job."""
    from ray._private.runtime_env.packaging import _dir_travel

    files: set[str] = set()
    _dir_travel(folder, [], lambda path: path.is_file() and files.add(str(path.relative_to(folder))), include_gitignore=True)
    return files


def test_no_module_of_the_house_is_left_out():
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    left_out = get_excludes_from_ignore_files(PROJECT, include_gitignore=True)
    modules = [path for room in HOUSE for path in (PROJECT / room).rglob("*.py")]
    assert len(modules) > 50 and not [path for path in modules if any(match(path) for match in left_out)]


def test_the_upload_holds_code_and_the_tiny_base_but_no_models_and_data(tmp_path):
    sent = {
        "models/loading.py", "models/tiny_base/model.safetensors", "models/tiny_base/config.json", "data/build.py",
        "data/scenes/rooms.py", "data/scenes/sources/new.py", "configs/mine.yaml", "my_rewards.py", "rewards/contract.py",
    }
    left = {
        "models/Qwen2.5-VL-3B-Instruct/model-00001-of-00002.safetensors", "models/Qwen2.5-VL-3B-Instruct/config.json",
        "models/mine/hf/model.safetensors", "datasets/rooms/train/images/a/f.png", "data/SpatialLadder-26k/train/a.jsonl",
        "runs/quickstart/config.yaml", ".venv/bin/python", "data/scenes/__pycache__/rooms.pyc",
    }
    for name in sent | left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((PROJECT / name).read_text())
    assert uploaded(tmp_path) == sent | {".rayignore", ".gitignore"}


def test_a_termination_interrupts_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        with terminations_interrupt():
            signal.raise_signal(signal.SIGTERM)  # in this thread: the process may have others, which would only take note of it
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_is_answered_at_once(capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins with it ignored
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt):
                with terminations_interrupt("ending what was started"):
                    signal.raise_signal(number)
            assert capfd.readouterr().err == "ending what was started\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminations_interrupt():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
