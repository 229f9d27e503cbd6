"""JSON over HTTP for rewards that are computed elsewhere: `post_json`, and what its settings may be.

What holds
    * Secrets are named, never written: a header value of the configuration names one environment variable, which is
      read at call time. No message carries its value; texts of a server are cleared of it by `shown`. A server that
      sends it back in another encoding than the plain or the JSON-escaped one is not seen through.
    * Headers reach the host of the URL, or the proxy that the environment names, and nobody else: no redirect is
      followed.
    * Only what may pass is tried again: a connection that fails or breaks off, a silence, 429 and 5xx.

Who waits for whom: the calling thread waits for the server. `timeout_seconds` bounds the connection, every silence and,
to within one more silence, the body of an attempt; a pause between attempts is not longer than it either. Looking up a
name, and headers that arrive a byte at a time, are bounded by the caller's own deadline only, which kills the process.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from rewards.errors import RewardSettingsError

#: Largest response: scores of a group are a few kilobytes, what is larger is not an answer.
MAX_RESPONSE_BYTES = 8 * 2**20
#: Characters of a foreign text that a message shows.
SHOWN_CHARACTERS = 200
#: First pause between attempts, seconds; it doubles.
BACKOFF_SECONDS = 0.25
#: Nobody waits longer for a reward; sockets take no arbitrarily large timeout.
MAX_TIMEOUT_SECONDS = 3600
_CHUNK_BYTES = 2**16
_SHOWN_DEPTH = 6
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
#: Headers that `post_json` or urllib writes from the payload.
_OWN_HEADERS = ("content-type", "content-length", "transfer-encoding")
# Not the shared generator: a reward must not shift the random numbers of another one.
_jitter = random.SystemRandom()


class RewardCallError(RuntimeError):
    """A reward server gave no usable answer. The message says which server, what came and what to do."""


@dataclass(frozen=True)
class _Failure:
    """An attempt without an answer. `pause`: seconds the server asked for, None when it named none."""

    reason: str
    may_pass: bool
    pause: float | None = None


class _AsTheyAre(urllib.request.HTTPErrorProcessor):
    """Hands out every response, whatever its status: nothing is followed, nothing is raised."""

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        return response

    https_response = http_response


def post_json(
    url: str, payload: object, headers_from_env: Mapping[str, str], timeout_seconds: float, retries: int
) -> object:
    """What the server answers to `payload`, decoded; NaN and infinities pass, as `json` reads them.

    `headers_from_env`: header name to a value with exactly one `$NAME`, such as {"Authorization": "Bearer $TOKEN"}.
    `timeout_seconds` in (0, `MAX_TIMEOUT_SECONDS`], of one attempt; `retries` >= 0 attempts follow the first. The pauses
    between them double from `BACKOFF_SECONDS` or, after 429 and 5xx, last the seconds of Retry-After (a date there is
    not read), never more than `timeout_seconds`.

    Raises RewardSettingsError for settings that make no sense, RewardCallError for a missing variable, a payload that
    is not JSON, and when no attempt brought a JSON answer of at most `MAX_RESPONSE_BYTES`.
    """
    check_call(url, headers_from_env, timeout_seconds, retries)
    request = _request(url, payload, headers_from_env)
    # Nothing is raised inside an `except`: the context of an exception would carry what `shown` has to clear.
    for attempt in range(retries + 1):
        body = _attempt(request, timeout_seconds, headers_from_env)
        if not isinstance(body, _Failure):
            return _decoded(body, url, headers_from_env)
        if not body.may_pass:
            _give_up(url, body.reason)
        if attempt < retries:
            backoff = BACKOFF_SECONDS * 2 ** min(attempt, 16) * _jitter.uniform(0.75, 1.25)
            time.sleep(min(backoff if body.pause is None else body.pause, timeout_seconds))
    _give_up(url, f"{body.reason} (attempts: {retries + 1})")


def check_call(url: str, headers_from_env: Mapping[str, str], timeout_seconds: float, retries: int) -> None:
    """RewardSettingsError when a call with these settings makes no sense. Environment variables are not looked at."""
    check_url("url", url)
    check_headers(headers_from_env)
    if not 0 < check_number("timeout_seconds", timeout_seconds) <= MAX_TIMEOUT_SECONDS:
        raise RewardSettingsError(f"timeout_seconds is {timeout_seconds!r}: it must be in (0, {MAX_TIMEOUT_SECONDS}]")
    check_whole("retries", retries, 0)


def check_url(name: str, url: object) -> None:
    """RewardSettingsError unless `url` is http(s) with a host and carries no credentials. It is not shown: it might."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise RewardSettingsError(f"{name} must be a text of printable ASCII without spaces: percent-encode the others")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        credentials = parts.username is not None or parts.password is not None
        (parts.hostname or "").encode("idna")  # as the look-up of the name will do
    except ValueError:  # a port that is no number, brackets that do not match, a host with an empty part
        usable, credentials = False, False
    if not usable:
        raise RewardSettingsError(f"{name} is no usable address: write http://host:port/path or https://host/path")
    if credentials:
        raise RewardSettingsError(f"{name} has credentials before its host: give them as a header from the environment")


