# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Requests per second and latency of `valley serve`, `transformers serve` and vLLM, on one checkpoint in one run.

    python benchmarks/serving.py                         # all servers, 1 and 8 clients, text and clips
    python benchmarks/serving.py --only valley --requests 64

vLLM is `valley serve --engine vllm`. Where it is not installed it is left out, and the run says so.

Each client asks its next question when it has the answer to its last one. Every answer has 32 tokens; of a clip, which
travels inside the request, 8 frames are taken. "clips" are all different, "one clip" is the same for everybody.
Weights are random: speed does not depend on what they say. On a GPU the language model has 7 billion weights, on a CPU
60 million. The servers run all the time and take turns, so that a drifting machine hits all of them.
"""

import argparse
import base64
import contextlib
import http.client
import importlib.util
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
from common import DEVICE, DTYPE, ON_GPU, build, parts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from transformers_valley import ValleyForConditionalGeneration, ValleyProcessor, ValleyVideoProcessor


NEW_TOKENS, FRAMES, QUESTION_WORDS = 32, 8, 24
START_SECONDS = 600
VALLEY = ["-m", "valley_cli", "serve"]
# As docs/how-to/serve_a_checkpoint.md says it: the command has to know the model.
PLAIN = ["-c", "import transformers_valley; from transformers.cli.transformers import app; app()", "serve"]
DEVICE_OPTIONS = ["--device", DEVICE.type]
# By itself vLLM takes nearly all memory, in which the others have to live, too, and starts with the longest clips.
VLLM_OPTIONS = f"""--max-model-len 4096 --limit-mm-per-prompt '{{"video": {{"count": 1, "num_frames": {FRAMES}}}}}' """
VLLM_OPTIONS += "--gpu-memory-utilization 0.4" if ON_GPU else "--kv-cache-memory-bytes 2G"
SERVERS = {  # what Python runs, and its options
    "valley": (VALLEY, ["--engine", "transformers", *DEVICE_OPTIONS]),
    "transformers": (PLAIN, DEVICE_OPTIONS),
    "vllm": (VALLEY, ["--engine", "vllm", "--vllm-args", VLLM_OPTIONS]),
}
KINDS = ("text", "clips", "one clip")
NUMBERS = itertools.count()  # no question and no clip comes twice, unless it is meant to


def write_checkpoint(folder: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 32000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    vision, text = parts("7B" if ON_GPU else "60M")
    vision, text = build(CLIPVisionModel, vision), build(AutoModelForCausalLM.from_config, text)
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(vision, text, tokenizer=tokenizer)
    model.to(DTYPE).save_pretrained(folder)
    ValleyProcessor(CLIPImageProcessor(), ValleyVideoProcessor(), tokenizer).save_pretrained(folder)


def clip_url(number: int) -> str:
    """Five seconds of a moving square, in a shade of its own."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w") as container:
            stream = container.add_stream("libx264", rate=10, width=320, height=240, pix_fmt="yuv420p")
            for index in range(50):
                picture = np.full((240, 320, 3), 40, np.uint8)
                picture[80:160, 4 * index : 4 * index + 80] = (200, number % 256, number // 256 * 40)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
        return f"data:video/mp4;base64,{base64.b64encode(Path(file.name).read_bytes()).decode()}"


def make_request(kind: str, number: int) -> bytes:
    words = " ".join(f"w{(number * 31 + i) % 31000 + 3}" for i in range(QUESTION_WORDS))
    content = [{"type": "text", "text": words}]
    if kind != "text":
        url = clip_url(number if kind == "clips" else 0)
        content.insert(0, {"type": "video_url", "video_url": {"url": url}})
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": NEW_TOKENS, "temperature": 0}
    return json.dumps(body | ({} if kind == "text" else {"chat_template_kwargs": {"num_frames": FRAMES}})).encode()


@contextlib.contextmanager
def running(name: str, checkpoint: Path) -> Iterator[int | None]:
    """The port of a server, or `None` where it cannot start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words, options = SERVERS[name]
    command = [sys.executable, *words, str(checkpoint), "--host", "127.0.0.1", "--port", str(port), *options]
    with open(checkpoint / f"{name}.log", "w+") as log:
        # In a session of its own: vLLM starts processes, which end with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.5)
            error = None
            if process.poll() is None:
                with contextlib.suppress(Exception):
                    error = ask(port, make_request("clips", next(NUMBERS)))
            if error is None:
                log.seek(0)
                print(f"{name} could not start and is left out: {log.read().strip().splitlines()[-1:]}")
            yield None if error is None else port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(port: int, body: bytes) -> float:
    """Seconds until the answer is there."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["usage"]["completion_tokens"] == NEW_TOKENS, answer
    return time.perf_counter() - begin


def measure(port: int, kind: str, clients: int, requests: int) -> tuple[float, float]:
    """Requests per second, and the median latency in seconds."""
    bodies = [make_request(kind, next(NUMBERS)) for _ in range(clients + requests)]
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda body: ask(port, body), bodies[:clients]))  # does not count
        begin = time.perf_counter()
        seconds = list(pool.map(lambda body: ask(port, body), bodies[clients:]))
        return requests / (time.perf_counter() - begin), statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SERVERS, nargs="+", default=list(SERVERS), help="which servers")
    parser.add_argument("--requests", type=int, default=16, help="of 8 clients; a single one asks a quarter of them")
    parser.add_argument("--rounds", type=int, default=3, help="in which the servers take turns; their median counts")
    arguments = parser.parse_args()
    if "vllm" in arguments.only and importlib.util.find_spec("vllm") is None:
        arguments.only.remove("vllm")
        print("vLLM is not installed and is left out.")
    print(f"{'requests':10}{'clients':>8}  {'server':14}{'per second':>12}{'median':>10}  ratios")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_checkpoint(Path(folder))
        ports = {name: stack.enter_context(running(name, Path(folder))) for name in arguments.only}
        ports = {name: port for name, port in ports.items() if port}
        rates: dict[tuple, float] = {}
        for kind, clients in itertools.product(KINDS, (1, 8)):
            requests = arguments.requests if clients > 1 else max(2, arguments.requests // 4)
            found = {name: [] for name in ports}
            for _, name in itertools.product(range(arguments.rounds), ports):
                found[name].append(measure(ports[name], kind, clients, requests))
            for name, results in found.items():
                rate, latency = map(statistics.median, zip(*results, strict=True))
                rates[name, kind, clients] = rate
                ratios = [f"{rate / rates[name, kind, 1]:.2f}x one client"] if clients > 1 else []
                if name != "valley" and "valley" in ports:
                    ratios.append(f"valley serve {rates['valley', kind, clients] / rate:.2f}x")
                print(f"{kind:10}{clients:8}  {name:14}{rate:12.2f}{latency:9.2f}s  {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
