"""Weight versions: what the learner publishes, what a worker checks before it believes it.

What holds
    * A version is one safetensors file plus a manifest: every tensor's name, dtype, shape and CRC-32 of its bytes.
      The file appears under its final name complete or not at all (written aside, then renamed).
    * Names are those of `named_parameters()` of the Transformers module (`model.language_model.*`, `model.visual.*`,
      `lm_head.weight`), whatever style the publisher used; vLLM accepts them. The output head comes last.
    * `lm_head.weight` is always in the file, also when it is tied to the embedding. vLLM's CPU engine keeps a packed
      copy of the head, which a reload without that entry leaves on the old weights (no error, 5-7 nats off). We send
      it instead of re-packing inside the engine: the same file is then right for tied and untied models, on CPU and
      GPU, and its absence is visible in the manifest, where it is refused.
    * Files live in one folder of shared memory per run, so that workers on the same machine map them without a copy; a
      version says which machine that is, and workers elsewhere copy it (`actors.weight_copies`).
      The publisher owns the folder: versions are unlinked by `release` after every worker has acknowledged, and a
      restarted run removes what its predecessor left.

No Ray and no vLLM here: the engine side reads versions with the same `read_verified`.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SHARED_MEMORY = Path("/dev/shm")
HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


class WeightVersionError(RuntimeError):
    """A published version is not what its manifest or the engine says it must be. Names the file and the tensors."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a version: module name, dtype as in "float32", shape, "crc32:xxxxxxxx" of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str


@dataclass(frozen=True)
class WeightVersion:
    """A published set of weights: plain data, travels by value; the bytes are at `path` of the shared memory
    `memory` (see `this_memory`), and of the Ray node `node` (None: published outside Ray)."""

    number: int
    manifest: tuple[TensorSpec, ...]
    path: str
    nbytes: int
    memory: str
    node: str | None

    def wire(self) -> dict:
        """The version as plain lists and strings: file path and manifest rows [name, dtype, shape, checksum]."""
        rows = [[spec.name, spec.dtype, list(spec.shape), spec.checksum] for spec in self.manifest]
        return {"path": self.path, "manifest": rows}


