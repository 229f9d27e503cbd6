"""Preflight: everything wrong is found before anything starts, and said with what, where and what to do."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from configs.schema import RunConfig
from launch.data_checks import check_rows, data_problems
from launch.preflight import (
    Capacity,
    attention_problems,
    check,
    hosting_nodes,
    model_problems,
    node_problems,
    remarks,
    resource_problems,
    reward_problems,
    room_remarks,
    stage_demand,
)
from launch.problems import PreflightError
from rewards import worker

TINY_BASE = Path(__file__).resolve().parents[2] / "models" / "tiny_base"
TWO_CPUS = Capacity(2.0, 0.0, "this machine")


def config(**sections) -> RunConfig:
    return RunConfig.model_validate(sections)


@pytest.fixture
def model_folder(tmp_path):
    return shutil.copytree(TINY_BASE, tmp_path / "model")


@pytest.fixture
def data_folder(tmp_path, write_rows):
    folder = tmp_path / "data"
    write_rows(folder, grounding=False)
    for split in ("train", "heldout"):
        (folder / split / "images" / "room").mkdir(parents=True)
        Image.new("RGB", (56, 56)).save(folder / split / "images" / "room" / "f.png")
    return folder


def test_good_inputs_pass(tmp_path, model_folder, data_folder):
    good = config(model={"path": str(model_folder)}, data={"path": str(data_folder)}, stages=["sft2", "grpo"],
                  grpo={"prompts_per_step": 1}, rollout={"max_model_len": 2048})
    check(good, TWO_CPUS, tmp_path / "runs" / "r")
    assert not (tmp_path / "runs").exists()


def test_a_model_without_processor(model_folder):
    (model_folder / "processor_config.json").unlink()
    (problem,) = model_problems(config(model={"path": str(model_folder)}))
    assert "processor_config.json" in problem.what and str(model_folder) in problem.what
    assert problem.where == "model.path" and "processor" in problem.remedy


def test_a_model_whose_processor_cannot_be_read(model_folder, data_folder):
    (model_folder / "tokenizer.json").write_text("{")
    settings = config(model={"path": str(model_folder)}, data={"path": str(data_folder)}, stages=["sft2"])
    (problem,) = [*model_problems(settings), *data_problems(settings)]
    assert "processor" in problem.what and problem.where == "model.path" and problem.remedy.startswith("restore")


def test_stages_without_enough_rows_are_named(data_folder, tmp_path):
    (data_folder / "heldout" / "spld_spatial_data.jsonl").write_text("")
    with pytest.raises(PreflightError) as refused:
        check_rows(config(stages=["sft1", "sft2", "grpo"], grpo={"prompts_per_step": 2}), data_folder, tmp_path / "run")
    told = [(problem.where.rsplit("/", 1)[1], problem.what) for problem in refused.value.problems]
    assert told == [
        ("train", "stage sft1 needs at least 1 localisation rows to train on, there are 0"),
        ("heldout", "stage sft1 has no held-out rows to be measured on"),
        ("heldout", "stage sft2 has no held-out rows to be measured on"),
        ("train", "stage grpo needs at least 2 spatial or localisation rows to train on, there are 1"),
        ("heldout", "stage grpo has no held-out rows to be measured on"),
    ]
    assert "lower grpo.prompts_per_step" in refused.value.problems[3].remedy


def test_rows_of_a_built_folder_too_long_for_the_engine_are_told_before_a_stage(data_folder, model_folder, tmp_path):
    settings = config(model={"path": str(model_folder)}, stages=["grpo"], rollout={"max_model_len": 101},
                      grpo={"prompts_per_step": 1, "sampling": {"max_new_tokens": 100}}, evaluation={"max_new_tokens": 1})
    with pytest.raises(PreflightError) as refused:
        check_rows(settings, data_folder, tmp_path / "run")
    (problem,) = refused.value.problems
    assert problem.where == "rollout.max_model_len" and "row train/spld_spatial_data/0 takes" in problem.what
    assert "no stage was started" in str(refused.value) and str(tmp_path / "run") in str(refused.value)


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
    assert str(picture) in problem.what and problem.where == "data.path"


def test_a_missing_split_and_a_source_without_scene(data_folder, tmp_path):
    shutil.rmtree(data_folder / "heldout")
    (problem,) = data_problems(config(data={"path": str(data_folder)}, stages=["sft2"]))
    assert "heldout" in problem.what and "missing" in problem.what
    shutil.rmtree(data_folder)
    (problem,) = data_problems(config(data={"path": str(data_folder)}, stages=["sft2"]))  # told once, not for every split
    assert problem.what == f"{data_folder} is no folder" and "LADDER_HOME" in problem.remedy
    (problem,) = data_problems(config(data={"source": str(tmp_path)}))
    assert "scene.json" in problem.what
    (problem,) = data_problems(config(data={"source": "a", "path": "b"}))
    assert problem.where == "data.path, data.source"


def test_one_good_scene_is_enough_of_a_source(tmp_path):
    box = {"centroid": [0, 0, 0.5], "axesLengths": [1, 1, 1], "normalizedAxes": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
    good = {"room_size": 16, "room_center": [0, 0, 1], "object_bbox": {"table": [box]}}
    file = tmp_path / "layouts.json"
    settings = config(data={"source": str(file), "source_format": "layouts"})
    file.write_text(json.dumps({"a": {}, "b": good}))
    assert not list(data_problems(settings))
    other = tmp_path / "bad.json"
    other.write_text(json.dumps({"a": {}, "b": good | {"room_size": 0}}))
    (problem,) = data_problems(config(data={"source": str(other), "source_format": "layouts"}))
    assert problem.where == "data.source" and "scene a:" in problem.what and "object_bbox: is missing" in problem.what


def test_a_format_of_scenes_without_their_place_is_refused():
    """Procedural rooms would be built instead."""
    (problem,) = data_problems(config(data={"source_format": "layouts"}))
    assert problem.where == "data.source_format" and "rooms would be drawn" in problem.what and "data.source" in problem.remedy


@pytest.mark.parametrize("listed, words", [
    (None, "heldout.txt cannot be read"), ("c\n", "none of the 1 scenes"), ("a\n", "share"), ("b\n", None),
])
def test_lists_that_do_not_fit_the_source_are_found_before_anything_starts(tmp_path, listed, words):
    box = {"centroid": [0, 0, 0.5], "axesLengths": [1, 1, 1], "normalizedAxes": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
    good = {"room_size": 16, "room_center": [0, 0, 1], "object_bbox": {"table": [box]}}
    (tmp_path / "layouts.json").write_text(json.dumps({"a": good, "b": good}))
    (tmp_path / "train.txt").write_text("a\n")
    if listed is not None:
        (tmp_path / "heldout.txt").write_text(listed)
    lists = {"train_list": str(tmp_path / "train.txt"), "heldout_list": str(tmp_path / "heldout.txt")}
    settings = config(data={"source": str(tmp_path / "layouts.json"), "source_format": "layouts", "build": lists})
    problems = list(data_problems(settings))
    if words is None:
        assert not problems
    else:
        (problem,) = problems
        assert problem.where == "data.build.train_list, data.build.heldout_list" and words in problem.what and problem.remedy


def test_lists_of_scenes_without_a_source_are_found_before_anything_starts():
    (problem,) = data_problems(config(data={"build": {"train_list": "train.txt", "heldout_list": "heldout.txt"}}))
    assert problem.where == "data.build.train_list, data.build.heldout_list" and "rooms are drawn" in problem.what


@pytest.fixture
def coldstart_folder(data_folder):
    """Built for preset `ladder` and a processor that makes 112 x 112 pixels of every square picture, as the tiny base's."""
    row = {"question_id": 5, "image": ["room/f.png"], "data_type": "single_image", "prompt": "How many chairs?",
           "solution": "<think>Two.</think><answer>2</answer>"}
    (data_folder / "train" / "spld_coldstart_data.jsonl").write_text(json.dumps(row) + "\n")
    write_manifest(data_folder, preset="ladder", processed=[112, 112])
    return data_folder


