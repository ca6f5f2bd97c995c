# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A load that every engine has to bear."""

import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from servers import ask, said


CLIENTS, REQUESTS, FIRST = 8, 500, 100
IDLE = re.compile(r"^(?:valley_requests|vllm:num_requests)_(?:running|waiting)(?:\{.*\})? 0(?:\.0)?$", re.MULTILINE)


def put_load(
    client: openai.OpenAI, process: subprocess.Popen, contents: list, damaged, reason: str, **options
) -> None:
    """
    Sends 500 requests of 8 clients, a tenth of which give up: nothing may be lost or mixed up, and memory stays flat.

    Args:
        process: the server.
        contents: pairs of what is asked and the answer to it.
        damaged, reason: what is asked of a clip that is none, one request in twenty, and the error it ends with.
        **options: of each request.
    """

    def one(number):
        chance = random.Random(number)
        content, expected = chance.choice(contents)
        if chance.random() < 0.1:  # hangs up, before or after the first word
            with ask(client, content, stream=True, **options) as stream:
                next(iter(stream), None)
            return True
        if chance.random() < 0.05:
            with pytest.raises(openai.BadRequestError, match=reason):
                ask(client, damaged, **options)
            return True
        return bare(said(ask(client, content, **options))) == bare(expected)

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(pool.map(one, range(FIRST)))
        before = resident(process)
        assert all(pool.map(one, range(FIRST, REQUESTS)))
    assert resident(process) < before + 200 * 2**20
    deadline = time.monotonic() + 30
    metrics = ""
    while len(IDLE.findall(metrics)) < 2:
        assert time.monotonic() < deadline, metrics
        metrics = client._client.get(str(client.base_url).replace("/v1/", "/metrics")).text
        time.sleep(0.1)


def bare(text: str) -> str:
    """vLLM keeps the space that an answer begins with, and leaves out a character that is cut in two at its end."""
    return text.rstrip("\ufffd").strip()


def resident(process: subprocess.Popen) -> int:
    """Bytes in memory of a server and the processes that it started."""
    server = psutil.Process(process.pid)
    return sum(each.memory_info().rss for each in [server, *server.children(recursive=True)])
