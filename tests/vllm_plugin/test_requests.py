# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Requests of `valley serve` in vLLM's words."""

import asyncio
import json

import pytest

from transformers_valley.vllm_plugin.requests import HOSTS_VARIABLE, MAX_BODY, RequestTranslator, translate


def message(**clip):
    return {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "clip.mp4", **clip}}]}


def test_sampling_and_parts_of_clips_become_what_vllm_knows():
    request = {"messages": [message(start=60, end=90.5), message(start=1.5), message(end=2), message()]}
    result = translate({**request, "chat_template_kwargs": {"num_frames": 8, "on_error": "partial"}}, ["###"])
    urls = [one["content"][0]["video_url"]["url"] for one in result["messages"]]
    assert urls == ["clip.mp4#t=60,90.5", "clip.mp4#t=1.5", "clip.mp4#t=,2", "clip.mp4"]
    assert result["media_io_kwargs"] == {"video": {"num_frames": 8, "on_error": "partial"}}
    assert result["stop"] == ["###"] and "chat_template_kwargs" not in result


def test_what_is_vllms_own_stays():
    request = {"messages": [{"role": "user", "content": "Hi"}], "top_k": 4, "stop": "x"}
    assert translate(request, []) == request
    assert translate(request, ["###"])["stop"] == ["x", "###"]


@pytest.mark.parametrize(
    "request_, reason",
    [
        ({"messages": [message(begin=1)]}, r"unknown keys \['begin'\]"),
        ({"messages": [message(start="1")]}, "start is a number of seconds"),
        ({"messages": [message(end=-1)]}, "end is a number of seconds"),
        ({"messages": [], "chat_template_kwargs": {"template": "x"}}, "chat_template_kwargs is an object"),
        ({"messages": [], "generation_config": "{}"}, "--engine transformers"),
    ],
)
def test_what_vllm_would_drop_is_refused(request_, reason):
    with pytest.raises(ValueError, match=reason):
        translate(request_, [])


def call(*pieces: bytes, path="/v1/chat/completions"):
    """What the application reads, or what is answered in its place."""
    seen, sent = [], []

    async def app(scope, receive, send):
        whole = b""
        while True:
            part = await receive()
            whole += part["body"]
            if not part["more_body"]:
                break
        seen.append((dict(scope["headers"]), whole))

    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    messages = iter(messages)

    async def receive():
        return next(messages)

    async def send(event):
        sent.append(event)

    headers = [(b"content-length", b"1"), (b"authorization", b"Bearer key"), (b"host", b"evil.example:80")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(RequestTranslator(app)(scope, receive, send))
    return seen, sent


def test_the_body_is_replaced_with_its_length():
    body = json.dumps({"messages": [message(start=1)]}).encode()
    ((headers, whole),), sent = call(body[:9], body[9:])
    assert b"clip.mp4#t=1" in whole and headers[b"content-length"] == str(len(whole)).encode()
    assert headers[b"authorization"] == b"Bearer key" and not sent


def test_other_routes_and_bodies_pass_as_they_are():
    body = json.dumps({"messages": [message(start=1)]}).encode()
    assert call(body, path="/tokenize")[0][0][1] == body
    assert call(b"no JSON")[0][0][1] == b"no JSON"


def test_a_bad_request_is_answered_with_its_reason():
    seen, (start, body) = call(b'{"generation_config": "{}"}')
    assert not seen and start["status"] == 400
    assert "--engine transformers" in json.loads(body["body"])["error"]["message"]


def test_a_body_without_end_is_cut_off():
    seen, (start, _) = call(*[b"x" * 2**24] * (MAX_BODY // 2**24 + 1))
    assert not seen and start["status"] == 413


def test_a_name_that_is_not_the_servers_is_refused(monkeypatch):
    body = json.dumps({"messages": []}).encode()
    monkeypatch.setenv(HOSTS_VARIABLE, '["evil.example"]')
    assert len(call(body)[0]) == 1
    monkeypatch.setenv(HOSTS_VARIABLE, '["localhost"]')
    seen, (start, answer) = call(body, path="/metrics")
    assert not seen and start["status"] == 400 and b"--allowed-host evil.example" in answer["body"]
