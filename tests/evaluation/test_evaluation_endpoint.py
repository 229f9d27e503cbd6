"""The client of an OpenAI-compatible endpoint: what is sent, and what every odd answer becomes. The server is a simulator:
it answers each request with the next of the bodies it was given."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from configs.schema import EndpointConfig, SamplingConfig
from data.prompts import render
from data.types import Example
from evaluation.endpoint import Endpoint, EndpointError, Written, in_thread, messages
from rewards.errors import RewardSettingsError

KEY = "sk-nobody-knows-me"


@pytest.fixture
def rows(tmp_path):
    paths = tuple(str(tmp_path / f"{index}.jpg") for index in range(3))
    for index, path in enumerate(paths):
        Image.new("RGB", (20 + index, 20)).save(path)
    return [
        Example("r/0", 0, "multi_view", "How many?", "object count", paths, None, "3"),
        Example("r/1", 1, "video", "How many?", "object count", paths, None, "3"),
    ]


@contextmanager
def answering(*bodies):
    """A server and what it was asked: (headers, body) of each request."""
    asked, left = [], list(bodies)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            """Quiet."""

        def do_POST(self):
            asked.append((dict(self.headers), json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, body = left.pop(0)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text, finish_reason="stop", **more):
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": finish_reason}], **more}


def complete(url, prompt, **settings):
    endpoint = Endpoint(EndpointConfig(base_url=url, model="m", timeout_seconds=20, retries=0, **settings))
    return asyncio.run(endpoint.complete(prompt, SamplingConfig(temperature=0.5, max_new_tokens=9), 77))


def test_a_request_is_the_prompt_with_its_pictures_and_says_how_to_sample(rows, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with answering(said("A text.", usage={"completion_tokens": 4}), said("Half", "length")) as (url, asked):
        prompt = render(rows[0], "think")
        assert complete(url, prompt, api_key_variable="MY_KEY", extra_body={"top_p": 0.9}) == Written("A text.", "stop", 4)
        assert complete(url, prompt) == Written("Half", "length", None)
    (headers, body), (bare, _) = asked
    assert headers["Authorization"] == f"Bearer {KEY}" and "Authorization" not in bare
    sampling = {name: body[name] for name in ("model", "temperature", "max_tokens", "seed", "top_p")}
    assert sampling == {"model": "m", "temperature": 0.5, "max_tokens": 9, "seed": 77, "top_p": 0.9}
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert [part["type"] for part in user["content"]] == ["image_url"] * 3 + ["text"]
    assert len({part["image_url"]["url"] for part in user["content"][:3]}) == 3
    assert user["content"][-1]["text"] == prompt.messages[1]["content"][-1]["text"]


def test_a_video_is_its_frames_where_the_prompt_has_it(rows):
    kinds = [part["type"] for part in messages(render(rows[1], "think", "paper"))[1]["content"]]
    assert kinds == ["text"] + ["image_url"] * 3
    kinds = [part["type"] for part in messages(render(rows[1], "think", "paper", "evaluation"))[1]["content"]]
    assert kinds == ["image_url"] * 3 + ["text"]


@pytest.mark.parametrize("answer", [
    (200, {}), (200, []), (200, {"choices": []}), (200, {"choices": [None]}), (200, {"choices": [{"message": None}]}),
    said(None), said(["a"]), (200, {"choices": [{"message": {"content": "a"}}]}), (401, {"error": f"bad key {KEY}"}),
    (500, {"error": KEY}), (302, {}),
])
def test_what_is_no_completion_is_an_error_without_the_key(rows, monkeypatch, answer):
    monkeypatch.setenv("MY_KEY", KEY)
    with answering(answer) as (url, asked), pytest.raises(EndpointError, match="chat/completions") as error:
        complete(url, render(rows[0], "think"), api_key_variable="MY_KEY")
    assert len(asked) == 1 and KEY not in str(error.value)


def test_settings_keys_and_pictures_that_cannot_work_are_told(rows, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(EndpointError, match="variable MY_KEY is not set"):
        Endpoint(EndpointConfig(base_url="http://host/v1", model="m", api_key_variable="MY_KEY"))
    with pytest.raises(RewardSettingsError, match="no usable address"):
        Endpoint(EndpointConfig(base_url="ftp://host/v1", model="m"))
    (tmp_path / "0.jpg").write_bytes(b"no picture")
    with answering() as (url, asked), pytest.raises(EndpointError, match="0.jpg is no JPEG, PNG, GIF or WebP"):
        complete(url, render(rows[0], "think"))
    assert asked == []


def test_what_a_thread_raises_reaches_whoever_awaits():
    def fails():
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        asyncio.run(in_thread(fails))
