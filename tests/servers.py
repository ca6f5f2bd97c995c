# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Servers as processes, and what an OpenAI client or a bare connection gets from them."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai
import pytest
from chats import chat
from typer.testing import CliRunner

from valley_cli.app import app


TOKENS = 12
VALLEY = "from valley_cli.app import app; app()"
# As docs/how-to/serve_a_checkpoint.md says it: the command has to know the model.
PLAIN = "import transformers_valley; from transformers.cli.transformers import app; app()"


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder on the web, of which `/slow…` waits."""

    arrived, released = threading.Semaphore(0), threading.Event()  # requests for what is slow

    def do_GET(self):
        if self.path.startswith("/slow"):
            self.arrived.release()
            self.released.wait(60)
        super().do_GET()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def started(command: list[str], log: Path, url: str | None = None, **env: str):
    """Runs a server and gives its process and its address, which it prints itself unless it is given."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,  # it ends with the processes that it starts
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            ready = re.search(r"^Ready at (\S+/v1)\. ", log.read_text(), re.MULTILINE)
            if url is None and ready:
                yield process, ready[1]
                break
            with contextlib.suppress(OSError):
                if url is not None:
                    urllib.request.urlopen(url.replace("/v1", "/health"), timeout=5)
                    yield process, url
                    break
            time.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def running(*args, **env: str):
    """Runs a server, gives its address and stops it."""
    with started(*args, **env) as (process, url):
        yield url
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(20)


def ask(client, content, **options):
    return client.chat.completions.create(
        model=options.pop("model", "checkpoint0"), messages=chat(content), **{"max_tokens": TOKENS, **options}
    )


def settings(**values) -> dict:
    return {"extra_body": {"generation_config": json.dumps(values)}}


def said(completion) -> str:
    return completion.choices[0].message.content


def refused(client, content, **options) -> tuple[int, dict]:
    """Status and error with which a request ends that cannot be answered."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, content, **options)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    return caught.value.status_code, caught.value.body


def post(client, route: str, body: dict | bytes) -> tuple[int, str]:
    url = f"{client.base_url}".rstrip("/") + route
    url = url.replace("/v1/..", "")
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def start_error(*words: str) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, words)])
    assert result.exit_code == 1, result.exception
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def raw(client, what: str, headers: str, body: bytes = b"", host: str = "localhost", kind="application/json") -> str:
    """What comes back over a bare connection."""
    kind = "" if kind is None else f"Content-Type: {kind}\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
        connection.sendall(f"{what} HTTP/1.1\r\nHost: {host}\r\n{kind}{headers}\r\n".encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
