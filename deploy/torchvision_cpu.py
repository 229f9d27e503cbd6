"""Lets `import torchvision` succeed beside a CPU-only torch when torchvision's own operator library cannot be loaded.

The torchvision wheel of the package index is a CUDA build. Beside a CPU torch its compiled library does not load, and
the import stops at `operator torchvision::nms does not exist`. What transformers and vLLM need of torchvision
(resizing, colour and tensor transforms) is plain torch and works once the two operator names exist.

`deploy/setup_env.py` copies this file into an environment's site-packages together with a one-line `.pth` file, so that
it holds in every interpreter: engine processes, Ray workers, notebooks. What holds:

* nothing is imported at interpreter start; the finder acts once, when torchvision is first asked for;
* it does nothing beside a CUDA torch, and nothing when torchvision's own library loads;
* only the names are declared: calling `torchvision.ops.nms` still raises, it never returns a wrong box.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_SCHEMA = "{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_declared = []  # a torch.library.Library undoes its declarations when collected: keep it


class _OperatorNames:
    """Finder that never finds anything: it prepares torch just before torchvision is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _prepare()
        return None


def _prepare() -> None:
    spec = PathFinder.find_spec("torchvision")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders or PathFinder.find_spec("torch") is None:
        return
    import torch

    if torch.version.cuda is not None or _loads_own_library(torch, Path(folders[0])):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(_SCHEMA.format(name=name))
    _declared.append(library)


def _loads_own_library(torch, folder: Path) -> bool:
    for library in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


if not any(type(finder).__name__ == _OperatorNames.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _OperatorNames())
