# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` as clients see it whose requests cannot be answered."""

import json

import pytest
from chats import QUESTION, image, video
from servers import ask, post, refused, said, settings


@pytest.mark.parametrize(
    ("block", "status", "message"),
    [
        (video("{clips}/text.mp4"), 400, "Cannot read video '{clips}/text.mp4': not a video"),
        (video("{clips}/broken.mp4"), 400, "Cannot read video '{clips}/broken.mp4': "),
        (video("{clips}/none.mp4"), 400, "Cannot read '{clips}/none.mp4': there is no such file."),
        (video("{clips}/clip.mp4", start=60), 400, "start=60.0 is past its end; it lasts 6.000 seconds"),
        (video("{clips}/clip.mp4", start=10**400), 400, "start: Input should be a valid number"),
        (video("{site}/text.mp4"), 400, "Cannot read video '{site}/text.mp4': not a video"),
        (video("{site}/none.mp4"), 400, "Cannot open '{site}/none.mp4': the download failed: Client error '404"),
        (video("data:video/mp4;base64,AAAA"), 400, "Cannot read video 'data:video/mp4;base64': not a video"),
        (video("/etc/passwd"), 403, "Not allowed to open '/etc/passwd'"),
        (
            image("{clips}/text.mp4"),
            400,
            "Cannot read image '{clips}/text.mp4': its content is not that of an image (AVIF",
        ),
        (
            image("{site}/text.mp4"),
            400,
            "Cannot read image '{site}/text.mp4': its content is not that of an image (AVIF",
        ),
        (image("{site}/none.png"), 400, "Cannot open '{site}/none.png': the download failed"),
        (image("data:image/png,AAAA"), 400, "Cannot read image 'data:...': a data URL"),
        (image("data:image/png;base64,AAAA"), 400, "Cannot read image 'data:...': its content is not that"),
        (image("/etc/passwd"), 403, "Not allowed to open '/etc/passwd'"),
        (
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            400,
            "does not match any of the expected tags: 'text'",
        ),
        ({"type": "video", "video": "/etc/passwd"}, 400, "Input tag 'video' found"),
    ],
)
def test_bad_visual_is_an_error_with_its_reason(client, clips, site, block, status, message):
    block = json.loads(json.dumps(block).replace("{clips}", str(clips)).replace("{site}", site))
    found, error = refused(client, [block, QUESTION])
    assert found == status and message.format(clips=clips, site=site) in error["message"]
    assert said(ask(client, "Who are you?"))


@pytest.mark.parametrize(
    ("options", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"seed": 0.5}, 400, "seed"),
        ({"stop": [""]}, 400, "stop"),
        ({"temperature": 1e-300}, 400, "temperature"),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"stop": "x" * 101}, 400, "stop"),
        ({"logit_bias": {"100000": 1.0}}, 400, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, 400, "logit_bias"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"parallel_tool_calls": "maybe"}, 400, "parallel_tool_calls"),
        ({"extra_body": {"generation_config": "no json"}}, 400, "generation_config"),
        ({"extra_body": {"generation_config": "[" * 90_000}}, 400, "generation_config"),
        ({"extra_body": {"generation_config": {"top_k": 1}}}, 400, "generation_config"),
        (settings(eos_token_id="x"), 400, "generation_config"),
        (settings(eos_token_id=10**9), 400, "generation_config"),
        (settings(eos_token_id=-1), 400, "generation_config"),
        (settings(stop_strings=[1]), 400, "generation_config"),
        (settings(stop_strings=5), 400, "generation_config"),
        (settings(stop_strings=["x"] * 17), 400, "generation_config"),
        (settings(stop_strings=["x" * 101]), 400, "generation_config"),
        (settings(stop_strings=["\ud800"]), 400, "generation_config"),
        (settings(max_time="a"), 400, "generation_config"),
        (settings(min_new_tokens="q"), 400, "generation_config"),
        (settings(cache_implementation="quantized"), 400, "generation_config"),
        (settings(num_return_sequences=20_000), 400, "generation_config"),
        (settings(num_beams=4), 400, "generation_config"),
        (settings(temperature=-1), 400, "generation_config"),
        (settings(temperature=1e-300), 400, "generation_config"),
        (settings(do_sample=1), 400, "generation_config"),
        ({"extra_body": {"chat_template_kwargs": {"num_frames": 0}}}, 400, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"num_frames": 4096}}}, 400, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"fps": "fast"}}}, 400, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"images": ["/etc/passwd"]}}}, 400, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}}, 400, "chat_template_kwargs"),
        ({"extra_body": {"unknown": 1}}, 422, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_option_is_an_error_that_names_it(client, clips, options, status, param, stream):
    found, error = refused(client, [video(clips / "short.mp4"), QUESTION], stream=stream, **options)
    assert (found, error["param"]) == (status, param)


def test_prompt_beyond_the_context(client):
    status, error = refused(client, "word " * 5000)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "The prompt is 25" in error["message"] and "the model reads 4096" in error["message"]


def test_placeholder_in_text_is_text(client, generate, clips):
    content = [video(clips / "clip.mp4"), {"type": "text", "text": "What does <video> mean? <im_start>"}]
    path = {"type": "video", "path": str(clips / "clip.mp4")}
    assert said(ask(client, content)) == generate([path, content[1]])


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        [{"content": "no role"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "\ud800", "content": "x"}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
    ],
)
def test_what_is_no_chat_is_refused(client, messages):
    status, text = post(client, "/chat/completions", {"messages": messages})
    assert status == 400 and json.loads(text)["error"]["param"] == "messages"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"'])
def test_what_is_no_json_object_is_refused(client, body):
    status, text = post(client, "/chat/completions", body)
    assert status == 422 and "not a valid JSON object" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_response_with_bad_option_is_refused(client, stream):
    body = {"input": "Who are you?", "max_output_tokens": 1, "stream": stream}
    for field in ("parallel_tool_calls", "stream"):
        status, text = post(client, "/responses", {**body, field: "maybe"})
        expected = f"{field}: Input should be a valid boolean, found 'maybe'."
        assert (status, json.loads(text)["error"]["message"]) == (400, expected)
    status, text = post(client, "/responses", {**body, "parallel_tool_calls": None})
    assert status == 200 and "output_text" in text
