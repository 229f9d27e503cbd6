"""The held-out selection: the same rows every time, every kind of question in it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from data.types import Example
from evaluation.selection import allocate, heldout_rows, selection_hash


def _row(name: str, question_type: str, data_type: str = "single_image") -> Example:
    return Example(name, 0, data_type, "?", question_type, ("a.png",), answer="1")


def _split() -> list[Example]:
    rows = [_row(f"h/s/{i}", "object count") for i in range(60)]
    rows += [_row(f"h/s/{i}", "object size", "video") for i in range(60, 90)]
    return rows + [_row(f"h/s/{i}", "room size", "multi_view") for i in range(90, 93)]


def test_the_order_in_which_rows_were_read_does_not_matter():
    rows = _split()
    first = heldout_rows(rows, 31, seed=5)
    random.Random(1).shuffle(rows)
    assert heldout_rows(rows, 31, seed=5) == first
    assert heldout_rows(rows, 31, seed=6) != first


def test_the_selection_is_pinned():
    """A change of the rule would silently change the prompts of every run: these ids are the contract."""
    ids = [row.id for row in heldout_rows(_split(), 4, seed=0)]
    assert ids == ["h/s/21", "h/s/0", "h/s/87", "h/s/92"]
    assert selection_hash(["a", "b"]) == "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
    assert selection_hash(["a", "b"]) != selection_hash(["b", "a"])


def test_strata_keep_their_share():
    chosen = heldout_rows(_split(), 31, seed=5)
    assert Counter(row.question_type for row in chosen) == {"object count": 20, "object size": 10, "room size": 1}
    assert len({row.id for row in chosen}) == 31


def test_a_rare_kind_is_not_forgotten_and_the_total_still_holds():
    sizes = {("a", "x"): 1000, ("b", "x"): 1, ("c", "x"): 1}
    assert allocate(sizes, 10) == {("a", "x"): 8, ("b", "x"): 1, ("c", "x"): 1}
    assert allocate(sizes, 2) == {("a", "x"): 2, ("b", "x"): 0, ("c", "x"): 0}
    assert allocate(sizes, 5000) == sizes


@pytest.mark.parametrize("seed", range(5))
def test_shares_add_up_and_fit(seed):
    rng = random.Random(seed)
    sizes = {(str(i), ""): rng.randint(1, 40) for i in range(rng.randint(1, 20))}
    for n in range(1, sum(sizes.values()) + 3):
        shares = allocate(sizes, n)
        assert sum(shares.values()) == min(n, sum(sizes.values()))
        assert all(0 <= shares[key] <= sizes[key] for key in sizes)


def test_fewer_rows_than_asked_are_all_taken():
    assert len(heldout_rows(_split(), 500, seed=0)) == 93


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        heldout_rows(_split(), 0, seed=0)
    with pytest.raises(ValueError, match="no held-out rows"):
        heldout_rows([], 5, seed=0)
    with pytest.raises(ValueError, match="'h/s/1' occurs twice"):
        heldout_rows([_row("h/s/1", "object count")] * 2, 5, seed=0)
