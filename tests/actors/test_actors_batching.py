"""What the learner is given, and how prompts become steps: pure machines."""

from __future__ import annotations

import pytest

from actors.batching import TrainBatch, TrainGroup
from actors.schedule import PromptSchedule
from configs.schema import GRPOConfig
from data.types import Example, Prompt


def row(index: int, located: bool = False) -> Example:
    return Example(
        id=f"train/{index}",
        question_id=index,
        data_type="single_image",
        question="?",
        question_type="object localization" if located else "object count",
        media=("a.png",),
        answer="1",
    )


def test_a_group_whose_lists_disagree_is_refused() -> None:
    prompt = Prompt(row(1), "think", ())
    with pytest.raises(ValueError, match="train/1: 2 tokens with 1 log-probs"):
        TrainGroup(prompt, (1,), ((2, 3),), ((-0.1,),), (1.0,), (((0, 0),),))
    with pytest.raises(ValueError, match="1 completions, 1 log-prob rows, 2 advantages, versions of 1"):
        TrainGroup(prompt, (1,), ((2,),), ((-0.1,),), (1.0, 2.0), (((0, 0),),))
    for spans in ((), ((1, 0),), ((0, 0), (1, 1))):
        with pytest.raises(ValueError, match="train/1: 1 tokens of the versions"):
            TrainGroup(prompt, (1,), ((2,),), ((-0.1,),), (1.0,), (spans,))


def of_versions(*spans: tuple[tuple[int, int], ...]) -> TrainGroup:
    """Completions of four tokens."""
    count = len(spans)
    return TrainGroup(Prompt(row(1), "think", ()), (1,), ((2,) * 4,) * count, ((-0.1,) * 4,) * count, (1.0,) * count, spans)


def test_every_token_is_of_the_weights_that_drew_it() -> None:
    group = of_versions(((0, 5),), ((0, 3), (1, 4), (3, 5)))
    assert [group.token_versions(member) for member in (0, 1)] == [[5, 5, 5, 5], [3, 4, 4, 5]]
    assert TrainBatch((group, of_versions(((0, 3),))), 3, 12, 5).tokens_by_age() == [5, 2, 5]
    assert TrainBatch((of_versions(((0, 5),)),), 1, 4, 5).tokens_by_age() == [4]
    assert TrainBatch((of_versions(((0, 5),)),), 1, 4, 7).tokens_by_age() == [0, 0, 4]
    with pytest.raises(ValueError, match="tokens of version 5, but the learner's weights are version 4"):
        TrainBatch((group,), 2, 8, 4).tokens_by_age()


def test_the_schedule_meets_the_share_and_repeats_no_row_before_the_others_came() -> None:
    rows = [row(index, located=index < 10) for index in range(40)]
    schedule = PromptSchedule(rows, GRPOConfig(steps=15, prompts_per_step=6, localization_share=0.3), seed=3)
    steps = [schedule.take(6 * step, 6) for step in range(15)]
    assert all(len(step) == 6 for step in steps)
    drawn = [example for step in steps for example in step]
    located = [example.id for example in drawn if example.is_localization]
    others = [example.id for example in drawn if not example.is_localization]
    assert len(located) == 27  # 0.3 of 90
    assert all(abs(sum(e.is_localization for s in steps[:n] for e in s) - 0.3 * 6 * n) <= 1 for n in range(1, 16))
    assert len(set(located[:10])) == len(set(located[10:20])) == 10 and len(set(others[:30])) == 30
    again = PromptSchedule(rows, GRPOConfig(steps=15, prompts_per_step=6, localization_share=0.3), seed=3)
    assert [again.take(6 * step, 6) for step in (14, 2, 7)] == [steps[14], steps[2], steps[7]]
    assert PromptSchedule(rows, GRPOConfig(prompts_per_step=6), seed=4).take(0, 6) != steps[0]


def test_one_kind_of_rows_fills_every_step_and_too_few_rows_are_refused() -> None:
    located = [row(index, located=True) for index in range(8)]
    schedule = PromptSchedule(located, GRPOConfig(prompts_per_step=4), seed=0)
    assert schedule.steps == 2 and {e.id for s in range(2) for e in schedule.take(4 * s, 4)} == {e.id for e in located}
    assert len(PromptSchedule([row(i) for i in range(8)], GRPOConfig(prompts_per_step=4), seed=0).take(20, 4)) == 4
    with pytest.raises(ValueError, match="lower grpo.prompts_per_step"):
        PromptSchedule(located[:3], GRPOConfig(prompts_per_step=4), seed=0)


def test_an_epoch_counts_only_rows_that_can_be_drawn() -> None:
    rows = [row(index, located=index < 10) for index in range(40)]
    assert PromptSchedule(rows, GRPOConfig(prompts_per_step=5, localization_share=0.0), seed=0).steps == 6
    assert PromptSchedule(rows, GRPOConfig(prompts_per_step=5, localization_share=0.3), seed=0).steps == 8


def test_sampling_seeds_differ_by_step_and_place_and_leave_room_for_the_group() -> None:
    schedule = PromptSchedule([row(index) for index in range(8)], GRPOConfig(prompts_per_step=4), seed=0)
    seeds = {schedule.sampling_seed(step, place) for step in range(5) for place in range(8)}
    assert len(seeds) == 40 and max(seeds) < 1 << 30
