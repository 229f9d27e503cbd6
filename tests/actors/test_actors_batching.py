"""How groups become passes, and prompts become steps: pure machines."""

from __future__ import annotations

import random

import pytest

from actors.batching import Pass, Slice, TrainGroup, plan_passes
from actors.ledger import PromptSchedule
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


def test_groups_stay_whole_and_a_group_beyond_the_budget_is_cut() -> None:
    lengths = [[10] * 4, [12] * 4, [40] * 4]
    assert plan_passes(lengths, 1, 1000) == [[Pass((Slice(0, 0, 4), Slice(1, 0, 4), Slice(2, 0, 4)))]]
    assert plan_passes(lengths, 1, 96) == [
        [Pass((Slice(0, 0, 4), Slice(1, 0, 4))), Pass((Slice(2, 0, 2),)), Pass((Slice(2, 2, 4),))]
    ]
    assert plan_passes([[200, 300]], 1, 64) == [[Pass((Slice(0, 0, 1),)), Pass((Slice(0, 1, 2),))]]
    assert plan_passes([], 2, 64) == [[], []]


@pytest.mark.parametrize("seed", range(20))
def test_every_member_counts_once_and_ranks_run_equally_often(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [[draw.randint(5, 60) for _ in range(draw.randint(1, 8))] for _ in range(draw.randint(1, 12))]
    ranks, budget = draw.randint(1, 4), draw.choice([64, 150, 500])
    plans = plan_passes(lengths, ranks, budget)
    assert len({len(plan) for plan in plans}) == 1
    members = [
        (piece.group, member)
        for plan in plans
        for one in plan
        if one.counts
        for piece in one.slices
        for member in range(piece.first, piece.last)
    ]
    assert sorted(members) == [(group, member) for group, rows in enumerate(lengths) for member in range(len(rows))]
    for one in (one for plan in plans for one in plan):
        rows = [lengths[piece.group][member] for piece in one.slices for member in range(piece.first, piece.last)]
        assert len(rows) == 1 or len(rows) * max(rows) <= budget


def test_a_group_whose_lists_disagree_is_refused() -> None:
    prompt = Prompt(row(1), "think", ())
    with pytest.raises(ValueError, match="train/1: 2 tokens with 1 log-probs"):
        TrainGroup(prompt, (1,), ((2, 3),), ((-0.1,),), (1.0,))
    with pytest.raises(ValueError, match="1 completions, 1 log-prob rows, 2 advantages"):
        TrainGroup(prompt, (1,), ((2,),), ((-0.1,),), (1.0, 2.0))


def test_the_schedule_meets_the_share_and_repeats_no_row_before_the_others_came() -> None:
    rows = [row(index, located=index < 10) for index in range(40)]
    schedule = PromptSchedule(rows, GRPOConfig(steps=15, prompts_per_step=6, localization_share=0.3), seed=3)
    steps = [schedule.take(step) for step in range(15)]
    assert all(len(step) == 6 for step in steps)
    drawn = [example for step in steps for example in step]
    located = [example.id for example in drawn if example.is_localization]
    others = [example.id for example in drawn if not example.is_localization]
    assert len(located) == 27  # 0.3 of 90
    assert all(abs(sum(e.is_localization for s in steps[:n] for e in s) - 0.3 * 6 * n) <= 1 for n in range(1, 16))
    assert len(set(located[:10])) == len(set(located[10:20])) == 10 and len(set(others[:30])) == 30
    again = PromptSchedule(rows, GRPOConfig(steps=15, prompts_per_step=6, localization_share=0.3), seed=3)
    assert [again.take(step) for step in (14, 2, 7)] == [steps[14], steps[2], steps[7]]
    assert PromptSchedule(rows, GRPOConfig(prompts_per_step=6), seed=4).take(0) != steps[0]


def test_one_kind_of_rows_fills_every_step_and_too_few_rows_are_refused() -> None:
    located = [row(index, located=True) for index in range(8)]
    schedule = PromptSchedule(located, GRPOConfig(prompts_per_step=4), seed=0)
    assert schedule.steps == 2 and {e.id for s in range(2) for e in schedule.take(s)} == {e.id for e in located}
    assert len(PromptSchedule([row(i) for i in range(8)], GRPOConfig(prompts_per_step=4), seed=0).take(5)) == 4
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
