"""Seconds from `ladder scale` to the new worker's first sample, on a cluster that has to add a node for it.

    python -m benchmarks.autoscaling_cluster [--json FILE]

Ray's autoscaler with its provider of simulated nodes: raylets of their own on this machine, so that adding one takes no
longer than a process does to start. Autoscaler, placement groups, engines, learner and rewards are real. The head has one
CPU, for learner and reward actor; each rollout worker takes one, which only an added node has. A run of stage 3 begins with
one worker; when it has made two steps, `ladder scale RUN 2` is executed, and once that worker has answered a prompt,
`ladder scale RUN 1`; the run is then stopped. Times are seconds since the command.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from actors.trainer import train_policy
from benchmarks.measure import report
from benchmarks.workloads import PROMPTS, build_model, rows
from configs.schema import GRPOConfig, LearnerConfig, RolloutConfig, RunConfig, SamplingConfig
from launch.cluster import LocalCluster
from launch.run_folder import RunFolder
from launch.scale import scale

#: More than the run comes to.
STEPS = 500
#: Steps before the fleet is to grow.
STEPS_BEFORE = 2
LOOK_SECONDS = 0.1
NODE = {"resources": {"CPU": 1, "object_store_memory": 100 << 20}, "node_config": {}, "min_workers": 0, "max_workers": 2}


class GrowingCluster(LocalCluster):
    """A cluster of this process to which Ray's autoscaler adds nodes of one CPU, two at most."""

    def options(self, folder: Path) -> list[str]:
        file = folder / "autoscaling.json"
        provider = {
            "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "gcs_address": self.address,
        }
        head = {"resources": {"CPU": self.cpus}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "growing", "max_workers": 2, "provider": provider, "auth": {}, "idle_timeout_minutes": 0.2,
            "upscaling_speed": 1.0, "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": head, "worker": NODE},
            "setup_commands": [], "initialization_commands": [], "file_mounts": {}, "cluster_synced_files": [],
            "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
            "worker_start_ray_commands": [], "file_mounts_sync_continuously": False,
        }
        file.write_text(json.dumps(config))
        return ["--autoscaling-config", str(file)]


class Enough(Exception):
    """What was to be measured has been measured."""


class Observer:
    """Scales the run up and down beside it, notes when what was seen, and ends the run at its next line."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.seen, self.failure = folder, dict[str, Any](), str()
        self._thread = threading.Thread(target=self._observe, daemon=True)
        self._steps = 0

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        self._steps += line.startswith("grpo: step ")
        if self._steps == STEPS_BEFORE and not self._thread.is_alive() and not self.seen:
            self._thread.start()
        if self.failure or "scaled_down_s" in self.seen:
            raise Enough

    def _observe(self) -> None:
        try:
            self._scale_up()
            begun = time.monotonic()
            if scale(self.folder, 1, print) != 0:
                raise RuntimeError("the fleet did not become smaller")
            self.seen["scaled_down_s"] = round(time.monotonic() - begun, 1)
        except Exception as error:  # the thread's boundary: told by the run's own
            self.failure = f"{type(error).__name__}: {error}"

    def _scale_up(self) -> None:
        before, begun = len(_nodes()), time.monotonic()
        self.seen["nodes_before"] = before
        asked = threading.Thread(target=scale, args=(self.folder, 2, print), daemon=True)
        asked.start()

        def when(name: str, holds: Callable[[], bool], limit: float = 120.0) -> None:
            while not holds():
                if time.monotonic() - begun > limit:
                    raise TimeoutError(f"no {name} within {limit:g} s")
                time.sleep(LOOK_SECONDS)
            self.seen[name] = round(time.monotonic() - begun, 1)

        when("node_s", lambda: len(_nodes()) > before)
        when("actor_s", lambda: self._newest().get("pid") is not None)
        when("engine_s", lambda: self._newest().get("state") in ("stale", "serving"))
        when("serving_s", lambda: self._newest().get("state") == "serving")
        when("first_prompt_s", lambda: self._newest().get("holds", 0) > 0)
        most = self._newest()["holds"]
        when("first_sample_s", lambda: self._newest()["holds"] < most)
        self.seen["nodes"] = len(_nodes())
        asked.join()

    def _newest(self) -> dict[str, Any]:
        """What fleet.json says of the second worker."""
        workers = json.loads((self.folder.path / "grpo" / "fleet.json").read_text())["workers"]
        return workers[1] if len(workers) > 1 else {}


def _nodes() -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


def measure(folder: Path) -> dict[str, Any]:
    """The run, on the cluster that this process is connected to."""
    config = RunConfig(
        stages=("grpo",),
        learner=LearnerConfig(threads=1, num_cpus=0.5),
        rollout=RolloutConfig(num_cpus=1, max_model_len=1024, kv_cache_bytes=64 << 20),
        grpo=GRPOConfig(
            steps=STEPS, prompts_per_step=PROMPTS, group_size=2, overlong_buffer=8, localization_share=0,
            checkpoint_steps=STEPS, sampling=SamplingConfig(max_new_tokens=16),
        ),
    )
    run = RunFolder.open(config, folder / "run")
    observer = Observer(run)
    try:
        examples = rows("single", PROMPTS, folder / "pictures")
        train_policy(config, examples, build_model(folder / "model"), run.stage("grpo"), observer)
    except Enough:
        pass
    if observer.failure:
        raise RuntimeError(observer.failure)
    left = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return observer.seen | {"placement_groups_left": len(left)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with GrowingCluster(print, cpus=1) as cluster, tempfile.TemporaryDirectory() as scratch:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        try:
            result = measure(Path(scratch))
        finally:
            ray.shutdown()
    report("autoscaling_cluster", options, result)


if __name__ == "__main__":
    main()
