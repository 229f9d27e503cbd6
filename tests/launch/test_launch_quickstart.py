"""The end of the quickstart: a success is a success wherever the run lies."""

import pytest

from configs.load import load_config
from launch import quickstart as module
from launch.jobs import PROJECT
from launch.places import run_path
from launch.progress import Progress
from launch.quickstart import quickstart
from launch.run_folder import RunFolder


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A cluster on other machines, on which the job succeeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LADDER_HOME", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://cluster:8265")
    monkeypatch.setattr(module, "submit_and_follow", lambda arguments, say: 0)


def test_a_run_that_lies_on_the_cluster(elsewhere, tmp_path, capsys):
    assert quickstart("smoke", ["name=far"], Progress()) == 0
    assert "the report lies on the cluster" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_of_that_name_here_is_not_taken_for_it(elsewhere, capsys):
    config = load_config(PROJECT / "configs" / "smoke.yaml", ["name=far"])
    RunFolder.open(config, run_path(config))
    assert quickstart("smoke", ["name=far"], Progress()) == 0
    assert "the report lies on the cluster" in capsys.readouterr().out


def test_a_run_that_lies_here(elsewhere, monkeypatch, capsys):
    def job(arguments, say):
        config = load_config(PROJECT / "configs" / "smoke.yaml", ["name=near"])
        folder = RunFolder.open(config, run_path(config))
        for stage in config.stages:
            (folder.stage(stage) / "made").write_text(stage)
            folder.finish_stage(stage, {}, [folder.stage(stage) / "made"], {}, {})
        folder.summary_path.write_text("{}")
        folder.report.parent.mkdir()
        folder.report.write_text("page")
        return 0

    monkeypatch.setattr(module, "submit_and_follow", job)
    assert quickstart("smoke", ["name=near"], Progress()) == 0
    assert "runs/near/report/index.html" in capsys.readouterr().out


def test_accepted_changes_are_the_jobs_too(elsewhere, monkeypatch):
    submitted = []
    monkeypatch.setattr(module, "submit_and_follow", lambda arguments, say: submitted.append(arguments) or 1)
    assert quickstart("smoke", ["name=far"], Progress(), accept_changes=True) == 1
    assert submitted == [["run", "configs/smoke.yaml", "--set", "name=far", "--accept-changes"]]
