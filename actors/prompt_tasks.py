"""The prompts of a step as requests: ids with one placeholder per medium, pictures by path."""

from __future__ import annotations

from pathlib import Path

from actors.schedule import PromptSchedule, Stretch
from actors.reward import reward_row
from actors.types import PromptTask, RolloutRequest
from configs.schema import RunConfig, SamplingConfig
from data.prompts import render
from data.types import Example
from models.inputs import frame_size, image_size, prompt_token_ids
from models.loading import load_processor

#: Completions and tokens of the canary.
CANARY_COMPLETIONS, CANARY_TOKENS = 2, 16


class TaskMaker:
    """Renders the prompts of a schedule for the engine, the learner and the rewards."""

    def __init__(self, config: RunConfig, schedule: PromptSchedule, model_folder: Path) -> None:
        self._config, self._schedule = config, schedule
        self._processor = load_processor(model_folder)

    def take(self, step: int, stretch: Stretch, asked: int) -> tuple[PromptTask, ...]:
        """The tasks of a stretch of the schedule, for a step that has asked for `asked` before.

        Errors: MediaError for a picture that cannot be read.
        """
        grpo = self._config.grpo
        examples = self._schedule.take(*stretch)
        return tuple(
            self._task(
                example,
                f"s{step}-p{place}",
                grpo.group_size,
                self._schedule.sampling_seed(step, place),
                grpo.sampling,
            )
            for place, example in enumerate(examples, start=asked)
        )

    def canary(self) -> PromptTask:
        """The prompt whose log-probs prove a version: short, the first of the run with the fewest pictures."""
        sampling = self._config.grpo.sampling
        tokens = min(CANARY_TOKENS, sampling.max_new_tokens)
        first = self._schedule.take(0, self._config.grpo.prompts_per_step)
        return self._task(
            min(first, key=lambda example: len(example.media)),
            "canary",
            CANARY_COMPLETIONS,
            self._config.seed,
            SamplingConfig(temperature=sampling.temperature, max_new_tokens=tokens),
        )

    def _task(self, example: Example, name: str, n: int, seed: int, sampling: SamplingConfig) -> PromptTask:
        located = self._config.grpo.joined_boxes and example.boxes and not example.is_localization
        prompt = render(example, "locate" if located else "think", self._config.data.preset)
        original = image_size(example.media[0])
        request = RolloutRequest(
            request_id=name,
            prompt_token_ids=prompt_token_ids(self._processor, prompt.messages),
            media=example.media,
            is_video=example.data_type == "video",
            n=n,
            seed=seed,
            sampling=sampling,
        )
        frame = frame_size(self._processor, original, self._config.model.box_frame)
        return PromptTask(prompt, request, reward_row(prompt, original, frame))
