# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Requests as `valley serve` reads them, in vLLM's words: an ASGI middleware before vLLM's own application.

vLLM drops fields that it does not know. What means nothing to it is translated here, or refused.
"""

import asyncio
import json
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..request_checks import MAX_BODY_BYTES, find_excess, host_name


__all__ = ["HOSTS_VARIABLE", "STOP_VARIABLE", "RequestTranslator", "translate"]

MAX_PARTS = 4096  # messages and their blocks, or items of another list
MAX_MESSAGE = 600  # characters of an error: what it is about may be long
STOP_VARIABLE = "VALLEY_VLLM_STOP"  # a JSON list: the checkpoint's stop strings, which vLLM does not read
HOSTS_VARIABLE = "VALLEY_VLLM_HOSTS"  # a JSON list: names that the server may be called by, all where it is empty
# What vLLM's routes that generate call the strings that end an answer.
_STOP_FIELDS = {
    "/v1/chat/completions": "stop",
    "/v1/chat/completions/batch": "stop",
    "/v1/responses": "stop",
    "/v1/completions": "stop",
    "/invocations": "stop",  # of chats or completions
    "/v1/messages": "stop_sequences",
    "/cohere/v2/chat": "stop_sequences",
}
_SHOW_CLIPS = ("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/responses", "/invocations")
_LONG = ("prompt", "allowed_token_ids")  # lists of numbers
_CLIP_SAMPLING = ("fps", "num_frames", "max_frames")
_SAMPLING = (*_CLIP_SAMPLING, "on_error")


def translate(request: Mapping[str, Any], stop: list[str], route: str = "/v1/chat/completions") -> dict[str, Any]:
    """
    A request of `valley serve` as one of vLLM.

    Args:
        request (`Mapping`):
            The body. `chat_template_kwargs` say how clips are sampled, and so may each `video_url`, if all say the
            same; it may have `start` and `end`.
        stop (`list[str]`):
            Strings that end every answer.
        route (`str`, *optional*, defaults to `"/v1/chat/completions"`):
            Where it was sent.

    Raises:
        ValueError: if something in it would have no effect.
    """
    _check_lengths(request)
    request = dict(request)
    if "generation_config" in request:
        raise ValueError(
            "generation_config is a field of Valley's own server (--engine transformers). vLLM has temperature, "
            "top_k, top_p, min_p, repetition_penalty, min_tokens, max_tokens and stop as fields of the request."
        )
    if route not in _SHOW_CLIPS or "prompt" in request:
        for name in ("chat_template_kwargs", "media_io_kwargs"):
            if request.get(name):
                raise ValueError(f"{name} has no effect here: chats and responses show clips, not {route}.")
    sampling = request.pop("chat_template_kwargs", None)
    sampling = {} if sampling is None else sampling
    if not isinstance(sampling, dict) or sampling.keys() - set(_SAMPLING):
        raise ValueError(f"chat_template_kwargs is an object that may have {', '.join(_SAMPLING)}.")
    if sampling := {**sampling, **_sampling_of_clips(request)}:
        media = request.get("media_io_kwargs") or {}
        clips = media.get("video") or {} if isinstance(media, dict) else None
        if not isinstance(clips, dict):
            raise ValueError('media_io_kwargs is an object such as {"video": {"fps": 1}}.')
        request["media_io_kwargs"] = {**media, "video": {**clips, **sampling}}
    if stop:
        own = request.get(field := _STOP_FIELDS[route]) or []
        if not isinstance(own, str | list):
            raise ValueError(f"{field} is a text or a list of texts, found {own!r}.")
        request[field] = [*([own] if isinstance(own, str) else own), *stop]
    for name in ("messages", "input"):
        if isinstance(request.get(name), list):
            request[name] = [_translate_message(message) for message in request[name]]
    return request


def _sampling_of_clips(request: Mapping[str, Any]) -> dict[str, Any]:
    """How the clips of a request say that they are sampled: vLLM knows one way for all."""
    found = []
    for name in ("messages", "input"):
        contents = _contents(request[name]) if isinstance(request.get(name), list) else []
        clips = [block.get("video_url") for content in contents for block in content if isinstance(block, dict)]
        clips = [clip if isinstance(clip, dict) else {} for clip in clips if clip is not None]
        found += [{key: clip[key] for key in _CLIP_SAMPLING if clip.get(key) is not None} for clip in clips]
    if any(each != found[0] for each in found):
        raise ValueError(
            f"The clips of a request are sampled alike here: give each the same {', '.join(_CLIP_SAMPLING)}, or leave "
            "these to chat_template_kwargs."
        )
    return found[0] if found else {}


def _messages(items: list) -> list:
    """The messages of a chat, or of the chats of a batch."""
    return [message for item in items for message in (item if isinstance(item, list) else [item])]


def _contents(items: list) -> list[list]:
    """The lists of blocks in them."""
    return [message["content"] for message in _messages(items) if isinstance(message.get("content"), list)]


def _check_lengths(request: Mapping[str, Any]) -> None:
    """vLLM compares each message and block with all kinds that there are, while everybody waits."""
    for name, value in request.items():
        if not isinstance(value, list) or name in _LONG:
            continue
        parts = len(value)
        if name in ("messages", "input"):
            if not all(isinstance(message, dict) for message in _messages(value)):
                raise ValueError(f"{name} is a list of objects.")
            chats = [item for item in value if isinstance(item, list)]  # of a batch
            parts += sum(map(len, [*chats, *_contents(value)]))
        if parts > MAX_PARTS:
            raise ValueError(f"{name} has {parts} parts; the limit is {MAX_PARTS}.")


def _translate_message(message: Any) -> Any:
    if isinstance(message, list):  # a chat of a batch
        return [_translate_message(one) for one in message]
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_translate_block(block) for block in message["content"]]}


def _translate_block(block: Any) -> Any:
    if not isinstance(block, dict) or not isinstance(block.get("video_url"), dict):
        return block
    clip = dict(block["video_url"])
    start, end = (_check_second(name, clip.pop(name, None)) for name in ("start", "end"))
    if unknown := sorted(clip.keys() - {"url", *_CLIP_SAMPLING}):
        raise ValueError(
            f"A video_url has the unknown keys {unknown}; it may have url, start, end, {', '.join(_CLIP_SAMPLING)}."
        )
    clip = {name: value for name, value in clip.items() if name == "url"}
    if isinstance(clip.get("url"), str) and (start or end):
        clip["url"] += f"#t={start},{end}" if end else f"#t={start}"
    return {**block, "video_url": clip}


def _check_second(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number of seconds from 0, found {value!r}.")
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _translate_body(body: bytes, stop: list[str], route: str) -> bytes:
    if reason := find_excess(body):
        raise _RefusedError(413, reason)
    try:
        request = json.loads(body)
    except ValueError:
        return body  # vLLM says so
    except RecursionError as error:
        raise _RefusedError(400, "The request has objects or lists too deep in one another.") from error
    if not isinstance(request, dict):
        return body
    try:
        return json.dumps(translate(request, stop, route)).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise _RefusedError(400, str(error)) from error


class _RefusedError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Body:
    """A request's body, translated once somebody asks for it."""

    def __init__(self, receive: Callable[[], Awaitable[dict]], stop: list[str], route: str):
        self._receive, self._stop, self._route, self._is_read = receive, stop, route, False
        self.refused: _RefusedError | None = None

    async def receive(self) -> dict:
        if self._is_read:
            return await self._receive()
        self._is_read = True
        pieces, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message
            pieces.append(message.get("body", b""))
            size, more = size + len(pieces[-1]), message.get("more_body", False)
            if size > MAX_BODY_BYTES:
                self.refused = _RefusedError(413, f"A request may have {MAX_BODY_BYTES} bytes.")
                raise self.refused
        try:
            body = await asyncio.to_thread(_translate_body, b"".join(pieces), self._stop, self._route)
        except _RefusedError as error:
            self.refused = error
            raise
        return {"type": "http.request", "body": body, "more_body": False}


