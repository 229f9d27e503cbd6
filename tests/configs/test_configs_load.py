"""Configurations: what is read, and how every mistake is named."""

from pathlib import Path

import pytest

from configs.load import ConfigError, effective_yaml, load_config, nearest_key, valid_keys
from configs.schema import RunConfig

PRESETS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, overrides=()) -> list:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return list(caught.value.problems)


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "# nothing\n")) == RunConfig()


def test_values_types_and_anchors(tmp_path):
    text = "name: a\ndata: {rooms: {objects: [3, 5]}}\n"
    text += "sft1: &s {epochs: 2, optimizer: {lr: 1e-4, betas: [0.9, 1E-1]}}\nsft2: *s\n"
    config = load_config(write(tmp_path, text))
    assert config.data.rooms.objects == (3, 5)
    assert config.sft2.epochs == 2.0 and isinstance(config.sft2.epochs, float)
    assert config.sft2.optimizer.lr == 1e-4 and config.sft1.optimizer.betas == (0.9, 0.1)


def test_base_chain_and_overrides_win_in_order(tmp_path):
    write(tmp_path, "seed: 1\ngrpo: {steps: 5, group_size: 8}\n", "first.yaml")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "base: ../first.yaml\nseed: 2\ngrpo: {steps: 6}\n", "second.yaml")
    path = write(tmp_path, "base: sub/second.yaml\nname: top\n")
    config = load_config(path, ["grpo.steps=7", "grpo.steps=8", "stages=[sft1, grpo]", "data.path=null"])
    assert (config.seed, config.grpo.steps, config.grpo.group_size, config.name) == (2, 8, 8, "top")
    assert config.stages == ("sft1", "grpo") and config.data.path is None


@pytest.mark.parametrize(
    "text, where, key, reason, nearest",
    [
        ("sft1:\n  epoch: 3\n", "c.yaml:2", "sft1.epoch", "unknown key", "sft1.epochs"),
        ("sft1:\n  lr: 0.1\n", "c.yaml:2", "sft1.lr", "unknown key", "sft1.optimizer.lr"),
        (
            "sft1: {optimizer: {learning_rate: 1}}\n",
            "c.yaml:1",
            "sft1.optimizer.learning_rate",
            "unknown key",
            "sft1.optimizer.lr",
        ),
        ("qwertyuiop: 1\n", "c.yaml:1", "qwertyuiop", "unknown key", None),
        ("\nseed: '3'\n", "c.yaml:2", "seed", 'valid integer, got the text "3"', None),
        ("seed: 1.5\n", "c.yaml:1", "seed", "valid integer", None),
        ("seed: true\n", "c.yaml:1", "seed", "valid integer, got the truth value true", None),
        ("seed:\n", "c.yaml:1", "seed", "got an empty value", None),
        ("grpo: {group_size: 1}\n", "c.yaml:1", "grpo.group_size", "greater than or equal to 2", None),
        ("grpo: {objective: {clip_low: .nan}}\n", "c.yaml:1", "grpo.objective.clip_low", "finite number", None),
        ("learner: {optimizer: {lr: .inf}}\n", "c.yaml:1", "learner.optimizer.lr", "finite number", None),
        ("sft1: {optimizer: {schedule: cosin}}\n", "c.yaml:1", "sft1.optimizer.schedule", "'cosine'", "cosine"),
        ("stages: [sft1, grop]\n", "c.yaml:1", "stages.1", "'grpo'", "grpo"),
        ("stages: [grpo, sft1]\n", "c.yaml:1", "stages", "in that order", None),
        ("stages: []\n", "c.yaml:1", "stages", "non-empty", None),
        ("sft1: 3\n", "c.yaml:1", "sft1", "got the number 3", None),
        ("name: ../x\n", "c.yaml:1", "name", "pattern", None),
        ("seed: 1\nname: a\nseed: 2\n", "c.yaml:3", "seed", "written twice (first in", None),
        ("seed: 1\n name: [\n", "c.yaml:2", "", "not valid YAML", None),
        ("- a\n- b\n", "c.yaml", "", "holds a list", None),
        ("base: 3\n", "c.yaml:1", "base", "path of another configuration", None),
        ("base: c.yaml\n", "c.yaml:1", "base", "circle", None),
    ],
)
def test_one_mistake(tmp_path, text, where, key, reason, nearest):
    found = problems(write(tmp_path, text))
    assert len(found) == 1
    assert found[0].where == str(tmp_path / where) and found[0].key == key and found[0].nearest == nearest
    assert reason in found[0].reason


