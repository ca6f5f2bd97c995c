# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Requests as `valley serve` reads them, in vLLM's words: an ASGI middleware before vLLM's own application.

vLLM drops fields that it does not know. What means nothing to it is translated here, or refused.
"""

import contextlib
import json
import math
import os
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any


__all__ = ["HOSTS_VARIABLE", "STOP_VARIABLE", "RequestTranslator", "translate"]

MAX_BODY = 256 * 2**20  # bytes of one request
STOP_VARIABLE = "VALLEY_VLLM_STOP"  # a JSON list: the checkpoint's stop strings, which vLLM does not read
HOSTS_VARIABLE = "VALLEY_VLLM_HOSTS"  # a JSON list: names that the server may be called by, all where it is empty
_ROUTES = ("/v1/chat/completions", "/v1/responses")
_SAMPLING = ("fps", "num_frames", "max_frames", "on_error")


def translate(request: Mapping[str, Any], stop: list[str]) -> dict[str, Any]:
    """
    A request of `valley serve` as one of vLLM.

    Args:
        request (`Mapping`):
            The body. `chat_template_kwargs` say how clips are sampled, and a `video_url` may have `start` and `end`.
        stop (`list[str]`):
            Strings that end every answer.

    Raises:
        ValueError: if something in it would have no effect.
    """
    request = dict(request)
    if "generation_config" in request:
        raise ValueError(
            "generation_config is a field of Valley's own server (--engine transformers). vLLM has temperature, "
            "top_k, top_p, min_p, repetition_penalty, min_tokens, max_tokens and stop as fields of the request."
        )
    if (sampling := request.pop("chat_template_kwargs", None)) is not None:
        if not isinstance(sampling, dict) or sampling.keys() - set(_SAMPLING):
            raise ValueError(f"chat_template_kwargs is an object that may have {', '.join(_SAMPLING)}.")
        media = request.get("media_io_kwargs") or {}
        request["media_io_kwargs"] = {**media, "video": {**(media.get("video") or {}), **sampling}}
    if stop and "messages" in request:  # Responses have no `stop`
        own = request.get("stop") or []
        request["stop"] = [*([own] if isinstance(own, str) else own), *stop]
    for name in ("messages", "input"):
        if isinstance(request.get(name), list):
            request[name] = [_translate_message(message) for message in request[name]]
    return request


def _translate_message(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_translate_block(block) for block in message["content"]]}


def _translate_block(block: Any) -> Any:
    if not isinstance(block, dict) or not isinstance(block.get("video_url"), dict):
        return block
    clip = dict(block["video_url"])
    start, end = (_check_second(name, clip.pop(name, None)) for name in ("start", "end"))
    if unknown := sorted(clip.keys() - {"url"}):
        raise ValueError(f"A video_url has the unknown keys {unknown}; it may have url, start and end.")
    if isinstance(clip.get("url"), str) and (start or end):
        clip["url"] += f"#t={start},{end}" if end else f"#t={start}"
    return {**block, "video_url": clip}


def _check_second(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number of seconds from 0, found {value!r}.")
    return f"{value:.6f}".rstrip("0").rstrip(".")


class RequestTranslator:
    """The middleware, for vLLM's option `--middleware`. What cannot be translated is answered with status 400."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        self.stop = json.loads(os.environ.get(STOP_VARIABLE, "[]"))
        self.hosts = json.loads(os.environ.get(HOSTS_VARIABLE, "[]"))

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and self.hosts and (host := _host(scope)) not in self.hosts:
            # A web page may have pointed its own name at this machine.
            reason = f"The Host {host[:100]!r} is not one of this server's: start it with --allowed-host {host[:100]}."
            return await _refuse(send, 400, reason)
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") not in _ROUTES:
            return await self.app(scope, receive, send)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                return await _refuse(send, 413, f"A request may have {MAX_BODY} bytes.")
            if not message.get("more_body"):
                break
        try:
            request = json.loads(body)
        except ValueError:
            request = None  # vLLM says so
        if isinstance(request, dict):
            try:
                body = json.dumps(translate(request, self.stop)).encode()
            except ValueError as error:
                return await _refuse(send, 400, str(error))
        length = (b"content-length", str(len(body)).encode())
        headers = [header for header in scope["headers"] if header[0] not in (b"content-length", b"transfer-encoding")]
        pending = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> dict:
            return pending.pop() if pending else await receive()

        return await self.app({**scope, "headers": [*headers, length]}, replay, send)


def _host(scope: dict) -> str:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    with contextlib.suppress(ValueError):
        host = urllib.parse.urlsplit(f"//{host}").hostname or host
    return host


async def _refuse(send: Callable, status: int, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