def write_manifest(folder: Path, preset: str, processed: list[int]) -> None:
    names = ("spld_spatial_data.jsonl", "spld_grounding_data.jsonl", "spld_coldstart_data.jsonl")
    counts = {split: {"rows": {name: len((folder / split / name).read_text().splitlines()) for name in names}}
              for split in ("train", "heldout")}
    sizes = [{"original": [56, 56], "processed": processed}]
    manifest = {"config": {"preset": preset}, "processed_sizes": sizes, "counts": counts}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "preset, processed, where, part",
    [
        ("ladder", [112, 112], [], ""),
        ("paper", [112, 112], ["data.preset"], "written for preset 'paper', the run asks for 'ladder'"),
        ("ladder", [56, 56], ["model.path, model.box_frame, data.path"], "in a frame of 56 x 56 (original 56 x 56)"),
    ],
)
def test_coldstart_rows_rendered_for_another_model_or_preset(
    coldstart_folder, model_folder, preset, processed, where, part
):
    write_manifest(coldstart_folder, preset, processed)
    settings = config(model={"path": str(model_folder)}, data={"path": str(coldstart_folder)}, stages=["coldstart"])
    problems = list(data_problems(settings))
    assert [problem.where for problem in problems] == where
    assert all(part in problem.what and "ladder data build" in problem.remedy for problem in problems)
    assert not list(data_problems(settings.model_copy(update={"stages": ("sft2",)})))


