# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` around the answers: sizes, names, keys, metrics, clients that go away."""

import contextlib
import http.client
import http.server
import json
import socket
import threading
import time

import openai
import pytest
import uvicorn
from chats import chat
from servers import TOKENS, ask, post, raw
from starlette.testclient import TestClient

from transformers_valley import request_checks
from transformers_valley.serving import server
from transformers_valley.serving.engine import FAILED
from transformers_valley.serving.server import build_app


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
def test_failure_is_told_to_the_log_alone(local, service, monkeypatch, caplog, route, stream):
    def fail(**kwargs):
        raise ValueError('a "secret" of the server')

    monkeypatch.setattr(service.engine.model, "generate", fail)
    answer = local(route, stream=stream)
    assert answer.status_code == (200 if stream else 500)
    assert FAILED in answer.text and "secret" not in answer.text
    if stream:
        assert 'a "secret" of the server' in caplog.text
        assert route == "/v1/responses" or answer.text.endswith("data: [DONE]\n\n")


def test_large_request_is_not_read(client, local, monkeypatch):
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(request_checks.MAX_BODY_BYTES + 1))
    connection.endheaders(b"{")
    answer = connection.getresponse()
    assert answer.status == 413 and b"larger than 268435456 bytes" in answer.read()
    connection.close()

    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)  # told or not
    for content in (b" " * 1001, (b" " * 100 for _ in range(11))):
        assert local(content=content, headers={"Content-Type": "application/json"}).status_code == 413
    assert local(content=b" " * 1000, headers={"Content-Type": "application/json"}).status_code == 422


def test_length_of_what_comes_in_chunks_is_that_of_the_chunks(client):
    body = json.dumps({"messages": chat("Hello?"), "max_tokens": 2}).encode()
    headers = (
        f"Content-Length: {request_checks.MAX_BODY_BYTES + 1}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    )
    text = raw(client, "POST /v1/chat/completions", headers, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert text.startswith("HTTP/1.1 200")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::2]", ""])
def test_web_page_under_a_name_of_its_own_is_refused(client, host):
    text = raw(client, "GET /v1/models", "Connection: close\r\n", host=host)
    assert text.startswith("HTTP/1.1 400") and "--allowed-host" in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_this_machine_has_three_names(client, host):
    assert raw(client, "GET /v1/models", "Connection: close\r\n", host=host).startswith("HTTP/1.1 200")


def test_name_that_is_allowed_may_be_spelt_as_an_address(service):
    for name in ("Models.Example.Org", "models.example.org:8000"):
        server = TestClient(build_app(service, hosts=[name]), base_url="http://models.example.org:9000")
        assert server.get("/v1/models").status_code == 200


@pytest.mark.parametrize("key", ["", " "])
def test_empty_key_opens_no_server(service, key):
    with pytest.raises(ValueError, match="--api-key is empty, which would let everyone in"):
        build_app(service, key)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_foreign_page_may_post_is_refused(client, kind):
    body = json.dumps({"messages": chat("Hello?")}).encode()
    headers = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    assert raw(client, "POST /v1/chat/completions", headers, body, kind=None).startswith("HTTP/1.1 422")


def test_names_and_keys_that_the_operator_gives(service):
    server = TestClient(build_app(service, "s\u00e9cret", ["valley.example"]), base_url="http://valley.example")
    for key, status in ((None, 401), ("Bearer secret", 401), ("s\u00e9", 401), ("Bearer s\u00e9cret", 200)):
        headers = {} if key is None else {"Authorization": key.encode()}
        assert server.get("/v1/models", headers=headers).status_code == status
        assert server.post("/v1/chat/completions", headers=headers, content=b"{}").status_code in (status, 422)
    error = server.get("/v1/models").json()["error"]
    assert error["code"] == "invalid_api_key" and "Authorization: Bearer" in error["message"]
    assert [server.get(route).status_code for route in ("/health", "/metrics")] == [200, 200]
    assert server.get("/health", headers={"Host": "other.example"}).status_code == 400


def test_metrics_count_requests_tokens_and_seconds(service, local):
    def metrics() -> dict[str, float]:
        text = TestClient(build_app(service)).get("/metrics").text
        return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}

    before = metrics()
    usage = local(max_tokens=5).json()["usage"]
    local(max_tokens=5, stream=True)
    local(max_tokens=0)
    after = metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['valley_requests_total{status="200"}'] == 3  # and that which asked for the metrics
    assert grown['valley_requests_total{status="400"}'] == 1
    assert grown["valley_prompt_tokens_total"] == 2 * usage["prompt_tokens"]
    assert grown["valley_generated_tokens_total"] == 10
    assert grown['valley_request_seconds_bucket{le="+Inf"}'] == grown["valley_request_seconds_count"] == 4
    assert (after["valley_requests_waiting"], after["valley_requests_running"]) == (0, 0)


def test_usage_stands_alone_where_a_client_asks_for_it(client):
    *rest, last = ask(client, "Hello?", stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens == TOKENS
    assert [chunk.usage for chunk in rest] == [None] * len(rest)


@pytest.mark.parametrize("stream", [False, True])
def test_answer_ends_with_its_client(service, stream):
    def counts() -> tuple[int, int]:
        return service.engine.counts

    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = uvicorn.Server(uvicorn.Config(build_app(service), log_level="warning"))
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=1) as client:
            with contextlib.suppress(openai.APITimeoutError):
                answer = ask(client, "Who are you?", model="val@ley", max_tokens=4000, stream=stream)
                next(iter(answer))
                assert sum(counts()) == 1  # waiting or running: the first chunk comes before the first token
                answer.close()
        deadline = time.monotonic() + 10
        while counts() != (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        served.should_exit = True
        thread.join(10)


def test_only_this_model_is_listed_loaded_and_kept(client):
    assert [model.id for model in client.models.list()] == ["checkpoint0"]
    status, text = post(client, "/../load_model", {"model": "another/model"})  # as `transformers chat` does
    assert status == 200 and json.loads(text[6:])["model"] == "checkpoint0"
    assert client.models.retrieve("checkpoint0").owned_by == "transformers_valley"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")
    for route in ("/../reset", "/completions", "/systemone", "/audio/transcriptions"):
        status, text = post(client, route, {"model": "another/model"})
        said = json.loads(text)["error"]["message"]
        assert status == 404 and said.startswith("There is no POST /") and "/v1/chat/completions" in said
