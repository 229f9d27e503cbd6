"""A chat and its pictures as the engine and the learner read them: one processor folder, one truth.

What holds: the engine gets the unexpanded prompt (one placeholder per medium) and the pictures; the learner gets the
expanded ids, the patches and the positions. Both come from the same tokenizer and picture processors;
`Encoded.input_ids` equals what the engine reports to have run on. Video rows are frame lists without time stamps and are
declared as one frame per second to both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.video_utils import VideoMetadata

from configs.schema import BoxFrame
from models.positions import rope_positions

#: Side of the frame of boxes that are written in thousandths.
NORM_SIDE = 1000
#: Frames per second that a frame list is declared to have.
FRAMES_PER_SECOND = 1.0


class MediaError(ValueError):
    """A picture that is missing or cannot be read: says which and why."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt ready for the forward pass.

    prompt_ids: unexpanded ids, as the engine takes them. input_ids (S): expanded ids. token_types (S): 0 text, 1 image,
    2 video. pixel_values (patches, 1176) float32 or None. grid_thw (media, 3) patches or None. positions (3, S).
    media_keys: what tells a medium from every other, one each, or empty: then none is known to be another's equal.
    """

    prompt_ids: tuple[int, ...]
    input_ids: tuple[int, ...]
    token_types: tuple[int, ...]
    pixel_values: torch.Tensor | None
    grid_thw: torch.Tensor | None
    positions: torch.Tensor
    media_keys: tuple[str, ...] = ()

    @property
    def next_position(self) -> int:
        """The position (on all three axes) of the first completion token."""
        return int(self.positions.max()) + 1


def load_images(paths: Sequence[str]) -> list[Image.Image]:
    """The pictures as RGB, upright (EXIF applied), in order. MediaError names the first that fails."""
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(ImageOps.exif_transpose(image).convert("RGB"))
        except FileNotFoundError:
            raise MediaError(f"image {path} does not exist") from None
        except (UnidentifiedImageError, OSError) as error:
            raise MediaError(f"image {path} cannot be read ({error}); replace the file") from None
    return images


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture as `load_images` gives it, EXIF orientation included."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except FileNotFoundError:
        raise MediaError(f"image {path} does not exist") from None
    except (UnidentifiedImageError, OSError) as error:
        raise MediaError(f"image {path} cannot be read ({error}); replace the file") from None
    return (height, width) if turned else (width, height)


def processed_size(processor: Qwen2_5_VLProcessor, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels of the picture the model is given for an original of `size`."""
    image_processor = processor.image_processor
    height, width = smart_resize(size[1], size[0], factor=image_processor.patch_size * image_processor.merge_size,
                                 min_pixels=image_processor.size["shortest_edge"],
                                 max_pixels=image_processor.size["longest_edge"])
    return width, height


def frame_size(processor: Qwen2_5_VLProcessor, size: tuple[int, int], box_frame: BoxFrame) -> tuple[int, int]:
    """(width, height) of the frame in which the model reads and writes boxes on a picture of the original `size`: that of
    the picture it is given, or 1000 x 1000."""
    return processed_size(processor, size) if box_frame == "absolute" else (NORM_SIDE, NORM_SIDE)


def chat_text(processor: Qwen2_5_VLProcessor, messages: Sequence[dict]) -> str:
    """The chat as text with one placeholder per medium, ending where the assistant begins."""
    return processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def prompt_token_ids(processor: Qwen2_5_VLProcessor, messages: Sequence[dict]) -> tuple[int, ...]:
    """The unexpanded prompt ids that the engine takes."""
    return tuple(processor.tokenizer(chat_text(processor, messages), add_special_tokens=False).input_ids)


def video_metadata(frames: int) -> dict:
    """Metadata of a frame list for vLLM: already sampled, one frame per second."""
    return {"fps": FRAMES_PER_SECOND, "frames_indices": list(range(frames)), "total_num_frames": frames,
            "duration": frames / FRAMES_PER_SECOND, "video_backend": "opencv", "do_sample_frames": False}


def engine_media(images: Sequence[Image.Image], is_video: bool) -> dict:
    """`multi_modal_data` of one vLLM request."""
    if not images:
        return {}
    if is_video:
        return {"video": [(np.stack([np.asarray(image) for image in images]), video_metadata(len(images)))]}
    return {"image": list(images)}


def encode(processor: Qwen2_5_VLProcessor, messages: Sequence[dict], images: Sequence[Image.Image], is_video: bool,
           tokens_per_second: float = 2.0, names: Sequence[str] = ()) -> Encoded:
    """Tokens, patches and positions of a chat. `tokens_per_second` is the model's `vision_config.tokens_per_second`.

    `names` of the pictures (their paths), if given, let prompts that show the same picture share its vision pass.
    ValueError when placeholders and media disagree. The processor's own call gives the same in nearly twice the time.
    """
    prompt_ids = prompt_token_ids(processor, messages)
    pixels, grid = _patches(processor, images, is_video) if images else (None, None)
    grids = [tuple(row) for row in grid.tolist()] if grid is not None else []
    merge = processor.image_processor.merge_size
    placeholders = {processor.image_token_id: 1, processor.video_token_id: 2}
    ids, types = _expand(prompt_ids, placeholders, [t * h * w // merge**2 for t, h, w in grids])
    seconds = processor.video_processor.temporal_patch_size / FRAMES_PER_SECOND
    positions = rope_positions(types, grids, merge, tokens_per_second * seconds)
    return Encoded(prompt_ids, ids, types, pixels, grid, torch.from_numpy(positions),
                   ("\0".join(names),) if is_video and names else tuple(names))


def _patches(processor: Qwen2_5_VLProcessor, images: Sequence[Image.Image], is_video: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (patches, 1176) and grids (media, 3); all frames of a video are one medium."""
    if not is_video:
        out = processor.image_processor(images=list(images), return_tensors="pt")
        _check_grids(processor, images, out["image_grid_thw"].tolist())
        return out["pixel_values"], out["image_grid_thw"]
    metadata = VideoMetadata(total_num_frames=len(images), fps=FRAMES_PER_SECOND, duration=len(images) / FRAMES_PER_SECOND,
                             frames_indices=list(range(len(images))), video_backend="opencv")
    out = processor.video_processor(videos=[np.stack([np.asarray(image) for image in images])], video_metadata=[metadata],
                                    do_sample_frames=False, return_tensors="pt")
    return out["pixel_values_videos"], out["video_grid_thw"]


def _check_grids(processor: Qwen2_5_VLProcessor, images: Sequence[Image.Image], grids: Sequence[Sequence[int]]) -> None:
    """ValueError when a picture did not become the size by which its boxes are scaled."""
    side = processor.image_processor.patch_size
    for image, (_, height, width) in zip(images, grids, strict=True):
        if (width * side, height * side) != processed_size(processor, image.size):
            raise ValueError(f"a picture of {image.size} became {width * side} x {height * side} pixels, not "
                             f"{processed_size(processor, image.size)}: boxes would be scaled wrongly")


def _expand(ids: Sequence[int], placeholders: Mapping[int, int], lengths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Each placeholder as many times as its medium has visual tokens, and the type of every token."""
    media = iter(lengths)
    expanded: list[int] = []
    types: list[int] = []
    for token in ids:
        length = next(media, 0) if token in placeholders else 1
        if length == 0:
            raise ValueError(f"the prompt has more placeholders than the {len(lengths)} media")
        expanded += [token] * length
        types += [placeholders.get(token, 0)] * length
    if next(media, None) is not None:
        raise ValueError(f"the prompt has fewer placeholders than the {len(lengths)} media")
    return tuple(expanded), tuple(types)
