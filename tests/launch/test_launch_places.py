"""Where relative paths lead: outside a job, inside one, with and without a checkout."""

import subprocess
import sys
from pathlib import Path

from configs.schema import RunConfig
from launch.places import JOB_VARIABLE, home, installed_checkout, run_path, with_absolute_paths

JOB = {JOB_VARIABLE: "{}"}


def test_home_by_the_rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert home({}) == tmp_path
    assert home({"LADDER_HOME": "/shared/x"}) == Path("/shared/x")
    assert home(JOB | {"LADDER_HOME": "/shared/x"}) == Path("/shared/x")
    assert home(JOB, checkout=Path("/checkout")) == Path("/checkout")


def test_a_job_finds_the_checkout_it_was_installed_from(tmp_path, monkeypatch):
    project = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(tmp_path)  # like the copied working directory of a job
    assert home(JOB) == installed_checkout() == project


def test_runs_lie_below_home_and_inputs_where_they_are(tmp_path, monkeypatch):
    copy, base = tmp_path / "copy", tmp_path / "home"
    (copy / "models" / "tiny").mkdir(parents=True)
    base.mkdir()
    monkeypatch.chdir(copy)
    (copy / "mine.py").write_text("")
    config = RunConfig.model_validate({
        "name": "n", "model": {"path": "models/tiny"}, "data": {"source": "../far"},
        "reward": {"custom": ["mine.py:brevity", "other/theirs.py:length", "no-location"]},
    })
    absolute = with_absolute_paths(config, base)
    assert run_path(config, base) == base / "runs" / "n"
    assert absolute.root == str(base / "runs") and run_path(absolute, copy) == base / "runs" / "n"
    assert absolute.model.path == str(copy / "models" / "tiny")  # came along with the job
    assert absolute.data.source == str(base / ".." / "far") and absolute.data.path is None
    assert tuple(own.source for own in absolute.reward.custom) == (f"{copy}/mine.py:brevity", f"{base}/other/theirs.py:length", "no-location")
    assert config.model.path == "models/tiny" and config.reward.custom[0].source == "mine.py:brevity"


def test_the_token_is_adopted_before_ray_is_imported():
    """Ray reads the authentication mode at import; adopting a token later leaves the driver without it."""
    code = (
        "import sys, launch.cluster, launch.run\n"
        "from configs.schema import RunConfig\n"
        "def adopt(): print('ray' in sys.modules); raise SystemExit\n"
        "launch.cluster.adopt_token = adopt\n"
        "launch.run.connected(RunConfig(), print).__enter__()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.stdout.strip() == "False", done.stderr
