"""The RewardActor: typed scores for completions, whatever the rewards do.

What holds
    * Rewards run in child processes (`rewards.worker`), one per thread of the actor; a reward that hangs, crashes, eats
      memory, forks, prints or exits costs its own call only.
    * A failure never becomes a number (`rewards.outcome.Score`).
    * Rewards that cannot be loaded are refused when the actor starts, not when the first group arrives.
    * Children live and die with the actor: each belongs to one thread of it and is killed by the kernel with it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from actors.types import Generation
from configs.schema import RewardConfig
from data.coordinates import in_frame
from data.types import Prompt
from rewards.errors import RewardContractError
from rewards.outcome import Score
from rewards.rows import RewardRow
from rewards.scoring import score_group
from rewards.settings import RewardSettings, RewardSpec
from rewards.worker import START_SECONDS, Limits, RewardProcess


def reward_settings(config: RewardConfig) -> RewardSettings:
    """What decides the worth of a completion by the built-in rewards."""
    return RewardSettings(
        format=config.format, answer=config.answer, iou=config.iou, repetition=config.repetition, gate=config.gate,
        preset=config.preset, mra_mode=config.mra_mode, iou_shape=config.iou_shape, iou_threshold=config.iou_threshold,
        repetition_ngram=config.repetition_ngram,
    )


def reward_specs(config: RewardConfig) -> tuple[RewardSpec, ...]:
    """The rewards of one's own."""
    return tuple(
        RewardSpec(own.source, own.name or "", own.weight, dict(own.params), own.batched) for own in config.custom
    )


def reward_versions(config: RewardConfig) -> dict[str, str]:
    """Component to hash of its source, of the rewards of one's own, which are loaded in a process of their own for it.

    RewardContractError for one that does not load.
    """
    if not (specs := reward_specs(config)):
        return {}
    with closing(RewardProcess(reward_settings(config), specs, reward_limits(config))) as process:
        return process.versions


def component_weights(config: RewardConfig) -> dict[str, float]:
    """What every component counts in the total, by name; the parts of one that reports `name/key` count like `name`."""
    return {**reward_settings(config).weights, **{spec.component: spec.weight for spec in reward_specs(config)}}


def reward_limits(config: RewardConfig) -> Limits:
    return Limits(config.timeout_seconds, config.retries, config.memory_mib)


def longest_silence(config: RewardConfig, group_size: int) -> float:
    """Seconds a group may take to be scored when every call of it takes its whole time and is tried again, each time in
    a new process that takes all the time it may to start."""
    calls = 2 + group_size * len(config.custom) * (1 + config.retries)
    return calls * (config.timeout_seconds + START_SECONDS)


def reward_row(prompt: Prompt, original_size: tuple[int, int], frame: tuple[int, int]) -> RewardRow:
    """The row as rewards see it; sizes are (width, height) of its first picture, in its file and in the model's frame."""
    example = prompt.example
    asked = example.is_localization or prompt.mode == "locate"
    boxes = in_frame(example.boxes, original_size, frame) if asked else ()
    return RewardRow(
        example.id,
        example.question,
        example.question_type,
        example.options,
        example.answer,
        boxes,
        frame,
        example.media,
        dict(example.metadata),
    )


class RewardActor:
    """Scores groups in `config.processes` child processes. A plain class; `ray.remote` wraps it at the edge.

    As a Ray actor give it `max_concurrency=config.processes`.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Cheap; `start` starts the children."""
        self._config = config
        self._settings, self._specs = reward_settings(config), reward_specs(config)
        self._local = threading.local()
        self._processes: list[RewardProcess] = []
        self._threads = ThreadPoolExecutor(config.processes, thread_name_prefix="scorer")

    def start(self, versions: Mapping[str, str] | None = None) -> tuple[int, ...]:
        """Start the children; returns their process ids.

        `versions`: the rewards' sources where the run was started. RewardContractError when a custom reward cannot be
        loaded, or has another source on this machine.
        """
        barrier = threading.Barrier(self._config.processes)
        try:
            for start in [self._threads.submit(self._prepare, barrier) for _ in range(self._config.processes)]:
                start.result()
            for name, version in self._processes[0].versions.items() if versions is not None else ():
                if version != versions.get(name):
                    raise RewardContractError(
                        f"reward {name!r} has another source on {socket.gethostname()} than where the run was started: "
                        "bring the same file or package to every machine"
                    )
        except RewardContractError:
            self.close()
            raise
        return self.pids()

    def _prepare(self, barrier: threading.Barrier) -> None:
        """On every thread once: the barrier keeps one thread from taking two turns."""
        barrier.wait()
        self._local.process = RewardProcess(self._settings, self._specs, reward_limits(self._config))
        self._processes.append(self._local.process)

    def pids(self) -> tuple[int, ...]:
        """Process ids of the children."""
        return tuple(process.pid for process in self._processes if process.pid is not None)

    def score(self, row: RewardRow, generation: Generation) -> tuple[Score, ...]:
        """Scores of the group's completions, in their order."""
        completions = [(completion.text, completion.finish_reason) for completion in generation.completions]
        return tuple(
            self._threads.submit(
                lambda: score_group(self._local.process, row, completions, self._settings, self._specs)
            ).result()
        )

    def close(self) -> None:
        """Kill the children. Call it when no score is under way."""
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.close()
