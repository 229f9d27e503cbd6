"""Many scenes, one after the other in this process or side by side on Ray Data; outcomes in the order they come.

What holds
    * Every scene is built by `data.scene_build.build_scene`, wherever that runs. Each scene gives one outcome, also when
      the process that built it died: its scenes are then built each by a task of its own, so that only the one that kills
      its process is given up. What fails for another reason than a scene or a death (an installation that is not the
      same everywhere) is raised.
    * On Ray a task builds a few scenes and holds one CPU, which it fills: numpy runs single-threaded there (Ray sets
      OMP_NUM_THREADS to the CPUs of a task). Scenes are written to `job.folder`, which all nodes must see.
    * Left alone, Ray Data runs a task whose process dies again and again, without end; `max_retries` forbids it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import deque
from functools import partial
from typing import Iterator, Sequence

import numpy as np

from data.scene_build import SceneJob, SceneOutcome, build_scene

DIED = "the process that built it died"
#: Most scenes of one Ray task, which takes a second or two then; outcomes come when it ends.
SCENES_PER_TASK = 16
#: Fewest tasks for each worker, so that none is idle while another has much to do.
TASKS_PER_WORKER = 8


def run_here(job: SceneJob, scene_ids: Sequence[str]) -> Iterator[SceneOutcome]:
    """In this process, in order."""
    for scene_id in scene_ids:
        yield build_scene(job, scene_id)


def run_on_ray(job: SceneJob, scene_ids: Sequence[str], workers: int) -> Iterator[SceneOutcome]:
    """On the connected cluster, `workers` tasks at a time. RayTaskError where no scene is at fault."""
    missing = dict.fromkeys(scene_ids)
    for outcome in _batches(job, scene_ids, workers):
        del missing[outcome.scene]
        yield outcome
    yield from _one_by_one(job, list(missing), workers)


def _batches(job: SceneJob, scene_ids: Sequence[str], workers: int) -> Iterator[SceneOutcome]:
    """Ray Data: scenes of a task that failed are missing."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    each = max(1, min(SCENES_PER_TASK, len(scene_ids) // (workers * TASKS_PER_WORKER)))
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would tell of its own progress, between the lines of ours
    with ray.data.DataContext.current(context):
        scenes = ray.data.from_items(list(scene_ids), override_num_blocks=-(-len(scene_ids) // each))
        with warnings.catch_warnings():  # Ray 2.60 has no other way yet to say how often a task is tried again
            warnings.simplefilter("ignore", RayDeprecationWarning)
            built = scenes.map_batches(partial(_build_batch, job), batch_size=None, num_cpus=1, max_retries=0,
                                       compute=ray.data.TaskPoolStrategy(size=workers))
        for batch in built.iter_batches(batch_size=None, prefetch_batches=0):
            yield from (SceneOutcome(**json.loads(text)) for text in batch["outcome"])


def _build_batch(job: SceneJob, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    outcomes = [build_scene(job, str(scene_id)) for scene_id in batch["item"]]
    return {"outcome": np.array([json.dumps(vars(outcome)) for outcome in outcomes])}


def _one_by_one(job: SceneJob, scene_ids: Sequence[str], workers: int) -> Iterator[SceneOutcome]:
    """A task for each scene, which says what became of it if its process dies."""
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    waiting, running = deque(scene_ids), {}
    build = ray.remote(build_scene).options(num_cpus=1, max_retries=0)
    while waiting or running:
        while waiting and len(running) < workers:
            scene_id = waiting.popleft()
            running[build.remote(job, scene_id)] = scene_id
        for done in ray.wait(list(running))[0]:
            scene_id = running.pop(done)
            try:
                yield ray.get(done)
            except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
                yield SceneOutcome(scene_id, reason=f"{DIED}: {' '.join(str(error).split())[:300]}")
