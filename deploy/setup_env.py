"""Creates the virtual environment and installs what is missing. Standard library only; runs on any Python 3.7+.

    python3 deploy/setup_env.py --venv .venv

What holds: running it again changes nothing (a stamp keyed by the pins, this folder and the choice of engine);
a machine without a GPU never receives a CUDA build of torch; the torchvision hook exists only where
`import torchvision` fails beside a CPU torch without it. Choices by environment variable: LADDER_EXTRA=cpu|gpu.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "ladder-setup.sha256"
HOOK_SOURCE = ROOT / "deploy" / "torchvision_cpu.py"
HOOK_MODULE = "_ladder_torchvision_cpu"
OLDEST_PYTHON = (3, 11)
EXTRAS = ("cpu", "gpu")
CPU_TORCH_MISSING = """\
pip finds no CPU build of torch {version} ({found}).
This machine has no GPU, so a CUDA build (several GB, unusable here) is not installed instead.
Set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (see pytorch.org, Get Started, Compute Platform: CPU) and run the
same command again. On a GPU machine whose driver is not visible yet, set LADDER_EXTRA=gpu."""
PROBE_TORCHVISION = """\
import sys
if {without_hook}:
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "{module}"]
import torch
try:
    import torchvision
    print("works", torch.version.cuda)
except Exception as error:
    print("fails", torch.version.cuda)
    print(f"{{type(error).__name__}}: {{error}}", file=sys.stderr)
"""
MEDIA_LIBRARIES = ("torchaudio", "torchcodec")
PROBE_MEDIA = """\
import importlib.util, sys, torch
if torch.version.cuda is None and importlib.util.find_spec("{name}"):
    try:
        import {name}
    except Exception:
        sys.exit(3)
"""


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def check_python(version: tuple[int, ...]) -> None:
    """Raises SetupError when the interpreter is older than the stack allows."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        found, wanted = ".".join(map(str, version[:2])), ".".join(map(str, OLDEST_PYTHON))
        raise SetupError(
            f"Python {found} is too old, {wanted} or newer is needed. Name one: make PYTHON=python{wanted} ..."
        )


def choose_extra(wanted: str, listed_gpus: int) -> str:
    """`cpu` or `gpu`: LADDER_EXTRA when set, else gpu exactly when a device is listed. Raises SetupError."""
    if not wanted:
        return "gpu" if listed_gpus else "cpu"
    if wanted not in EXTRAS:
        raise SetupError(f"LADDER_EXTRA is {wanted!r}, it may be {' or '.join(EXTRAS)}")
    return wanted


def count_gpus(listing: str) -> int:
    """Devices in the output of `nvidia-smi -L`."""
    return len(re.findall(r"^GPU \d+:", listing, re.MULTILINE))


def torch_pin(setup_cfg: str, extra: str) -> str:
    """The exact torch version of an extra in the text of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read_string(setup_cfg)
    for line in parser["options.extras_require"][extra].splitlines():
        match = re.fullmatch(r"torch==([\w.]+)", line.strip())
        if match:
            return match.group(1)
    raise SetupError(f"setup.cfg pins no torch in [{extra}]")


def found_cpu_build(report: str, version: str) -> bool:
    """Whether pip's installation report (JSON) chose the `+cpu` build of this torch version."""
    try:
        items = json.loads(report)["install"]
        return any(
            item["metadata"]["name"].lower() == "torch" and item["metadata"]["version"] == f"{version}+cpu"
            for item in items
        )
    except (ValueError, KeyError, TypeError):
        return False


