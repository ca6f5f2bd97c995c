# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Messages as OpenAI's clients send them, and a request from its body to what the model reads."""

import base64
import json
from pathlib import Path

from transformers_valley.serving.engine import Prompt, read_prompt
from transformers_valley.serving.media import MediaAccess
from transformers_valley.serving.requests import ChatRequest, parse_request


QUESTION = {"type": "text", "text": "What happens?"}


def chat(content) -> list[dict]:
    return [{"role": "user", "content": content}]


def video(url, **settings) -> dict:
    return {"type": "video_url", "video_url": {"url": str(url), **settings}}


def image(url) -> dict:
    return {"type": "image_url", "image_url": {"url": str(url)}}


def data_address(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def parse(messages, kind=ChatRequest, context_length=4096, **fields) -> ChatRequest:
    name = "messages" if kind is ChatRequest else "input"
    return parse_request(kind, json.dumps({name: messages, **fields}).encode(), context_length, 406)


def read(processor, access: MediaAccess, scratch: Path, messages, **sampling) -> Prompt:
    """Everything that a server does before it asks the model."""
    request = parse(messages, chat_template_kwargs=sampling)
    request.check_cost(processor, 4096)
    scratch.mkdir(exist_ok=True)
    return read_prompt(processor, *access.fetch(request, str(scratch)), sampling)
