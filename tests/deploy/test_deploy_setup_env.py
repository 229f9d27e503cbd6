"""Set-up: what is chosen, what is recognised, and that it stops rather than install a CUDA build."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "deploy"))

import setup_env  # noqa: E402
from setup_env import (
    SetupError,
    check_python,
    choose_extra,
    count_gpus,
    found_cpu_build,
    stamp_key,
    summarise,
    torch_pin,
)  # noqa: E402


@pytest.mark.parametrize("wanted, gpus, chosen", [("", 0, "cpu"), ("", 2, "gpu"), ("cpu", 2, "cpu"), ("gpu", 0, "gpu")])
def test_choice_of_extra(wanted, gpus, chosen):
    assert choose_extra(wanted, gpus) == chosen


def test_refusals():
    with pytest.raises(SetupError, match="LADDER_EXTRA is 'tpu', it may be cpu or gpu"):
        choose_extra("tpu", 0)
    with pytest.raises(SetupError, match=r"Python 3\.10 is too old.*PYTHON="):
        check_python((3, 10, 4))
    check_python((3, 11, 0))


@pytest.mark.parametrize(
    "listing, count",
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n", 2),
        ("GPU 0: A (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\n", 1),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 0),
        ("No devices were found\n", 0),
        ("", 0),
    ],
)
def test_listed_gpus(listing, count):
    assert count_gpus(listing) == count


def report(name: str, version: str) -> str:
    return json.dumps({"version": "1", "install": [{"metadata": {"name": name, "version": version}}]})


@pytest.mark.parametrize(
    "text, found",
    [
        (report("torch", "2.13.0+cpu"), True),
        (report("torch", "2.13.0"), False),
        (report("torch", "2.13.0+cu130"), False),
        (report("torch", "2.12.0+cpu"), False),
        (report("torchvision", "2.13.0+cpu"), False),
        ("", False),
        ("{}", False),
        ("not json", False),
    ],
)
def test_only_the_cpu_build_of_the_pin_counts(text, found):
    assert found_cpu_build(text, "2.13.0") is found


def test_the_pins_of_this_project():
    text = (PROJECT / "setup.cfg").read_text()
    assert torch_pin(text, "cpu") == torch_pin(text, "gpu") == "2.13.0"
    with pytest.raises(SetupError, match=r"pins no torch in \[dev\]"):
        torch_pin(text, "dev")


def test_the_stamp_follows_pins_scripts_place_and_choice(tmp_path):
    (tmp_path / "deploy").mkdir()
    for name in ("setup.cfg", "pyproject.toml", "deploy/a.py"):
        (tmp_path / name).write_text("1")
    keys = {
        stamp_key(tmp_path, "cpu", "cpu,dev", "3.11"),
        stamp_key(tmp_path, "gpu", "gpu,dev", "3.11"),
        stamp_key(tmp_path, "cpu", "cpu,dev", "3.12"),
    }
    assert stamp_key(tmp_path, "cpu", "cpu,dev", "3.11") in keys
    for name in ("setup.cfg", "pyproject.toml", "deploy/a.py"):
        (tmp_path / name).write_text("2")
        keys.add(stamp_key(tmp_path, "cpu", "cpu,dev", "3.11"))
    assert len(keys) == 6


@pytest.mark.parametrize(
    "line, text",
    [
        ("Collecting ray[default]==2.60.0", "collecting ray[default]==2.60.0"),
        ("  Downloading https://host/a/b/numpy-2.3.5-cp311.whl (16 MB)", "downloading numpy-2.3.5-cp311.whl"),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("Requirement already satisfied: a", None),
        ("", None),
    ],
)
def test_pip_lines_are_summarised(line, text):
    assert summarise(line) == text


def test_without_a_cpu_build_set_up_stops_with_the_one_variable(tmp_path):
    """The real pip, told to look nowhere: one message, exit code 1, nothing installed, no stamp."""
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "LADDER_EXTRA": "cpu"}
    environment.pop("PIP_FIND_LINKS", None)
    folder = tmp_path / "venv"
    result = subprocess.run(
        [sys.executable, str(PROJECT / "deploy" / "setup_env.py"), "--venv", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 1
    assert "pip finds no CPU build of torch 2.13.0" in result.stderr and "PIP_EXTRA_INDEX_URL" in result.stderr
    assert "Traceback" not in result.stderr and not (folder / setup_env.STAMP).exists()
    assert not list(folder.rglob("ray"))


def test_a_ready_environment_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LADDER_EXTRA", "cpu")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    key = stamp_key(setup_env.ROOT, "cpu", "cpu,dev", ".".join(map(str, sys.version_info[:2])))
    (tmp_path / setup_env.STAMP).write_text(key)
    assert setup_env.main(["--venv", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "" and len(list(tmp_path.iterdir())) == 2
