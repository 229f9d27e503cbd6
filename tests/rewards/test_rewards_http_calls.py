"""JSON calls against a real server in its own process: what is tried again, what is not, and what no message says."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from urllib.parse import urlsplit

import pytest

from rewards import http_calls
from rewards.errors import RewardSettingsError
from rewards.http_calls import MAX_RESPONSE_BYTES, RewardCallError, post_json, shown

#: Answers by rules, which `Server.plan` sends: the first rule with `times` left whose `contains` is in the body. `delay`:
#: seconds before the answer; `repeat`: of the body; `echo`: a header whose value replaces ECHO in the body, the headers
#: and the reason of the status; `cut`: bytes announced and not sent; `drip`: seconds between the bytes of the body.
SERVER = """
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()


class Plan:
    def __init__(self, rules):
        self.rules, self.seen, self.running, self.most = rules, [], 0, 0


plan = Plan([])


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def send(self, status, headers, body, reason=None, cut=0, drip=0):
        self.send_response(status, reason)
        for name, value in {"Content-Length": str(len(body) + cut), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in [body] if not drip else [body[i : i + 1] for i in range(len(body))]:
            self.wfile.write(piece)
            time.sleep(drip)

    def do_GET(self):
        with lock:
            self.send(200, {}, json.dumps({"seen": plan.seen, "most": plan.most}).encode())

    def do_POST(self):
        global plan
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/plan":
            with lock:
                plan = Plan(json.loads(body))
            return self.send(200, {}, b"")
        with lock:
            mine = plan  # a request that is still here when the plan changes counts for the old one
            request = {"path": self.path, "headers": dict(self.headers), "body": json.loads(body)}
            mine.seen.append({**request, "time": time.monotonic()})
            mine.running += 1
            mine.most = max(mine.most, mine.running)
            rule = next(r for r in mine.rules if r.get("contains", "") in body and r.get("times", 1))
            rule["times"] = rule.get("times", -1) - 1
        time.sleep(rule.get("delay", 0))
        with lock:
            mine.running -= 1  # before the answer, after which the client may send the next request
        echo = self.headers.get(rule.get("echo", ""), "")
        headers = {name: value.replace("ECHO", echo) for name, value in rule.get("headers", {}).items()}
        text = rule.get("body", "").replace("ECHO", echo) * rule.get("repeat", 1)
        reason = rule["reason"].replace("ECHO", echo) if "reason" in rule else None
        try:
            self.send(rule.get("status", 200), headers, text.encode(), reason, rule.get("cut", 0), rule.get("drip", 0))
        except ConnectionError:
            pass  # the client waited long enough


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
"""


class Server:
    """The rules of a running server, and what it has seen."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def plan(self, *rules: dict) -> None:
        """Replaces the rules and forgets what was seen; a "json" becomes the body."""
        self._call("POST", "/plan", json.dumps([_with_body(rule) for rule in rules]))

    @property
    def seen(self) -> list[dict]:
        return json.loads(self._call("GET", "/"))["seen"]

    @property
    def most(self) -> int:
        """Most requests that were in the server at the same time."""
        return json.loads(self._call("GET", "/"))["most"]

    def _call(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        connection.request(method, path, body)
        content = connection.getresponse().read()
        connection.close()
        return content


def _with_body(rule: dict) -> dict:
    return {**rule, "body": json.dumps(rule["json"])} if "json" in rule else rule


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    script = tmp_path_factory.mktemp("server") / "server.py"
    script.write_text(SERVER)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        patch.setenv("no_proxy", "*")
        yield Server(int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http_calls, "BACKOFF_SECONDS", 0.01)


TOKEN = "tok-A\\b\"7'9"
HEADERS = {"Authorization": "Bearer $TEST_REWARD_TOKEN"}


@pytest.fixture
def token(monkeypatch):
    """A secret whose JSON and Python forms differ from it, with the end of line that secret files have."""
    monkeypatch.setenv("TEST_REWARD_TOKEN", TOKEN + "\n")
    return TOKEN


def assert_silent(error: BaseException) -> None:
    """Nothing of the token in anything that a log could show."""
    texts = [str(error), repr(error), "".join(traceback.format_exception(error))]
    for secret in (TOKEN, "tok-A", json.dumps(TOKEN)[1:-1], repr(TOKEN)[1:-1]):
        assert not [text for text in texts if secret in text]
    assert error.__cause__ is None and error.__context__ is None


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_payload_goes_out_and_the_answer_comes_back(server):
    server.plan({"json": {"scores": [1, 0.5]}})
    assert post_json(server.url + "/score?kind=a", {"texts": ["ä", "\ud800"]}, {}, 5.0, 0) == {"scores": [1, 0.5]}
    (request,) = server.seen
    assert request["path"] == "/score?kind=a"
    assert request["body"] == {"texts": ["ä", "\ud800"]}
    assert request["headers"]["Content-Type"] == "application/json"


def test_an_answer_in_chunks_or_without_a_length_is_read(server):
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": "1"}
    server.plan({"headers": chunked, "body": "1\r\n[\r\n2\r\n1]\r\n0\r\n\r\n"})
    assert post_json(server.url, {}, {}, 5.0, 0) == [1]
    server.plan({"headers": {"Content-Length": "unknown"}, "body": "[1]"})
    assert post_json(server.url, {}, {}, 5.0, 0) == [1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(server, status):
    server.plan({"status": status, "times": 2}, {"json": "done"})
    assert post_json(server.url, {}, {}, 5.0, 2) == "done"
    assert len(server.seen) == 3


def test_attempts_end(server):
    server.plan({"status": 500, "body": "out of memory"})
    with pytest.raises(RewardCallError, match=r"POST http://127.0.0.1:\d+/x: status 500: 'out of memory' \(attempts: 3\)"):
        post_json(server.url + "/x?key=hidden", {}, {}, 5.0, 2)
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_other_refusals_are_not_tried_again(server, status):
    server.plan({"status": status, "body": "no such reward " + 300 * "x"})
    with pytest.raises(RewardCallError, match=f"status {status}: 'no such reward x+…") as caught:
        post_json(server.url, {}, {}, 5.0, 3)
    assert len(str(caught.value)) < 300
    assert len(server.seen) == 1


def pause(server) -> float:
    first, second = [request["time"] for request in server.seen]
    return second - first


def test_retry_after_is_kept(server):
    server.plan({"status": 429, "times": 1, "headers": {"Retry-After": "1"}}, {"json": 1})
    assert post_json(server.url, {}, {}, 5.0, 1) == 1
    assert pause(server) >= 1.0


@pytest.mark.parametrize("value", ["86400", "99999999999999", "Wed, 21 Oct 2065 07:28:00 GMT", "-1", "soon"])
def test_retry_after_is_bounded(server, value):
    server.plan({"status": 503, "times": 1, "headers": {"Retry-After": value}}, {"json": 1})
    began = time.monotonic()
    assert post_json(server.url, {}, {}, 0.6, 1) == 1
    assert time.monotonic() - began < 5.0
    if value == "86400":
        assert pause(server) >= 0.6


def test_a_refused_connection_is_tried_again_and_named(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    pauses = []
    monkeypatch.setattr(http_calls.time, "sleep", pauses.append)
    monkeypatch.setattr(http_calls, "BACKOFF_SECONDS", 1.0)
    with pytest.raises(RewardCallError, match=r"ConnectionRefusedError.*is the server up.*\(attempts: 5\)") as caught:
        post_json(f"http://127.0.0.1:{closed_port()}/score", {}, {}, 5.0, 4)
    assert caught.value.__context__ is None
    for waited, expected in zip(pauses, (1, 2, 4, 8), strict=True):
        assert min(0.75 * expected, 5.0) <= waited <= min(1.25 * expected, 5.0)


def test_a_slow_server_times_out(server):
    server.plan({"delay": 9.0, "times": 1}, {"json": "fast"})
    assert post_json(server.url, {}, {}, 0.5, 1) == "fast"
    server.plan({"delay": 9.0})
    began = time.monotonic()
    with pytest.raises(RewardCallError, match=r"TimeoutError.*fast enough for 0.3 s.*\(attempts: 2\)"):
        post_json(server.url, {}, {}, 0.3, 1)
    assert time.monotonic() - began < 6.0


def test_a_body_that_never_ends_times_out(server):
    server.plan({"body": "[1" + 200 * " ", "drip": 0.05})
    began = time.monotonic()
    with pytest.raises(RewardCallError, match="still arriving"):
        post_json(server.url, {}, {}, 0.3, 0)
    assert time.monotonic() - began < 6.0


def test_an_answer_that_breaks_off_is_tried_again(server):
    server.plan({"body": "[1, 2]", "cut": 3, "times": 1}, {"json": [1, 2]})
    assert post_json(server.url, {}, {}, 5.0, 1) == [1, 2]


@pytest.mark.parametrize("body", ["", "<html>busy</html>", '{"scores": [1', "[" * 100_000, "[" + "9" * 5000 + "]", "\x00"])
def test_an_answer_that_is_not_json_is_an_error(server, body):
    server.plan({"body": body})
    with pytest.raises(RewardCallError, match="the answer is not JSON"):
        post_json(server.url, {}, {}, 5.0, 2)
    assert len(server.seen) == 1


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "unknown"}])
def test_an_answer_that_is_too_large_is_an_error(server, headers):
    server.plan({"body": " " * 1024, "repeat": MAX_RESPONSE_BYTES // 1024, "headers": headers}, {})
    with pytest.raises(RewardCallError, match="not JSON"):
        post_json(server.url, {}, {}, 5.0, 0)
    server.plan({"body": " " * 1024, "repeat": MAX_RESPONSE_BYTES // 1024 + 1, "headers": headers})
    with pytest.raises(RewardCallError, match=f"larger than {MAX_RESPONSE_BYTES} bytes"):
        post_json(server.url, {}, {}, 5.0, 2)
    assert len(server.seen) == 1


def test_a_header_arrives(server, token):
    server.plan({"json": None})
    assert post_json(server.url, {}, {**HEADERS, "X-Again": "$TEST_REWARD_TOKEN, twice"}, 5.0, 0) is None
    (request,) = server.seen
    assert request["headers"]["Authorization"] == f"Bearer {token}"
    assert request["headers"]["X-Again"] == f"{token}, twice"


@pytest.mark.parametrize(
    "rule",
    [
        {"status": 401, "body": "bad header ECHO"},
        {"status": 401, "body": 190 * "x" + "ECHO"},
        {"status": 500, "body": "bad header ECHO", "reason": "ECHO"},
        {"status": 302, "headers": {"Location": "http://127.0.0.1:9/?ECHO"}},
        {"status": 307, "headers": {"Location": "http://127.0.0.1:9/ECHO/"}},
        {"body": "ECHO"},
        {"body": "{'a': 'ECHO"},
        {"body": "x", "cut": 5},
        {"delay": 9.0},
    ],
)
def test_no_message_carries_a_secret(server, token, rule):
    server.plan({"echo": "Authorization", **rule})
    with pytest.raises(RewardCallError) as caught:
        post_json(server.url, {}, HEADERS, 0.2, 1)
    assert_silent(caught.value)


def test_foreign_values_are_shown_without_secrets(token):
    for value in (token, {"error": token, token: 1}, [json.dumps(token)], {"a": [repr(token)]}, 199 * "x" + token):
        for ending in (False, True):
            text = shown(value, HEADERS, ending=ending)
            assert "tok-A" not in text and "7'9" not in text and len(text) <= http_calls.SHOWN_CHARACTERS + 1
    assert shown("a\x1b[31m\nb", {}) == r"'a\x1b[31m\nb'"
    assert shown("ab" * 300, {}, ending=True).endswith("ab'")
    assert shown(json.loads("[" * 900 + "]" * 900), {}) == "[[[[[['…']]]]]]"


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_missing_variable_is_named(server, monkeypatch, value):
    monkeypatch.delenv("TEST_REWARD_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_REWARD_TOKEN", value)
    server.plan({"json": 1})
    with pytest.raises(RewardCallError, match="TEST_REWARD_TOKEN is not set or empty: header 'Authorization' needs it"):
        post_json(server.url, {}, HEADERS, 5.0, 0)
    assert server.seen == []


@pytest.mark.parametrize("value", ["tok-A\nX-Other: 1", "tok-A\x7f", "tok-Aä", "tok-A\rb"])
def test_a_variable_that_no_header_can_carry_is_named_and_not_shown(monkeypatch, value):
    monkeypatch.setenv("TEST_REWARD_TOKEN", value)
    with pytest.raises(RewardCallError, match="TEST_REWARD_TOKEN cannot be sent") as caught:
        post_json("http://127.0.0.1:9/", {}, HEADERS, 5.0, 0)
    assert_silent(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, token, status):
    server.plan({"status": status, "headers": {"Location": server.url.replace("127.0.0.1", "localhost") + "/elsewhere?a"}})
    said = f"status {status} redirects to 'http://localhost:[0-9]+/elsewhere', .*configure the final address"
    with pytest.raises(RewardCallError, match=said):
        post_json(server.url, {}, HEADERS, 5.0, 2)
    assert len(server.seen) == 1


@pytest.mark.parametrize("payload", [{"a": float("nan")}, {"a": object()}, {"a": {1, 2}}])
def test_a_payload_that_is_not_json_is_refused(server, payload):
    server.plan({"json": 1})
    with pytest.raises(RewardCallError, match="what would be sent is not JSON"):
        post_json(server.url, payload, {}, 5.0, 0)
    assert server.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "", None, "localhost:80/x", "file:///etc/passwd", "ftp://host/x", "http://", "http:///x", "http://host:port/",
        "http://host:0/", "http://host:99999/", "http://[::1/", "http://a..b/", "http://host/a b", "http://host/ä",
        "http://h/\n", "http://user:tok-A@host/",
    ],
)
def test_urls_that_make_no_sense_are_refused(url):
    with pytest.raises(RewardSettingsError, match="url ") as caught:
        post_json(url, {}, {}, 5.0, 0)
    assert "tok-A" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer tok-A"}, {"Authorization": "tok-A$"}, {"Authorization": "$A $B"},
        {"Authorization": "${A}"}, {"Authorization": ""}, {"Authorization": None}, {"X-Count": 3}, {"X Y": "$A"},
        {"X:": "$A"}, {1: "$A"}, {"content-type": "$A"}, {"Content-Length": "$A"}, ["$A"], "Bearer $A",
    ],
)
def test_headers_with_secrets_or_without_sense_are_refused(headers):
    with pytest.raises(RewardSettingsError, match="headers") as caught:
        post_json("http://127.0.0.1:9/", {}, headers, 5.0, 0)
    assert "tok-A" not in str(caught.value)


@pytest.mark.parametrize(
    "timeout, retries",
    [(0, 0), (-1, 0), (float("inf"), 0), (1e9, 0), ("5", 0), (True, 0), (1, -1), (1, 1.0), (1, True)],
)
def test_other_settings_that_make_no_sense_are_refused(timeout, retries):
    with pytest.raises(RewardSettingsError, match="timeout_seconds is|retries is"):
        post_json("http://127.0.0.1:9/", {}, {}, timeout, retries)


def test_the_environment_is_read_at_call_time(server, monkeypatch):
    server.plan({"json": 1})
    for value in ("one", "two"):
        monkeypatch.setitem(os.environ, "TEST_REWARD_TOKEN", value)
        post_json(server.url, {}, HEADERS, 5.0, 0)
    assert [request["headers"]["Authorization"] for request in server.seen] == ["Bearer one", "Bearer two"]
