"""How trees become passes: every completion once, the budget, equal ranks, shared pictures together."""

from __future__ import annotations

import random

import pytest

from models.passes import Pass, Slice, TreeSize, plan_passes


def test_trees_stay_whole_and_one_beyond_the_budget_is_cut() -> None:
    trees = [TreeSize(10, (5, 5)), TreeSize(12, (3,)), TreeSize(40, (21, 21, 21, 21))]  # 18, 14 and 120 tokens
    assert plan_passes(trees, 1, 1000) == [[Pass((Slice(0, 0, 2), Slice(1, 0, 1), Slice(2, 0, 4)))]]
    assert plan_passes(trees, 1, 80) == [
        [Pass((Slice(2, 0, 2),)), Pass((Slice(2, 2, 4),)), Pass((Slice(0, 0, 2), Slice(1, 0, 1)))]
    ]
    assert plan_passes([TreeSize(200, (1, 90))], 1, 64) == [[Pass((Slice(0, 1, 2),)), Pass((Slice(0, 0, 1),))]]
    assert plan_passes([], 2, 64) == [[], []]


def test_trees_that_show_the_same_pictures_share_a_pass() -> None:
    views = [("a", "b"), ("c", "d"), ("a", "b"), ("c", "d")]
    plan = plan_passes([TreeSize(30, (11,), media) for media in views], 1, 80)[0]
    assert [sorted(piece.tree for piece in one.slices) for one in plan] == [[0, 2], [1, 3]]


def test_ranks_get_about_the_same() -> None:
    trees = [TreeSize(50, (1 + index,)) for index in range(16)]
    loads = [
        sum(trees[piece.tree].tokens(piece.first, piece.last) for one in plan for piece in one.slices)
        for plan in plan_passes(trees, 4, 10_000)
    ]
    assert max(loads) - min(loads) < 66 and sum(loads) == sum(tree.tokens(0, 1) for tree in trees)


def test_a_rank_without_work_repeats_a_piece_that_does_not_count() -> None:
    plans = plan_passes([TreeSize(5, (2, 2))], 3, 64)
    assert plans == [[Pass((Slice(0, 0, 2),))]] + 2 * [[Pass((Slice(0, 0, 1),), counts=False)]]


@pytest.mark.parametrize("seed", range(40))
def test_every_completion_counts_once_and_ranks_run_equally_often(seed: int) -> None:
    draw = random.Random(seed)
    trees = [
        TreeSize(draw.randint(1, 60), tuple(draw.randint(1, 60) for _ in range(draw.randint(1, 8))), (draw.choice("abc"),))
        for _ in range(draw.randint(1, 12))
    ]
    ranks, budget = draw.randint(1, 4), draw.choice([64, 150, 500])
    plans = plan_passes(trees, ranks, budget)
    assert len({len(plan) for plan in plans}) == 1
    pieces = [[piece for one in plan if one.counts for piece in one.slices] for plan in plans]
    members = [(p.tree, member) for own in pieces for p in own for member in range(p.first, p.last)]
    assert sorted(members) == [(tree, member) for tree, size in enumerate(trees) for member in range(len(size.completions))]
    for one in (one for plan in plans for one in plan):
        tokens = sum(trees[piece.tree].tokens(piece.first, piece.last) for piece in one.slices)
        assert tokens <= budget or len(one.slices) == 1 and one.slices[0].last - one.slices[0].first == 1
