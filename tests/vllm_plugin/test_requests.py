# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Requests of `valley serve` in vLLM's words."""

import asyncio
import json
import threading

import pytest

from transformers_valley.request_checks import MAX_BODY_BYTES, MAX_BRACKETS, MAX_TEXT_BYTES
from transformers_valley.vllm_plugin.requests import HOSTS_VARIABLE, STOP_VARIABLE, RequestTranslator, translate


def message(**clip):
    return {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "clip.mp4", **clip}}]}


def test_sampling_and_parts_of_clips_become_what_vllm_knows():
    request = {"messages": [message(start=60, end=90.5), message(start=1.5), message(end=2), message()]}
    result = translate({**request, "chat_template_kwargs": {"num_frames": 8, "on_error": "partial"}}, ["###"])
    urls = [one["content"][0]["video_url"]["url"] for one in result["messages"]]
    assert urls == ["clip.mp4#t=60,90.5", "clip.mp4#t=1.5", "clip.mp4#t=,2", "clip.mp4"]
    assert result["media_io_kwargs"] == {"video": {"num_frames": 8, "on_error": "partial"}}
    assert result["stop"] == ["###"] and "chat_template_kwargs" not in result


def test_clips_that_are_sampled_alike_may_say_so_themselves():
    request = {"messages": [message(fps=1, start=2), message(fps=1)]}
    result = translate({**request, "chat_template_kwargs": {"fps": 9, "on_error": "partial"}}, [])
    assert [one["content"][0]["video_url"] for one in result["messages"]] == [
        {"url": "clip.mp4#t=2"},
        {"url": "clip.mp4"},
    ]
    assert result["media_io_kwargs"] == {"video": {"fps": 1, "on_error": "partial"}}


def test_what_is_vllms_own_stays():
    request = {"messages": [{"role": "user", "content": "Hi"}], "top_k": 4, "stop": "x"}
    assert translate(request, []) == request
    assert translate(request, ["###"])["stop"] == ["x", "###"]


@pytest.mark.parametrize(
    "route, field, request_",
    [
        ("/v1/chat/completions", "stop", {"messages": []}),
        ("/v1/chat/completions/batch", "stop", {"messages": [[]]}),
        ("/v1/responses", "stop", {"input": "Hi"}),
        ("/v1/completions", "stop", {"prompt": "Hi"}),
        ("/invocations", "stop", {"prompt": "Hi"}),
        ("/v1/messages", "stop_sequences", {"messages": []}),
        ("/cohere/v2/chat", "stop_sequences", {"messages": []}),
    ],
)
@pytest.mark.parametrize("own", [[], ["x"]])
def test_every_route_that_generates_has_the_stop_strings(monkeypatch, route, field, request_, own):
    assert translate({**request_, field: own}, ["###"], route)[field] == [*own, "###"]
    assert translate(request_, ["###"], route)[field] == ["###"]
    monkeypatch.setenv(STOP_VARIABLE, '["###"]')
    body = json.dumps(request_).encode()
    for path in (route, f"{route}/", f"{route}/render"):
        ((_, whole),), _ = call(body, path=path)
        assert json.loads(whole)[field] == ["###"]
    ((_, whole),), _ = call(body, path=f"/behind/a/proxy{route}", root_path="/behind/a/proxy")
    assert json.loads(whole)[field] == ["###"]


def test_the_chats_of_a_batch_are_translated():
    request = {"messages": [[message(start=1)], [message()]], "chat_template_kwargs": {"fps": 2}}
    result = translate(request, [], "/v1/chat/completions/batch")
    urls = [chat[0]["content"][0]["video_url"]["url"] for chat in result["messages"]]
    assert urls == ["clip.mp4#t=1", "clip.mp4"] and result["media_io_kwargs"] == {"video": {"fps": 2}}


@pytest.mark.parametrize("name", ["chat_template_kwargs", "media_io_kwargs"])
@pytest.mark.parametrize(
    "route, request_",
    [
        ("/v1/completions", {"prompt": "Hi"}),
        ("/invocations", {"prompt": "Hi"}),
        ("/v1/messages", {"messages": []}),
        ("/cohere/v2/chat", {"messages": []}),
    ],
)
def test_sampling_is_refused_where_no_clips_are_shown(route, request_, name):
    with pytest.raises(ValueError, match=f"{name} has no effect here: .* not {route}"):
        translate({**request_, name: {"fps": 1}}, [], route)
    assert translate({**request_, name: None}, [], route).get(name) is None


