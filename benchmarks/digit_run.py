"""A run of stage 3 in a process of its own, so that it can be killed: `python -m benchmarks.digit_run FOLDER`.

What holds: FOLDER is a run's folder, whose config.yaml says everything, so the same command goes on after whatever happened.
It is connected as `ladder run` is: to the cluster of RAY_ADDRESS (inside a Ray job), else to one of its own that ends with
it. Exit codes: 0 trained, 1 stopped with a message, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from actors.sampling import GrpoFailed
from actors.trainer import train_policy
from benchmarks.digit_writer import digit_writer, questions
from configs.schema import RunConfig
from launch.progress import Progress
from launch.run import connected
from launch.run_folder import RunFolder

PROJECT = Path(__file__).resolve().parent.parent
REWARD = f"{PROJECT / 'benchmarks' / 'digit_reward.py'}:high"
PICTURES = "pictures"
#: What makes a run small: three prompts a step, three completions each of at most 16 tokens, two workers.
SMALL: dict[str, Any] = {
    "seed": 3,
    "grpo": {
        "prompts_per_step": 3, "group_size": 3, "checkpoint_steps": 2, "localization_share": 0,
        "sampling": {"max_new_tokens": 16},
    },
    "learner": {"threads": 1, "num_cpus": 0.5, "optimizer": {"lr": 1e-4}},
    "rollout": {"workers": 2, "num_cpus": 0.5, "kv_cache_bytes": 64 << 20, "max_model_len": 512},
    "reward": {"format": 0, "answer": 0, "iou": 0},
}


def small(changes: dict[str, dict[str, Any]], reward_seconds: float = 0.0) -> RunConfig:
    """The small run with these settings on top, section by section; a call of its reward lasts `reward_seconds`."""
    custom = {"custom": {"source": REWARD, "params": {"seconds": reward_seconds}}}
    sections = {name: SMALL.get(name, {}) | changes.get(name, {}) for name in {*SMALL, *changes} - {"seed"}}
    return RunConfig(seed=SMALL["seed"], **sections | {"reward": sections["reward"] | custom})


def make_model(folder: Path) -> Path:
    """The policy that all runs of a benchmark begin from."""
    return digit_writer(folder / "model", questions(folder / PICTURES))


def prepare(path: Path, config: RunConfig, model: Path) -> RunFolder:
    """Makes the folder that `main` works in: training with these settings, from that model."""
    chosen = config.model.model_copy(update={"path": str(model)})
    return RunFolder.open(config.model_copy(update={"model": chosen}), path)


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.digit_run", str(folder)]


def main() -> int:
    folder, say = RunFolder.existing(Path(sys.argv[1])), Progress()
    config, rows = folder.config, questions(folder.path / PICTURES)
    try:
        with folder.locked(), connected(config, say):
            train_policy(config, rows, Path(config.model.path), folder.stage("grpo"), say)
    except KeyboardInterrupt:
        return 130
    except GrpoFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
