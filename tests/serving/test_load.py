# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` under load: nothing is lost, nothing mixed up, and memory stays what it was."""

import openai
import pytest
from chats import QUESTION, image, video
from loads import put_load
from servers import VALLEY, started


@pytest.mark.slow
def test_500_requests_of_8_clients_some_of_which_give_up(checkpoint, clips, generate, tmp_path):
    def shown(*names):
        kinds = [(image if name.endswith("png") else video, name) for name in names]
        asked = [kind(clips / name) for kind, name in kinds]
        read = [{"type": "image" if kind is image else "video", "path": str(clips / name)} for kind, name in kinds]
        return [*asked, QUESTION], generate([*read, QUESTION])

    contents = [("Who are you?", generate("Who are you?")), ("What is a clip?", generate("What is a clip?"))]
    contents += [shown("clip.mp4"), shown("red.png"), shown("short.mp4", "red.png"), shown("other.mp4", "clip.mp4")]
    damaged = [video(clips / "text.mp4"), QUESTION]
    options = ["--port", "0", "--device", "cpu", "--allow-local-files", str(clips)]
    with started(["-c", VALLEY, "serve", checkpoint, *options], tmp_path / "log") as (process, url):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        put_load(client, process, contents, damaged, "text.mp4': not a video")
    assert "Traceback" not in (tmp_path / "log").read_text()