def check_headers(headers_from_env: object) -> None:
    """RewardSettingsError unless every value has exactly one `$NAME`. Values are not shown: one might be a secret."""
    if not isinstance(headers_from_env, Mapping):
        raise RewardSettingsError("headers must map header names to values such as 'Bearer $REWARD_TOKEN'")
    for name, value in headers_from_env.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise RewardSettingsError("headers: a name is not one HTTP allows: write letters, digits and '-'")
        if name.lower() in _OWN_HEADERS:
            raise RewardSettingsError(f"headers: {name!r} is set from the payload: leave it out")
        if not isinstance(value, str) or value.count("$") != 1 or not _VARIABLE.search(value):
            raise RewardSettingsError(
                f"headers: the value of {name!r} must name exactly one environment variable, as in 'Bearer $REWARD_TOKEN'; "
                "a secret itself does not belong in a configuration"
            )


def check_number(name: str, value: object) -> float:
    """The value as a float; RewardSettingsError unless it is a finite number."""
    number = finite(value)
    if number is None:
        raise RewardSettingsError(f"{name} is {value!r}: it must be a finite number")
    return number


def check_whole(name: str, value: object, least: int) -> None:
    """RewardSettingsError unless the value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RewardSettingsError(f"{name} is {value!r}: it must be a whole number of at least {least}")


def finite(value: object) -> float | None:
    """A number of JSON as a float; None for everything else: booleans, NaN, infinities, whole numbers beyond floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object, headers_from_env: Mapping[str, str], *, ending: bool = False) -> str:
    """The start of a value of JSON, or its end, on one line, as messages show what a server said.

    The secrets of the headers, which have been checked, are replaced.
    """
    # Secrets first, while they are whole: repr escapes, and the cut may leave the half of one.
    text = repr(_cleared(value, _forms(headers_from_env)))
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return "…" + text[-SHOWN_CHARACTERS:] if ending else text[:SHOWN_CHARACTERS] + "…"


def check_environment(headers_from_env: Mapping[str, str]) -> None:
    """RewardCallError that names the first variable without a usable value; for callers that make many calls."""
    _headers(headers_from_env)


def _headers(headers_from_env: Mapping[str, str]) -> dict[str, str]:
    headers = {}
    for header, template in headers_from_env.items():
        variable, secret = _secret(template)
        if not secret:
            raise RewardCallError(f"environment variable {variable} is not set or empty: header {header!r} needs it")
        value = _VARIABLE.sub(lambda _: secret, template)
        # http.client would refuse these as well, with the value in its message.
        if not value.isascii() or not value.isprintable():
            raise RewardCallError(
                f"environment variable {variable} cannot be sent as header {header!r}: "
                "it must be one line of printable ASCII"
            )
        headers[header] = value
    return headers


def _secret(template: str) -> tuple[str, str]:
    """Name and value of the variable of a checked template, "" without one; HTTP ignores spaces around a value."""
    variable = _VARIABLE.search(template).group(1)
    return variable, os.environ.get(variable, "").strip()


