# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The client script of the docs gets the same answers whichever engine serves, and they are the pipeline's."""

import contextlib
import functools
import http.server
import io
import re
import threading
from pathlib import Path

import pytest
import torch
from clips import write_clip
from PIL import Image
from servers import Files, free_port, started
from tiny import tiny_processor, tiny_tokenizer, tiny_valley
from transformers import pipeline


PAGE = Path(__file__).parent.parent.parent / "docs/how-to/serve_a_checkpoint.md"
ENGINES = {
    "transformers": ["--device", "cpu"],
    "vllm": ["--vllm-args", "--max-model-len 1024 --enforce-eager"],
}


@pytest.fixture(scope="module")
def script():
    blocks = re.findall(r"^```python no-run\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "for question in questions:" in block)
    return code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One whose answers depend on what is shown, and are whole characters."""
    folder = tmp_path_factory.mktemp("same") / "valley"
    tokenizer = tiny_tokenizer()
    model = tiny_valley(tokenizer=tokenizer, head_dim=32)  # vLLM's kernels want heads of 32 channels
    torn = [id for id in range(len(tokenizer)) if not tokenizer.decode([id], skip_special_tokens=True).isascii()]
    with torch.no_grad():
        model.model.multi_modal_projector.weight.mul_(20)
        model.lm_head.weight[[*torn, *tokenizer.all_special_ids]] = 0  # some other word is always likelier
    model.save_pretrained(folder)
    tiny_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A web server with what the script shows."""
    folder = tmp_path_factory.mktemp("site")
    write_clip(folder / "clip.mp4", 120, fps=10)
    Image.linear_gradient("L").convert("RGB").save(folder / "picture.jpg")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("transformers", marks=pytest.mark.slow),
        pytest.param("transformers", marks=pytest.mark.vllm, id="transformers-beside-vllm"),
        pytest.param("vllm", marks=pytest.mark.vllm),
    ],
)
def test_the_script_of_the_docs_gets_the_answers_of_the_pipeline(
    engine, script, checkpoint, site, tmp_path, monkeypatch
):
    monkeypatch.setenv("VALLEY_ALLOW_LOCAL_ADDRESSES", "1")
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    command = ["-m", "valley_cli", "serve", str(checkpoint), "--engine", engine, "--host", "127.0.0.1"]
    command += ["--port", str(port), *ENGINES[engine]]
    code = script.replace("http://localhost:8000/v1", url).replace("https://example.org", site)
    assert url in code and site in code
    namespace, printed = {}, io.StringIO()
    with started(command, tmp_path / "log", url, VLLM_CPU_KVCACHE_SPACE="1"), contextlib.redirect_stdout(printed):
        exec(compile(code, PAGE, "exec"), namespace)

    ask = pipeline(
        "video-text-to-text", model=str(checkpoint), device="cpu", max_new_tokens=100, return_full_text=False
    )
    chats = [[{"role": "user", "content": question}] for question in namespace["questions"]]
    answers = [ask(chat)[0]["generated_text"] for chat in chats]
    assert printed.getvalue() == "".join(f"{answer}\n" for answer in answers)
    assert len(set(answers)) == len(answers) and all(len(answer) > 50 for answer in answers)
