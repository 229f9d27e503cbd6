"""How long a data folder of many procedural rooms takes, what the time goes into, and whether workers change its bytes.

    python -m benchmarks.data_build [--rooms N] [--workers N] [--compare] [--json FILE]

Rooms of configs/tiny.yaml (12 pictures of 168 x 168 pixels, 32 rows each), built by `ladder data build` on a Ray cluster of
its own; start and end of the cluster count. Rates are per second of that. `share_of_work` is measured on rooms built in
this process before: rendering, records, questions, encoding, and the drawing of the room itself (`scene`); the rest of the
build is writing rows and starting Ray. `--compare` builds a tenth of the rooms with one worker and with twice as many, and
says whether all files are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from configs.load import load_config
from configs.schema import RunConfig
from data.scene_build import SceneJob, build_scene
from data.scenes.rooms import Rooms
from launch.data_build import build_here
from launch.places import with_absolute_paths
from launch.progress import Progress

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"
SAMPLE = 50


def configuration(rooms: int) -> RunConfig:
    """Nine in ten rooms for training."""
    heldout = max(1, rooms // 10)
    numbers = [f"data.rooms.train_rooms={rooms - heldout}", f"data.rooms.heldout_rooms={heldout}"]
    return with_absolute_paths(load_config(CONFIG, numbers), CONFIG.parents[1])


def shares(config: RunConfig) -> dict[str, Any]:
    """What one room costs in this process, milliseconds by kind of work, and the shares."""
    rooms, seconds, begun = Rooms(config.data.rooms, config.seed), Counter(), 0.0
    names = rooms.scene_ids()[: SAMPLE + 1]
    with tempfile.TemporaryDirectory() as folder:
        job = SceneJob(rooms, dict.fromkeys(names, "train"), 0.2, config.seed, config.data.rooms, config.data.construction,
                       folder)
        for place, name in enumerate(names):
            if place == 1:  # the first one also pays for what is computed once
                seconds, begun = Counter(), time.perf_counter()
            seconds.update(build_scene(job, name).seconds)
    whole, parts = time.perf_counter() - begun, sum(seconds.values())
    return {"milliseconds_per_room": round(1000 * whole / (len(names) - 1), 1),
            "share_of_work": {kind: round(own / parts, 3) for kind, own in seconds.most_common()}}


def build(config: RunConfig, folder: Path, workers: int) -> dict[str, Any]:
    """Seconds and rates of one build."""
    begun = time.perf_counter()
    build_here(config, folder, workers, Progress())
    seconds = time.perf_counter() - begun
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    rooms, rows = (sum(split["scenes"] for split in counts.values()), sum(sum(s["rows"].values()) for s in counts.values()))
    return {"workers": workers, "seconds": round(seconds, 1), "rooms": rooms, "rows": rows,
            "pictures": sum(split["pictures"] for split in counts.values()), "rooms_per_s": round(rooms / seconds, 2),
            "rows_per_s": round(rows / seconds, 1)}


def digest(folder: Path) -> str:
    """SHA-256 over names and bytes of all files."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(str(path.relative_to(folder)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compare", action="store_true", help="also build a tenth with one and with twice as many workers")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    config = configuration(options.rooms)
    results: dict[str, Any] = {"one_process": shares(config)}
    with tempfile.TemporaryDirectory() as scratch:
        results["build"] = build(config, Path(scratch) / "data", options.workers)
        if options.compare:
            few, digests = configuration(max(10, options.rooms // 10)), {}
            for workers in (1, options.workers, 2 * options.workers):
                folder = Path(scratch) / f"by{workers}"
                build(few, folder, workers)
                digests[workers] = digest(folder)
            results["same_bytes"] = {"rooms": options.rooms // 10, "workers": list(digests),
                                     "same": len(set(digests.values())) == 1}
    report("data_build", options, results)


if __name__ == "__main__":
    main()
