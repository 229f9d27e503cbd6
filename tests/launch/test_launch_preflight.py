"""Preflight: everything wrong is found before anything starts, and said with what, where and what to do."""

import json
import shutil

import pytest
from PIL import Image

from configs.schema import RunConfig
from launch.preflight import (
    Capacity,
    PreflightError,
    check,
    check_rows,
    data_problems,
    model_problems,
    resource_problems,
    stage_demand,
)

TWO_CPUS = Capacity(2.0, 0.0, "this machine")


def config(**sections) -> RunConfig:
    return RunConfig.model_validate(sections)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    return folder


@pytest.fixture
def data_folder(tmp_path):
    folder = tmp_path / "data"
    for split in ("train", "heldout"):
        (folder / split / "images" / "room").mkdir(parents=True)
        Image.new("RGB", (56, 56)).save(folder / split / "images" / "room" / "f.png")
        row = {
            "question_id": 0,
            "image": ["room/f.png"],
            "data_type": "single_image",
            "question": "How many chairs are there?",
            "options": None,
            "answer": "2",
            "question_type": "object count",
        }
        (folder / split / "spld_spatial_data.jsonl").write_text(json.dumps(row) + "\n")
        for name in ("spld_grounding_data.jsonl", "spld_coldstart_data.jsonl"):
            (folder / split / name).write_text("")
    return folder


def test_good_inputs_pass(tmp_path, model_folder, data_folder):
    good = config(model={"path": str(model_folder)}, data={"path": str(data_folder)}, stages=["sft2", "grpo"],
                  grpo={"prompts_per_step": 1})
    check(good, TWO_CPUS, tmp_path / "runs" / "r")
    assert not (tmp_path / "runs").exists()


def test_a_model_without_processor(model_folder):
    (model_folder / "processor_config.json").unlink()
    (problem,) = model_problems(config(model={"path": str(model_folder)}))
    assert "processor_config.json" in problem.what and str(model_folder) in problem.what
    assert problem.where == "model.path" and "processor" in problem.remedy


def test_stages_without_enough_rows_are_named(data_folder):
    (data_folder / "heldout" / "spld_spatial_data.jsonl").write_text("")
    with pytest.raises(PreflightError) as refused:
        check_rows(config(stages=["sft1", "sft2", "grpo"], grpo={"prompts_per_step": 2}), data_folder)
    told = [(problem.where.rsplit("/", 1)[1], problem.what) for problem in refused.value.problems]
    assert told == [
        ("train", "stage sft1 needs at least 1 localisation rows to train on, there are 0"),
        ("heldout", "stage sft1 has no held-out rows to be measured on"),
        ("heldout", "stage sft2 has no held-out rows to be measured on"),
        ("train", "stage grpo needs at least 2 spatial or localisation rows to train on, there are 1"),
        ("heldout", "stage grpo has no held-out rows to be measured on"),
    ]
    assert "lower grpo.prompts_per_step" in refused.value.problems[3].remedy


def test_a_row_that_breaks_the_schema_is_named_by_file_line_and_field(data_folder):
    path = data_folder / "train" / "spld_spatial_data.jsonl"
    row = json.loads(path.read_text())
    path.write_text(path.read_text() + json.dumps(row | {"question_id": 1, "question_type": "object colour"}) + "\n")
    (problem,) = data_problems(config(data={"path": str(data_folder)}, stages=["sft2"]))
    assert str(path) in problem.what and "line 2" in problem.what and "question_type" in problem.what
    assert problem.where == "data.path, train/"


@pytest.mark.parametrize("damage", ["missing", "unreadable"])
def test_a_picture_that_cannot_be_used(data_folder, damage):
    picture = data_folder / "heldout" / "images" / "room" / "f.png"
    if damage == "missing":
        picture.unlink()
    else:
        picture.write_bytes(picture.read_bytes()[:40])
    (problem,) = data_problems(config(data={"path": str(data_folder)}, stages=["sft2"]))
    assert str(picture) in problem.what and problem.where == "data.path, heldout/"


def test_a_missing_split_and_a_source_without_scene(data_folder, tmp_path):
    shutil.rmtree(data_folder / "heldout")
    (problem,) = data_problems(config(data={"path": str(data_folder)}, stages=["sft2"]))
    assert "heldout" in problem.what and "missing" in problem.what
    (problem,) = data_problems(config(data={"source": str(tmp_path)}))
    assert "scene.json" in problem.what
    (problem,) = data_problems(config(data={"source": "a", "path": "b"}))
    assert problem.where == "data.path, data.source"


def test_demand_is_the_sum_of_what_runs_at_the_same_time():
    settings = config(
        rollout={"workers": 3, "num_cpus": 0.5},
        learner={"ranks": 2, "num_cpus": 1.5, "num_gpus": 1},
        reward={"num_cpus": 0.25},
    )
    demand = stage_demand(settings, "grpo")
    assert (demand.cpus, demand.gpus) == (3 * 0.5 + 2 * 1.5 + 0.25, 2)
    assert stage_demand(config(sft1={"ranks": 4}), "sft1").cpus == 4


@pytest.mark.parametrize("workers, most", [(4, 2), (3, 2)])
def test_more_workers_than_fit(workers, most):
    # 2 CPUs - 0.5 (learner) - 0.1 (reward) leave 1.4: two workers of 0.5
    (problem,) = resource_problems(config(rollout={"workers": workers}), TWO_CPUS)
    assert f"needs {workers * 0.5 + 0.6:g} CPUs" in problem.what and "this machine has 2" in problem.what
    assert problem.where == "rollout.workers, learner.ranks" and f"rollout.workers={most} fit" in problem.remedy


def test_as_many_as_fit_are_allowed():
    assert not list(resource_problems(config(rollout={"workers": 2}), TWO_CPUS))


def test_gpus_wanted_but_none():
    (problem,) = resource_problems(config(rollout={"num_gpus": 1}), TWO_CPUS)
    assert "needs 1 GPUs" in problem.what and "rollout.num_gpus" in problem.remedy


def test_all_problems_in_one_message(tmp_path):
    settings = config(
        model={"path": str(tmp_path / "none")},
        data={"source": str(tmp_path)},
        rollout={"workers": 9},
        sft1={"ranks": 3},
    )
    with pytest.raises(PreflightError) as caught:
        check(settings, TWO_CPUS, tmp_path / "r")
    assert [problem.where for problem in caught.value.problems] == [
        "model.path",
        "data.source",
        "sft1.ranks",
        "rollout.workers, learner.ranks",
    ]
    assert str(caught.value).startswith("nothing was started, 4 problems:")
    assert str(caught.value).count("->") == 4
