"""The order of a run, resuming and second starts. The rooms are replaced by functions that write their files."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.schema import RunConfig
from launch import run as run_module
from launch import stages
from launch.preflight import Capacity
from launch.run import run
from launch.run_folder import RunFolder, RunFolderError
from launch.summary import results_table


class Rooms:
    """Stands for training and evaluation: a model is a file whose text is the way it was trained."""

    def __init__(self):
        self.calls: list[str] = []
        self.fail_in: str | None = None

    def build_data(self, config, folder, say):
        self.calls.append("build")
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "rows.jsonl").write_text("{}\n")
        (folder / "manifest.json").write_text("{}")

    def train(self, config, stage, base, data, folder, say):
        self.calls.append(f"train {stage}")
        if self.fail_in == stage:
            raise RuntimeError("lost power")
        model = folder / "hf"
        model.mkdir(exist_ok=True)
        (model / "model.safetensors").write_text((base / "model.safetensors").read_text() + f" {stage}")
        return model

    def evaluate(self, config, evaluators, model, data, requests, provenance, say):
        weights = (model / "model.safetensors").read_text()
        for request in requests:
            self.calls.append(f"evaluate {weights} for {request.stage} {request.when}")
            (request.folder / f"eval_{request.when}.jsonl").write_text("{}\n")
            report = {"identity": {"provenance": dict(provenance)}, "value": float(len(weights.split()))}
            (request.folder / f"eval_{request.when}.json").write_text(json.dumps(report))

    def stage_metrics(self, folder, seed):
        before, after = (
            json.loads((folder / f"eval_{when}.json").read_text())["value"] for when in ("before", "after")
        )
        return {"accuracy": {"before": before, "after": after, "n": 200, "ci95": [1.0, 1.0]}}

    def write_report(self, run_folder, pictures):
        self.calls.append("report")
        return run_folder / "report" / "index.html"


@pytest.fixture
def rooms(monkeypatch):
    rooms = Rooms()
    for name in ("build_data", "train", "evaluate", "stage_metrics", "write_report"):
        monkeypatch.setattr(stages, name, getattr(rooms, name))

    @contextmanager
    def connected(config, say):
        yield Capacity(2.0, 0.0, "the cluster")

    monkeypatch.setattr(run_module, "connected", connected)
    monkeypatch.setattr(run_module, "check", lambda *_: None)
    return rooms


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_text("base")
    return RunConfig.model_validate({"name": "n", "model": {"path": "base"}, "stages": ["sft1", "sft2"]})


WHOLE = [
    "build",
    "evaluate base for sft1 before",
    "train sft1",
    "evaluate base sft1 for sft1 after",
    "evaluate base sft1 for sft2 before",
    "train sft2",
    "evaluate base sft1 sft2 for sft2 after",
    "report",
]


def test_a_whole_run_in_order(rooms, config, tmp_path):
    folder = run(config)
    assert rooms.calls == WHOLE
    summary = json.loads((tmp_path / "runs" / "n" / "summary.json").read_text())
    assert summary["stages"] == {
        "sft1": {"accuracy": {"before": 1.0, "after": 2.0, "n": 200, "ci95": [1.0, 1.0]}},
        "sft2": {"accuracy": {"before": 2.0, "after": 3.0, "n": 200, "ci95": [1.0, 1.0]}},
    }
    assert {"sft1", "sft2", "data", "total"} == set(summary["seconds"])
    assert summary["hardware"]["ray_cpus"] == 2.0 and "torch" in summary["versions"]
    assert folder.finished


def test_the_second_start_only_says_so(rooms, config, capsys):
    run(config)
    rooms.calls.clear()
    run(config)
    assert rooms.calls == [] and "is finished: nothing to do" in capsys.readouterr().out


def test_a_run_that_broke_resumes_where_it_was(rooms, config):
    rooms.fail_in = "sft2"
    with pytest.raises(RuntimeError, match="lost power"):
        run(config)
    assert set(json.loads((Path("runs/n/summary.json")).read_text())["stages"]) == {"sft1"}
    rooms.fail_in, rooms.calls = None, []
    run(config)
    assert rooms.calls == ["train sft2", "evaluate base sft1 sft2 for sft2 after", "report"]


def test_a_changed_base_runs_the_stages_again(rooms, config, tmp_path):
    rooms.fail_in = "sft2"
    with pytest.raises(RuntimeError):
        run(config)
    (tmp_path / "base" / "model.safetensors").write_text("other")
    rooms.fail_in, rooms.calls = None, []
    run(config)
    assert rooms.calls[:2] == ["evaluate other for sft1 before", "train sft1"]


def test_changed_settings_are_refused(rooms, config):
    run(config)
    with pytest.raises(RunFolderError, match="seed: 0 -> 9"):
        run(config.model_copy(update={"seed": 9}))


def test_one_stage_at_a_time(rooms, config):
    with pytest.raises(RunFolderError, match="stage sft1 has not finished"):
        run(config, ["sft2"])
    run(config, ["sft1"])
    assert rooms.calls.count("train sft1") == 1 and "train sft2" not in rooms.calls
    assert RunFolder.existing(Path("runs/n")).manifest("sft2") is None
    run(config, ["sft2"])
    assert rooms.calls.count("train sft1") == 1 and rooms.calls.count("train sft2") == 1
    assert RunFolder.existing(Path("runs/n")).finished


def test_half_built_data_is_built_again(rooms, config, tmp_path):
    (tmp_path / "runs" / "n").mkdir(parents=True)
    RunFolder.open(config, tmp_path / "runs" / "n")
    (tmp_path / "runs" / "n" / "data").mkdir()
    (tmp_path / "runs" / "n" / "data" / "left.jsonl").write_text("{}\n")
    run(config)
    assert rooms.calls == WHOLE and not (tmp_path / "runs" / "n" / "data" / "left.jsonl").exists()


def test_the_table_shows_gain_and_interval():
    record = {"before": 0.25, "after": 0.75, "n": 240, "ci95": [0.4, 0.6]}
    table = results_table({"stages": {"sft1": {"localization_iou": record}}}).splitlines()
    assert table[0].split() == ["stage", "metric", "before", "after", "gain", "95", "%", "interval", "n"]
    assert table[2].split() == ["sft1", "localization_iou", "0.250", "0.750", "+0.500", "[+0.400,", "+0.600]", "240"]
