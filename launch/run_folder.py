"""The folder of one run: its only state.

What holds: every file appears whole or not at all; a stage counts as finished only when its manifest is there, its
inputs are byte for byte the ones asked for and its outputs still exist; a folder never mixes two configurations, but for
what an unfinished stage 3 was told to go on with (`configs.changes`), nor its summary the stages of two models; a report
that is there shows all stages that have finished; one process at a time writes into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.checkpoints import Checkpoints
from configs.changes import Change, changes, config_hash, deciding, listed, of_stage_3
from configs.load import effective_yaml, load_config
from configs.schema import RunConfig, StageName

CONFIG, SUMMARY, MANIFEST, METRICS = "config.yaml", "summary.json", "manifest.json", "metrics.jsonl"
DATA_STAGE = "data"
_CHUNK = 1 << 20


class RunFolderError(RuntimeError):
    """The folder cannot be used for this run; the message says why and what to do. Nothing was written."""


@dataclass(frozen=True)
class Manifest:
    """What a finished stage was made of and what it made.

    `inputs` and `outputs`: name -> SHA-256. Outputs are paths relative to the run folder; `metrics` has the form of
    summary.json (`{"accuracy": {"before": x, "after": y, "n": n, "ci95": [low, high]}}`); `seconds`: part -> seconds.
    """

    stage: str
    config_hash: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class RunFolder:
    """Paths and state of one run. Make it with `open`; it exists on disk from then on. `accepted`: the changes since its
    config.yaml was written."""

    def __init__(self, path: Path, config: RunConfig, accepted: tuple[Change, ...] = ()):
        self.path, self.config, self.accepted = path, config, accepted

    @classmethod
    def open(cls, config: RunConfig, path: Path, accept_changes: bool = False) -> RunFolder:
        """Creates the folder with its config.yaml, or takes up an existing one made with the same settings, as it is.

        `accept_changes`: settings of an unfinished stage 3 may be others, as far as it can go on with them. Raises
        RunFolderError, with the differences, when the folder belongs to other settings.
        """
        written = path / CONFIG
        accepted: tuple[Change, ...] = ()
        if written.exists():
            before = cls(path, config)
            accepted = before._changes()
            obstacle = any(own.obstacle for own in accepted) or before.manifest_path("grpo").exists()
            if accepted and (obstacle or not accept_changes):
                raise RunFolderError(
                    f"{path} belongs to a run with other settings:\n{listed(accepted)}\nGive this run another name "
                    f"(--name), put the old settings back, or remove the folder.{before._way(accepted)}"
                )
        elif path.exists() and any(path.iterdir()):
            raise RunFolderError(
                f"{path} exists, is not empty and holds no {CONFIG}: not a run folder. Choose another --name."
            )
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, config, accepted)
        if not written.exists():
            folder.write_settings()
        return folder

    def _changes(self) -> tuple[Change, ...]:
        """Since config.yaml was written. What a checkpoint of stage 3 stands against may change while there is none."""
        found = changes(deciding(load_config(self.path / CONFIG)), deciding(self.config))
        checkpoints = Checkpoints(self.path / "grpo" / "checkpoints")
        if checkpoints.folder.is_dir():
            fewer = self.config.grpo.steps is not None and self.config.grpo.steps < (done := checkpoints.steps())
            obstacle = f"{done} steps are done: {done} would end it there" if fewer else None
            return tuple(replace(own, obstacle=own.obstacle or obstacle) if own.key == "grpo.steps" else own for own in found)
        return tuple(replace(own, obstacle=None) if of_stage_3(own.key) else own for own in found)

    def _way(self, differences: Sequence[Change]) -> str:
        """What --accept-changes could do about them."""
        if any(own.obstacle for own in differences):
            acceptable = [own.key for own in differences if not own.obstacle]
            return f" --accept-changes would do for {', '.join(acceptable)} alone." if acceptable else ""
        if self.manifest_path("grpo").exists():
            grpo = self.path / "grpo"
            return f" Stage grpo has finished with the old ones: to train it again, remove {grpo} and give --accept-changes."
        return " Or go on with the new ones from where stage grpo is now: --accept-changes."

    def write_settings(self) -> None:
        """config.yaml as this start has it: settings that decide no result may be new, and what was accepted. Call it
        `locked`."""
        if not (self.path / CONFIG).exists() or (self.path / CONFIG).read_text(encoding="utf-8") != effective_yaml(self.config):
            write_text(self.path / CONFIG, effective_yaml(self.config))

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A run that was started earlier. Raises RunFolderError when there is none."""
        if not (path / CONFIG).is_file():
            raise RunFolderError(
                f"{path} is not a run folder: it holds no {CONFIG}. Name a folder like runs/quickstart."
            )
        return cls(path, load_config(path / CONFIG))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder. Raises RunFolderError when one is inside; ends with the process."""
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunFolderError(
                    f"{self.path} is in use by process {file.read().strip() or 'unknown'}. "
                    "Wait for it, stop it, or choose another --name."
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def stage(self, stage: str) -> Path:
        """Folder of a stage, made when missing."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model(self, stage: StageName) -> Path:
        """Model folder a stage leaves behind (Hugging Face layout)."""
        return self.path / stage / "hf"

    @property
    def data(self) -> Path:
        """Data folder built for this run."""
        return self.path / DATA_STAGE

    @property
    def summary_path(self) -> Path:
        return self.path / SUMMARY

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    def manifest_path(self, stage: str) -> Path:
        return self.path / stage / MANIFEST if stage != DATA_STAGE else self.path / "data_manifest.json"

    def manifest(self, stage: str) -> Manifest | None:
        """The stage's manifest, None when the stage has not finished. Raises RunFolderError on a damaged file."""
        path = self.manifest_path(stage)
        try:
            return Manifest(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{path} is damaged ({error}). Remove it to run stage {stage} again.") from None

    def finish_stage(
        self,
        stage: str,
        inputs: Mapping[str, str],
        outputs: list[Path],
        metrics: Mapping[str, Any],
        seconds: Mapping[str, float],
    ) -> Manifest:
        """Writes the manifest: the last act of a stage. Outputs: files or folders below the run folder, all present.

        Summary and report do not know of the stage yet and are removed.
        """
        hashes = {}
        for output in outputs:
            hashes |= {os.path.relpath(path, self.path): digest for path, digest in file_hashes(output).items()}
        manifest = Manifest(stage, config_hash(self.config, stage), dict(inputs), hashes, dict(metrics), dict(seconds))
        for stale in (self.report, self.summary_path):
            stale.unlink(missing_ok=True)
        write_json(self.manifest_path(stage), asdict(manifest))
        return manifest

    def forget(self, stages: Sequence[StageName]) -> None:
        """Removes the manifests of stages that are about to be replaced or whose model is: they count as not done."""
        for stage in reversed(stages):
            self.manifest_path(stage).unlink(missing_ok=True)

    def stage_done(self, stage: str, expected_inputs: Mapping[str, str]) -> Manifest | None:
        """The manifest when the stage has finished on exactly these inputs and its outputs are there, else None."""
        manifest = self.manifest(stage)
        if (
            manifest is None
            or manifest.config_hash != config_hash(self.config, stage)
            or manifest.inputs != dict(expected_inputs)
        ):
            return None
        return manifest if all((self.path / output).exists() for output in manifest.outputs) else None

    def evaluated(self, stage: str, when: str, provenance: Mapping[str, str], scoring: Mapping[str, Any]) -> bool:
        """Whether the stage's evaluation `before` or `after` is on disk for this model and data, scored so."""
        try:
            report = json.loads((self.path / stage / f"eval_{when}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        identity = report.get("identity", {})
        return identity.get("provenance") == dict(provenance) and identity.get("scoring") == dict(scoring)

    def summary(self) -> dict[str, Any]:
        """The summary as last written; RunFolderError when there is none that can be read."""
        try:
            return json.loads(self.summary_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.summary_path} cannot be read ({error}). Start the same command again to write it."
            ) from None

    @property
    def measured(self) -> bool:
        """Whether every stage of the configuration has its manifest and the summary is written."""
        return self.summary_path.exists() and all(self.manifest(stage) is not None for stage in self.config.stages)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the run is measured and its report is written."""
        return self.measured and self.report.is_file()


def file_hashes(path: Path) -> dict[Path, str]:
    """File -> SHA-256, for a file or every file below a folder, sorted. FileNotFoundError when nothing is there."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise FileNotFoundError(f"{path} does not exist or is empty")
    return {file: _sha256(file) for file in files}


def fingerprint(path: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """One SHA-256 of the files below `path` that match a pattern, names and contents. FileNotFoundError on none."""
    files = sorted({file for pattern in patterns for file in path.rglob(pattern) if file.is_file()})
    if not files:
        raise FileNotFoundError(f"{path} holds no {' or '.join(patterns)}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """The whole text or no file: a temporary file beside it, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Atomic, readable JSON; NaN and infinity are refused (ValueError) and leave the old file as it was."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