@pytest.mark.parametrize(
    "request_, reason",
    [
        ({"messages": [message(begin=1)]}, r"unknown keys \['begin'\]"),
        ({"messages": [message(start="1")]}, "start is a number of seconds"),
        ({"messages": [message(end=-1)]}, "end is a number of seconds"),
        ({"messages": [message(fps=1), message()]}, "clips of a request are sampled alike here"),
        ({"messages": [message(fps=1), message(num_frames=1)]}, "or leave these to chat_template_kwargs"),
        ({"messages": [], "chat_template_kwargs": []}, "chat_template_kwargs is an object"),
        ({"messages": [], "chat_template_kwargs": {"template": "x"}}, "chat_template_kwargs is an object"),
        ({"messages": [], "generation_config": "{}"}, "--engine transformers"),
    ],
)
def test_what_vllm_would_drop_is_refused(request_, reason):
    with pytest.raises(ValueError, match=reason):
        translate(request_, [])


def call(
    *pieces: bytes, path="/v1/chat/completions", key="key", wrap=lambda app: app, root_path="", host="evil.example:80"
):
    """What the application reads, or what is answered in its place; and how many pieces were read at all."""
    seen, sent = [], []

    async def app(scope, receive, send):
        """With a key, as vLLM's own."""
        whole, more = b"", True
        if (b"authorization", b"Bearer key") not in scope["headers"]:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            return await send({"type": "http.response.body", "body": b"{}"})
        while more:
            part = await receive()
            whole, more = whole + part["body"], part["more_body"]
        seen.append((dict(scope["headers"]), whole))

    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False

    async def receive():
        return messages.pop(0)

    async def send(event):
        sent.append(event)

    headers = [(b"content-length", b"1"), (b"authorization", f"Bearer {key}".encode()), (b"host", host.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root_path, "headers": headers}
    asyncio.run(RequestTranslator(wrap(app))(scope, receive, send))
    call.unread = len(messages)
    return seen, sent


def test_the_body_is_replaced_and_its_old_length_is_gone():
    body = json.dumps({"messages": [message(start=1)]}).encode()
    ((headers, whole),), sent = call(body[:9], body[9:])
    assert b"clip.mp4#t=1" in whole and b"content-length" not in headers
    assert headers[b"authorization"] == b"Bearer key" and not sent


def test_nothing_of_a_body_is_read_without_the_key():
    seen, (start, _) = call(b"x" * 10, b"x" * 10, key="other")
    assert not seen and start["status"] == 401 and call.unread == 2


def test_other_routes_and_bodies_pass_as_they_are():
    body = json.dumps({"messages": [message(start=1)]}).encode()
    assert call(body, path="/tokenize")[0][0][1] == body
    assert call(b"no JSON")[0][0][1] == b"no JSON"


def test_a_bad_request_is_answered_with_its_reason():
    seen, (start, body) = call(b'{"generation_config": "{}"}')
    assert not seen and start["status"] == 400
    assert "--engine transformers" in json.loads(body["body"])["error"]["message"]


def test_a_body_without_end_is_cut_off():
    seen, (start, _) = call(*[b"x" * 2**24] * (MAX_BODY_BYTES // 2**24 + 1))
    assert not seen and start["status"] == 413


@pytest.mark.parametrize(
    "body, reason",
    [
        (b'{"messages": [%s[]]}' % (MAX_BRACKETS * b"[],"), "brackets; the limit is"),
        (b'{"messages": "%s"}' % (MAX_TEXT_BYTES * b"x"), "bytes beside those of its data: URLs"),
    ],
)
def test_a_body_that_would_hold_up_everybody_is_not_parsed(body, reason, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda text: [] if text == "[]" else pytest.fail("it was parsed"))
    seen, (start, answer) = call(body)
    assert not seen and start["status"] == 413 and reason.encode() in answer["body"]


def test_a_body_is_parsed_beside_the_event_loop(monkeypatch):
    threads, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: threads.append(threading.current_thread()) or loads(text))
    call(b"{}")
    assert threads[-1] is not threading.main_thread()


@pytest.mark.parametrize(
    "body, reason",
    [
        (b'{"messages": [%s1]}' % (90_000 * b"1,"), "messages is a list of objects"),
        (b'{"messages": [[1]]}', "messages is a list of objects"),
        (b'{"messages": [%s{}]}' % (5_000 * b"{},"), "messages has 5001 parts; the limit is"),
        (b'{"messages": [%s[]]}' % (5_000 * b"[],"), "messages has 5001 parts; the limit is"),
        (b'{"input": [{"content": [%s1]}]}' % (5_000 * b"1,"), "input has 5002 parts; the limit is"),
        (b'{"tools": [%s1]}' % (5_000 * b"1,"), "tools has 5001 parts; the limit is"),
        (b'{"a":' * (MAX_BRACKETS - 1), "too deep in one another"),
        (b'{"stop": 5, "messages": []}', "stop is a text or a list of texts, found 5"),
        (b'{"stop": {"a": 1}, "messages": []}', "stop is a text or a list of texts"),
        (b'{"messages": [], "chat_template_kwargs": {"fps": 1}, "media_io_kwargs": [1]}', "media_io_kwargs is an obj"),
        (b'{"chat_template_kwargs": {"fps": 1}, "media_io_kwargs": {"video": "x"}}', "media_io_kwargs is an object"),
    ],
)
def test_what_cannot_be_translated_is_the_clients_error(monkeypatch, body, reason):
    monkeypatch.setenv(STOP_VARIABLE, '["###"]')
    seen, (start, answer) = call(body)
    error = json.loads(answer["body"])["error"]
    assert not seen and start["status"] == error["code"] == 400
    assert error["type"] == "BadRequestError" and reason in error["message"]


def test_an_error_is_not_as_long_as_what_it_is_about():
    body = json.dumps({"messages": [message(**{f"key {i}": 1 for i in range(1000)})]}).encode()
    assert len(call(body)[1][1]["body"]) < 1000


def test_the_reason_is_answered_whatever_the_route_makes_of_it():
    def wrap(app):
        async def wrapped(scope, receive, send):
            """FastAPI says of any error in reading that the body could not be parsed."""
            try:
                await app(scope, receive, send)
            except Exception:
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"There was an error parsing the body"})

        return wrapped

    seen, (start, answer) = call(b'{"generation_config": "{}"}', wrap=wrap)
    assert not seen and start["status"] == 400 and b"--engine transformers" in answer["body"]