@pytest.mark.parametrize(
    "override, key, reason, nearest",
    [
        ("grpo.grop_size=3", "grpo.grop_size", "unknown key", "grpo.group_size"),
        ("grpo.group_size=x", "grpo.group_size", "valid integer", None),
        ("model.lora.rnk=3", "model.lora.rnk", "unknown key", "model.lora.rank"),
        ("model.lora=true", "model.lora", "must be a section like {rank: 16, alpha: 32.0}, got the truth value", None),
        ("grpo.sampling.max_new_tokens=4096", "grpo.sampling.max_new_tokens", "4096 tokens leave no room", None),
        ("seed.x=3", "seed.x", "seed is a single value", None),
        ("seed", "", "key=value", None),
        ("a b=1", "", "key=value", None),
        ("seed=[1", "seed", "not valid YAML", None),
    ],
)
def test_one_bad_override(tmp_path, override, key, reason, nearest):
    found = problems(write(tmp_path, "seed: 1\n"), [override])
    assert [(p.where, p.key, p.nearest) for p in found] == [(f"--set {override}", key, nearest)]
    assert reason in found[0].reason


def test_an_override_within_a_list_says_how_to_give_it(tmp_path):
    path = write(tmp_path, "reward: {custom: [near.py:near]}\n")
    (found,) = problems(path, ["reward.custom.0.weight=2"])
    assert found.reason == "reward.custom is a list: give the whole of it, --set 'reward.custom=[…]'"
    config = load_config(path, ["reward.custom=[{source: near.py:near, weight: 2}]", "reward.accept_changed=true"])
    assert config.reward.custom[0].weight == 2.0 and config.reward.accept_changed


def test_all_mistakes_in_one_message_each_with_its_own_file(tmp_path):
    write(tmp_path, "seed: -1\n", "low.yaml")
    path = write(tmp_path, "base: low.yaml\nnam: x\nrollout: {workers: 0}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["grpo.steps=0"])
    message = str(caught.value)
    assert message.startswith("configuration refused, 4 problems:")
    for part in (
        "low.yaml:1: seed:",
        "c.yaml:2: nam: unknown key (did you mean name?)",
        "c.yaml:3: rollout.workers:",
        "--set grpo.steps=0: grpo.steps:",
    ):
        assert part in message


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path, "seed: 1\n", "tiny.yaml")
    (found,) = problems(tmp_path / "tny.yaml")
    assert "No such file" in found.reason and found.nearest == str(tmp_path / "tiny.yaml")


def test_a_section_refused_for_an_override_names_the_override(tmp_path):
    path = write(tmp_path, "learner: {optimizer: {lr: 1e-4}}\nmodel: {lora: null}\n")
    (offload,) = problems(path, ["seed=3", "learner.optimizer.offload=true"])
    assert (offload.where, offload.key) == ("--set learner.optimizer.offload=true", "learner")
    (unknown,) = problems(path, ["lora.rank=3"])
    assert (unknown.where, unknown.key) == ("--set lora.rank=3", "lora")
    assert load_config(path, ["model.lora.rank=8"]).model.lora.rank == 8  # null is a section that is not there


def test_sections_in_a_list_are_named_by_their_place(tmp_path):
    path = write(tmp_path, """reward:
  custom:
    - my.py:brevity
    - {source: b.py:c, wieght: 2.0}
    - source: http
      weight: "2"
    - 3
""")
    unknown, text, number = problems(path)
    assert (unknown.where, unknown.key, unknown.nearest) == (f"{path}:4", "reward.custom.1.wieght", "reward.custom.1.weight")
    assert (text.where, text.key) == (f"{path}:6", "reward.custom.2.weight")
    assert (number.key, number.reason) == ("reward.custom.3", "must be a section, got the number 3")
    (first, second) = load_config(path, ["reward.custom=[my.py:brevity, {source: http, params: {url: x}}]"]).reward.custom
    assert (first.source, first.weight, second.params) == ("my.py:brevity", 1.0, {"url": "x"})
    (missing,) = problems(path, ["reward.custom=[{weight: 2.0}]"])
    assert missing.key == "reward.custom.0.source" and "required" in missing.reason


def test_not_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"seed: \xff\n")
    assert "UTF-8" in problems(tmp_path / "c.yaml")[0].reason


