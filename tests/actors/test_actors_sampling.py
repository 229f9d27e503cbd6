"""A step's rounds of prompts, with a stand-in for the actors that answers at once and says what it was asked."""

from __future__ import annotations

import pytest

from actors.sampling import GrpoFailed, Stopwatch, sample_step
from actors.stage import PromptTask, Rollouts
from actors.types import Completion, Generation, Group
from configs.schema import GRPOConfig, KLConfig, RewardConfig, RunConfig
from data.types import Example, Prompt
from rewards.outcome import Score


class Tasks:
    """Hands out places of the schedule as tasks; remembers what was taken."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int, int]] = []

    def take(self, step: int, first: int, asked: int, count: int) -> tuple[PromptTask, ...]:
        self.taken.append((step, first, asked, count))
        row = lambda place: Example(f"row/{place}", place, "single_image", "?", "object count", ("a.png",), None, "2")
        return tuple(PromptTask(Prompt(row(first + asked + i), "think", ()), None, None) for i in range(count))


class Actors:
    """Scores by place: `spread` groups have a good and a bad member, the others two equal ones, `broken` fail."""

    def __init__(self, spread: set[int], broken: set[int] = frozenset()) -> None:
        self.spread, self.broken = spread, broken
        self.penalised: list[list[int]] = []

    def roll_out(self, tasks) -> Rollouts:
        completions = (Completion((3, 2), (-1.0, -0.5), "text", "stop"), Completion((4,), (-1.0,), "text", "stop"))
        generations = tuple(Generation(task.prompt.example.id, (7, 8), completions, 0, "w0", 0.1) for task in tasks)
        return Rollouts(tasks, generations, ())

    def score(self, rollouts: Rollouts, arrived) -> tuple[Group, ...]:
        groups = []
        for task, generation in zip(rollouts.tasks, rollouts.generations, strict=True):
            place = task.prompt.example.question_id
            good, bad = Score("ok", {"format": 1.0}, 1.0), Score("ok", {"format": 0.0}, 0.0)
            second = Score("error", detail="x") if place in self.broken else bad if place in self.spread else good
            groups.append(Group(task.prompt, generation, (good, second)))
            arrived(groups[-1].scores)
        return tuple(groups)

    def penalties(self, groups) -> list[list[float]]:
        self.penalised.append([group.prompt.example.question_id for group in groups])
        return [[0.25 * (member + 1) for member in range(len(group.advantages))] for group in groups]


def config(rounds: int = 1, place: str = "loss", allowed: float = 0.2) -> RunConfig:
    grpo = GRPOConfig(prompts_per_step=4, group_size=2, sampling_rounds=rounds, kl=KLConfig(coef=0.5, place=place))
    return RunConfig(grpo=grpo, reward=RewardConfig(max_failed_share=allowed))


def test_one_round_takes_what_comes() -> None:
    tasks = Tasks()
    sampled = sample_step(Actors(spread={11}), tasks, config(), 2, 10, Stopwatch())
    assert tasks.taken == [(2, 10, 0, 4)]
    assert [own.outcome for own in sampled.advantages] == ["zero_variance", "signal", "zero_variance", "zero_variance"]


def test_groups_without_spread_are_replaced_until_enough_have_it_or_the_rounds_are_over() -> None:
    tasks = Tasks()
    sampled = sample_step(Actors(spread={10, 12, 15, 16}), tasks, config(rounds=5), 0, 10, Stopwatch())
    assert tasks.taken == [(0, 10, 0, 4), (0, 10, 4, 2), (0, 10, 6, 1)]
    assert [task.prompt.example.question_id for task in sampled.tasks] == list(range(10, 17))
    assert [own.outcome for own in sampled.advantages].count("signal") == 4
    tasks = Tasks()
    sampled = sample_step(Actors(spread={10}), tasks, config(rounds=2), 0, 10, Stopwatch())
    assert tasks.taken == [(0, 10, 0, 4), (0, 10, 4, 3)] and len(sampled.groups) == 7


def test_failures_are_a_share_of_the_whole_step() -> None:
    """One of the two members that the second round asked for fails: half of the round, a tenth of the step."""
    sampled = sample_step(Actors({0, 1, 2}, broken={4}), Tasks(), config(rounds=2, allowed=0.15), 0, 0, Stopwatch())
    assert len(sampled.groups) == 5
    with pytest.raises(GrpoFailed, match="1 of the 8 completions"):
        sample_step(Actors({0}, broken={1}), Tasks(), config(allowed=0.1), 0, 0, Stopwatch())


def test_divergence_taken_off_the_rewards_is_of_the_members_that_have_one() -> None:
    actors = Actors(spread={0}, broken={1})
    sampled = sample_step(actors, Tasks(), config(place="reward"), 0, 0, Stopwatch())
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
