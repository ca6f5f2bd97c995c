# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` as clients see it: answers, errors, what it opens; and plain `transformers serve` on a checkpoint."""

import base64
import contextlib
import copy
import functools
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, StopStringCriteria
from typer.testing import CliRunner

from valley_cli.app import app as valley


pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from starlette.testclient import TestClient  # noqa: E402

from transformers_valley import serving  # noqa: E402
from transformers_valley.serving import RequestError, RequestReader, ValleyModelManager, build_app  # noqa: E402


TOKENS = 12
VALLEY = "from valley_cli.app import app; app()"
# Without the package: `python -S` does not look into the files that install it for editing.
PLAIN = """
import importlib.util
assert importlib.util.find_spec("transformers_valley") is None
from transformers.cli.transformers import app
app()
"""


# --- What there is to serve ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(folder):
    """A folder with silent clips, an image, and files that are neither."""
    write_clip(folder / "clip.mp4", 60, fps=10)
    write_clip(folder / "other.mp4", 30, fps=5)
    write_clip(folder / "short.mp4", 3, fps=10)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    (folder / "text.mp4").write_text("This is no video.\n" * 50)
    (folder / "broken.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:300])
    return folder


class _Files(http.server.SimpleHTTPRequestHandler):
    arrived, released = threading.Semaphore(0), threading.Event()  # requests for what is slow

    def do_GET(self):
        if self.path.startswith("/slow"):
            self.arrived.release()
            self.released.wait(60)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(clips):
    """The address of a small web server that has the clips."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=clips)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def running(command: list[str], log: Path, url: str | None = None, **env: str):
    """Runs a server and gives its address, which it prints itself unless it is given."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env}
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            ready = re.search(r"^Ready at (\S+/v1)\. ", log.read_text(), re.MULTILINE)
            if url is None and ready:
                yield ready[1]
                break
            with contextlib.suppress(OSError):
                if url is not None:
                    urllib.request.urlopen(url.replace("/v1", "/health"), timeout=5)
                    yield url
                    break
            time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGINT)
        process.wait(20)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(checkpoint, clips, tmp_path_factory):
    """A client of `valley serve`; its address is `client.base_url`."""
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--port", "0", "--device", "cpu", "--allow-local-files", str(clips)]
    with running(["-c", VALLEY, "serve", checkpoint, *options], log, VALLEY_ALLOW_LOCAL_ADDRESSES="1") as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def manager(checkpoint, tmp_path_factory):
    """A checkpoint that is loaded here, for tests that change it."""
    path = tmp_path_factory.mktemp("at@home") / "val@ley"
    shutil.copytree(checkpoint, path)
    return ValleyModelManager(str(path), device="cpu")


@pytest.fixture
def local(manager, monkeypatch):
    """Asks a server of this process; `manager` is what it serves."""
    monkeypatch.setattr(manager.model, "generation_config", copy.deepcopy(manager.model.generation_config))
    client = TestClient(build_app(manager), raise_server_exceptions=False)

    def send(route="/v1/chat/completions", **options):
        content = {"input": "Who are you?"} if route.endswith("responses") else {"messages": chat("Who are you?")}
        return client.post(route, **({"json": {**content, **options}} if "content" not in options else options))

    return send


@pytest.fixture(scope="module")
def generate(checkpoint):
    """What the model itself answers to a chat, greedily and at full length."""
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(checkpoint),
        AutoProcessor.from_pretrained(checkpoint),
    )

    def answer(content, tokens=TOKENS, **sampling):
        messages = content if isinstance(content[0], dict) and "role" in content[0] else chat(content)
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=sampling,
        )
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return processor.decode(written).partition("</s>")[0].strip()

    return answer


def chat(content) -> list[dict]:
    return [{"role": "user", "content": content}]


def video(url, **times) -> dict:
    return {"type": "video_url", "video_url": {"url": str(url), **times}}


def image(url) -> dict:
    return {"type": "image_url", "image_url": {"url": str(url)}}


