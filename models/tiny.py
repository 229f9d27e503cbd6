"""A tiny Qwen2.5-VL of the real architecture, built offline: tokenizer, processor, configuration, random weights.

It exists so that the whole ladder runs on two CPU cores with the real engines. The folder it writes loads unchanged
in transformers and in vLLM. Three choices are not obvious:

* The rotary base is 1000, between two needs. With the large model's million, the width axis turns by about 0.001 rad over
  a grid of four visual tokens, and by 0.06 with 1000. With 10, every channel turns quickly with distance, none is left in
  which a word can look for what it names wherever that stands, and a thing among several is hardly ever found.
* head_dim is 32, the smallest that vLLM's CPU attention accepts.
* Runs of digits stay whole in the pre-tokenizer, so a coordinate is one token, and the vocabulary has no padding rows,
  which an engine could sample.

    python -m models.tiny FOLDER [--seed 0] [--init-std 0.15]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
                          Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)

#: Qwen2.5-VL's special tokens in their order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)
#: Qwen's pattern with `\p{N}` widened to `\p{N}+`.
_PRETOKENIZE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
#: Integers that are one token each: coordinates of the largest processed picture, and centimetres of furniture.
SINGLE_TOKEN_INTEGERS = range(256)
VOCABULARY = 1152
#: Pixel limits of the processed picture: 112 x 112, 4 x 4 visual tokens after merging.
PIXELS = 112 * 112

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif item['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over `tiny_corpus.txt`; deterministic."""
    corpus = (Path(__file__).parent / "tiny_corpus.txt").read_text().splitlines()
    # Numbers are repeated so that every integer's merges are learned before any word's.
    numbers = [" ".join(str(n) for n in SINGLE_TOKEN_INTEGERS)] * 200
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL_TOKENS), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus * 3 + numbers, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   padding_side="left", model_max_length=32768,
                                   clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE)


def build_processor() -> Qwen2_5_VLProcessor:
    """Tokenizer plus image and video processors with small, explicit pixel limits."""
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False,
                                              min_frames=2, max_frames=64, do_sample_frames=False),
        chat_template=CHAT_TEMPLATE)


def build_config(processor: Qwen2_5_VLProcessor, init_std: float) -> Qwen2_5_VLConfig:
    """1.3 M parameters; `init_std` 0.02 to train, 0.15 for parity tests (small values hide bugs in near-uniform logits)."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(processor.tokenizer), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 7, 7]},
        "initializer_range": init_std, "bos_token_id": None, "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"], "tie_word_embeddings": True, "use_cache": False,
    }
    vision = {
        "depth": 2, "hidden_size": 96, "intermediate_size": 256, "num_heads": 3, "out_hidden_size": 128,
        "fullatt_block_indexes": [1], "window_size": 112, "tokens_per_second": 2, "initializer_range": init_std,
    }
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True, initializer_range=init_std)


def build_tiny(folder: str | Path, seed: int = 0, init_std: float = 0.02) -> Path:
    """Write model, processor and tokenizer of a randomly initialised tiny model into `folder`; returns the folder."""
    folder = Path(folder)
    processor = build_processor()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor, init_std)).float()
    model.generation_config.eos_token_id = [model.config.text_config.eos_token_id, model.config.text_config.pad_token_id]
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a randomly initialised tiny Qwen2.5-VL")
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init-std", type=float, default=0.02)
    arguments = parser.parse_args()
    print(build_tiny(arguments.folder, arguments.seed, arguments.init_std))
