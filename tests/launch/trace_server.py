"""A simulator of an OpenAI-compatible endpoint, for tests: canned answers in place of a model, over real HTTP.

What it writes to a question depends on the question and the seed of the request only, as with a server that honours seeds.
Of five seeds one is answered well; the others break one rule each.
"""

import base64
import io
import json
import re
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

KEY = "sk-not-a-real-key-1234"


class Simulator(ThreadingHTTPServer):
    """`truths`: question -> answer. `busy`: requests that are answered 503 first. `down`: all are answered 500."""

    daemon_threads = True

    def __init__(self, truths, busy=0, down=False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.truths, self.busy, self.down = truths, busy, down
        self.asked, self.running, self.most, self.lock = [], 0, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def text(self, question, seed):
        """What is written, and how it ends."""
        truth = self.truths[question]
        words = f"I look at the picture with care, for the {zlib.crc32(question.encode())}th time"
        kind = zlib.crc32(f"{question}:{seed}".encode()) % 5
        if kind == 0:
            return f"<think>{words}. The answer is {truth}.</think><answer>{truth}</answer>", "stop"
        if kind == 1:
            return f"<think>{words}.</think><answer>{'B' if truth == 'A' else '17'}</answer>", "stop"
        if kind == 2:
            return f"{words}, it is {truth}.", "stop"
        if kind == 3:
            return f"<think>{words}, and again", "length"
        thought = f"让 我 想 一 想 这 个 问 题 {zlib.crc32(question.encode())}"
        return f"<think>{thought}</think><answer>{truth}</answer>", "stop"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """Quiet."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        own = self.server
        with own.lock:
            own.running += 1
            own.most = max(own.most, own.running)
            own.asked.append(body)
            own.busy, refused = max(0, own.busy - 1), own.busy > 0
        try:
            self._answer(body, refused)
        finally:
            with own.lock:
                own.running -= 1

    def _answer(self, body, refused):
        if self.path != "/v1/chat/completions" or self.headers["Authorization"] != f"Bearer {KEY}":
            return self._send(401, {"error": f"no entry with {self.headers['Authorization']}"})
        if refused or self.server.down:
            return self._send(500 if self.server.down else 503, {"error": f"tired of {KEY}"})
        *pictures, last = body["messages"][1]["content"]
        for part in pictures:
            kind, data = part["image_url"]["url"].split(",")
            assert kind == "data:image/png;base64"
            Image.open(io.BytesIO(base64.b64decode(data))).load()
        question = re.match(r"Question: (.*)\n", last["text"]).group(1)
        text, finish_reason = self.server.text(question, body["seed"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        self._send(200, {"choices": [choice], "usage": {"completion_tokens": len(text.split())}})

    def _send(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(truths, **settings):
    server = Simulator(truths, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
