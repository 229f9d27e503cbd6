"""The work that is measured: random-noise pictures, one question, a small random model of the real architecture.

    single      one 112 x 112 picture          multiview   eight 224 x 224 pictures

The same as the peer's script uses: 8 prompts with 8 completions of at most 48 tokens a GRPO step, 16 rows an SFT step,
float32, fixed seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from data.types import Example
from models.tiny import build_config, build_processor

WORKLOADS = {"single": (1, 112), "multiview": (8, 224)}
PROMPTS, GROUP, NEW_TOKENS, SFT_ROWS = 8, 8, 48, 16
QUESTION = "How many chairs are in the room?"
ANSWER = "<think> I count the chairs one by one, then check again. </think> <answer> 3 </answer>"


def build_model(folder: Path, seed: int = 0) -> Path:
    """A random model of 1.8 million parameters: 4 layers of width 128 with heads of 32, a vision tower of 4 layers, the
    last of which sees whole pictures. Pictures of 112 to 224 pixels keep their size."""
    processor = build_processor()
    size = {"shortest_edge": 112 * 112, "longest_edge": 224 * 224}
    processor.image_processor.size = size
    processor.video_processor.size = size
    tiny = build_config(processor, init_std=0.02).to_dict()
    tiny["text_config"] |= {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    tiny["vision_config"] |= {"depth": 4, "fullatt_block_indexes": [3]}
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor, 0.02).__class__(**tiny)).float()
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def rows(workload: str, count: int, folder: Path) -> list[Example]:
    """`count` rows, each with pictures of its own, written into `folder`."""
    pictures, side = WORKLOADS[workload]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(count):
        rng = np.random.default_rng(index)
        paths = [folder / f"{index}-{view}.png" for view in range(pictures)]
        for path in paths:
            Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
        found.append(
            Example(
                id=f"train/{workload}/{index}",
                question_id=index,
                data_type="single_image" if pictures == 1 else "multi_view",
                question=QUESTION,
                question_type="object count",
                media=tuple(map(str, paths)),
                answer="3",
                prompt_text=QUESTION,
                solution=ANSWER,
            )
        )
    return found
