"""The run folder: whole files, finished stages, no mixing of settings, one writer."""

import json
import multiprocessing
import os

import pytest

from configs.changes import config_hash
from configs.load import load_config
from configs.schema import RunConfig, WorkerRange
from launch.run_folder import RunFolder, RunFolderError, fingerprint, write_json, write_text

CONFIG = RunConfig(name="r", stages=("sft1", "sft2"))
METRICS = {"localization_iou": {"before": 0.1, "after": 0.5, "n": 200, "ci95": [0.3, 0.5]}}


def finish(folder: RunFolder, stage: str, inputs: dict) -> None:
    model = folder.model(stage)
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"w" + stage.encode())
    folder.finish_stage(stage, inputs, [model], METRICS, {"train": 2.0})


def test_open_writes_the_effective_configuration(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    assert load_config(folder.path / "config.yaml") == CONFIG
    assert RunFolder.open(CONFIG, tmp_path / "r").config == CONFIG
    assert RunFolder.existing(tmp_path / "r").config == CONFIG


def test_other_settings_are_refused_with_the_difference(tmp_path):
    RunFolder.open(CONFIG, tmp_path / "r")
    before = (tmp_path / "r" / "config.yaml").read_bytes()
    with pytest.raises(RunFolderError, match=r"(?s)seed: 0 -> 5.*--name"):
        RunFolder.open(CONFIG.model_copy(update={"seed": 5}), tmp_path / "r")
    assert (tmp_path / "r" / "config.yaml").read_bytes() == before


LADDER = RunConfig(name="r")
STEPS = LADDER.model_copy(update={"grpo": LADDER.grpo.model_copy(update={"steps": 9})})
RANKS = LADDER.model_copy(update={"learner": LADDER.learner.model_copy(update={"ranks": 2})})


def test_an_unfinished_stage_3_may_go_on_with_other_settings_if_told(tmp_path):
    RunFolder.open(LADDER, tmp_path / "r")
    written = tmp_path / "r" / "config.yaml"
    with pytest.raises(RunFolderError, match=r"\n  grpo.steps: None -> 9\nGive .*\. Or go on .*: --accept-changes\.$"):
        RunFolder.open(STEPS, tmp_path / "r")
    folder = RunFolder.open(STEPS, tmp_path / "r", accept_changes=True)
    assert [str(own) for own in folder.accepted] == ["grpo.steps: None -> 9"]
    assert load_config(written) == LADDER  # until a start does something
    folder.write_settings()
    assert load_config(written) == STEPS and RunFolder.open(STEPS, tmp_path / "r").accepted == ()


def test_what_finished_stages_were_made_with_is_never_accepted_and_what_could_be_is_named(tmp_path):
    RunFolder.open(LADDER, tmp_path / "r")
    both = STEPS.model_copy(update={"seed": 5})
    for accept in (False, True):
        with pytest.raises(RunFolderError) as refused:
            RunFolder.open(both, tmp_path / "r", accept)
        assert "  seed: 0 -> 5  (cannot be accepted: not stage 3 alone is made with it)\n  grpo.st" in str(refused.value)
        assert str(refused.value).endswith("remove the folder. --accept-changes would do for grpo.steps alone.")


def test_what_a_checkpoint_stands_against_is_accepted_only_without_one(tmp_path):
    RunFolder.open(LADDER, tmp_path / "r")
    assert [own.key for own in RunFolder.open(RANKS, tmp_path / "r", True).accepted] == ["learner.ranks"]
    (tmp_path / "r" / "grpo" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="learner.ranks: 1 -> 2  .cannot be accepted: a checkpoint is divided among"):
        RunFolder.open(RANKS, tmp_path / "r", True)


def test_fewer_steps_than_are_done_are_never_accepted(tmp_path):
    folder = RunFolder.open(LADDER, tmp_path / "r")
    for step in (8, 10):
        (tmp_path / "r" / "grpo" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (tmp_path / "r" / "grpo" / "checkpoints" / "step-8" / "state.json").write_text("{}")  # the other one was not finished
    assert RunFolder.open(STEPS, tmp_path / "r", True).accepted
    (tmp_path / "r" / "grpo" / "checkpoints" / "step-10" / "state.json").write_text("{}")
    with pytest.raises(RunFolderError, match="grpo.steps: None -> 9  .cannot be accepted: 10 steps are done: 10 would end it"):
        RunFolder.open(STEPS, tmp_path / "r", True)
    assert load_config(folder.path / "config.yaml") == LADDER


def test_a_finished_stage_3_is_not_trained_again_with_other_settings_and_finished_stages_stay_done(tmp_path):
    folder = RunFolder.open(LADDER, tmp_path / "r")
    finish(folder, "sft1", {"model": "a"})
    accepted = RunFolder.open(STEPS, tmp_path / "r", True)
    assert accepted.stage_done("sft1", {"model": "a"}) is not None
    finish(folder, "grpo", {"model": "b"})
    assert accepted.stage_done("grpo", {"model": "b"}) is None and folder.stage_done("grpo", {"model": "b"}) is not None
    for accept in (False, True):
        with pytest.raises(RunFolderError, match="has finished with the old ones: to train it again, remove .*/r/grpo and"):
            RunFolder.open(STEPS, tmp_path / "r", accept)


def test_an_evaluation_counts_for_its_model_data_and_scoring(tmp_path):
    folder = RunFolder.open(LADDER, tmp_path / "r")
    identity = {"provenance": {"model": "a"}, "scoring": {"format": 1.0}}
    write_json(folder.stage("grpo") / "eval_before.json", {"identity": identity})
    assert folder.evaluated("grpo", "before", {"model": "a"}, {"format": 1.0})
    assert not folder.evaluated("grpo", "before", {"model": "b"}, {"format": 1.0})
    assert not folder.evaluated("grpo", "before", {"model": "a"}, {"format": 0.5})
    assert not folder.evaluated("grpo", "after", {"model": "a"}, {"format": 1.0})


JUDGE = {"source": "judge", "params": {"base_url": "http://a/v1", "model": "m", "timeout_seconds": 30}}


@pytest.mark.parametrize(
    "reward",
    [
        {"custom": [JUDGE], "accept_changed": True, "timeout_seconds": 60, "actors": 2},
        {"custom": [{**JUDGE, "params": {"base_url": "http://b/v1", "model": "m", "retries": 5}}]},
    ],
)
def test_a_run_goes_on_with_another_server_of_the_same_judge(tmp_path, reward):
    settings = {"name": "r", "stages": ["grpo"]}
    before, after = (RunConfig.model_validate(settings | {"reward": own}) for own in ({"custom": [JUDGE]}, reward))
    folder = RunFolder.open(before, tmp_path / "r")
    assert RunFolder.open(after, tmp_path / "r").path == folder.path
    assert config_hash(before, "grpo") == config_hash(after, "grpo")


def test_another_judge_is_another_run(tmp_path):
    settings = {"name": "r", "stages": ["grpo"]}
    other = {**JUDGE, "params": {**JUDGE["params"], "model": "n"}}
    RunFolder.open(RunConfig.model_validate(settings | {"reward": {"custom": [JUDGE]}}), tmp_path / "r")
    with pytest.raises(RunFolderError, match=r"reward\.custom: .*'model': 'm'.* -> .*'model': 'n'"):
        RunFolder.open(RunConfig.model_validate(settings | {"reward": {"custom": [other]}}), tmp_path / "r")


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunFolderError, match="holds no config.yaml"):
        RunFolder.existing(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half written \ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_stage_done_only_with_the_same_inputs_outputs_and_settings(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    assert folder.stage_done("sft1", {"model": "a"}) is None
    finish(folder, "sft1", {"model": "a"})
    manifest = folder.stage_done("sft1", {"model": "a"})
    assert manifest.metrics == METRICS
    assert list(manifest.outputs) == ["sft1/hf/model.safetensors"]
    # SHA-256 of the five bytes "wsft1", from coreutils' sha256sum
    assert (
        manifest.outputs["sft1/hf/model.safetensors"]
        == "784ee5b10950cfe46f2a154b0427b9533c38e69d4dace4c4e8712cb0f125c4af"
    )
    assert folder.stage_done("sft1", {"model": "b"}) is None
    other = RunFolder(folder.path, CONFIG.model_copy(update={"seed": 1}))
    assert other.stage_done("sft1", {"model": "a"}) is None
    (folder.model("sft1") / "model.safetensors").unlink()
    assert folder.stage_done("sft1", {"model": "a"}) is None


def test_what_decides_no_result_may_change_and_is_written_down(tmp_path):
    RunFolder.open(CONFIG, tmp_path / "r")
    rollout = CONFIG.rollout.model_copy(update={"workers": WorkerRange(max=3)})
    changed = CONFIG.model_copy(update={"root": "elsewhere", "rollout": rollout})
    folder = RunFolder.open(changed, tmp_path / "r")
    assert folder.config == changed and load_config(tmp_path / "r" / "config.yaml") == CONFIG
    folder.write_settings()
    assert load_config(tmp_path / "r" / "config.yaml") == changed
    other = changed.model_copy(update={"rollout": rollout.model_copy(update={"max_num_seqs": 4})})
    with pytest.raises(RunFolderError, match="rollout.max_num_seqs: 128 -> 4"):
        RunFolder.open(other, tmp_path / "r")


def test_a_run_is_finished_when_all_stages_the_summary_and_the_report_are(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    finish(folder, "sft1", {})
    finish(folder, "sft2", {})
    assert not folder.finished
    write_json(folder.summary_path, {})
    assert folder.measured and not folder.finished
    folder.report.parent.mkdir()
    folder.report.write_text("page")
    assert folder.finished
    folder.manifest_path("sft2").write_text('{"stage": "sft2"')
    with pytest.raises(RunFolderError, match="manifest.json is damaged"):
        assert folder.finished


def test_a_stage_that_finishes_leaves_no_summary_and_report_without_it(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    finish(folder, "sft1", {})
    write_json(folder.summary_path, {})
    folder.report.parent.mkdir()
    folder.report.write_text("page")
    finish(folder, "sft2", {})
    assert not folder.summary_path.exists() and not folder.report.exists()


def test_forgotten_stages_are_not_done(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    finish(folder, "sft1", {})
    finish(folder, "sft2", {})
    folder.forget(("sft2",))
    assert folder.manifest("sft1") is not None and folder.manifest("sft2") is None
    folder.forget(CONFIG.stages)
    assert folder.manifest("sft1") is None and folder.model("sft1").exists()


def test_finish_stage_refuses_missing_outputs(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    with pytest.raises(FileNotFoundError):
        folder.finish_stage("sft1", {}, [folder.model("sft1")], {}, {})
    assert folder.manifest("sft1") is None


def test_fingerprint_sees_names_contents_and_only_the_patterns(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "note.txt").write_text("x")
    first = fingerprint(tmp_path, ("*.json",))
    (tmp_path / "note.txt").write_text("y")
    assert fingerprint(tmp_path, ("*.json",)) == first
    (tmp_path / "a.json").write_text("2")
    second = fingerprint(tmp_path, ("*.json",))
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert len({first, second, fingerprint(tmp_path, ("*.json",))}) == 3
    with pytest.raises(FileNotFoundError, match="holds no"):
        fingerprint(tmp_path, ("*.bin",))


def _hold(path, inside, leave):
    with RunFolder(path, CONFIG).locked():
        inside.set()
        leave.wait(30)


def test_two_writers_are_refused(tmp_path):
    folder = RunFolder.open(CONFIG, tmp_path / "r")
    context = multiprocessing.get_context("spawn")
    inside, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder.path, inside, leave))
    other.start()
    assert inside.wait(30)
    with pytest.raises(RunFolderError, match=f"in use by process {other.pid}"):
        with folder.locked():
            pass
    leave.set()
    other.join(30)
    with folder.locked():
        pass