def stamp_key(root: Path, extra: str, extras: str, python: str) -> str:
    """Hash of everything that decides what is installed; the place counts, the installation is editable."""
    digest = hashlib.sha256("\n".join([str(root), extra, extras, python]).encode())
    for path in [root / "setup.cfg", root / "pyproject.toml", *sorted((root / "deploy").glob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def summarise(line: str) -> str | None:
    """What one line of pip's output says about progress, or None."""
    match = re.match(
        r"\s*(Collecting|Downloading|Using cached|Processing|Building wheel for|Installing collected)\s+(\S+)", line
    )
    if match is None:
        return None
    if match.group(1) == "Installing collected":
        return f"installing {line.count(',') + 1} packages"
    return f"{match.group(1).lower()} {match.group(2).rsplit('/', 1)[-1]}"


class Environment:
    """One virtual environment, driven through its own interpreter."""

    def __init__(self, folder: Path, begun: float):
        self.folder, self.begun = folder, begun
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begun:6.1f} s] {text}", flush=True)

    def create(self) -> None:
        if (
            self.python.exists()
            and subprocess.run([str(self.python), "-m", "pip", "--version"], capture_output=True).returncode == 0
        ):
            return
        self.say(f"creating {self.folder}")
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(self.folder)], capture_output=True, text=True
        )
        if made.returncode:
            raise SetupError(
                f"python -m venv failed (Debian and Ubuntu need the package python3-venv):\n{made.stdout}{made.stderr}"
            )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(self.python), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def check_cpu_torch(self, version: str) -> None:
        """Stops before pip could choose a CUDA build. Asks for the local version: no other build is fetched."""
        self.say(f"looking for the CPU build of torch {version}")
        wanted = f"torch=={version}+cpu"
        command = ("-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-", wanted)
        if (
            self.run("-c", f"import importlib.metadata as m; assert m.version('torch') == '{version}+cpu'").returncode
            == 0
        ):
            return
        result = self.run(*command)
        if result.returncode or not found_cpu_build(result.stdout, version):
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")] or [
                f"it was asked for {wanted}"
            ]
            raise SetupError(
                CPU_TORCH_MISSING.format(version=version, found=lines[-1].replace("ERROR: ", "pip says: "))
            )

    def install(self, extras: str) -> None:
        target = f"{ROOT}[{extras}]"
        self.say(f"installing [{extras}] with the pins of setup.cfg (a few minutes on a fresh machine)")
        command = [str(self.python), "-m", "pip", "install", "--progress-bar", "off", "--no-input", "-e", target]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        lines, steps, shown = [], 0, time.monotonic()
        for line in process.stdout:
            lines.append(line.rstrip())
            progress = summarise(line)
            steps += progress is not None
            if progress and (progress.startswith("installing") or time.monotonic() - shown >= 5):
                self.say(f"pip, step {steps}: {progress}")
                shown = time.monotonic()
        if process.wait():
            raise SetupError("pip could not install the requirements; its last lines:\n  " + "\n  ".join(lines[-25:]))

    def site_packages(self) -> Path:
        return Path(self.run("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip())

    def torchvision(self, without_hook: bool) -> tuple[bool, bool, str]:
        """(imports, torch is a CPU build, the error) in a fresh interpreter."""
        result = self.run("-c", PROBE_TORCHVISION.format(without_hook=without_hook, module=HOOK_MODULE))
        words = result.stdout.split()
        error = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return words[:1] == ["works"], words[-1:] == ["None"], error

    def drop_broken_media(self) -> None:
        """Removes torchaudio and torchcodec where their CUDA builds came along and cannot load beside a CPU torch.

        The engine imports them when they are there, fails when they do not load, and runs without them.
        """
        broken = [name for name in MEDIA_LIBRARIES if self.run("-c", PROBE_MEDIA.format(name=name)).returncode == 3]
        if not broken:
            return
        result = self.run("-m", "pip", "uninstall", "--yes", "--quiet", *broken)
        if result.returncode:
            raise SetupError(f"pip could not remove {', '.join(broken)}:\n{result.stdout}{result.stderr}")
        self.say(f"removed {' and '.join(broken)}: CUDA builds, they do not load beside the CPU build of torch")

    def settle_torchvision(self) -> None:
        """Installs the hook where torchvision fails beside a CPU torch; removes ours where it works by itself."""
        site = self.site_packages()
        module, line = site / f"{HOOK_MODULE}.py", site / f"{HOOK_MODULE}.pth"
        works, cpu_torch, error = self.torchvision(without_hook=True)
        if works or not cpu_torch:
            for path in (line, module):
                path.unlink(missing_ok=True)
            self.say(
                "torchvision works by itself"
                if works
                else f"torchvision does not import ({error}); torch is a CUDA build, left alone"
            )
            return
        _replace(module, HOOK_SOURCE.read_text(encoding="utf-8"))
        _replace(line, f"import {HOOK_MODULE}\n")
        works, _, error = self.torchvision(without_hook=False)
        if not works:
            raise SetupError(
                f"torchvision does not import beside this CPU build of torch, and our hook does not help: {error}"
            )
        self.say("torchvision imports (operator names declared for the CPU build of torch)")


def _replace(path: Path, text: str) -> None:
    """Whole file or nothing: other interpreters may be starting."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _listed_gpus() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        return count_gpus(subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30).stdout)
    except (OSError, subprocess.TimeoutExpired):
        return 0


def set_up(folder: Path, more_extras: str, force: bool) -> None:
    """Brings the environment to the state the pins describe. Raises SetupError."""
    begun = time.monotonic()
    check_python(sys.version_info)
    extra = choose_extra(os.environ.get("LADDER_EXTRA", "").strip(), _listed_gpus())
    extras = ",".join([extra, *(name for name in more_extras.split(",") if name)])
    environment = Environment(folder, begun)
    stamp, key = folder / STAMP, stamp_key(ROOT, extra, extras, ".".join(map(str, sys.version_info[:2])))
    if (
        not force
        and environment.python.exists()
        and stamp.exists()
        and stamp.read_text(encoding="utf-8").strip() == key
    ):
        return
    environment.create()
    if extra == "cpu":
        environment.check_cpu_torch(torch_pin((ROOT / "setup.cfg").read_text(encoding="utf-8"), "cpu"))
    environment.install(extras)
    environment.settle_torchvision()
    environment.drop_broken_media()
    _replace(stamp, key + "\n")
    environment.say(f"environment {folder} is ready: [{extras}]")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 ready, 1 set-up stopped with a message."""
    parser = argparse.ArgumentParser(description="Create the virtual environment and install what is missing.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--extras", default="dev", help="more extras, comma separated")
    parser.add_argument("--force", action="store_true", help="check everything again, whatever the stamp says")
    options = parser.parse_args(arguments)
    try:
        set_up(options.venv.absolute(), options.extras, options.force)
    except SetupError as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
