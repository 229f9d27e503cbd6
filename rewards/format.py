"""The format reward: did the completion think, answer, and stop?

What holds: 1.0 only for `<think>…</think><answer>…</answer>` with each tag exactly once and in that order, both
contents non-empty, nothing but whitespace outside the blocks, no media token anywhere, and a completion that ended by
itself. Everything else is 0.0; no text raises.
"""

from __future__ import annotations

from rewards.extraction import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
#: Tokens that stand for pictures in the prompt and have no business in an answer (Qwen2.5-VL's names).
MEDIA_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def format_reward(text: str, ended: bool) -> float:
    """1.0 if `text` (the completion without its end token) keeps the strict form, else 0.0.

    `ended` says that the model emitted its end token; a completion cut off by a length limit never keeps the form.
    """
    if not ended or any(token in text for token in MEDIA_TOKENS) or any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    positions = [text.index(tag) for tag in TAGS]
    if positions != sorted(positions):
        return 0.0
    before, thought, between, answer, after = _cut(text, positions)
    outside_empty = not (before.strip() or between.strip() or after.strip())
    return 1.0 if outside_empty and thought.strip() and answer.strip() else 0.0


def _cut(text: str, positions: list[int]) -> list[str]:
    """The five pieces of `text` around the four tags that stand at `positions`, in order."""
    ends = [0] + [position + len(tag) for position, tag in zip(positions, TAGS)]
    return [text[end:start] for end, start in zip(ends, positions + [len(text)])]
