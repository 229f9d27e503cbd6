"""How many prompts a round asks for, and which groups stay."""

from grpo.dynamic_sampling import groups_to_keep, prompts_to_ask


def test_a_round_asks_for_what_lacks_a_signal_until_there_are_no_rounds_left() -> None:
    assert prompts_to_ask([], 0, 4, 3) == 4
    first = ["signal", "zero_variance", "too_few_valid", "signal"]
    assert prompts_to_ask(first, 1, 4, 3) == 2
    assert prompts_to_ask([*first, "signal", "signal"], 2, 4, 3) == 0
    assert prompts_to_ask([*first, "signal", "zero_variance"], 3, 4, 3) == 0


def test_without_replacement_every_group_stays() -> None:
    outcomes = ["zero_variance", "signal", "too_few_valid"]
    assert groups_to_keep(outcomes, 1) == [0, 1, 2]
    assert groups_to_keep(outcomes, 2) == [1]
