# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Servers, and what there is to serve."""

import copy
import functools
import http.client
import http.server
import shutil
import threading

import openai
import pytest
from chats import chat
from clips import write_clip
from PIL import Image
from servers import TOKENS, VALLEY, Files, running
from starlette.testclient import TestClient
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_valley.checkpoint import find_checkpoint
from transformers_valley.serving.engine import Engine
from transformers_valley.serving.server import Service, build_app


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder with silent clips, an image, and files that are neither."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "clip.mp4", 60, fps=10)
    write_clip(folder / "other.mp4", 30, fps=5)
    write_clip(folder / "short.mp4", 3, fps=10)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    (folder / "text.mp4").write_text("This is not a video.\n" * 50)
    (folder / "broken.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def site(clips):
    """The address of a small web server that has the clips."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=clips)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def client(checkpoint, clips, tmp_path_factory):
    """A client of `valley serve`; its address is `client.base_url`."""
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--port", "0", "--device", "cpu", "--allow-local-files", str(clips)]
    with running(["-c", VALLEY, "serve", checkpoint, *options], log, VALLEY_ALLOW_LOCAL_ADDRESSES="1") as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def service(checkpoint, tmp_path_factory):
    """A checkpoint that is served here, for tests that change it."""
    path = tmp_path_factory.mktemp("at@home") / "val@ley"
    shutil.copytree(checkpoint, path)
    found = find_checkpoint(str(path))
    processor = found.load_processor()
    return Service(Engine(found.load_model("cpu"), processor), processor, found.name)


@pytest.fixture
def local(service, monkeypatch):
    """Asks a server of this process."""
    model = service.engine.model
    monkeypatch.setattr(model, "generation_config", copy.deepcopy(model.generation_config))
    client = TestClient(build_app(service), raise_server_exceptions=False)

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
        return processor.decode(written, skip_special_tokens=True).strip()  # as the pipeline

    return answer
