# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A real HTTP server on this machine that speaks OpenAI's protocol, well or badly, as a test wants it."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What the server sends: a chat completion with this text, or with a `body` that instead."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay: float = 0.0  # seconds before it is sent
    finish_reason: str = "stop"


@dataclass
class Server:
    """A running server; `requests` are those it got, in order, with the time each came."""

    url: str
    requests: list[dict] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def down_while(outage: list, respond: Callable[[dict, int], Answer | str]) -> Callable[[dict, int], Answer | str]:
    """Answers with status 503 as long as a list is not empty."""
    down = Answer(status=503, body='{"error": {"message": "down"}}')
    return lambda request, count: down if outage else respond(request, count)


@contextlib.contextmanager
def openai_server(respond: Callable[[dict, int], Answer | str], models: tuple[str, ...] = ("judge",)) -> Iterator:
    """
    Serves until it is left.

    Args:
        respond (callable): gets a request and how many came before it; gives an [`Answer`], or its text.
        models (`tuple[str]`): what `/v1/models` lists.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send(
                200, json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in models]})
            )

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                count = len(server.requests)
                server.requests.append(request)
                server.times.append(time.monotonic())
                server.keys.append(self.headers.get("Authorization", ""))
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            answer = respond(request, count)
            answer = answer if isinstance(answer, Answer) else Answer(answer)
            time.sleep(answer.delay)
            with server.lock:
                server.in_flight -= 1
            self.send(
                answer.status, completion(request, answer) if answer.body is None else answer.body, answer.headers
            )

        def send(self, status: int, body: str, headers: dict | None = None):
            data = body.encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who gave up waiting
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *args):  # a client that was killed
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def completion(request: dict, answer: Answer) -> str:
    """The JSON of a chat completion; a prompt costs 10 tokens, an answer 2."""
    message = {"role": "assistant", "content": answer.text}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        }
    )


def said(request: dict) -> str:
    """The text of the last message of a request."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]
