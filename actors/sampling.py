"""The completions of one step: prompts are asked, answered, scored and compared, in one round or, with dynamic sampling,
in as many as it takes to find enough groups with something to learn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.learners import Learners
from actors.rollouts import Rollouts
from actors.step_batch import advantages_of, group_rewards, penalised, rewarded
from actors.types import Group, PromptTask, Rewards
from configs.schema import RunConfig
from grpo.advantages import GroupAdvantages
from grpo.dynamic_sampling import prompts_to_ask
from rewards.outcome import Score


class GrpoFailed(RuntimeError):
    """Stage 3 stopped; says what failed and what to do. The stage folder can be resumed."""


@dataclass
class Stopwatch:
    """Seconds of the named parts of one step."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str, but: Mapping[str, float] = {}) -> None:
        """What has passed since the last lap is `name`'s, beside what it had, less the parts that are others' (`but`)."""
        now = time.monotonic()
        for part, seconds in {**but, name: now - self._last - sum(but.values())}.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self._last = now


@dataclass
class Sampled:
    """All groups of a step, in the order they were asked for. `kl_sum` over `kl_tokens`: divergence from the reference,
    where it is taken off the rewards."""

    tasks: list[PromptTask] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    rewards: list[Rewards] = field(default_factory=list)
    advantages: list[GroupAdvantages] = field(default_factory=list)
    kl_sum: float = 0.0
    kl_tokens: int = 0


def sample_step(rollouts: Rollouts, learners: Learners, config: RunConfig, step: int, watch: Stopwatch) -> Sampled:
    """The groups of `step`, whose first prompts are asked for.

    GrpoFailed when more completions fail to score than `reward.max_failed_share` allows; dropped prompts count as failed.
    """
    grpo, sampled, rounds, place = config.grpo, Sampled(), 0, 0
    outcomes: list = []
    failed = FailedShare(config.reward.max_failed_share)
    while missing := prompts_to_ask(outcomes, rounds, grpo.prompts_per_step, grpo.sampling_rounds):
        if rounds:
            rollouts.ask(step, missing)
        asked = rollouts.asked(step) - place
        failed.asked += asked * grpo.group_size
        collected = rollouts.collect(step, place, failed.add)  # o_1 … o_G ~ pi_old(. | q) and r_1 … r_G
        place += asked
        for reason in collected.dropped:
            failed.add([Score("error", detail=reason)] * grpo.group_size)
        watch.lap("generate", but={"reward": collected.scoring_seconds})
        rewards = [group_rewards(group, grpo) for group in collected.groups]
        if grpo.kl.coef > 0 and grpo.kl.place == "reward":
            rewards = _without_divergence(rollouts, learners, collected.groups, rewards, config, sampled)
            watch.lap("learn")  # the reference's log-probs are the learner's work
        sampled.tasks += collected.tasks
        sampled.dropped += collected.dropped
        sampled.groups += collected.groups
        sampled.rewards += rewards
        sampled.advantages += [advantages_of(own, grpo) for own in rewards]  # A_i = (r_i - mean r) / std r
        outcomes = [own.outcome for own in sampled.advantages]
        rounds += 1
    if not sampled.groups:
        raise GrpoFailed(f"no prompt of step {step + 1} could be answered; the last reason: {sampled.dropped[-1]}")
    return sampled


def _without_divergence(
    rollouts: Rollouts,
    learners: Learners,
    groups: Sequence[Group],
    rewards: Sequence[Rewards],
    config: RunConfig,
    sampled: Sampled,
) -> list[Rewards]:
    """The rewards less beta times the divergence of each completion; it is added to `sampled`."""
    own = [rewarded(group, reward, [0.0] * len(reward)) for group, reward in zip(groups, rewards, strict=True)]
    some = [index for index, group in enumerate(own) if group.advantages]
    taken = rollouts.meanwhile(learners.penalties([own[index] for index in some]))[0] if some else []
    penalties = dict(zip(some, taken, strict=True))
    sampled.kl_sum += sum(map(sum, penalties.values())) / config.grpo.kl.coef
    sampled.kl_tokens += sum(sum(group.size().completions) for group in own)
    return [penalised(reward, penalties.get(index, ())) for index, reward in enumerate(rewards)]


@dataclass
class FailedShare:
    """Of the completions `asked` for in a step, those without a score; a truncated one is none of them."""

    allowed: float
    asked: int = 0
    failed: int = 0

    def add(self, scores: Sequence[Score]) -> None:
        """GrpoFailed as soon as too many have failed: what is still being scored could not make it better."""
        failed = [score for score in scores if score.outcome in ("timeout", "error")]
        self.failed += len(failed)
        if failed and self.failed > self.allowed * self.asked:
            raise GrpoFailed(
                f"{self.failed} of the {self.asked} completions of one step could not be scored, {self.allowed:.0%} are "
                f"allowed (reward.max_failed_share). One of them: {failed[0].outcome}: {failed[0].detail}\n"
                "The run is paused: the same command goes on from the last checkpoint once the reward is mended "
                "(with --set reward.accept_changed=true, if its source has changed)."
            )
