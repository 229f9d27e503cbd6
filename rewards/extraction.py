"""Where the answer of a completion is, and its reasoning: the one rule that reward and evaluation share.

What holds: the answer is the content of the last *complete* `<answer>…</answer>` block. No block, no answer: nothing
else in the text is ever taken for one.
"""

from __future__ import annotations

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


def extract_answer(text: str) -> str | None:
    """Stripped content of the last complete answer block of `text`, or None when there is no complete block.

    A block reaches from an opening tag to the first closing tag after it; of nested openings the innermost counts.
    """
    last_close = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, max(last_close, 0))
    if start < 0:
        return None
    start += len(ANSWER_OPEN)
    return text[start : text.index(ANSWER_CLOSE, start)].strip()


def extract_reasoning(text: str) -> str | None:
    """Content of the first complete `<think>…</think>` block of `text`, or None when there is none."""
    start = text.find(THINK_OPEN)
    end = text.find(THINK_CLOSE, start)
    return None if start < 0 or end < 0 else text[start + len(THINK_OPEN) : end]
