"""Token ids the policy must never write, and the one it ends with.

A sampled media placeholder stops the learner (features and tokens no longer match), and a padded vocabulary row is not
a token at all. Engine and learner ban the same ids, so that their log-probabilities are of the same distribution.
"""

from __future__ import annotations

from transformers import Qwen2_5_VLProcessor

MEDIA_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def banned_token_ids(processor: Qwen2_5_VLProcessor, vocab_size: int) -> tuple[int, ...]:
    """Media tokens and the embedding rows at or above the tokenizer's length, sorted. `vocab_size`: rows of the head."""
    tokenizer = processor.tokenizer
    media = {tokenizer.convert_tokens_to_ids(token) for token in MEDIA_TOKENS}
    if None in media or tokenizer.unk_token_id in media:
        raise ValueError(f"the tokenizer lacks one of {', '.join(MEDIA_TOKENS)}; it is not a Qwen2.5-VL tokenizer")
    return tuple(sorted(media | set(range(len(tokenizer), vocab_size))))


def end_token_id(processor: Qwen2_5_VLProcessor) -> int:
    """The id of `<|im_end|>`, which ends an assistant turn."""
    return processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
