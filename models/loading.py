"""Model folders: checked, loaded and written in one layout that transformers and vLLM both read.

A model folder holds weights (safetensors only), configuration, generation configuration, tokenizer, image and video
processor and chat template. A folder that lacks one of them is refused before anything heavy starts.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Mapping

import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: file (or alternatives) -> what it is for.
_REQUIRED = (
    (("config.json",), "model configuration"),
    ((WEIGHTS, INDEX), "weights in safetensors"),
    (("tokenizer.json",), "tokenizer"),
    (("processor_config.json", "preprocessor_config.json"), "image processor"),
    (("chat_template.jinja", "chat_template.json"), "chat template"),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelFolderError(ValueError):
    """A model folder that cannot be used: says which folder, what is missing, and what to do."""


def check_model_folder(path: str | Path) -> Path:
    """The folder, if it has everything a stage needs; ModelFolderError otherwise.

    Reads only file names, config.json and the index of weights in several files.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelFolderError(f"model folder {folder} does not exist; set model.path to a folder with a Qwen2.5-VL checkpoint")
    missing = [f"{' or '.join(names)} ({purpose})" for names, purpose in _REQUIRED
               if not any((folder / name).is_file() for name in names)]
    if missing:
        raise ModelFolderError(f"model folder {folder} lacks {', '.join(missing)}; save the processor beside the model "
                               f"(processor.save_pretrained) or copy these files from the base model")
    if shards := _missing_shards(folder):
        shown = ", ".join(shards[:3]) + (f" and {len(shards) - 3} more" if len(shards) > 3 else "")
        raise ModelFolderError(f"model folder {folder} lacks weights that {INDEX} names: {shown}; "
                               f"fetch these files again, the download was not complete")
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except json.JSONDecodeError as error:
        raise ModelFolderError(f"{folder / 'config.json'} is not JSON ({error}); restore it from the base model") from None
    if model_type != "qwen2_5_vl":
        raise ModelFolderError(f"{folder / 'config.json'}: model_type is {model_type!r}; this system trains 'qwen2_5_vl'")
    return folder


def _missing_shards(folder: Path) -> list[str]:
    """Files that the index of the weights names and the folder lacks; none when the weights are one file."""
    if (folder / WEIGHTS).is_file():
        return []
    try:
        files = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{folder / INDEX} is no index of weights ({type(error).__name__}: {error}); "
                               f"restore it from the base model") from None
    return sorted(name for name in files if not (folder / name).is_file())


def load_processor(path: str | Path) -> Qwen2_5_VLProcessor:
    """Tokenizer with image and video processors of a folder; ModelFolderError also for files transformers cannot read."""
    folder = check_model_folder(path)
    try:
        return AutoProcessor.from_pretrained(folder)
    except Exception as error:  # a damaged file raises whatever its parser raises
        raise ModelFolderError(f"the processor of {folder} cannot be loaded ({type(error).__name__}: {error}); "
                               f"restore tokenizer, processor and chat template from the base model") from error


def load_policy(path: str | Path, dtype: str = "float32", device: str = "cpu") -> Qwen2_5_VLForConditionalGeneration:
    """The model of a checked folder in `dtype` (a key of DTYPES), without key-value cache, on `device`."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(check_model_folder(path), dtype=DTYPES[dtype])
    model.config.text_config.use_cache = False
    return model.to(device)


def save_policy(model: Qwen2_5_VLForConditionalGeneration, processor_folder: str | Path, folder: str | Path,
                weights: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write the model and the processor of `processor_folder` into `folder`, whole or not at all; returns the folder.

    `weights` stand in for the model's own, which may be in shards or have adapters beside them. An existing folder is
    replaced.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=dict(weights) if weights is not None else None)
    load_processor(processor_folder).save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return folder
