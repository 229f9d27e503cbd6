"""The rollout workers that answer the held-out questions, from one model after another.

What holds: workers serve exactly the model folder that was asked for last. On CPU the engines live as long as the run
and take each model through the weight transfer of stage 3, because starting an engine costs more than the answers. On
GPUs they end after each use, because the next stage needs the device, and also on a cluster of several nodes: this
transfer is through one machine's shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from safetensors.torch import load_file

from actors.deadlines import RayWait
from actors.file_parts import this_node
from actors.rollout import RolloutWorker
from actors.weights import WeightStore, shared_memory_folder
from configs.schema import RunConfig
from launch.progress import Say

#: Seconds that engines get to end by themselves.
STOP_SECONDS = 30.0


class Evaluators:
    """`with serving(model) as workers`: actor handles that serve the model. `close` ends them in any case."""

    def __init__(self, config: RunConfig, run_folder: Path, say: Say) -> None:
        self._config, self._say = config, say
        self._store_folder = shared_memory_folder(run_folder / "evaluation")
        self._wait = RayWait("the evaluation")
        self._workers: list = []
        self._starting: list = []
        self._served: Path | None = None
        self._loads = 0

    def prepare(self, model: Path) -> None:
        """Begin to start engines on `model` and return at once; `serving` waits for them."""
        if not self._workers:
            self._start(model)

    @contextmanager
    def serving(self, model: Path) -> Iterator[list]:
        self.prepare(model)
        starting, self._starting = self._starting, []
        self._on_all(starting, "engines to start", self._config.deadlines.engine_start)
        if self._served != model:
            self._load(model)
        try:
            yield list(self._workers)
        except BaseException:
            self.close()
            raise
        if self._config.rollout.num_gpus > 0 or len(ray.nodes()) > 1:
            self.close()

    def _start(self, model: Path) -> None:
        rollout = self._config.rollout
        self._say(f"starting {rollout.workers.min} engine(s) on {model}")
        # Evaluation and training never run at the same time: an engine that stays holds no CPU that a stage waits for.
        actor = ray.remote(RolloutWorker).options(num_cpus=rollout.num_cpus if rollout.num_gpus else 0,
                                                  num_gpus=rollout.num_gpus, max_concurrency=64)
        self._workers = [actor.remote(f"evaluation-{index}", str(model), rollout, self._config.model.dtype, self._config.seed)
                         for index in range(rollout.workers.min)]
        self._starting = [worker.start.remote(trusted=True) for worker in self._workers]
        self._served = model

    def _load(self, model: Path) -> None:
        """Bring the model's weights to engines that were started from another checkpoint of the same architecture."""
        self._loads += 1
        state = {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        store = WeightStore(self._store_folder, node=this_node())
        try:
            version = store.publish(self._loads, state)
            self._on_all([worker.update_weights.remote(version, trusted=True) for worker in self._workers],
                         f"the weights of {model}", self._config.deadlines.weights)
            self._served = model
        finally:
            store.close()

    def _on_all(self, refs: list, what: str, limit: float) -> None:
        try:
            self._wait.all({f"engine {index}": ref for index, ref in enumerate(refs)}, what, limit)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the engines. Idempotent, never raises for an engine that is already dead."""
        workers, self._workers, self._starting, self._served = self._workers, [], [], None
        if workers:
            ray.wait([worker.stop.remote() for worker in workers], num_returns=len(workers), timeout=STOP_SECONDS)
        for worker in workers:
            ray.kill(worker)
