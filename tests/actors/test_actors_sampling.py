"""A step's rounds of prompts, with a stand-in for the actors that answers at once and says what it was asked."""

from __future__ import annotations

import pytest

from actors.rollouts import Collected
from actors.sampling import GrpoFailed, Sampled, Stopwatch, sample_step
from actors.types import Completion, Generation, Group, PromptTask
from configs.schema import GRPOConfig, KLConfig, RewardConfig, RunConfig
from data.types import Example, Prompt
from rewards.outcome import Score


class Results:
    """Of a learner's call that is done."""

    def __init__(self, result) -> None:
        self.result = result

    def done(self) -> bool:
        return True

    def results(self) -> list:
        return [self.result]


class Actors:
    """Rollouts and learners of a step that begins at position `first`. Scores by position: `spread` groups have a good and a
    bad member, the others two equal ones, `broken` fail in one, `dropped` are never answered."""

    def __init__(self, spread: set[int], broken=frozenset(), dropped=frozenset(), first: int = 0, count: int = 4) -> None:
        self.spread, self.broken, self.dropped, self.first = spread, broken, dropped, first
        self.places = count  # asked for when the step was admitted
        self.rounds: list[int] = []
        self.penalised: list[list[int]] = []

    def asked(self, step: int) -> int:
        return self.places

    def ask(self, step: int, count: int) -> None:
        self.places += count
        self.rounds.append(count)

    def collect(self, step: int, place: int, arrived) -> Collected:
        groups = [self.group(self.first + own) for own in range(place, self.places) if self.first + own not in self.dropped]
        for group in groups:
            arrived(group.scores)
        tasks = tuple(PromptTask(group.prompt, None, None) for group in groups)
        return Collected(tasks, tuple(groups), ("three workers died on it",) * (self.places - place - len(groups)), 0.0)

    def group(self, position: int) -> Group:
        row = Example(f"row/{position}", position, "single_image", "?", "object count", ("a.png",), None, "2")
        completions = (Completion((3, 2), (-1.0, -0.5), "text", "stop"), Completion((4,), (-1.0,), "text", "stop"))
        good, bad = Score("ok", {"format": 1.0}, 1.0), Score("ok", {"format": 0.0}, 0.0)
        second = Score("error", detail="x") if position in self.broken else bad if position in self.spread else good
        return Group(Prompt(row, "think", ()), Generation(row.id, (7, 8), completions, 0, "w0", 0.1), (good, second))

    def meanwhile(self, pending: Results) -> list:
        return pending.results()

    def penalties(self, groups) -> Results:
        self.penalised.append([group.prompt.example.question_id for group in groups])
        return Results([[0.25 * (member + 1) for member in range(len(group.advantages))] for group in groups])


def sampled_by(actors: Actors, config: RunConfig) -> Sampled:
    return sample_step(actors, actors, config, 2, Stopwatch())


def config(rounds: int = 1, place: str = "loss", allowed: float = 0.2) -> RunConfig:
    grpo = GRPOConfig(prompts_per_step=4, group_size=2, sampling_rounds=rounds, kl=KLConfig(coef=0.5, place=place))
    return RunConfig(grpo=grpo, reward=RewardConfig(max_failed_share=allowed))


def test_one_round_takes_what_comes() -> None:
    actors = Actors(spread={11}, first=10)
    sampled = sampled_by(actors, config())
    assert actors.rounds == []
    assert [own.outcome for own in sampled.advantages] == ["zero_variance", "signal", "zero_variance", "zero_variance"]


def test_groups_without_spread_are_replaced_until_enough_have_it_or_the_rounds_are_over() -> None:
    actors = Actors(spread={10, 12, 15, 16}, first=10)
    sampled = sampled_by(actors, config(rounds=5))
    assert actors.rounds == [2, 1]
    assert [task.prompt.example.question_id for task in sampled.tasks] == list(range(10, 17))
    assert [own.outcome for own in sampled.advantages].count("signal") == 4
    actors = Actors(spread={10}, first=10)
    assert len(sampled_by(actors, config(rounds=2)).groups) == 7 and actors.rounds == [3]


def test_what_a_resumed_step_had_asked_for_before_is_its_first_round() -> None:
    actors = Actors(spread={0, 1, 2, 5}, count=6)
    assert len(sampled_by(actors, config(rounds=3)).groups) == 6 and actors.rounds == []


def test_failures_are_a_share_of_the_whole_step() -> None:
    """One of the two members that the second round asked for fails: half of the round, a tenth of the step."""
    sampled = sampled_by(Actors({0, 1, 2}, broken={4}), config(rounds=2, allowed=0.15))
    assert len(sampled.groups) == 5
    with pytest.raises(GrpoFailed, match="1 of the 8 completions"):
        sampled_by(Actors({0}, broken={1}), config(allowed=0.1))


def test_a_dropped_prompt_counts_as_failed_completions_and_is_in_no_group() -> None:
    sampled = sampled_by(Actors({0}, dropped={1}), config(allowed=0.25))
    assert [group.prompt.example.question_id for group in sampled.groups] == [0, 2, 3]
    with pytest.raises(GrpoFailed, match="2 of the 8 completions.*error: three workers died on it"):
        sampled_by(Actors({0}, dropped={1}), config(allowed=0.2))


def test_divergence_taken_off_the_rewards_is_of_the_members_that_have_one() -> None:
    actors = Actors(spread={0}, broken={1})
    sampled = sampled_by(actors, config(place="reward"))
    assert actors.penalised == [[0, 1, 2, 3]]
    assert sampled.rewards == [(0.75, -0.5), (0.75, None), (0.75, 0.5), (0.75, 0.5)]
    # Penalties are beta times the divergence: 0.75, 0.25, 0.75, 0.75 in all, over 3 + 2 + 3 + 3 tokens.
    assert (sampled.kl_sum, sampled.kl_tokens) == (pytest.approx(2.5 / 0.5), 11)


def test_laps_of_one_name_add_up() -> None:
    watch = Stopwatch()
    watch.lap("generate")
    first = watch.seconds["generate"]
    watch.lap("generate")
    assert watch.seconds["generate"] > first and list(watch.seconds) == ["generate"]
    watch.lap("generate", but={"reward": 5.0})
    assert watch.seconds["reward"] == 5.0 and watch.seconds["generate"] < first + 1
