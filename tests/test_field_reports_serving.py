# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What users of other projects reported of serving and generation, tried here: a row per kind, and its neighbours.

A report that reaches us becomes a row here before it is mended. Two kinds need a server of their own, or a client that
goes away: servers that do not end (nithiink/yapcode #25, Kludex/uvicorn #2829) stand in `serving/test_starting.py`,
answers that nobody waits for any more (BerriAI/litellm #37140, sgl-project/sglang #36552) in `serving/test_http.py`.
"""

import base64
import copy
import io
import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import uvicorn
from chats import chat, image, video
from PIL import Image
from starlette.testclient import TestClient
from torch import nn
from transformers import pipeline

import transformers_valley.serving.engine as engine_module
import transformers_valley.serving.server as server_module
from transformers_valley.serving.engine import Engine, read_prompt
from transformers_valley.serving.requests import ImageBlock, RequestError, VideoBlock
from transformers_valley.serving.server import Service, build_app


CHAT, MODELS = "/v1/chat/completions", "/v1/models"


def picture(format: str, encode=base64.b64encode, marker: str = "base64") -> dict:
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(file, format)
    return data(file.getvalue(), encode, marker)


def data(content: bytes, encode=base64.b64encode, marker: str = "base64") -> dict:
    return image(f"data:image/png;{marker},{encode(content).decode()}")


def ask(content, **fields) -> dict:
    return {"messages": chat(content), "max_tokens": 1, **fields}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"
FITS = "".join(card.ljust(80) for card in ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END")).encode()
NO_IMAGE, LONG, INNER = "its content is not that of an image", "messages and content blocks; the model reads", "local"

# For each kind: who reported it, a request as body or headers, the status of the response, and what it says.
REPORTS = {
    "a bound that counts the payload and not the things": [
        ("vllm-project/vllm #24910", {"messages": [{"role": "user", "content": ""}] * 5000}, 400, LONG),
        ("vllm-project/vllm #10635", ask("x " * 300_000), 400, "the model reads 4096 tokens"),
        ("neighbour", ask([{"type": "text", "text": ""}] * 5000), 400, LONG),
        ("neighbour", {"messages": [{}] * 50_000}, 400, LONG),
        ("neighbour", ask("Who?", stop=["a"] * 50_000), 400, "stop: List should have at most 16 items"),
        ("sgl-project/sglang #6239", ask([picture("PNG")] * 5000), 400, LONG),
        ("nomic-ai/gpt4all #3635", ask("Who?", n=1_000_000), 422, "n.*is not supported here"),
    ],
    "formats that nobody asked for": [
        ("python-pillow/Pillow #7391", ask([data(EPS)]), 400, NO_IMAGE),
        ("h2oai/h2o-llmstudio #1033", ask([data(FITS.ljust(2880))]), 400, NO_IMAGE),
        ("1bit-MONSTER/1bit-MONSTER #1296", ask([picture("ICO")]), 400, NO_IMAGE),
        ("neighbour", ask([picture("ICNS")]), 400, NO_IMAGE),
        ("neighbour", ask([picture("PDF")]), 400, NO_IMAGE),
        ("neighbour", ask([picture("WEBP"), picture("GIF"), picture("TIFF")]), 200, ""),
    ],
    "work and errors in proportion to nonsense": [
        ("own probe", ask("Who?", **{f"k{i}": 1 for i in range(100_000)}), 422, "'k0': 1 is not supported here"),
        ("own probe", ask("Who?", logit_bias={str(i): 1 for i in range(100_000)}), 400, "found 100000 of them"),
        ("own probe", {"messages": [{"role": "x" * 2**20, "content": ""}]}, 400, "messages.0.role"),
        ("neighbour", ask("Who?", temperature="x" * 2**20), 400, "temperature"),
        ("neighbour", ask([image("ftp://" + "a." * 2**19)]), 400, "is not an http, https or data address"),
        ("neighbour", ask("Who?", tools=[{"a": 1}] * 200_000), 413, "brackets; the limit is 100000"),
        ("flop-labs/technocore-chat #130", b'{"messages": ' + b"[" * 50_000, 422, "is not a valid JSON object"),
    ],
    "localhost taken for a border": [
        ("odysseus-dev/odysseus #2887", {"Host": "evil.example"}, 400, "The Host 'evil.example' is not one of"),
        ("rohitg00/agentmemory #294", {"Host": "evil.example:8000"}, 400, "--allowed-host evil.example"),
        ("neighbour", {"Host": "localhost.evil.example"}, 400, "is not one of this server's"),
        ("neighbour", {"Host": ""}, 400, "is not one of this server's"),
        ("neighbour", {"Host": "[::1]:8000"}, 200, ""),
    ],
    "inner addresses in other words": [
        ("vllm-project/vllm #57157", ask([image("http://[::ffff:127.0.0.1]/a.png")]), 400, INNER),
        ("vllm-project/vllm #55539", ask([video("http://2130706433/a.mp4")]), 400, INNER),
        ("hiyouga/LlamaFactory #10646", ask([image("http://169.254.169.254/latest")]), 400, INNER),
        ("own probe", ask([image("http://[fec0::1]/a.png")]), 400, INNER),
        ("own probe", ask([image("http://[64:ff9b:1::7f00:1]/a.png")]), 400, INNER),
        ("own probe", ask([image("http://[::ffff:0:127.0.0.1]/a.png")]), 400, INNER),
        ("own probe", ask([image("http://168.63.129.16/machine")]), 400, INNER),
        ("neighbour", ask([video("http://[2002:7f00:1::]/a.mp4")]), 400, INNER),
        ("neighbour", ask([video("http://8.8.8.8:22/a.mp4")]), 400, "port 22 is that of another service"),
    ],
    "base64 as encoders write it": [
        ("omnimind-ai/OmniBot #360", ask([picture("PNG", base64.encodebytes)]), 200, ""),
        ("matatonic/openedai-vision #4", ask([picture("PNG", lambda c: base64.b64encode(c).rstrip(b"="))]), 200, ""),
        ("neighbour", ask([picture("PNG", base64.urlsafe_b64encode)]), 200, ""),
        ("neighbour", ask([picture("PNG", marker="BASE64")]), 200, ""),
        ("neighbour", ask([picture("PNG", lambda c: b"*" + base64.b64encode(c))]), 400, "its base64 is corrupt"),
    ],
    "numbers that are none": [
        (
            "ggml-org/llama.cpp #9842",
            b'{"messages": [{"role": "user", "content": "Who?"}], "top_p": NaN}',
            400,
            "top_p",
        ),
        ("ggml-org/llama.cpp #13605", ask("Who?", logit_bias={"7": 1e400}), 400, "a number from -100 to 100"),
        ("neighbour", ask("Who?", temperature=1e400), 400, "temperature"),
        ("neighbour", ask("Who?", chat_template_kwargs={"fps": float("nan")}), 400, "fps"),
    ],
    "text that spells control tokens": [
        ("ggml-org/llama.cpp #27249", ask("<video> <image> <im_start>"), 200, ""),
        ("vllm-project/vllm #57740", ask([picture("PNG"), {"type": "text", "text": "<image></s>"}]), 200, ""),
        ("neighbour", ask("<video>" * 2000), 400, "the model reads 4096 tokens"),
    ],
}


ROWS = [pytest.param(*row, id=f"{kind}: {source}") for kind, found in REPORTS.items() for source, *row in found]


@pytest.fixture(scope="module")
def server(_tiny):
    model, processor = _tiny
    service = Service(Engine(model, processor), processor, "valley")
    yield TestClient(build_app(service, hosts=["localhost", "::1"]), base_url="http://localhost")
    service.engine.close()


@pytest.mark.parametrize(("request_", "status", "message"), ROWS)
def test_request(server, request_, status, message):
    if isinstance(request_, dict) and "Host" in request_:
        response = server.get(MODELS, headers=request_)
    else:
        body = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
        response = server.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert len(response.content) < 2000
    if status != 200:
        assert re.search(message, response.json()["error"]["message"]), response.text


# --- Placeholders that were proposed or written, not given ---------------------------------------------------------


class _Loud(nn.Module):
    """A head that always says one token."""

    def __init__(self, head: nn.Module, token: int):
        super().__init__()
        self.head, self.token, self.weight = head, token, head.weight

    def forward(self, states):
        logits = self.head(states)
        logits[..., self.token] += 1e4
        return logits


@pytest.fixture
def prompt(processor, clip):
    content = [{"type": "video", "path": clip}, {"type": "text", "text": "What happens?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        **{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"},
    )


@pytest.mark.parametrize(
    ("settings", "is_loud"),
    [
        pytest.param({"prompt_lookup_num_tokens": 3}, False, id="huggingface/transformers #37471"),
        pytest.param({"prompt_lookup_num_tokens": 10}, False, id="openvinotoolkit/openvino.genai #2707"),
        pytest.param({"prompt_lookup_num_tokens": 10, "suppress_tokens": [60]}, False, id="neighbour: suppressed"),
        pytest.param({"assistant": True}, False, id="neighbour: an assistant proposes them"),
        pytest.param({"use_cache": False}, True, id="neighbour: written without a cache"),
        pytest.param({"num_beams": 2}, True, id="neighbour: written by beams"),
    ],
)
def test_placeholders_are_neither_drafted_nor_written(model, prompt, settings, is_loud):
    settings = dict(settings)
    placeholder = model.config.video_token_id
    if settings.pop("assistant", False):
        settings["assistant_model"] = copy.deepcopy(model)
        settings["assistant_model"].lm_head = _Loud(model.lm_head, placeholder)
    kept = {name: value for name, value in settings.items() if name == "suppress_tokens"}
    plain = model.generate(**prompt, max_new_tokens=10, do_sample=False, **kept)
    if is_loud:
        model.lm_head = _Loud(model.lm_head, placeholder)
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False, **settings)
    assert placeholder not in answer[0, prompt["input_ids"].shape[1] :]
    assert is_loud or answer.tolist() == plain.tolist()


def test_too_many_placeholders_are_not_blamed_on_truncation(model, prompt):
    more = torch.tensor([[model.config.video_token_id]])
    prompt["input_ids"] = torch.cat([prompt["input_ids"], more], 1)
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    with pytest.raises(ValueError, match=r"Give exactly one video per <video>") as caught:
        model(**prompt)
    assert "truncated" not in str(caught.value)


# --- Settings that vanish ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(_tiny):
    model, processor = _tiny
    return pipeline("video-text-to-text", model=model, processor=processor)


@pytest.mark.parametrize("name", ["temprature", "num_beam", "frames"])
def test_misspelt_options_of_the_pipeline_are_refused(pipe, clip, name):
    with pytest.raises(TypeError, match=name):
        pipe(clip, "What?", **{name: 1})


@pytest.mark.parametrize(
    "options",
    [{"stop_sequence": "{}"}, {"stop_strings": ["{}"]}, {"generate_kwargs": {"stop_strings": ["{}"]}}],
    ids=["own probe", "neighbour: a setting", "neighbour: of generate"],
)
def test_text_that_ends_an_answer_is_not_part_of_it(pipe, clip, options):
    plain = {"max_new_tokens": 12, "return_full_text": False}
    whole = pipe(clip, "What?", **plain)[0]["generated_text"]
    stop = whole[len(whole) // 2]
    options = json.loads(json.dumps(options).replace("{}", stop))
    assert pipe(clip, "What?", **plain, **options)[0]["generated_text"] == whole.partition(stop)[0].strip()


# --- Exports, and layers that are not linear ones ------------------------------------------------------------------


@pytest.mark.slow
def test_prompt_with_a_clip_is_exported(model, prompt):
    """pytorch/pytorch #158786, huggingface/transformers #33637."""
    inputs = {**prompt, "use_cache": False, "video_num_frames": prompt["video_num_frames"].tolist()}
    exported = torch.export.export(model, (), inputs, strict=False).module()
    torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits)


def test_export_asks_for_frames_that_are_known(model, prompt):
    with pytest.raises(ValueError, match="frames of each clip as a list"):
        torch.export.export(model, (), {**prompt, "use_cache": False}, strict=False)


class _Wrapped(nn.Module):
    """A projector as some quantizers leave it: what computes lies deeper, and `weight` is a method or missing."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states)


class _WithMethod(_Wrapped):
    def weight(self):
        return self.inner.weight


@pytest.mark.parametrize(
    "kind", [pytest.param(_WithMethod, id="dropbox/hqq #114"), pytest.param(_Wrapped, id="neighbour: no weight")]
)
def test_projector_need_not_be_a_linear_layer(model, prompt, kind):
    expected = model(**prompt).logits
    model.model.multi_modal_projector = kind(model.model.multi_modal_projector)
    torch.testing.assert_close(model(**prompt).logits, expected)


# Clients that read slowly, and clips that nobody waits for ---------------------------------------------------------


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system waits for readers as long as they live"
)
def test_client_that_stops_reading_ends_its_answer_and_holds_up_nobody(_tiny, monkeypatch):
    monkeypatch.setattr(server_module, "STALLED_SECONDS", 1)
    model, processor = _tiny
    service = Service(Engine(model, processor, max_batch=1), processor, "valley")
    listener = server_module._bind("127.0.0.1", 0)
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    body = json.dumps({**ask("Who?"), "stream": True, "max_tokens": 4000, "logit_bias": {"50": 100}}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.socket() as slow, socket.socket() as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(listener.getsockname())
        slow.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        slow.recv(100)
        quick.settimeout(20)
        quick.connect(listener.getsockname())
        body = json.dumps(ask("Who?")).encode()
        quick.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        assert quick.recv(100).startswith(b"HTTP/1.1 200")  # after the other one, of which 4000 tokens take longer
    assert service.tokens["generated"] < 2000
    server.should_exit = True
    thread.join(10)
    service.engine.close()
    assert not thread.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_read_of_a_request_is_not_kept_until_its_answer_is(server, clip, stream, monkeypatch):
    """A clip may have 256 MiB as a `data:` URL and 150 MB as pixels, and a client hours to read the answer."""
    answers = []
    whole = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, answer: (answers.append(answer), whole(self, answer)))
    url = f"data:video/mp4;base64,{base64.b64encode(Path(clip).read_bytes()).decode()}"
    response = server.post(CHAT, json=ask([video(url), picture("PNG")], stream=stream))
    assert response.status_code == 200, response.text
    assert all(block.image_url.url == "" for block in answers[0].request.blocks(ImageBlock))
    assert all(block.video_url.url == "" for block in answers[0].request.blocks(VideoBlock))
    for _ in range(100):
        if not answers[0].prompt.visuals:
            break
        time.sleep(0.05)
    assert not answers[0].prompt.visuals


@pytest.mark.parametrize("is_gone", [True, False])
def test_clip_that_takes_too_long_or_that_nobody_waits_for_is_not_decoded(_tiny, clip, is_gone, monkeypatch):
    monkeypatch.setattr(engine_module, "MAX_READ_SECONDS", 60 if is_gone else -1)
    messages = [{"role": "user", "content": [{"type": "video", "video": clip}]}]
    reason = "nobody waits" if is_gone else "it takes longer than -1 seconds to decode. Give a part"
    with pytest.raises(RequestError, match=f"Cannot read video 'the clip': {reason}"):
        read_prompt(_tiny[1], messages, {clip: "the clip"}, {}, lambda: is_gone)
