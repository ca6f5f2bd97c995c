# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` under load: nothing is lost, nothing mixed up, and memory stays what it was."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from chats import QUESTION, image, video
from servers import VALLEY, ask, said, started


@pytest.mark.slow
def test_500_requests_of_8_clients_some_of_which_give_up(checkpoint, clips, generate, tmp_path):
    def shown(*names):
        kinds = [(image if name.endswith("png") else video, name) for name in names]
        asked = [kind(clips / name) for kind, name in kinds]
        read = [{"type": "image" if kind is image else "video", "path": str(clips / name)} for kind, name in kinds]
        return [*asked, QUESTION], generate([*read, QUESTION])

    contents = [("Who are you?", generate("Who are you?")), ("What is a clip?", generate("What is a clip?"))]
    contents += [shown("clip.mp4"), shown("red.png"), shown("short.mp4", "red.png"), shown("other.mp4", "clip.mp4")]
    options = ["--port", "0", "--device", "cpu", "--allow-local-files", str(clips)]
    with started(["-c", VALLEY, "serve", checkpoint, *options], tmp_path / "log") as (process, url):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)

        def one(number):
            chance = random.Random(number)
            content, expected = chance.choice(contents)
            if chance.random() < 0.1:  # hangs up, before or after the first word
                with ask(client, content, stream=True) as stream:
                    next(iter(stream), None)
                return True
            if chance.random() < 0.05:  # a clip that is none
                with pytest.raises(openai.BadRequestError, match="text.mp4': not a video"):
                    ask(client, [video(clips / "text.mp4"), QUESTION])
                return True
            return said(ask(client, content)) == expected

        server = psutil.Process(process.pid)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(one, range(100)))
            before = server.memory_info().rss
            assert all(pool.map(one, range(100, 500)))
        assert server.memory_info().rss < before + 100 * 2**20
        deadline = time.monotonic() + 30
        metrics = ""
        while "valley_requests_running 0" not in metrics or "valley_requests_waiting 0" not in metrics:
            assert time.monotonic() < deadline, metrics
            metrics = client._client.get(str(client.base_url).replace("/v1/", "/metrics")).text
            time.sleep(0.1)
    assert "Traceback" not in (tmp_path / "log").read_text()
