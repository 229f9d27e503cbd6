"""The order of a run, resuming and second starts. The rooms are replaced by functions that write their files."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import RunConfig, WorkerRange
from launch import run as run_module
from launch import stages
from launch.preflight import Capacity
from launch.problems import PreflightError, Problem
from launch.run import run
from launch.run_folder import RunFolder, RunFolderError
from launch.summary import results_table


class Rooms:
    """Stands for training and evaluation: a model is a file whose text is the way it was trained."""

    def __init__(self, write_rows):
        self.calls: list[str] = []
        self.fail_in: str | None = None
        self.grounding = True
        self._write_rows = write_rows

    def evaluators(self, config, path, say):
        return self

    def prepare(self, model):
        self.calls.append(f"engines {model.name}")

    def close(self):
        """Nothing to end."""

    def build_data(self, config, folder, say):
        self.calls.append("build")
        self._write_rows(folder, self.grounding)
        counts = {name: len((folder / "train" / name).read_text().splitlines()) for name in
                  ("spld_spatial_data.jsonl", "spld_grounding_data.jsonl", "spld_coldstart_data.jsonl")}
        manifest = {"counts": {split: {"rows": counts} for split in ("train", "heldout")}}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def train(self, config, stage, base, data, folder, say, accept_changes):
        self.calls.append(f"train {stage}" + (" with changes" if accept_changes else ""))
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
            identity = {"provenance": dict(provenance), "scoring": stages.scoring(config)}
            report = {"identity": identity, "value": float(len(weights.split()))}
            (request.folder / f"eval_{request.when}.json").write_text(json.dumps(report))

    def stage_metrics(self, folder, seed):
        before, after = (
            json.loads((folder / f"eval_{when}.json").read_text())["value"] for when in ("before", "after")
        )
        return {"accuracy": {"before": before, "after": after, "n": 200, "ci95": [1.0, 1.0]}}

    def write_report(self, run_folder, pictures):
        self.calls.append("report")
        if self.fail_in == "report":
            raise RuntimeError("lost power")
        page = run_folder / "report" / "index.html"
        page.parent.mkdir(exist_ok=True)
        page.write_text((run_folder / "summary.json").read_text())
        return page


@pytest.fixture
def rooms(monkeypatch, write_rows):
    rooms = Rooms(write_rows)
    for name in ("evaluators", "build_data", "train", "evaluate", "stage_metrics", "write_report"):
        monkeypatch.setattr(stages, name, getattr(rooms, name))

    @contextmanager
    def connected(config, say):
        rooms.calls.append("connect")
        yield Capacity(2.0, 0.0, "the cluster")

    monkeypatch.setattr(run_module, "connected", connected)
    monkeypatch.setattr(run_module, "check", lambda *_: None)
    return rooms


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_text("base")
    (tmp_path / "base" / "preprocessor_config.json").write_text("112 x 112")
    return RunConfig.model_validate({"name": "n", "model": {"path": "base"}, "stages": ["sft1", "sft2"]})


WHOLE = [
    "connect",
    "engines base",
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
    assert rooms.calls == ["connect", "train sft2", "evaluate base sft1 sft2 for sft2 after", "report"]


def run_again_after_a_lost_report(rooms, config):
    rooms.fail_in = "report"
    with pytest.raises(RuntimeError, match="lost power"):
        run(config)
    assert not RunFolder.existing(Path("runs/n")).finished
    rooms.fail_in, rooms.calls = None, []
    run(config)


def test_a_report_that_failed_is_all_that_is_written_again(rooms, config):
    run_again_after_a_lost_report(rooms, config)
    assert rooms.calls == ["report"] and RunFolder.existing(Path("runs/n")).finished


def test_a_report_of_fewer_stages_does_not_make_a_run_finished(rooms, config):
    run(config, ["sft1"])
    run_again_after_a_lost_report(rooms, config)
    assert rooms.calls == ["report"]
    assert set(json.loads(Path("runs/n/report/index.html").read_text())["stages"]) == {"sft1", "sft2"}


def test_a_changed_base_runs_the_stages_again(rooms, config, tmp_path):
    rooms.fail_in = "sft2"
    with pytest.raises(RuntimeError):
        run(config)
    (tmp_path / "base" / "model.safetensors").write_text("other")
    rooms.fail_in, rooms.calls = None, []
    run(config)
    assert rooms.calls[:3] == ["connect", "evaluate other for sft1 before", "train sft1"]


def test_a_summary_never_mixes_two_models(rooms, config, tmp_path):
    run(config)
    (tmp_path / "base" / "model.safetensors").write_text("other")
    Path("runs/n/report/index.html").unlink()
    Path("runs/n/summary.json").unlink()
    run(config, ["sft1"])
    assert set(json.loads(Path("runs/n/summary.json").read_text())["stages"]) == {"sft1"}
    rooms.fail_in = "sft1"
    (tmp_path / "base" / "model.safetensors").write_text("third")
    with pytest.raises(RuntimeError, match="lost power"):
        run(config)
    assert RunFolder.existing(Path("runs/n")).manifest("sft1") is None


def test_a_base_with_another_processor_builds_the_data_again(rooms, config, tmp_path):
    run(config, ["sft1"])
    (tmp_path / "base" / "preprocessor_config.json").write_text("224 x 224")
    rooms.calls = []
    run(config)
    assert rooms.calls[:4] == ["connect", "engines base", "build", "evaluate base for sft1 before"]


def test_data_without_rows_for_a_stage_names_the_way_out(rooms, config, tmp_path):
    rooms.grounding = False
    with pytest.raises(PreflightError) as refused:
        run(config)
    message = str(refused.value)
    assert message.startswith(f"the data is built in {tmp_path}/runs/n/data, but no stage was started, 2 problems:")
    assert "nothing was started" not in message
    assert message.endswith("for others give --name, or remove that folder") and "runs/n keeps" in message
    assert rooms.calls == ["connect", "engines base", "build"]


def test_short_answers_of_the_evaluation_are_remarked(rooms, config, capsys):
    run(config)
    assert "evaluation.max_new_tokens" not in capsys.readouterr().out
    more = config.model_dump() | {"name": "m", "stages": ["sft1", "grpo"], "evaluation": {"max_new_tokens": 100}}
    run(RunConfig.model_validate(more | {"grpo": {"prompts_per_step": 1, "sampling": {"max_new_tokens": 101}}}))
    said = capsys.readouterr().out
    assert "note: evaluation.max_new_tokens (100) is below grpo.sampling.max_new_tokens (101)" in said


def test_changed_settings_are_refused(rooms, config):
    run(config)
    with pytest.raises(RunFolderError, match="seed: 0 -> 9"):
        run(config.model_copy(update={"seed": 9}))


def broken_in_stage_3(rooms, config):
    """The configuration of a run that lost power in its second stage, grpo."""
    grpo = config.grpo.model_copy(update={"prompts_per_step": 1})
    ladder = config.model_copy(update={"stages": ("sft1", "grpo"), "grpo": grpo})
    rooms.fail_in = "grpo"
    with pytest.raises(RuntimeError, match="lost power"):
        run(ladder)
    rooms.fail_in, rooms.calls = None, []
    return ladder


def test_an_unfinished_stage_3_goes_on_with_accepted_settings_and_finished_stages_are_skipped(rooms, config, capsys):
    ladder = broken_in_stage_3(rooms, config)
    faster = ladder.model_copy(update={"grpo": ladder.grpo.model_copy(update={"staleness": 2})})
    with pytest.raises(RunFolderError, match="grpo.staleness: 0 -> 2"):
        run(faster)
    assert rooms.calls == []
    run(faster, accept_changes=True)
    assert rooms.calls == ["connect", "train grpo with changes", "evaluate base sft1 grpo for grpo after", "report"]
    assert "accepted, from here on: grpo.staleness: 0 -> 2" in capsys.readouterr().out
    assert load_config(Path("runs/n/config.yaml")).grpo.staleness == 2
    rooms.calls.clear()
    run(faster)  # its own settings now
    with pytest.raises(RunFolderError, match="Stage grpo has finished with the old ones"):
        run(ladder, accept_changes=True)
    assert rooms.calls == []


def test_with_another_scoring_the_model_before_stage_3_is_measured_again(rooms, config):
    ladder = broken_in_stage_3(rooms, config)
    run(ladder.model_copy(update={"reward": ladder.reward.model_copy(update={"format": 0.5})}), accept_changes=True)
    assert rooms.calls[1:3] == ["evaluate base sft1 for grpo before", "train grpo with changes"]


def test_settings_are_written_only_by_a_start_that_does_something(rooms, config, monkeypatch):
    run(config)
    written = Path("runs/n/config.yaml")
    before = written.read_bytes()
    run(config.model_copy(update={"rollout": config.rollout.model_copy(update={"workers": WorkerRange(max=7)})}))  # finished: does nothing
    assert written.read_bytes() == before
    RunFolder.existing(Path("runs/n")).manifest_path("sft2").unlink()
    sdpa = config.model_copy(update={"model": config.model.model_copy(update={"attention": "sdpa"})})

    def refused(*_):
        raise PreflightError([Problem("it does not fit", "rollout.workers", "lower it")])

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "check", refused)
        with pytest.raises(PreflightError, match="it does not fit"):
            run(sdpa)
    assert written.read_bytes() == before
    run(sdpa)
    assert load_config(written).model.attention == "sdpa"


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
