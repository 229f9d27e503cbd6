"""Where relative paths of a configuration lead, also inside a Ray job.

A Ray job runs in a copy of the working directory that disappears with the cluster. Relative paths therefore resolve
against the HOME of the run:

1. `LADDER_HOME`, when set (`ladder quickstart` sets it for the job on a cluster of its own, and passes yours on to any
   other; set it on a cluster to a folder that its machines have);
2. outside a Ray job: the current directory;
3. inside a Ray job: the checkout this Python environment was installed from (`pip install -e`), so that the plain
   `ray job submit --working-dir . -- python -m launch run CONFIG` leaves its run where `ladder run CONFIG` does;
4. inside a job without such a checkout: `~/ladder`.

`root` (the runs) always lies below HOME. Inputs (model, data, source, files of custom rewards) are taken from the job's
own working directory when they came along, else from HOME. The configuration written into a run keeps the paths as they
were given.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlparse

from configs.schema import RunConfig

HOME_VARIABLE = "LADDER_HOME"
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a submitted job, and only there
DISTRIBUTION = "spatial-ladder"


def in_ray_job(environment: Mapping[str, str] = os.environ) -> bool:
    return JOB_VARIABLE in environment


def home(environment: Mapping[str, str] = os.environ, checkout: Path | None = None) -> Path:
    """HOME of relative paths, by the rules above; `checkout` overrides the search for the editable installation."""
    if environment.get(HOME_VARIABLE):
        return Path(environment[HOME_VARIABLE]).expanduser().absolute()
    if not in_ray_job(environment):
        return Path.cwd()
    return checkout or installed_checkout() or Path.home() / "ladder"


def installed_checkout() -> Path | None:
    """The folder an editable installation points at, when it exists on this machine."""
    for found in importlib.metadata.distributions(name=DISTRIBUTION):  # build leftovers in the checkout carry no record
        record = json.loads(found.read_text("direct_url.json") or "{}")
        if record.get("dir_info", {}).get("editable"):
            folder = Path(unquote(urlparse(record["url"]).path))
            return folder if folder.is_dir() else None
    return None


def run_path(config: RunConfig, base: Path | None = None) -> Path:
    """Absolute folder of the run."""
    return ((base or home()) / Path(config.root).expanduser() / config.name).absolute()


def with_absolute_paths(config: RunConfig, base: Path | None = None) -> RunConfig:
    """The same configuration with absolute paths, for code that runs in other processes and working directories."""
    base = base or home()
    model = config.model.model_copy(update={"path": str(input_path(config.model.path, base))})
    found = {"path": config.data.path, "source": config.data.source}
    lists = {"train_list": config.data.build.train_list, "heldout_list": config.data.build.heldout_list}
    build = config.data.build.model_copy(update=_inputs(lists, base))
    data = config.data.model_copy(update=_inputs(found, base) | {"build": build})
    custom = tuple(
        own.model_copy(update={"source": _reward_location(own.source, base)}) for own in config.reward.custom
    )
    reward = config.reward.model_copy(update={"custom": custom})
    root = str((base / Path(config.root).expanduser()).absolute())
    return config.model_copy(update={"model": model, "data": data, "reward": reward, "root": root})


def _inputs(named: Mapping[str, str | None], base: Path) -> dict[str, str]:
    return {key: str(input_path(path, base)) for key, path in named.items() if path is not None}


def input_path(text: str, base: Path) -> Path:
    """An input: as seen from the working directory when it is there, else from HOME."""
    path = Path(text).expanduser()
    return path.absolute() if path.exists() else (base / path).absolute()


def _reward_location(text: str, base: Path) -> str:
    """path/file.py:name with an absolute path; what is not of that form is left for the contract to refuse."""
    path, separator, name = text.rpartition(":")
    return f"{input_path(path, base)}:{name}" if separator else text