def test_errors_of_the_application_are_its_own():
    def wrap(app):
        async def wrapped(scope, receive, send):
            await receive()
            raise RuntimeError("its own")

        return wrapped

    with pytest.raises(RuntimeError, match="its own"):
        call(b"{}", wrap=wrap)


def test_a_name_that_is_not_the_servers_is_refused(monkeypatch):
    body = json.dumps({"messages": []}).encode()
    monkeypatch.setenv(HOSTS_VARIABLE, '["evil.example"]')
    assert len(call(body)[0]) == 1
    monkeypatch.setenv(HOSTS_VARIABLE, '["localhost"]')
    seen, (start, answer) = call(body, path="/metrics")
    assert not seen and start["status"] == 400 and b"--allowed-host evil.example" in answer["body"]


@pytest.mark.parametrize(
    "allowed, host",
    [
        ("Evil.Example", "evil.example:80"),
        ("evil.example:8000", "EVIL.example"),
        ("::1", "[::1]:8000"),
        ("[::1]:80", "[::1]"),
        ("fe80::1", "[fe80::1]:80"),
        ("FE80::1", "[fe80::1]"),
        ("127.0.0.1:8000", "127.0.0.1"),
    ],
)
def test_names_are_compared_without_capitals_and_ports(monkeypatch, allowed, host):
    monkeypatch.setenv(HOSTS_VARIABLE, json.dumps([allowed]))
    assert len(call(b"{}", host=host)[0]) == 1
    assert not call(b"{}", host="other.example")[0] and not call(b"{}", host="[fe80::2]")[0]
