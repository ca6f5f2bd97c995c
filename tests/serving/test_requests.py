# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a client may send: fields, limits, and errors that are short and early, whatever is wrong."""

import json
import time

import pytest
from chats import QUESTION, chat, image, parse, video

from transformers_valley import request_checks
from transformers_valley.serving.requests import (
    ChatRequest,
    RequestError,
    ResponsesRequest,
    VideoBlock,
    parse_request,
)


def refused(messages=None, **fields) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(chat("Who are you?") if messages is None else messages, **fields)
    return caught.value


def test_null_is_as_good_as_nothing():
    request = parse(chat("Who?"), temperature=None, stop=None, tools=None, metadata=None, logit_bias=None)
    assert (request.temperature, request.stops, request.settings) == (None, [], {})


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "presence_penalty": 0},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": False},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(fields):
    assert parse(chat("Who?"), **fields).settings == {}


@pytest.mark.parametrize(
    "fields", [{"n": 2}, {"tools": [{}]}, {"response_format": {"type": "json_object"}}, {"presence_penalty": 1}]
)
def test_fields_that_ask_for_what_valley_lacks_are_refused(fields):
    (name,) = fields
    error = refused(**fields)
    assert error.status == 422 and str(error).startswith(f"'{name}': ") and "leave it out" in str(error)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"role": "user", "content": "Hi", "name": "Ann"}, "'name': 'Ann' is not supported"),
        ({"role": "user", "content": [{**QUESTION, "weight": 2}]}, "messages.0.content.0: 'weight': 2 is not"),
        ({"role": "user", "content": [video("a.mp4", nframes=8)]}, "messages.0.content.0.video_url: 'nframes': 8"),
        ({"role": "user", "content": [{**video("a.mp4"), "start": 8}]}, "messages.0.content.0: 'start': 8"),
        ({"role": "tool", "content": "4"}, "messages.0.role: Input should be 'system', 'developer', 'user' or"),
    ],
)
def test_what_nobody_would_read_is_refused_by_name(message, found):
    error = refused([message])
    assert (error.status, error.param) == (400, "messages") and found in str(error)


def test_answer_may_be_sent_back_as_clients_keep_it():
    chat_answer = {"role": "assistant", "content": "A dog.", "refusal": None, "annotations": [], "tool_calls": None}
    parse([*chat("What?"), chat_answer, *chat("Sure?")])
    part = {"type": "output_text", "text": "A dog.", "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    request = parse([*chat("What?"), item, *chat("Sure?")], ResponsesRequest)
    assert request.messages[1].content[0].text == "A dog."


@pytest.mark.parametrize("given", ["What?", [{"type": "input_text", "text": "What?"}], chat("What?")])
def test_input_of_responses_comes_in_three_forms(given):
    request = parse(given, ResponsesRequest, instructions="Be brief.")
    assert [(m.role, m.content[0].text) for m in request.messages] == [("system", "Be brief."), ("user", "What?")]


def test_settings_are_those_of_generate():
    config = json.dumps({"top_k": 5, "temperature": 3, "max_new_tokens": 9, "stop_strings": "b"})
    request = parse(
        chat("Who?"), generation_config=config, temperature=0.5, stop="a", frequency_penalty=1, logit_bias={"7": -5}
    )
    assert request.settings == {
        **{"top_k": 5, "temperature": 0.5, "do_sample": True, "repetition_penalty": 2.0},
        **{"sequence_bias": {(7,): -5.0}},
    }
    assert (request.length, request.stops) == (9, ["a", "b"])
    assert parse(chat("Who?"), generation_config=config, max_tokens=4).length == 4
    assert parse(chat("Who?"), temperature=0).settings == {"do_sample": False}


# --- Bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}] * 4096,
        [{}] * 90_000,
        chat([{"type": "text", "text": ""}] * 4095),
        [{"role": "user", "content": [{}] * 100}] * 41,
    ],
)
@pytest.mark.parametrize("kind", [ChatRequest, ResponsesRequest])
def test_messages_and_blocks_are_counted_before_they_are_read(messages, kind):
    begin = time.process_time()
    error = refused(messages, kind=kind)
    assert error.code == "context_length_exceeded" and "messages and content blocks" in str(error)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    "fields",
    [
        {f"k{i}": 1 for i in range(150_000)},
        {"y" * 2_000_000: 1},
        {"logit_bias": {str(i): 1 for i in range(150_000)}},
        {"logit_bias": {"x" * 2_000_000: 1}},
        {"stop": ["x" * 10] * 100_000},
        {"stop": [""] * 200_000},
        {"temperature": "x" * 2_000_000},
        {"temperature": [1] * 600_000},
        {"generation_config": "x" * 2_000_000},
        {"generation_config": json.dumps({f"k{i}": 1 for i in range(90_000)})},
        {"chat_template_kwargs": {"x" * 2_000_000: 1}},
        {"messages": [{"role": "x" * 2_000_000, "content": ""}]},
        {"messages": [{"role": 1, "content": 1}] * 4000},
        {"messages": [{"role": "user", "content": [{"type": "x" * 2_000_000}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}] * 4000}]},
    ],
    ids=lambda fields: next(iter(fields))[:20],
)
def test_no_error_and_no_work_is_in_proportion_to_nonsense(fields):
    body = json.dumps({"messages": chat("Who?"), **fields}).encode()
    assert len(body) < request_checks.MAX_TEXT_BYTES
    begin = time.process_time()
    with pytest.raises(RequestError) as caught:
        parse_request(ChatRequest, body, 4096, 406)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "body", [b"[" * 90_000, b'{"a":' * 90_000, b"[" * 200_000, b"9" * 5000, b"\xff", b'{"seed": 1e999}']
)
def test_what_python_cannot_parse_is_an_error(body):
    with pytest.raises(RequestError) as caught:
        parse_request(ChatRequest, body, 4096, 406)
    assert caught.value.status in (400, 413, 422) and len(str(caught.value)) < 500


