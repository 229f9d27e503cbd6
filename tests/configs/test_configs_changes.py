"""Which settings decide what, how two configurations differ, and which differences an unfinished stage 3 may go on with."""

from __future__ import annotations

from typing import Any

import pytest

from configs.changes import FIXED, SHARED, STAGE_3, changes, config_hash, deciding, listed, of_stage_3
from configs.schema import RunConfig

OFFLOAD = {"offload": True}


def settings(**sections: Any) -> dict[str, Any]:
    return deciding(RunConfig.model_validate(sections))


def test_changes_and_hash_see_every_setting_that_decides_results() -> None:
    one = RunConfig()
    two = one.model_copy(update={"seed": 3, "grpo": one.grpo.model_copy(update={"steps": 4})})
    assert [str(own) for own in changes(deciding(one), deciding(two))] == ["seed: 0 -> 3", "grpo.steps: None -> 4"]
    assert config_hash(one, "grpo") != config_hash(two, "grpo") and config_hash(one, "sft1") != config_hash(two, "sft1")
    moved = RunConfig.model_validate({"root": "elsewhere", "deadlines": {"learner": 9}, "rollout": {"workers": {"max": 3}}})
    assert changes(deciding(one), deciding(moved)) == () and config_hash(one, "grpo") == config_hash(moved, "grpo")


@pytest.mark.parametrize(
    "sections, alone",
    [
        ({"grpo": {"group_size": 8}}, True),
        ({"rollout": {"max_num_seqs": 8}}, True),
        ({"learner": {"optimizer": {"lr": 1e-3}}}, True),
        ({"reward": {"format": 0.5}}, True),
        ({"learner": {"num_gpus": 1}}, False),
        ({"learner": {"threads": 3}}, False),
        ({"sft1": {"epochs": 2}}, False),
        ({"evaluation": {"rows": 9}}, False),
    ],
)
def test_another_stage_is_done_with_whatever_stage_3_alone_reads(sections: dict, alone: bool) -> None:
    one, two = RunConfig(), RunConfig.model_validate(sections)
    assert config_hash(one, "grpo") != config_hash(two, "grpo")
    assert all((config_hash(one, stage) == config_hash(two, stage)) is alone for stage in ("sft1", "coldstart", "data"))


@pytest.mark.parametrize(
    "before, after, obstacle",
    [
        ({"grpo": {"steps": 40}}, {"grpo": {"steps": 60}}, None),
        ({"grpo": {"staleness": 4}}, {"grpo": {"staleness": 0}}, None),
        ({"learner": {"optimizer": {"lr": 1e-6}}}, {"learner": {"optimizer": {"lr": 1e-5}}}, None),
        ({"learner": {"zero_stage": 1, "optimizer": {}}}, {"learner": {"zero_stage": 1, "optimizer": OFFLOAD}}, None),
        ({"reward": {"custom": ["a.py:f"]}}, {"reward": {"custom": ["a.py:f", "b.py:g"]}}, None),
        ({"learner": {"ranks": 1}}, {"learner": {"ranks": 2}}, "divided among the learner's ranks"),
        ({"learner": {"zero_stage": 1}}, {"learner": {"zero_stage": 2}}, "laid out for its ZeRO stage"),
        ({"learner": {"threads": 1}}, {"learner": {"threads": 2}}, "not stage 3 alone"),
        ({"grpo": {"inner_epochs": 1}}, {"grpo": {"inner_epochs": 2}}, "counts optimizer steps"),
        ({"grpo": {"localization_share": 0.1}}, {"grpo": {"localization_share": 0.2}}, "some would be skipped"),
        ({"seed": 0}, {"seed": 1}, "not stage 3 alone"),
        ({"model": {}}, {"model": {"lora": {}}}, "not stage 3 alone"),
    ],
)
def test_what_an_unfinished_stage_3_may_go_on_with(before: dict, after: dict, obstacle: str | None) -> None:
    found = changes(settings(**before), settings(**after))
    assert found and all((obstacle is None) if own.obstacle is None else obstacle in own.obstacle for own in found)


def test_weight_decay_may_change_but_not_come_or_go() -> None:
    none, some, more = (settings(learner={"optimizer": {"weight_decay": decay}}) for decay in (0.0, 0.1, 0.2))
    assert [own.obstacle for own in changes(some, more)] == [None]
    for before, after in ((none, some), (some, none)):
        (found,) = changes(before, after)
        assert "other groups" in str(found.obstacle)


def test_other_prompts_per_step_need_a_number_of_steps() -> None:
    before = settings(grpo={"prompts_per_step": 8})
    (found,) = changes(before, settings(grpo={"prompts_per_step": 4}))
    assert "set grpo.steps" in str(found.obstacle)
    assert [own.obstacle for own in changes(before, settings(grpo={"prompts_per_step": 4, "steps": 30}))] == [None, None]


def test_the_list_says_what_stands_against_each() -> None:
    found = changes(settings(), settings(seed=1, grpo={"steps": 4}))
    assert listed(found) == (
        "  seed: 0 -> 1  (cannot be accepted: not stage 3 alone is made with it)\n  grpo.steps: None -> 4"
    )


def test_what_is_named_exists() -> None:
    assert all(any(key == name or key.startswith(f"{name}.") for key in settings()) for name in (*STAGE_3, *SHARED, *FIXED))
    assert all(of_stage_3(key) for key in FIXED)