def data_address(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


QUESTION = {"type": "text", "text": "What happens?"}


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


# --- Answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["{clips}/clip.mp4", "file://{clips}/clip.mp4", "{site}/clip.mp4", "data:"])
def test_clip_comes_by_any_address_and_is_answered_as_by_generate(server, generate, clips, site, way):
    address = data_address(clips / "clip.mp4") if way == "data:" else way.format(clips=clips, site=site)
    completion = ask(server, [video(address), QUESTION])
    assert said(completion) == generate([{"type": "video", "path": str(clips / "clip.mp4")}, QUESTION])
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == TOKENS


@pytest.mark.parametrize("way", ["{clips}/red.png", "{site}/red.png", "data:"])
def test_image_comes_by_any_address(server, generate, clips, site, way):
    address = data_address(clips / "red.png") if way == "data:" else way.format(clips=clips, site=site)
    assert said(ask(server, [image(address), QUESTION])) == generate(
        [{"type": "image", "path": str(clips / "red.png")}, QUESTION]
    )


def test_text_alone(server, generate):
    assert said(ask(server, "Who are you?")) == generate("Who are you?")


def test_several_clips_and_an_image(server, generate, clips):
    content = [video(clips / "clip.mp4"), image(clips / "red.png"), video(clips / "short.mp4"), QUESTION]
    paths = [{"type": kind, "path": str(clips / name)} for kind, name in [("video", "clip.mp4"), ("image", "red.png")]]
    assert said(ask(server, content)) == generate(
        [*paths, {"type": "video", "path": str(clips / "short.mp4")}, QUESTION]
    )


@pytest.mark.parametrize("sampling", [{}, {"num_frames": 8}, {"fps": 2}, {"fps": 5, "max_frames": 4}])
def test_rule_of_the_checkpoint_holds_unless_a_request_has_its_own(server, generate, clips, sampling):
    completion = ask(server, [video(clips / "clip.mp4"), QUESTION], extra_body={"chat_template_kwargs": sampling})
    path = {"type": "video", "path": str(clips / "clip.mp4")}
    assert said(completion) == generate([path, QUESTION], **sampling)


def test_part_of_a_clip(server, generate, clips):
    completion = ask(server, [video(clips / "clip.mp4", start=2, end=5.5), QUESTION])
    path = {"type": "video", "path": str(clips / "clip.mp4"), "start": 2, "end": 5.5}
    assert said(completion) == generate([path, QUESTION])


def test_conversation_goes_on(server, generate, clips):
    first = said(ask(server, [video(clips / "clip.mp4"), QUESTION]))
    rest = [{"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    system = {"role": "developer", "content": "Be brief."}
    completion = server.chat.completions.create(
        model="checkpoint0", messages=[system, *chat([video(clips / "clip.mp4"), QUESTION]), *rest], max_tokens=TOKENS
    )
    path = {"type": "video", "path": str(clips / "clip.mp4")}
    assert said(completion) == generate([{**system, "role": "system"}, *chat([path, QUESTION]), *rest])


def test_stream_has_the_same_words_and_tells_its_end(server, clips):
    content = [video(clips / "clip.mp4"), QUESTION]
    chunks = list(ask(server, content, stream=True))
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    whole = ask(server, content)
    assert (
        "".join(words) == said(whole).rstrip("\ufffd") and len(words) > 1
    )  # a letter that is cut off waits for its end
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    body = {"messages": chat("Hello?"), "max_tokens": 2, "stream": True}
    assert post(server, "/chat/completions", body)[1].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["stop", "generation_config"])
def test_stop_string_ends_an_answer_and_is_not_part_of_it(server, field, stream):
    whole = said(ask(server, "Who are you?", max_tokens=40))
    stop = re.findall("[a-zA-Z]{3,}", whole)[1]
    stops = {"stop": ["never", stop]} if field == "stop" else settings(stop_strings=["never", stop])
    answer = ask(server, "Who are you?", max_tokens=40, stream=stream, **stops)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else said(answer)
    assert text == whole[: whole.index(stop)].strip()
    if not stream:
        assert answer.choices[0].finish_reason == "stop"


def test_stop_string_is_found_across_tokens_and_in_the_answer_alone(processor):
    tokenizer = processor.tokenizer
    prompt = tokenizer("Say\u00fc \U0001f642", return_tensors="pt")["input_ids"]
    answer = tokenizer("ab c\u00fc \U0001f642\U0001f642", return_tensors="pt", add_special_tokens=False)["input_ids"]
    stop = serving._StopStrings(tokenizer, prompt.shape[1], ["never", "\u00fc \U0001f642"])
    found = [stop(torch.cat([prompt, answer[:, :n]], 1), None).item() for n in range(answer.shape[1] + 1)]
    texts = [tokenizer.decode(answer[0, :n]) for n in range(answer.shape[1] + 1)]
    assert found == ["\u00fc \U0001f642" in text for text in texts] and 0 < sum(found) < len(found)


def test_stop_strings_are_not_compared_with_the_vocabulary(local, monkeypatch):
    monkeypatch.setattr(StopStringCriteria, "_stop_string_create_embedding_vec", None)  # seconds for each
    answer = local(max_tokens=2, stop=["x" * 100] * 16, **settings(stop_strings="y")["extra_body"])
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_generation_config_is_laid_over_that_of_the_checkpoint(server):
    def counted(**options):
        return ask(server, "Who are you?", **{"max_tokens": None, **options}).usage.completion_tokens

    assert counted(**settings(max_new_tokens=3)) == 3
    assert counted(max_tokens=5, **settings(max_new_tokens=3)) == 5
    assert counted(max_completion_tokens=4) == 4
    penalty = said(ask(server, "Who are you?", frequency_penalty=1))
    assert said(ask(server, "Who are you?", **settings(repetition_penalty=2, top_k=None))) == penalty
    sampling = settings(do_sample=True, top_k=1, min_p=0, typical_p=1)
    assert said(ask(server, "Who are you?", **sampling)) == said(ask(server, "Who are you?"))


@pytest.mark.parametrize("setting", ["num_return_sequences", "num_beams"])
def test_checkpoint_with_several_answers_gives_one(local, manager, setting):
    manager.model.generation_config.update(do_sample=True, **{setting: 3})
    assert local(max_tokens=2).json()["usage"]["completion_tokens"] == 2
    stream = local(max_tokens=2, stream=True)
    if setting == "num_beams":
        assert (stream.status_code, stream.json()["error"]["param"]) == (400, "stream")
    else:
        assert '"completion_tokens":2' in stream.text


def test_answer_ends_where_the_model_ends_it(server, checkpoint):
    end = AutoProcessor.from_pretrained(checkpoint).tokenizer.eos_token_id
    completion = ask(server, "Who are you?", logit_bias={end: 100.0})
    assert (said(completion), completion.choices[0].finish_reason) == ("", "stop")


def test_temperature_samples(server):
    greedy = said(ask(server, "Who are you?"))
    sampled = [said(ask(server, "Who are you?", temperature=2.0, seed=seed)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert greedy not in sampled and said(ask(server, "Who are you?", temperature=0)) == greedy


def test_answer_is_no_longer_than_the_context(server, generate):
    prompt = "word " * 800
    completion = ask(server, prompt, max_tokens=100_000)
    assert completion.usage.total_tokens <= 4096


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_answered_too(server, generate, clips, stream):
    content = [video(clips / "clip.mp4"), {"type": "input_text", "text": "What happens?"}]
    response = server.responses.create(
        model="checkpoint0",
        input=chat(content),
        max_output_tokens=TOKENS,
        stream=stream,
        extra_body={"chat_template_kwargs": {"num_frames": 8}},
    )
    if stream:
        text = "".join(event.delta for event in response if event.type == "response.output_text.delta")
    else:
        text = response.output_text
    assert text == generate([{"type": "video", "path": str(clips / "clip.mp4")}, QUESTION], num_frames=8)


def test_parallel_requests_get_their_own_answers(server, clips):
    contents = [[video(clips / name), QUESTION] for name in ("clip.mp4", "other.mp4", "short.mp4")] + ["Who are you?"]
    alone = [said(ask(server, content)) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda content: said(ask(server, content)), contents * 3)) == alone * 3


def test_others_do_not_wait_for_slow_downloads(server, clips, site):
    (clips / "slow.mp4").write_bytes((clips / "short.mp4").read_bytes())
    count = min(32, os.cpu_count() + 4) + 1  # one more than asyncio has threads
    with ThreadPoolExecutor(count) as pool:
        try:
            slow = [pool.submit(ask, server, [video(f"{site}/slow.mp4"), QUESTION]) for _ in range(count)]
            assert all(_Files.arrived.acquire(timeout=10) for _ in slow)
            ask(server, "Who are you?", timeout=10)
            ask(server, [video(clips / "clip.mp4"), QUESTION], timeout=10)
            assert not any(request.done() for request in slow)
        finally:
            _Files.released.set()
        assert all(said(request.result()) for request in slow)


# --- Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "status", "message"),
    [
        (video("{clips}/text.mp4"), 400, "Cannot read video '{clips}/text.mp4': not a video"),
        (video("{clips}/broken.mp4"), 400, "Cannot read video '{clips}/broken.mp4': "),
        (video("{clips}/none.mp4"), 400, "Cannot read '{clips}/none.mp4': there is no such file."),
        (video("{clips}/clip.mp4", start=60), 400, "start=60.0 is past its end; it lasts 6.000 seconds"),
        (video("{clips}/clip.mp4", start=10**400), 400, "int too large"),
        (video("{site}/text.mp4"), 400, "Cannot read video '{site}/text.mp4': not a video"),
        (video("{site}/none.mp4"), 400, "Cannot open '{site}/none.mp4': the download failed: Client error '404"),
        (video("data:video/mp4;base64,AAAA"), 400, "Cannot read video 'data:video/mp4;base64': not a video"),
        (video("/etc/passwd"), 403, "Not allowed to open '/etc/passwd'"),
        (image("{clips}/text.mp4"), 400, "Cannot read image '{clips}/text.mp4': its content is not that of an image."),
        (image("{site}/text.mp4"), 400, "Cannot read image '{site}/text.mp4': its content is not that of an image."),
        (image("{site}/none.png"), 400, "Cannot open '{site}/none.png': the download failed"),
        (image("data:image/png,AAAA"), 400, "Cannot read image 'data:...': a data URL"),
        (image("data:image/png;base64,AAAA"), 400, "Cannot read image 'data:...': its content is not that"),
        (image("/etc/passwd"), 403, "Not allowed to open '/etc/passwd'"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, 400, "text, image_url or video_url"),
        ({"type": "video", "video": "/etc/passwd"}, 400, "text, image_url or video_url, found 'video'"),
    ],
)
def test_bad_visual_is_an_error_with_its_reason(server, clips, site, block, status, message):
    block = json.loads(json.dumps(block).replace("{clips}", str(clips)).replace("{site}", site))
    found, error = refused(server, [block, QUESTION])
    assert found == status and message.format(clips=clips, site=site) in error["message"]
    assert said(ask(server, "Who are you?"))


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
        ({"extra_body": {"generation_config": "[" * 100_000}}, 400, "generation_config"),
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
def test_bad_option_is_an_error_that_names_it(server, clips, options, status, param, stream):
    found, error = refused(server, [video(clips / "short.mp4"), QUESTION], stream=stream, **options)
    assert (found, error["param"]) == (status, param)


def test_prompt_beyond_the_context(server):
    status, error = refused(server, "word " * 5000)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "The prompt is 25" in error["message"] and "the model reads 4096" in error["message"]


def test_placeholder_in_text_is_text(server, generate, clips):
    content = [video(clips / "clip.mp4"), {"type": "text", "text": "What does <video> mean? <im_start>"}]
    path = {"type": "video", "path": str(clips / "clip.mp4")}
    assert said(ask(server, content)) == generate([path, content[1]])


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
def test_what_is_no_chat_is_refused(server, messages):
    status, text = post(server, "/chat/completions", {"messages": messages})
    assert status == 400 and json.loads(text)["error"]["param"] == "messages"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"'])
def test_what_is_no_json_object_is_refused(server, body):
    status, text = post(server, "/chat/completions", body)
    assert status == 422 and "no JSON object" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_response_with_bad_option_is_refused(server, stream):
    body = {"input": "Who are you?", "max_output_tokens": 1, "stream": stream}
    for field in ("parallel_tool_calls", "stream"):
        status, text = post(server, "/responses", {**body, field: "maybe"})
        assert (status, json.loads(text)["error"]["message"]) == (400, f"{field} is true or false, found 'maybe'.")
    status, text = post(server, "/responses", {**body, "parallel_tool_calls": None})
    assert status == 200 and "output_text" in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
def test_failure_is_told_to_the_log_alone(local, manager, monkeypatch, caplog, route, stream):
    def fail(**kwargs):
        raise ValueError('a "secret" of the server')

    monkeypatch.setattr(manager.model, "generate", fail)
    answer = local(route, stream=stream)
    assert answer.status_code == (200 if stream else 500)
    assert serving.FAILED in answer.text and "secret" not in answer.text
    if stream:
        assert 'a "secret" of the server' in caplog.text
        assert route == "/v1/responses" or answer.text.endswith("data: [DONE]\n\n")


def test_large_request_is_not_read(server, local, monkeypatch):
    connection = http.client.HTTPConnection(server.base_url.host, server.base_url.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(serving.MAX_BODY_BYTES + 1))
    connection.endheaders(b"{")
    answer = connection.getresponse()
    assert answer.status == 413 and b"larger than 268435456 bytes" in answer.read()
    connection.close()

    monkeypatch.setattr(serving, "MAX_BODY_BYTES", 1000)  # told or not
    for content in (b" " * 1001, (b" " * 100 for _ in range(11))):
        assert local(content=content, headers={"Content-Type": "application/json"}).status_code == 413
    assert local(content=b" " * 1000, headers={"Content-Type": "application/json"}).status_code == 422


def test_only_this_model_is_listed_loaded_and_kept(server):
    assert [model.id for model in server.models.list()] == ["checkpoint0"]
    status, text = post(server, "/../load_model", {"model": "another/model"})  # as `transformers chat` does
    assert status == 200 and json.loads(text[6:])["model"] == "checkpoint0"
    for model in (5, None):
        status, text = post(server, "/../load_model", {"model": model})
        assert (status, json.loads(text)["error"]["param"]) == (400, "model")
    for route in ("/../reset", "/completions", "/systemone", "/audio/transcriptions"):
        status, text = post(server, route, {"model": "another/model"})
        assert (status, json.loads(text)["error"]["message"]) == (404, "Not Found")


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


# --- What is opened ------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(processor, tmp_path):
    """Opens files in `tmp_path / "open"`, and below."""
    (tmp_path / "open" / "deep").mkdir(parents=True)
    write_clip(tmp_path / "secret.mp4", 10)
    return RequestReader(processor, 4096, [tmp_path / "open"])


def read_error(reader, *blocks, **sampling) -> RequestError:
    with pytest.raises(RequestError) as caught:
        reader.read(chat([*blocks, QUESTION]), sampling)
    return caught.value


@pytest.mark.parametrize(
    "path",
    ["clip.mp4", "./deep/../clip.mp4", "deep/clip.mp4", "inside.mp4", "file://{open}/clip.mp4", "{open}/clip.mp4"],
)
def test_files_of_a_folder_are_opened(reader, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path / "open")
    write_clip("clip.mp4", 10)
    write_clip("deep/clip.mp4", 10)
    Path("inside.mp4").symlink_to("deep/clip.mp4")
    assert reader.read(chat([video(path.format(open=tmp_path / "open"))]))["video_num_frames"].tolist() == [1]


@pytest.mark.parametrize(
    "path",
    [
        "{root}/secret.mp4",
        "{root}/open/../secret.mp4",
        "{root}/open/link.mp4",
        "{root}/open/folder/secret.mp4",
        "{root}/open-too/secret.mp4",
        "file://{root}/secret.mp4",
        "file://{root}/open/%2e%2e/secret.mp4",
        "file://elsewhere{root}/open/clip.mp4",
        "FILE://{root}/secret.mp4",
        "../secret.mp4",
        "",
        "a\0b",
        "/" + "x" * 5000,
    ],
)
@pytest.mark.parametrize("block", [video, image])
def test_no_other_file_is_opened(reader, tmp_path, monkeypatch, path, block):
    monkeypatch.chdir(tmp_path / "open")
    Path("link.mp4").symlink_to("../secret.mp4")
    Path("folder").symlink_to("..")
    (tmp_path / "open-too").mkdir()
    write_clip(tmp_path / "open-too" / "secret.mp4", 2)
    error = read_error(reader, block(path.format(root=tmp_path)))
    assert (error.status, error.code) == (403, "path_not_allowed")
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/clip.mp4",
        "concat:/etc/passwd",
        "rtsp://host/x",
        "http://[::1/x",
        "da\nta:clip.mp4",
        "\0data:clip.mp4",
        "data\t:clip.mp4",
    ],
)
@pytest.mark.parametrize("block", [video, image])
def test_other_addresses_are_not_opened(reader, tmp_path, monkeypatch, block, address):
    monkeypatch.chdir(tmp_path)
    if "data" in address.replace("\n", "") and "\0" not in address:
        shutil.copy("secret.mp4", address)
    error = read_error(reader, block(address))
    assert error.status == 400 and re.search("it is no http, https or data address|is no address", str(error))