def test_coldstart_rows_from_elsewhere_are_not_judged(coldstart_folder, model_folder):
    (coldstart_folder / "manifest.json").unlink()
    settings = config(model={"path": str(model_folder)}, data={"path": str(coldstart_folder)}, stages=["coldstart"])
    assert not list(data_problems(settings))


def test_a_prompt_that_leaves_no_room_for_the_answer(data_folder, model_folder):
    def problems(stage: str, limit: int, answer: int = 10) -> list:
        return list(data_problems(config(
            model={"path": str(model_folder)}, data={"path": str(data_folder)}, stages=[stage],
            rollout={"max_model_len": limit}, evaluation={"max_new_tokens": answer},
            grpo={"prompts_per_step": 1, "sampling": {"max_new_tokens": 100}},
        )))

    (problem,) = problems("grpo", 101)
    assert problem.where == "rollout.max_model_len" and "row train/spld_spatial_data/0 takes" in problem.what
    assert "grpo.sampling.max_new_tokens allows 100 more" in problem.what
    least = int(problem.remedy.split()[3])
    assert not problems("grpo", least) and len(problems("grpo", least - 1)) == 1
    assert not problems("sft2", 100)
    (problem,) = problems("sft2", 100, answer=60)
    assert "row heldout/spld_spatial_data/0" in problem.what and "evaluation.max_new_tokens" in problem.what


def test_rows_with_more_pictures_than_the_engine_takes(data_folder, model_folder):
    path = data_folder / "heldout" / "spld_spatial_data.jsonl"
    row = json.loads(path.read_text()) | {"data_type": "multi_view", "image": ["room/f.png"] * 17}
    path.write_text(json.dumps(row) + "\n")
    (problem,) = data_problems(config(model={"path": str(model_folder)}, data={"path": str(data_folder)}, stages=["sft2"]))
    assert "more than 16 pictures, the most the engine takes in one prompt: 1;" in problem.what
    assert "heldout/spld_spatial_data/0 with 17" in problem.what


@pytest.mark.parametrize(
    "rooms, where",
    [
        ({"views": 16, "objects": [3, 3]}, []),
        ({"views": 17}, ["data.rooms.views"]),
        ({"objects": [5, 4]}, ["data.rooms.objects"]),
        ({"objects": [0, 4]}, ["data.rooms.objects"]),
    ],
)
def test_rooms_that_cannot_be_built_or_asked(rooms, where):
    assert [problem.where for problem in data_problems(config(data={"rooms": rooms}))] == where


@pytest.mark.parametrize("attention, dtype, gpus, count", [
    ("auto", "float32", 0, 0), ("sdpa", "float32", 0, 0), ("flex", "float32", 0, 1), ("flex", "float32", 1, 0),
    ("flash", "bfloat16", 0, 1), ("flash", "float32", 1, 1), ("flash", "bfloat16", 1, 0),
])
def test_attention_that_cannot_train_here(attention, dtype, gpus, count):
    found = [*attention_problems(config(model={"attention": attention, "dtype": dtype}, learner={"num_gpus": gpus}))]
    assert [problem.where for problem in found] == ["model.attention"] * count


def test_rewards_that_load_pass(tmp_path):
    (tmp_path / "mine.py").write_text("print('hello')\ndef brevity(text, row):\n    return 1.0\n")
    assert not list(reward_problems(config(reward={"custom": [f"{tmp_path}/mine.py:brevity"]})))


@pytest.mark.parametrize(
    "source, name, part",
    [
        ("def brevity(text, row): return 1.0", "brevety", "no 'brevety' in the file; its functions: brevity"),
        ("import surely_no_such_package", "brevity", "does not import: ModuleNotFoundError"),
        ("raise SystemExit(0)", "brevity", "exited with code 0"),
        ("import os; os._exit(3)", "brevity", "exited with code 3"),
        ("import time; time.sleep(600)", "brevity", "was not ready within 2 s: was killed"),
    ],
)
def test_a_reward_that_does_not_load(tmp_path, monkeypatch, source, name, part):
    monkeypatch.setattr(worker, "START_SECONDS", 2.0)
    (tmp_path / "mine.py").write_text(source)
    (problem,) = reward_problems(config(reward={"custom": [f"{tmp_path}/mine.py:{name}"]}))
    assert part in problem.what and problem.where == "reward.custom" and f"mine.py:{name}" in problem.remedy


def test_two_rewards_of_one_name(tmp_path):
    for file in ("a", "b"):
        (tmp_path / f"{file}.py").write_text("def brevity(text, row):\n    return 1.0\n")
    custom = [f"{tmp_path}/a.py:brevity", f"{tmp_path}/b.py:brevity"]
    (problem,) = reward_problems(config(reward={"custom": custom}))
    assert "would both report 'brevity'" in problem.what


