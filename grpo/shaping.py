"""Length shaping: a completion that runs into the length limit loses reward gradually, not all at once.

What holds: without a buffer a truncated completion has no reward and leaves the statistics of its group, so nothing
holds a policy back that grows longer and longer; with one, coming near the limit costs up to 1 and being cut off
costs 1, on top of the 0 that an answer without an end has earned.
"""

from __future__ import annotations


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """Soft overlong punishment (DAPO, eq. 13): 0 up to limit - buffer tokens, then linear to -1 at the limit.

    `length` tokens of the completion, its end included; `limit` the most it may have. ValueError unless 0 < buffer <= limit.
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"a buffer of {buffer} tokens before a limit of {limit}: give 0 < buffer <= limit")
    return max(-1.0, min(0.0, (limit - buffer - length) / buffer))
