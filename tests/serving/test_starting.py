# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How `valley serve` starts and stops; and `transformers serve`."""

import http.client
import http.server
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from chats import QUESTION, chat, image, video
from servers import PLAIN, TOKENS, VALLEY, ask, refused, running, said, settings, start_error, started


def test_port_in_use(checkpoint):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen at localhost:{port}: Address already in use." in start_error(checkpoint, "--port", port)


def test_checkpoint_is_missing_or_no_valley(tmp_path):
    assert "there is no such folder" in start_error(tmp_path / "none", "--port", 0)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert f"'{tmp_path}' is not a Valley checkpoint but one of 'bert'" in start_error(tmp_path, "--port", 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "toaster"], "The device 'toaster' cannot be used"),
        (["--dtype", "float3"], "There is no dtype 'float3'"),
        (["--attn-implementation", "none"], 'attn_implementation="none"` is not supported'),
        (["--allow-local-files", "/none"], "--allow-local-files /none: there is no such folder."),
        (["--host", "host.invalid"], "Cannot listen at host.invalid:0"),
    ],
)
def test_bad_option_of_the_command_is_one_line(checkpoint, option, message):
    assert message in start_error(checkpoint, "--port", "0", *option)


def test_missing_dependency_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "transformers_valley.serving.server")
    assert 'pip install "transformers-valley[serve]"' in start_error("path/to/valley")


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_server_says_what_it_waits_for_and_ends_within_seconds(checkpoint, tmp_path, signals):
    log = tmp_path / "log"
    with started(["-c", VALLEY, "serve", checkpoint, "--port", "0", "--device", "cpu"], log) as (process, url):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        slow = socket.create_connection((client.base_url.host, client.base_url.port))  # an upload without end
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        idle = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        idle.request("GET", "/health")
        idle.getresponse().read()
        with ThreadPoolExecutor(12) as pool:
            long = {"model": None, "max_tokens": 4000, **settings(min_new_tokens=4000)}
            answers = [pool.submit(refused, client, "Who are you?", **long) for _ in range(9)]
            stream = pool.submit(lambda: list(ask(client, "Who are you?", stream=True, **long)))
            time.sleep(2)
            begin = time.monotonic()
            for one in signals:
                process.send_signal(one)
                time.sleep(0.5)
            assert process.wait(12) == (0 if len(signals) == 1 else 128 + signal.SIGTERM)
            seconds = time.monotonic() - begin
            if len(signals) == 1:
                assert {(status, error["code"]) for status, error in (a.result() for a in answers)} == {
                    (503, "stopping")
                }
                with pytest.raises(openai.APIError, match="stopping"):
                    stream.result()
            else:
                assert seconds < 2
            for future in [*answers, stream]:
                future.exception()
        slow.close()
        idle.close()
    written = log.read_text()
    assert re.search(r"^Stopping: 10 answers and 12 connections have 5 seconds to end", written, re.MULTILINE)
    assert "Traceback" not in written


@pytest.mark.slow
def test_plain_transformers_serve_answers_once_it_knows_the_package(checkpoint, generate, clips, tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    command = ["-c", PLAIN, "serve", checkpoint, "--device", "cpu", "--port", str(port)]
    url = f"http://localhost:{port}/v1"
    with running(command, tmp_path / "log", url):
        client = openai.OpenAI(base_url=url, api_key="none", timeout=60)
        for name in ("clip.mp4", "short.mp4"):  # silent; 60 and 3 frames, where the server asks for 32
            content, path = [video(clips / name), QUESTION], {"type": "video", "path": str(clips / name)}
            answer = said(ask(client, content, model=checkpoint))
            assert answer.strip() == generate([path, QUESTION], num_frames=32)
            chunks = ask(client, content, model=checkpoint, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
            sampling = {"chat_template_kwargs": {"num_frames": 8}}
            answer = said(ask(client, content, model=checkpoint, extra_body=sampling))
            assert answer.strip() == generate([path, QUESTION], num_frames=8)
        response = client.responses.create(
            model=checkpoint, input=chat([image(clips / "red.png"), QUESTION]), max_output_tokens=TOKENS, stream=False
        )
        assert response.output_text.strip() == generate([{"type": "image", "path": str(clips / "red.png")}, QUESTION])
        with pytest.raises(openai.InternalServerError):  # docs/how-to/serve_a_checkpoint.md tells so
            ask(client, [video(clips / "text.mp4"), QUESTION], model=checkpoint)
        assert ask(client, "Who are you?", model=checkpoint)