def node(alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    "rollout_gpus, learner_gpus, nodes, count",
    [
        (0, 0, [node(CPU=4), node(CPU=4)], 2),
        (0, 0, [node(CPU=4), node(CPU=4, alive=False), node()], 1),
        (1, 1, [node(CPU=4), node(CPU=4, GPU=2)], 1),
        (1, 1, [node(CPU=4, GPU=1), node(CPU=4, GPU=1)], 2),
        (1, 0, [node(CPU=4), node(CPU=4, GPU=1)], 2),
    ],
)
def test_nodes_that_could_host_the_last_stage(rollout_gpus, learner_gpus, nodes, count):
    settings = config(rollout={"num_gpus": rollout_gpus}, learner={"num_gpus": learner_gpus})
    assert hosting_nodes(settings, nodes) == count


def test_weights_through_shared_memory_alone_need_one_machine():
    several, memory = Capacity(8.0, 0.0, "the cluster at a:1", nodes=2), {"rollout": {"transport": "memory"}}
    (problem,) = node_problems(config(stages=["sft1", "grpo"], **memory), several)
    assert "the cluster at a:1 has 2 nodes" in problem.what and "shared memory of one machine" in problem.what
    assert problem.where == "rollout.transport" and "leave it at auto" in problem.remedy
    assert not list(node_problems(config(stages=["sft1"], **memory), several))
    assert not list(node_problems(config(stages=["grpo"], **memory), TWO_CPUS))
    assert not list(node_problems(config(stages=["grpo"]), several))


@pytest.mark.parametrize("stage, count", [("coldstart", 1), ("grpo", 1), ("sft2", 0)])
def test_an_evaluation_shorter_than_training_is_remarked(stage, count):
    short = {"evaluation": {"max_new_tokens": 99}, "grpo": {"sampling": {"max_new_tokens": 100}}}
    assert len(list(remarks(config(stages=[stage], **short)))) == count
    assert not list(remarks(config(stages=[stage], **short | {"evaluation": {"max_new_tokens": 100}})))


@pytest.mark.parametrize("dtype, rate, count", [("bfloat16", 1e-6, 1), ("bfloat16", 1e-4, 0), ("float32", 1e-6, 0)])
def test_adapters_too_slow_for_their_type_are_remarked(dtype, rate, count):
    settings = config(model={"dtype": dtype, "lora": {}}, stages=["grpo"], learner={"optimizer": {"lr": rate}})
    assert sum("learner.optimizer.lr" in line for line in remarks(settings)) == count


@pytest.mark.parametrize("place, std, count", [("reward", True, 1), ("reward", False, 0), ("loss", True, 0)])
def test_divergence_that_may_weigh_as_much_as_success_is_remarked(place, std, count):
    settings = config(stages=["grpo"], grpo={"kl": {"place": place}, "std_normalization": std})
    assert sum("spread of its divergence" in line for line in remarks(settings)) == count


@pytest.mark.parametrize("changed, count", [({"model": {"lora": {}}}, 1), ({"grpo": {"kl": {"coef": 0}}}, 1), ({}, 0)])
def test_a_reference_that_is_not_there_is_not_offloaded(changed, count):
    assert sum("offload_reference" in line for line in remarks(config(learner={"offload_reference": True}, **changed))) == count


@pytest.mark.parametrize(
    "source, params, limit, count",
    [
        ("http", {}, 29, 1),  # 10 s and two retries
        ("http", {}, 30, 0),
        ("http", {"timeout_seconds": 2, "retries": 0}, 2, 0),
        ("judge", {"model": "m", "retries": 1}, 59, 1),  # 30 s and one retry
        ("near.py:near", {}, 1, 0),
    ],
)
def test_a_deadline_that_leaves_a_server_no_time_is_remarked(source, params, limit, count):
    reward = {"timeout_seconds": limit, "custom": [{"source": source, "params": params}]}
    assert sum("for a request and its retries" in line for line in remarks(config(reward=reward))) == count


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


def test_a_fleet_starts_with_its_least_and_may_grow_beyond_the_room_there_is():
    growing = config(rollout={"workers": {"min": 2, "max": 3}})
    assert stage_demand(growing, "grpo").cpus == 2 * 0.5 + 0.5 + 0.1 and not list(resource_problems(growing, TWO_CPUS))
    (remark,) = room_remarks(growing, TWO_CPUS)
    assert "rollout.workers.max (3) is more than this machine has room for (2)" in remark
    assert not list(room_remarks(config(rollout={"workers": {"max": 2}}), TWO_CPUS))
    assert not list(room_remarks(config(rollout={"workers": {"max": 99}, "num_cpus": 0}), TWO_CPUS))
    assert not list(room_remarks(config(rollout={"workers": {"max": 99}}, stages=["sft1"]), TWO_CPUS))


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
