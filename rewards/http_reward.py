"""A reward computed by a server of one's own: the texts of a group go there as JSON, their scores come back.

    POST  {"completions": [{"text": …}, …], "example": {"id": …, "question": …, … the fields of a RewardRow}}
    200   {"scores": [number | {name: number, …} | {"error": "reason"}, …]}   one per completion, in order

What holds: a score that is no finite number is never a reward, but the error of its completion alone; so is
{"error": …}. An answer whose scores cannot be assigned, because there are more or fewer of them than completions, fails
the group.

Who waits for whom: batches are sent one after the other, each waits for its answer as `rewards.http_calls` says; the
caller's deadline (`reward.timeout_seconds`) must leave room for them and their retries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.http_calls import RewardCallError, check_call, check_environment, check_whole, finite, post_json, shown

#: What the server is told of the row; `media` are paths, pictures are not sent.
EXAMPLE_FIELDS = ("id", "question", "question_type", "options", "answer", "target_boxes", "processed_size", "media")
ItemScore = float | dict[str, float] | Exception


def http_reward(
    completion_texts: Sequence[str],
    example: object,
    *,
    url: str,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = 10.0,
    retries: int = 2,
    batch_size: int = 64,
) -> list[ItemScore]:
    """One score per completion, in order: a finite float, a dict of them (empty: does not apply), or RewardCallError.

    `headers`, `timeout_seconds`, `retries`: as `rewards.http_calls.post_json` takes them. `batch_size` >= 1: completions
    of one request.

    Raises RewardSettingsError for settings that make no sense, and RewardCallError when a batch gets no answer or one
    without a score for every completion.
    """
    headers = {} if headers is None else headers
    check_call(url, headers, timeout_seconds, retries)
    check_whole("batch_size", batch_size, 1)
    check_environment(headers)
    if not completion_texts:
        return []
    fields = {name: getattr(example, name) for name in EXAMPLE_FIELDS}
    fields["metadata"] = dict(example.metadata or {})  # read-only views of a dict are not JSON
    scores: list[ItemScore] = []
    for start in range(0, len(completion_texts), batch_size):
        batch = completion_texts[start : start + batch_size]
        payload = {"completions": [{"text": text} for text in batch], "example": fields}
        answer = post_json(url, payload, headers, timeout_seconds, retries)
        scores += [_item(score, headers) for score in _scores(answer, len(batch), headers)]
    return scores


def _scores(answer: object, expected: int, headers: Mapping[str, str]) -> list[object]:
    """The list of scores; RewardCallError that says what came instead."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise RewardCallError(f'the reward server must answer {{"scores": [...]}}, not {shown(answer, headers)}')
    if len(scores) != expected:
        raise RewardCallError(
            f"the reward server answered {len(scores)} scores for {expected} completions: one for each, in order"
        )
    return scores


def _item(score: object, headers: Mapping[str, str]) -> ItemScore:
    if isinstance(score, dict) and "error" in score:
        return RewardCallError(f"the reward server could not score this completion: {shown(score['error'], headers)}")
    if isinstance(score, dict):
        numbers = {name: finite(value) for name, value in score.items()}
        if None not in numbers.values():
            return numbers
    elif (number := finite(score)) is not None:
        return number
    return RewardCallError(
        f"the reward server scored this completion {shown(score, headers)}: "
        'it must be a finite number, {name: finite number} or {"error": "reason"}'
    )