@pytest.mark.parametrize("begin", [" data:", "DATA:", "\r\n Data:"])
def test_data_address_is_known_however_it_is_written(reader, tmp_path, begin):
    address = data_address(tmp_path / "secret.mp4").replace("data:", begin)
    assert reader.read(chat([video(address)]))["video_num_frames"].tolist() == [1]


def test_errors_do_not_tell_where_a_link_leads(reader, tmp_path):
    (tmp_path / "open" / "deep" / "real.mp4").write_text("no video" * 100)
    (tmp_path / "open" / "link.mp4").symlink_to("deep/real.mp4")
    message = str(read_error(reader, video(tmp_path / "open" / "link.mp4")))
    assert f"'{tmp_path}/open/link.mp4'" in message and "real" not in message


def test_folder_of_pictures_is_not_opened(reader, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "open" / "deep" / "1.png")
    assert "there is no such file" in str(read_error(reader, video(tmp_path / "open" / "deep")))


def test_name_that_no_file_can_have_is_no_file(reader, tmp_path):
    assert "there is no such file" in str(read_error(reader, video(f"{tmp_path}/open/{'x' * 5000}")))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0x7f000001"])
@pytest.mark.parametrize("block", [video, image])
def test_private_addresses_are_refused(reader, monkeypatch, host, block):
    monkeypatch.delenv("VALLEY_ALLOW_LOCAL_ADDRESSES", raising=False)
    assert "local address" in str(read_error(reader, block(f"http://{host}:1/clip.mp4")))