def test_effective_yaml_reads_back_to_the_same_object(tmp_path):
    config = load_config(write(tmp_path, "name: n\nreward: {custom: ['a/b.py:f']}\nlearner: {optimizer: {lr: 1e-7}}\n"))
    assert load_config(write(tmp_path, effective_yaml(config), "effective.yaml")) == config
    assert effective_yaml(config).splitlines()[0] == "name: n"


@pytest.mark.parametrize(
    "written, overrides, least, most",
    [
        ("3", [], 3, 3),
        ("{min: 2, max: 5}", [], 2, 5),
        ("{max: 5}", [], 1, 5),
        ("{min: 2, max: 5}", ["rollout.workers.max=4"], 2, 4),
        ("null", ["rollout.workers.max=4"], 1, 4),
        ("3", ["rollout.workers={min: 2, max: 4}"], 2, 4),
        ("{min: 2, max: 5}", ["rollout.workers=1"], 1, 1),
    ],
)
def test_a_number_of_workers_or_a_range_of_them(tmp_path, written, overrides, least, most):
    config = load_config(write(tmp_path, f"rollout: {{workers: {written}}}\n"), overrides)
    workers = config.rollout.workers
    assert (workers.min, workers.max, workers.fixed) == (least, most, least == most)
    assert load_config(write(tmp_path, effective_yaml(config), "effective.yaml")) == config
    assert (f"workers: {least}\n" in effective_yaml(config)) == workers.fixed


@pytest.mark.parametrize(
    "written, key, reason, nearest",
    [
        ("0", "rollout.workers", "must be at least 1, got 0", None),
        ("two", "rollout.workers", "must be a number of workers, or a section like {min: 1, max: 4}, got 'two'", None),
        ("true", "rollout.workers", "must be a number of workers, or a section like {min: 1, max: 4}, got True", None),
        ("{min: 3, max: 2}", "rollout.workers", "min 3 is more than max 2", None),
        ("{min: 0, max: 2}", "rollout.workers.min", "input should be greater than or equal to 1, got the number 0", None),
        ("{min: 1}", "rollout.workers.max", "field required", None),
        ("{mn: 1, max: 2}", "rollout.workers.mn", "unknown key", "rollout.workers.min"),
    ],
)
def test_a_wrong_number_of_workers(tmp_path, written, key, reason, nearest):
    (found,) = problems(write(tmp_path, f"seed: 1\nrollout:\n  workers: {written}\n"))
    assert (found.where, found.key, found.nearest) == (f"{tmp_path / 'c.yaml'}:3", key, nearest)
    assert found.reason.startswith(reason)


def test_a_buffer_longer_than_a_completion_is_refused():
    with pytest.raises(ValueError, match="overlong_buffer 65 is more than sampling.max_new_tokens 64"):
        RunConfig.model_validate({"grpo": {"overlong_buffer": 65, "sampling": {"max_new_tokens": 64}}})


def test_every_valid_key_is_its_own_nearest():
    keys = list(valid_keys())
    assert "sft1.optimizer.betas" in keys and len(keys) == len(set(keys))
    assert all(nearest_key(key) == key for key in keys)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_presets_load(path):
    assert load_config(path).name


def test_the_paper_preset_has_the_papers_values():
    """Learning rates, schedules, ZeRO stage, precision, G, beta, eps, temperature, length."""
    config = load_config(next(path for path in PRESETS if path.name == "spatialladder-3b.yaml"))
    for stage in (config.sft1, config.sft2, config.coldstart):
        assert (stage.optimizer.lr, stage.optimizer.schedule, stage.optimizer.warmup_ratio) == (1e-5, "cosine", 0.1)
        assert (stage.batch_size, stage.zero_stage, stage.gradient_checkpointing, stage.epochs) == (16, 3, True, 1.0)
    assert (config.learner.optimizer.lr, config.learner.optimizer.schedule, config.learner.optimizer.warmup_ratio) == (
        1e-6,
        "linear",
        0.0,
    )
    grpo = config.grpo
    assert (grpo.group_size, grpo.prompts_per_step, grpo.kl.coef, grpo.objective.clip_low, grpo.objective.clip_high) == (
        4,
        8,
        0.01,
        0.2,
        0.2,
    )
    assert (grpo.sampling.temperature, grpo.sampling.max_new_tokens) == (1.0, 1024)
    assert (config.reward.format, config.reward.answer, config.reward.iou) == (1.0, 1.0, 0.0)
    assert config.model.dtype == "bfloat16" and config.data.preset == "paper"