def _forms(headers_from_env: Mapping[str, str]) -> list[str]:
    """The secrets, plain and as texts of JSON and Python have them; those that contain others first."""
    secrets = {secret for template in headers_from_env.values() if (secret := _secret(template)[1])}
    return sorted(secrets | {form(secret)[1:-1] for secret in secrets for form in (repr, json.dumps)}, key=len, reverse=True)


def _cleared(value: object, forms: list[str], depth: int = 0) -> object:
    """A value of JSON without the secrets; what is nested deeper than a message can show is left out."""
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, "***")
        return value
    if isinstance(value, (dict, list)) and depth == _SHOWN_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {_cleared(key, forms): _cleared(item, forms, depth + 1) for key, item in value.items()}
    return [_cleared(item, forms, depth + 1) for item in value] if isinstance(value, list) else value


def _request(url: str, payload: object, headers_from_env: Mapping[str, str]) -> urllib.request.Request:
    given = _headers(headers_from_env)
    headers = {"User-Agent": "spatial-ladder", "Accept": "application/json", **given, "Content-Type": "application/json"}
    try:
        data = json.dumps(payload, allow_nan=False).encode("ascii")
        reason = None
    except (TypeError, ValueError, RecursionError) as error:
        reason = shown(str(error), headers_from_env)
    if reason is not None:
        _give_up(url, f"what would be sent is not JSON: {reason}; does the row's metadata hold something else?")
    return urllib.request.Request(url, data=data, headers=headers, method="POST")


def _attempt(
    request: urllib.request.Request, timeout_seconds: float, headers_from_env: Mapping[str, str]
) -> bytes | _Failure:
    """The body of a 2xx response, or why there is none."""
    until = time.monotonic() + timeout_seconds
    try:
        with urllib.request.build_opener(_AsTheyAre()).open(request, timeout=timeout_seconds) as response:
            body = _read(response, until)
            status, pause = response.status, _seconds(response.headers.get("Retry-After", ""))
            target = response.headers.get("Location", "")
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        told = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
        hint = f"is the server up, and fast enough for {timeout_seconds:g} s?"
        return _Failure(f"no answer, {shown(told, headers_from_env)}; {hint}", may_pass=True)
    if 200 <= status < 300:
        if len(body) > MAX_RESPONSE_BYTES:
            return _Failure(f"the answer is larger than {MAX_RESPONSE_BYTES} bytes: send scores only", may_pass=False)
        return body
    if 300 <= status < 400:
        return _Failure(
            f"status {status} redirects to {shown(target.partition('?')[0], headers_from_env)}, which is not followed, "
            "because the headers are for this host only: configure the final address",
            may_pass=False,
        )
    text = shown(body.decode("utf-8", errors="replace"), headers_from_env)
    return _Failure(f"status {status}: {text}", may_pass=status == 429 or status >= 500, pause=pause)


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    """The body, or one byte more than allowed of it. TimeoutError past `until`, ConnectionError when it is cut short."""
    announced = response.length  # None when the server closes the connection to end the body, or sends it in chunks
    wanted = MAX_RESPONSE_BYTES + 1 if announced is None else min(announced, MAX_RESPONSE_BYTES + 1)
    body = bytearray()
    while len(body) < wanted:
        # read1 returns what is there: `read` would wait for a whole chunk, as slowly as the server likes.
        chunk = response.read1(min(_CHUNK_BYTES, wanted - len(body)))
        if not chunk:
            break
        body += chunk
        if time.monotonic() > until:
            raise TimeoutError(f"the answer was still arriving after {len(body)} bytes")
    if announced is not None and len(body) < wanted:
        raise ConnectionError(f"the answer broke off after {len(body)} of {announced} bytes")
    return bytes(body)


def _seconds(retry_after: str) -> float | None:
    return float(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after) else None


def _decoded(body: bytes, url: str, headers_from_env: Mapping[str, str]) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits; too deep
        reason = f"{type(error).__name__}: {error}"
    came = shown(body.decode("utf-8", errors="replace"), headers_from_env)
    _give_up(url, f"the answer is not JSON ({shown(reason, headers_from_env)}): {came}")


def _give_up(url: str, reason: str) -> NoReturn:
    parts = urlsplit(url)  # without the query, which may hold a key
    raise RewardCallError(f"POST {parts.scheme}://{parts.netloc}{parts.path}: {reason}")
