"""A model behind a server that speaks OpenAI's chat.completions, asked with our prompts and pictures.

What holds
    * One request, one completion. Pictures go as data URLs of their files, in the prompt's order; a video as its frames.
    * The key comes from the environment variable that the settings name, and no message carries it (`rewards.http_calls`,
      which also says what is tried again).
    * `seed` is sent; whether equal seeds give equal texts is the server's affair.

Who waits for whom: a thread per request waits for the server, as long as `timeout_seconds` and `retries` allow; the event
loop waits for nobody. Threads die with the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from configs.schema import EndpointConfig, SamplingConfig
from data.types import Prompt
from rewards.http_calls import RewardCallError, check_call, check_environment, post_json, shown
from rewards.judge import picture_part

Value = TypeVar("Value")


class EndpointError(RuntimeError):
    """A request that brought no completion; says which server, what came and what to do."""


@dataclass(frozen=True)
class Written:
    """One completion. `finish_reason` as the server named it; `tokens`: None where it did not count them."""

    text: str
    finish_reason: str
    tokens: int | None


class Endpoint:
    """The server of the settings. RewardSettingsError for those that make no sense, EndpointError for a missing key."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._url = config.base_url.rstrip("/") + "/chat/completions"
        self._headers = {"Authorization": f"Bearer ${config.api_key_variable}"} if config.api_key_variable else {}
        check_call(self._url, self._headers, config.timeout_seconds, config.retries)
        try:
            check_environment(self._headers)
        except RewardCallError as error:
            raise EndpointError(str(error)) from None

    @property
    def longest_silence(self) -> float:
        """Seconds that one request may take: every attempt connects, waits and reads, and pauses before the next."""
        return (self._config.retries + 1) * 3 * self._config.timeout_seconds

    async def complete(self, prompt: Prompt, sampling: SamplingConfig, seed: int) -> Written:
        """One completion of the prompt. EndpointError when there is none, also for a picture that cannot be sent."""
        return await in_thread(lambda: self._complete(prompt, sampling, seed))

    def _complete(self, prompt: Prompt, sampling: SamplingConfig, seed: int) -> Written:
        config = self._config
        try:
            payload = {
                "model": config.model,
                "messages": messages(prompt),
                "temperature": sampling.temperature,
                "max_tokens": sampling.max_new_tokens,
                "seed": seed,
                **config.extra_body,
            }
            answer = post_json(self._url, payload, self._headers, config.timeout_seconds, config.retries)
        except RewardCallError as error:
            raise EndpointError(str(error)) from None  # its frames hold the request, pictures included
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message, finish_reason = choice.get("message"), choice.get("finish_reason")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str) or not isinstance(finish_reason, str):
            raise EndpointError(f"{self._url}: no text at choices[0].message.content, or no finish_reason: "
                                f"{shown(answer, self._headers)}")
        usage = answer.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return Written(text, finish_reason, tokens if type(tokens) is int else None)


def messages(prompt: Prompt) -> list[dict[str, object]]:
    """The chat in OpenAI's form, every placeholder replaced by its pictures. RewardCallError for one that cannot be sent."""
    pictures = [picture_part(path) for path in prompt.example.media]
    chat = []
    for message in prompt.messages:
        parts: list[dict[str, object]] = []
        for item in message["content"]:
            if item["type"] == "text":
                parts.append({"type": "text", "text": item["text"]})
            else:
                count = 1 if item["type"] == "image" else len(pictures)
                parts, pictures = parts + pictures[:count], pictures[count:]
        # Servers of text models take a plain string only.
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        chat.append({"role": message["role"], "content": parts[0]["text"] if plain else parts})
    return chat


async def in_thread(work: Callable[[], Value]) -> Value:
    """`work()` in a daemon thread: unlike a pool's, it does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def settle(result: Value | None, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as failure:  # a thread's boundary: whoever awaits gets it
            error = failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="endpoint", daemon=True).start()
    return await future