class RequestTranslator:
    """
    The middleware, for vLLM's option `--middleware`. What cannot be translated is answered with status 400.

    vLLM puts it before its own, of which one asks for the key. So nothing is read here before vLLM's route reads it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        self.stop = json.loads(os.environ.get(STOP_VARIABLE, "[]"))
        self.hosts = [host_name(host) for host in json.loads(os.environ.get(HOSTS_VARIABLE, "[]"))]

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and self.hosts and (host := _host(scope)) not in self.hosts:
            # A web page may have pointed its own name at this machine.
            reason = f"The Host {host[:100]!r} is not one of this server's: start it with --allowed-host {host[:100]}."
            return await _refuse(send, 400, reason)
        # A route with /render behind it answers with the ids and settings that the one without would take.
        route = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/").removesuffix("/render")
        if scope["type"] != "http" or scope["method"] != "POST" or route not in _STOP_FIELDS:
            return await self.app(scope, receive, send)
        body = _Body(receive, self.stop, route)
        headers = [header for header in scope["headers"] if header[0] not in (b"content-length", b"transfer-encoding")]
        headers.append((b"transfer-encoding", b"chunked"))  # nobody knows yet how long it becomes

        async def answer(event: dict) -> None:
            if body.refused is None:  # what the route makes of that error is no answer
                await send(event)

        try:
            await self.app({**scope, "headers": headers}, body.receive, answer)
        except Exception:
            if body.refused is None:
                raise
        if body.refused is not None:
            await _refuse(send, body.refused.status, str(body.refused))


def _host(scope: dict) -> str:
    return host_name(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))


async def _refuse(send: Callable, status: int, message: str) -> None:
    """An error in the form of vLLM's."""
    message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