def test_only_data_addresses_make_a_request_large(monkeypatch):
    monkeypatch.setattr(request_checks, "MAX_TEXT_BYTES", 1000)
    address = "data:image/png;base64," + "A" * 5000
    parse(chat([image(address), image(address), QUESTION]))
    error = refused(chat([image(address), {"type": "text", "text": "a" * 1000}]))
    assert error.status == 413 and "beside those of its data: URLs" in str(error)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "-1", "true", '"1"', "[]", "{}"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "seed", "max_tokens", "frequency_penalty"])
def test_numbers_are_numbers(name, value):
    if (name, value) == ("frequency_penalty", "-1"):
        value = "-1.0"
    with pytest.raises(RequestError) as caught:
        parse_request(ChatRequest, f'{{"messages": [], "{name}": {value}}}'.encode(), 4096, 406)
    assert caught.value.status == 400


def test_half_a_character_is_refused():
    assert refused(chat("\ud800")).param == "messages"
    assert refused(stop="\ud800").param == "stop"


# --- What fits into the context ------------------------------------------------------------------------------------


def too_long(processor, content, **sampling) -> str:
    with pytest.raises(RequestError) as caught:
        parse(chat(content), chat_template_kwargs=sampling).check_cost(processor, 4096)
    assert caught.value.code == "context_length_exceeded"
    return str(caught.value)


def test_what_cannot_fit_is_known_before_it_is_opened(processor):
    assert "820 clips, of 820 frames at least, take 7380 tokens" in too_long(processor, [video("a.mp4")] * 820)
    assert "4104 tokens" in too_long(processor, [video("a.mp4")], num_frames=4096)
    assert "4104 tokens" in too_long(processor, [video("a.mp4", num_frames=4096)])
    too_long(processor, [*[video("a.mp4")] * 2, image("a.png")], num_frames=2042)
    assert "409601 characters" in too_long(processor, "a" * 409_601)


@pytest.mark.parametrize(
    ("images", "clips", "sampling", "max_frames"),
    [
        (0, 1, {}, 256),
        (1, 8, {}, 256),
        (0, 40, {}, (4096 - 40 * 9) // 40 + 1),
        (9, 40, {"fps": 1.0}, (4096 - 49 * 9) // 40 + 1),
        (0, 40, {"max_frames": 4095}, (4096 - 40 * 9) // 40 + 1),
        (0, 40, {"max_frames": 7}, 7),
        (0, 2, {"num_frames": 2035}, 256),
    ],
)
def test_clips_share_the_context(processor, images, clips, sampling, max_frames):
    messages = chat([video("clip.mp4")] * clips + [image("red.png")] * images)
    request = parse(messages, chat_template_kwargs=sampling)
    request.check_cost(processor, 4096)
    assert {block.video_url.max_frames for block in request.blocks(VideoBlock)} == {max_frames}
