"""The torchvision hook, in fresh interpreters: it helps where it must and stays out of the way elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

HOOK = Path(__file__).resolve().parents[2] / "deploy" / "torchvision_cpu.py"
LOAD = "import runpy, sys; runpy.run_path({hook!r}, run_name='_ladder_torchvision_cpu');"


def run(code: str, *path: Path) -> str:
    """Output of a fresh interpreter that has the hook first and `path` in front."""
    paths = "".join(f"sys.path.insert(0, {str(folder)!r});" for folder in path)
    bare = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ladder' not in type(f).__module__];"
    result = subprocess.run(
        [sys.executable, "-c", bare + paths + LOAD.format(hook=str(HOOK)) + code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_loading_the_hook_imports_nothing_heavy():
    assert run("print([name for name in ('torch', 'torchvision', 'numpy') if name in sys.modules])") == "[]"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_torchvision_imports_and_resizes_beside_a_cpu_torch():
    code = "import torch; from torchvision.transforms.v2 import functional as F;"
    code += "print(tuple(F.resize(torch.zeros(3, 8, 8), [4, 6]).shape))"
    assert run(code) == "(3, 4, 6)"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_missing_operators_raise_instead_of_answering():
    code = (
        "import torch, torchvision.ops as ops\n"
        "try: ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5); print('answered')\n"
        "except (RuntimeError, NotImplementedError): print('raised')"
    )
    result = run("exec(" + repr(code) + ")")
    assert result in ("raised", "answered")
    if result == "answered":  # only with operators of torchvision's own
        assert run("import torchvision, torch; print(torchvision.extension._has_ops())") == "True"


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)


FAKE_TORCH = """
class version: cuda = {cuda!r}
calls = []
class ops:
    class torchvision: pass
    @staticmethod
    def load_library(path):
        calls.append('load')
        if {fails}: raise OSError(path)
class library:
    class Library:
        def __init__(self, *_): calls.append('declare')
        def define(self, schema): calls.append(schema.split('(')[0])
"""


@pytest.mark.parametrize(
    "cuda, fails, calls",
    [
        ("13.0", True, []),
        (None, False, ["load"]),
        (None, True, ["load", "declare", "nms", "qnms"]),
    ],
)
def test_it_acts_only_beside_a_cpu_torch_whose_torchvision_does_not_load(tmp_path, cuda, fails, calls):
    fake(tmp_path, "torch", FAKE_TORCH.format(cuda=cuda, fails=fails))
    fake(tmp_path, "torchvision", "")
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"")
    assert run("import torchvision, torch; print(torch.calls)", tmp_path) == str(calls)


def test_without_torchvision_the_import_error_is_the_usual_one(tmp_path):
    code = "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
    code += "try: import torchvision\nexcept ModuleNotFoundError as e: print(e)"
    assert run("exec(" + repr(code) + ")") == "No module named 'torchvision'"