def test_what_cannot_fit_is_not_even_opened(reader, monkeypatch):
    monkeypatch.setattr(RequestReader, "_locate", None)
    assert read_error(reader, *[video("http://host/clip.mp4")] * 820).code == "context_length_exceeded"
    assert read_error(reader, video("http://host/clip.mp4"), num_frames=4096).code == "context_length_exceeded"
    clips = [video("http://host/clip.mp4")] * 2
    assert read_error(reader, *clips, image("http://host/a.png"), num_frames=2042).code == "context_length_exceeded"
    assert "409601 characters" in str(read_error(reader, {"type": "text", "text": "a" * 409_588}))  # and the question


@pytest.mark.parametrize(
    ("images", "clips", "sampling", "max_frames"),
    [
        (0, 1, {}, 256),
        (1, 8, {}, 256),
        (0, 40, {}, (4096 - 40 * 5) // 40 + 1),
        (9, 40, {"fps": 1.0}, (4096 - 49 * 5) // 40 + 1),
        (0, 40, {"max_frames": 4095}, (4096 - 40 * 5) // 40 + 1),
        (0, 40, {"max_frames": 7}, 7),
        (0, 2, {"num_frames": 2043}, 256),
    ],
)
def test_clips_share_the_context(reader, images, clips, sampling, max_frames):
    messages = chat([video("clip.mp4")] * clips + [image("red.png")] * images)
    kwargs = reader._check_cost(messages, sampling, reader._lanes[True][0])
    assert kwargs == {**sampling, "max_frames": max_frames}


def test_downloads_are_limited_in_number_and_time(reader, monkeypatch):
    arrived, released = threading.Event(), threading.Event()

    def download(address, path, max_bytes, max_seconds):
        arrived.set()
        released.wait(10)
        Image.new("RGB", (40, 30)).save(path, "PNG")

    monkeypatch.setattr(serving, "download_video", download)
    monkeypatch.setattr(reader, "_download_slots", threading.Semaphore(1))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(reader.read, chat([image("http://host/1.png")]))
        arrived.wait(10)
        error = read_error(reader, image("http://host/2.png"))
        released.set()
        assert (error.status, error.code) == (503, "too_many_downloads") and first.result()

    monkeypatch.setattr(serving, "MAX_DOWNLOAD_SECONDS", 0.1)
    monkeypatch.setattr(
        serving, "download_video", lambda *args, **kwargs: (time.sleep(0.06), download(*args, **kwargs))
    )
    assert "may take 0.1 seconds together" in str(read_error(reader, *[image("http://host/1.png")] * 3))


@pytest.mark.parametrize(
    ("size", "message"),
    [((8193, 8193), "8193x8193 is more than"), ((101, 1), "of 101x1 one is more than 100 times the other")],
)
def test_huge_image_is_refused(reader, tmp_path, size, message):
    Image.new("1", size).save(tmp_path / "open" / "huge.png")
    assert message in str(read_error(reader, image(tmp_path / "open" / "huge.png")))


def test_images_are_limited_together_and_kept_small(reader, processor, tmp_path, monkeypatch):
    pictures = []
    for index, size in enumerate([(640, 480), (300, 700), (40, 50)]):
        noise = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(noise))
        pictures[-1].save(tmp_path / "open" / f"{index}.png")
    blocks = [image(tmp_path / "open" / f"{index}.png") for index in range(3)]
    handed_on = []
    lane, lock, _ = reader._lanes[True]
    whole = type(lane).apply_chat_template

    def watch(self, messages, **kwargs):
        handed_on.extend(block["image"].numel() for block in messages[0]["content"])
        return whole(self, messages, **kwargs)

    opened = Image.open
    monkeypatch.setattr(type(lane), "apply_chat_template", watch)
    monkeypatch.setattr(Image, "open", lambda *args: opened(*args) if lock.locked() else None)
    found = reader.read(chat(blocks))["pixel_values"]
    assert max(handed_on) < 40 * 30 * 3 * 3
    torch.testing.assert_close(found, processor.image_processor(pictures, return_tensors="pt")["pixel_values"])

    monkeypatch.setattr(serving, "MAX_IMAGE_PIXELS", 640 * 480 + 300 * 700 - 1)
    assert "1.png': not a readable image (with it the images of" in str(read_error(reader, *blocks))


def test_damaged_clip_is_read_in_part_where_asked(reader, tmp_path):
    whole = Path(write_clip(tmp_path / "whole.mkv", 90)).read_bytes()
    (tmp_path / "open" / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    block = video(tmp_path / "open" / "cut.mkv")
    assert "it is cut off" in str(read_error(reader, block, fps=5))
    assert reader.read(chat([block]), {"fps": 5, "on_error": "partial"})["video_num_frames"].item() > 1


# --- Starting ------------------------------------------------------------------------------------------------------


def start_error(*words: str) -> str:
    result = CliRunner().invoke(valley, ["serve", *map(str, words)])
    assert result.exit_code == 1, result.exception
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_port_in_use(checkpoint):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen at localhost:{port}: Address already in use." in start_error(checkpoint, "--port", port)


def test_checkpoint_is_missing_or_no_valley(tmp_path):
    assert "there is no such folder" in start_error(tmp_path / "none", "--port", 0)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert f"'{tmp_path}' is no Valley, but a 'bert'" in start_error(tmp_path, "--port", 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "toaster"], "--device toaster cannot be used"),
        (["--dtype", "float3"], "Unsupported dtype: 'float3'"),
        (["--attn-implementation", "none"], "Unsupported attention implementation: 'none'"),
        (["--allow-local-files", "/none"], "--allow-local-files /none: there is no such folder."),
        (["--host", "host.invalid"], "Cannot listen at host.invalid:0"),
    ],
)
def test_bad_option_of_the_command_is_one_line(checkpoint, option, message):
    assert message in start_error(checkpoint, "--port", "0", *option)


def test_missing_dependency_is_one_line(monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    monkeypatch.delitem(sys.modules, "transformers_valley.serving")
    monkeypatch.delattr("transformers_valley.serving")
    assert 'pip install "transformers[serving]"' in start_error("path/to/valley")


# --- transformers' own command -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plain_transformers_serve_answers_without_the_package(checkpoint, generate, clips, tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    command = ["-S", "-c", PLAIN, "serve", checkpoint, "--trust-remote-code", "--device", "cpu", "--port", str(port)]
    url = f"http://localhost:{port}/v1"
    with running(command, tmp_path / "log", url, PYTHONPATH=packages, HF_HOME=str(tmp_path)):
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