def canonical_name(name: str) -> str:
    """Module-style name of a tensor given in module style or in the style of saved Qwen2.5-VL checkpoints."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.language_model.", "model.visual.")):
        return "model.language_model." + name.removeprefix("model.")
    return name


def checksum(tensor: torch.Tensor) -> str:
    """CRC-32 of the tensor's bytes in row-major order, as "crc32:xxxxxxxx"."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"crc32:{zlib.crc32(data.numpy()):08x}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def expected_shapes(model_folder: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Name (module style) -> shape of every tensor an engine started from this folder must receive.

    Read from the checkpoint's headers, no weights are loaded; a tied head is added with the embedding's shape.
    Raises WeightVersionError when the folder holds no safetensors weights.
    """
    files = sorted(Path(model_folder).glob("*.safetensors"))
    if not files:
        raise WeightVersionError(f"{model_folder}: no *.safetensors files; save the model with save_pretrained first")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            for name in content.keys():
                shapes[canonical_name(name)] = tuple(content.get_slice(name).get_shape())
    if HEAD not in shapes and EMBEDDING in shapes:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def check_complete(manifest: Iterable[TensorSpec], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightVersionError unless the manifest holds exactly the expected names with the expected shapes."""
    shapes = {spec.name: spec.shape for spec in manifest}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in shapes]
    problems += [f"unknown {name}" for name in shapes if name not in expected]
    problems += [
        f"{name} has shape {shapes[name]}, the engine needs {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightVersionError(f"the manifest does not fit the engine's model: {shown}")


def read_verified(path: str, manifest: Iterable[TensorSpec]) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a version in manifest order, every one checked against dtype, shape and checksum.

    The tensors are mapped, not copied. Raises WeightVersionError naming the file and the first tensor that is wrong.
    """
    specs = tuple(manifest)
    try:
        with safe_open(path, "pt") as content:
            present = set(content.keys())
            tensors = [(spec, content.get_tensor(spec.name)) for spec in specs if spec.name in present]
    except (OSError, SafetensorError) as error:
        reason = f"cannot be read ({error}); was it released, or is it on another machine?"
        raise WeightVersionError(f"{path}: {reason}") from error
    names = {spec.name for spec in specs}
    if names != present:
        missing, unknown = sorted(names - present)[:5], sorted(present - names)[:5]
        raise WeightVersionError(f"{path}: missing {missing}, not in the manifest {unknown}")
    for spec, tensor in tensors:
        found = (dtype_name(tensor.dtype), tuple(tensor.shape))
        if found != (spec.dtype, spec.shape):
            raise WeightVersionError(f"{path}: {spec.name} is {found}, the manifest says {(spec.dtype, spec.shape)}")
        actual = checksum(tensor)
        if actual != spec.checksum:
            raise WeightVersionError(f"{path}: {spec.name} has checksum {actual}, the manifest says {spec.checksum}")
    return [(spec.name, tensor) for spec, tensor in tensors]


def require_room(folder: Path, number: int, nbytes: int) -> None:
    """WeightVersionError unless the folder has room for that many bytes of tensors."""
    free = shutil.disk_usage(folder).free
    if nbytes + (1 << 20) > free:
        raise WeightVersionError(
            f"{folder}: version {number} needs {nbytes / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; "
            "enlarge shared memory (docker: --shm-size) or free it"
        )


class WeightStore:
    """Publisher's end of the shared-memory transport: writes, checks and unlinks versions in one folder.

    `folder` belongs to this run alone (see `shared_memory_folder`); version files found in it are leftovers of a dead
    predecessor and are removed. `node`: of Ray, by which workers on other machines reach it.
    """

    def __init__(self, folder: str | os.PathLike, tied_embeddings: bool = True, node: str | None = None):
        self.folder = Path(folder)
        self.tied_embeddings = tied_embeddings
        self.node = node
        self._live: dict[int, WeightVersion] = {}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self.folder.glob("v*.safetensors*"):
            leftover.unlink()

    @property
    def live(self) -> tuple[int, ...]:
        """Numbers of the versions that have not been released, oldest first."""
        return tuple(sorted(self._live))

    def publish(self, number: int, state_dict: Mapping[str, torch.Tensor]) -> WeightVersion:
        """Write version `number` and return it.

        Accepts module-style and saved names; a missing head of a tied model is filled in from the embedding. Raises
        WeightVersionError when the number is taken, the head is missing, or the folder has not enough room.
        """
        if number in self._live:
            raise WeightVersionError(f"version {number} is already published at {self._live[number].path}")
        tensors = self._prepare(state_dict)
        size = sum(tensor.nbytes for tensor in tensors.values())
        require_room(self.folder, number, size)
        manifest = tuple(
            TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape), checksum(tensor))
            for name, tensor in tensors.items()
        )
        path = self.folder / f"v{number}.safetensors"
        aside = path.with_name(path.name + ".tmp")
        save_file(tensors, aside, metadata={"version": json.dumps(number)})
        os.replace(aside, path)
        self._live[number] = WeightVersion(number, manifest, str(path), size, this_memory(), self.node)
        return self._live[number]

    def _prepare(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Canonical names, CPU, contiguous, no shared storage, head last."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in state_dict.items():
            tensors[canonical_name(name)] = tensor.detach().to("cpu").contiguous()
        head = tensors.pop(HEAD, None)
        if head is None:
            if not self.tied_embeddings:
                raise WeightVersionError(f"{HEAD} is missing and the model is not tied: export the whole state dict")
            if EMBEDDING not in tensors:
                raise WeightVersionError(f"neither {HEAD} nor {EMBEDDING} is among the {len(tensors)} tensors")
            head = tensors[EMBEDDING]
        tensors[HEAD] = head.clone()
        return tensors

    def release(self, number: int) -> None:
        """Unlink a version that every worker has acknowledged. Raises WeightVersionError when it is not published."""
        version = self._live.pop(number, None)
        if version is None:
            raise WeightVersionError(f"version {number} is not published; live versions: {self.live}")
        Path(version.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Unlink all versions and remove the folder. Idempotent."""
        self._live.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def this_memory() -> str:
    """Which shared memory this process sees: the machine's boot, and the mount, which containers may not share."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{SHARED_MEMORY.stat().st_dev}"


def shared_memory_folder(run_folder: str | os.PathLike) -> Path:
    """The run's folder in shared memory: the same for every start of the same run, different for different runs."""
    identity = f"{os.getuid()}:{Path(run_folder).resolve()}"
    return SHARED_MEMORY / f"ladder-{zlib.crc32(identity.encode()):08x}-{Path(run_folder).name}"
