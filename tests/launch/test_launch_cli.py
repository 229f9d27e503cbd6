"""The command line as users start it: one message, the right exit code, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import effective_yaml
from configs.schema import RunConfig

PROJECT = Path(__file__).resolve().parents[2]


def ladder(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "LADDER_HOME")} | {
        "PYTHONPATH": str(PROJECT)
    }
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (
            ["run", "c.yaml", "--set", "grpo.grop_size=8"],
            ["grpo.grop_size: unknown key (did you mean grpo.group_size?)"],
        ),
        (["run", "d.yaml"], ["d.yaml: cannot be read", "did you mean c.yaml?"]),
        (["run", "c.yaml", "--name", "../up"], ["name:", "pattern"]),
        (
            ["run", "c.yaml"],
            ["nothing was started, 2 problems", "model.path: model folder", "at most rollout.workers=", "->"],
        ),
        (["quickstart", "--smoke", "--seed", "-1"], ["seed:", "greater than or equal to 0"]),
        (
            ["quickstart", "--set", "rollout.workers=5000"],
            ["rollout.workers, learner.ranks: stage grpo needs 2500.6 CPUs"],
        ),
        (["status", "nothing"], ["nothing is not a run folder"]),
        (["scale", "nothing", "2"], ["nothing is not a run folder"]),
        (["data", "build", "--out", "o"], ["CONFIG, or --source"]),
        (["data", "build", "--source", "nowhere", "--out", "o"], ["nowhere: does not exist"]),
        (["data", "build", "c.yaml", "--out", "o", "--name", "n"], ["unrecognized arguments: --name n"]),
        (["climb"], ["invalid choice: 'climb'"]),
    ],
)
def test_refusals_exit_2_with_one_message_and_no_files(tmp_path, arguments, parts):
    (tmp_path / "c.yaml").write_text("name: c\nmodel: {path: none}\nrollout: {workers: 4000}\n")
    result = ladder(tmp_path, *arguments)
    assert result.returncode == 2, result.stderr
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert os.listdir(tmp_path) == ["c.yaml"]


def test_changed_settings_are_refused_with_the_way_to_accept_them_where_there_is_one(tmp_path):
    written = effective_yaml(RunConfig(name="c"))
    (tmp_path / "runs" / "c").mkdir(parents=True)
    (tmp_path / "runs" / "c" / "config.yaml").write_text(written)
    (tmp_path / "c.yaml").write_text("name: c\n")
    result = ladder(tmp_path, "run", "c.yaml", "--set", "learner.optimizer.lr=1e-5", "--set", "grpo.staleness=1")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "  learner.optimizer.lr: 1e-06 -> 1e-05\n" in result.stderr and "  grpo.staleness: 0 -> 1\n" in result.stderr
    assert "from where stage grpo is now: --accept-changes" in result.stderr
    result = ladder(tmp_path, "run", "c.yaml", "--set", "grpo.staleness=1", "--set", "evaluation.rows=9", "--accept-changes")
    assert result.returncode == 2 and "--accept-changes would do for grpo.staleness alone" in result.stderr
    assert (tmp_path / "runs" / "c" / "config.yaml").read_text() == written


def test_help_names_the_commands(tmp_path):
    result = ladder(tmp_path, "--help")
    assert result.returncode == 0
    for command in ("quickstart", "run", "data", "status", "scale"):
        assert command in result.stdout
