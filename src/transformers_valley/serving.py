# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve`: transformers' OpenAI-compatible server around one Valley, made fit for requests from strangers.

In go chats with the addresses of clips and images; out come answers, or errors that say what is wrong. What an address
may open is checked here, before anything is opened. Needs `pip install "transformers[serving]"`.
"""

import asyncio
import contextlib
import copy
import inspect
import json
import logging
import math
import os
import re
import socket
import tempfile
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BatchFeature, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils.import_utils import is_serve_available

from .processing_valley import ValleyProcessor
from .video_files import MAX_PIXELS
from .video_sources import (
    MAX_DOWNLOAD_BYTES,
    MAX_DOWNLOAD_SECONDS,
    VideoDecodeError,
    download_video,
    pillow_errors,
    resolve,
)


if not is_serve_available():
    raise ImportError('Serving needs FastAPI, uvicorn and openai: pip install "transformers[serving]"')

import fastapi
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler, TransformersResponseCreateParamsStreaming
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState, _GenerationCancelled


__all__ = ["RequestError", "RequestReader", "ValleyModelManager", "build_app", "serve"]

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024**2  # of one request, its `data:` addresses included
MAX_IMAGE_BYTES = 128 * 1024**2  # of one image that is downloaded
MAX_IMAGE_PIXELS = 4 * MAX_PIXELS  # of all images of one request together
MAX_IMAGE_RATIO = 100  # of an image's longer side to its shorter one, which is scaled to that of the model
MAX_DOWNLOADS = 64  # at once
MAX_TOKEN_CHARACTERS = 100  # on average: a text with more is too long, however it is tokenized
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 100
ROUTES = {"/v1/chat/completions", "/v1/responses", "/v1/models", "/health"}
FAILED = "The server failed; its log says why."

# Types of content blocks: of Chat Completions, then of Responses.
TEXT_BLOCKS = ("text", "input_text", "output_text")
IMAGE_BLOCKS = ("image_url", "input_image")
VIDEO_BLOCKS = ("video_url",)

MAX_COUNT = 1_000_000
LEAST_TEMPERATURE = 0.01  # of those that sample; with less, numbers overflow
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # of the answer; the first that is given holds
# Numbers of a request: their type, least and greatest value.
NUMBERS = {
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 0.0, 1.0),
    "frequency_penalty": (float, -0.99, 2.0),  # transformers divides by 1 + this
    "seed": (int, 0, 2**63 - 1),
    **dict.fromkeys(LENGTHS, (int, 1, MAX_COUNT)),
}
SAMPLING_NUMBERS = {  # those of `chat_template_kwargs`
    "fps": (float, 0.001, 1000.0),
    "num_frames": (int, 1, MAX_COUNT),
    "max_frames": (int, 1, MAX_COUNT),
}
GENERATION_NUMBERS = {  # those of `generation_config`: none lets a request take more time or memory than its tokens do
    "temperature": (float, LEAST_TEMPERATURE, 100.0),
    "top_k": (int, 0, MAX_COUNT),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "typical_p": (float, 0.01, 1.0),
    "repetition_penalty": (float, 0.01, 100.0),
    "no_repeat_ngram_size": (int, 0, 16),
    "max_new_tokens": (int, 1, MAX_COUNT),
    "min_new_tokens": (int, 0, MAX_COUNT),
}


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        message (`str`): what was found, what was expected.
        param (`str`, *optional*): the field of the request that is wrong.
        status (`int`, *optional*, defaults to 400): of HTTP.
        code (`str`, *optional*): a word for programs, as OpenAI's servers send.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


# --- What clients send ---------------------------------------------------------------------------------------------


@dataclass
class _Visuals:
    """What the visuals of one request need until they are read."""

    stack: contextlib.ExitStack  # holds downloaded files
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_DOWNLOAD_SECONDS)  # of all downloads
    names: dict[str, str] = field(default_factory=dict)  # paths on this machine, and what the client calls them
    pixels: int = 0  # of the images that were opened


class RequestReader:
    """Turns the messages of a request into model inputs. Several threads may read at once; one of them decodes.

    Args:
        processor ([`ValleyProcessor`]): it is copied, because the server decodes answers with its own meanwhile.
        context_length (`int`, *optional*): positions of the language model; no prompt may be longer.
        folders (`Iterable` of paths): where files may be opened, and below. Symbolic links are followed before.
    """

    def __init__(
        self, processor: ValleyProcessor, context_length: int | None, folders: Iterable[str | os.PathLike] = ()
    ):
        self.context_length = context_length
        self.folders = [Path(folder).resolve(strict=True) for folder in folders]
        # Chats of text alone have a thread and a processor of their own: they wait for no download and no decoder. The
        # others have more threads than there may be downloads: a clip that needs none does not wait for those.
        self._lanes = {
            has_visuals: (copy.deepcopy(processor), threading.Lock(), ThreadPoolExecutor(threads))
            for has_visuals, threads in ((False, 1), (True, MAX_DOWNLOADS + 8))
        }
        self._download_slots = threading.Semaphore(MAX_DOWNLOADS)

    async def read_aside(self, messages: Any, sampling: Any = None) -> BatchFeature:
        """[`read`], away from the event loop."""
        _, _, pool = self._lanes[_has_visuals(_checked_messages(messages))]
        return await asyncio.get_running_loop().run_in_executor(pool, self.read, messages, sampling)

    def read(self, messages: Any, sampling: Any = None) -> BatchFeature:
        """Opens what the messages point at, and decodes and tokenizes them.

        Args:
            messages (`list[dict]`): as OpenAI's clients send them.
            sampling (`dict`, *optional*): `fps` or `num_frames`, `max_frames` and `on_error` for all clips; without
                it the rule of the checkpoint holds.

        Raises:
            RequestError: anything is wrong with them.
        """
        messages, sampling = _checked_messages(messages), _checked_sampling(sampling)
        processor, lock, _ = self._lanes[_has_visuals(messages)]
        with contextlib.ExitStack() as stack:
            visuals = _Visuals(stack)
            try:
                kwargs = self._check_cost(messages, sampling, processor)
                chat = [self._read_message(message, visuals) for message in messages]
                with lock:
                    for block in _blocks(chat, ("image",)):
                        block["image"] = _load_image(block["image"], visuals, processor.image_processor)
                    inputs = processor.apply_chat_template(
                        chat,
                        add_generation_prompt=True,
                        tokenize=True,
                        return_dict=True,
                        return_tensors="pt",
                        processor_kwargs=kwargs,
                    )
            # A `VideoDecodeError` is a `ValueError`.
            except (ValueError, TypeError, OverflowError, TemplateError) as error:
                message = str(error)
                for path, name in visuals.names.items():
                    message = message.replace(path, name)
                raise RequestError(message, "messages") from error
        length = inputs["input_ids"].shape[-1]
        if self.context_length is not None and length >= self.context_length:
            raise self._too_long(f"The prompt is {length} tokens long, those of its images and clips included")
        return inputs

    def _read_message(self, message: dict, visuals: _Visuals) -> dict:
        role, content = message["role"], message.get("content") or ""
        role = "system" if role == "developer" else role  # OpenAI's newer name
        if isinstance(content, str):
            return {"role": role, "content": content}
        return {"role": role, "content": [self._read_block(block, visuals) for block in content]}

    def _read_block(self, block: dict, visuals: _Visuals) -> dict:
        """One content block of Chat Completions or Responses as one of `ValleyProcessor`, on files of this machine."""
        if block["type"] in TEXT_BLOCKS:
            return {"type": "text", "text": block["text"]}
        modality = "video" if block["type"] in VIDEO_BLOCKS else "image"
        value = block[f"{modality}_url"]
        value = value if isinstance(value, dict) else {"url": value}
        place = self._locate(value["url"], MAX_IMAGE_BYTES if modality == "image" else MAX_DOWNLOAD_BYTES, visuals)
        if modality == "image":
            return {"type": "image", "image": place}
        return {"type": "video", "video": place, "start": value.get("start"), "end": value.get("end")}

    def _locate(self, address: str, max_bytes: int, visuals: _Visuals) -> str:
        """Checks an address and gives the file it leads to, downloaded if need be; `data:` addresses stay."""
        shown = _shorten(address)
        if (data := address.strip())[:5].lower() == "data:":
            return f"data:{data[5:]}"
        try:
            scheme = urllib.parse.urlsplit(address).scheme
        except ValueError as error:
            raise RequestError(f"{shown!r} is no address ({error}).", "messages") from error
        if scheme in ("http", "https"):
            path = os.path.join(visuals.stack.enter_context(tempfile.TemporaryDirectory()), "file")
            self._download(address, path, max_bytes, visuals.deadline)
        elif scheme in ("", "file"):
            path = self._allowed_path(address, shown)
        else:
            raise RequestError(f"Cannot open {shown!r}: it is no http, https or data address.", "messages")
        visuals.names[path] = shown
        return path

    def _download(self, address: str, path: str, max_bytes: int, deadline: float) -> None:
        if not self._download_slots.acquire(blocking=False):
            raise RequestError(
                f"The server downloads {MAX_DOWNLOADS} images and clips already. Try again later.",
                "messages",
                status=503,
                code="too_many_downloads",
            )
        try:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                reason = f"the downloads of a request may take {MAX_DOWNLOAD_SECONDS:g} seconds together."
                raise VideoDecodeError(address, reason)
            download_video(address, path, max_bytes=max_bytes, max_seconds=math.ceil(seconds))
        except VideoDecodeError as error:
            raise RequestError(f"Cannot open {_shorten(address)!r}: {error.reason}", "messages") from error
        finally:
            self._download_slots.release()

    def _allowed_path(self, address: str, shown: str) -> str:
        """The file behind a path or `file:` address, if it lies in one of the folders."""
        if address[:5].lower() == "file:":
            parts = urllib.parse.urlsplit(address)
            address = urllib.parse.unquote(parts.path) if parts.netloc in ("", "localhost") else ""
        path = None
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            path = Path(address).resolve()
        if address and path and any(path.is_relative_to(folder) for folder in self.folders):
            if os.path.isfile(path):
                return str(path)
            raise RequestError(f"Cannot read {shown!r}: there is no such file.", "messages")
        reason = "it is in no folder that this server opens" if self.folders else "this server opens no local files"
        raise RequestError(
            f"Not allowed to open {shown!r}: {reason} (--allow-local-files). Give an http, https or data address.",
            "messages",
            status=403,
            code="path_not_allowed",
        )

    def _check_cost(self, messages: list[dict], sampling: dict, processor: ValleyProcessor) -> dict:
        """Refuses what cannot fit into the context before it is opened; gives the arguments of the processor."""
        images, videos = (len(list(_blocks(messages, types))) for types in (IMAGE_BLOCKS, VIDEO_BLOCKS))
        if self.context_length is None:
            return sampling if videos else {}
        contents = [message["content"] for message in messages if isinstance(message.get("content"), str)]
        characters = sum(map(len, contents)) + sum(len(block["text"]) for block in _blocks(messages, TEXT_BLOCKS))
        if characters > MAX_TOKEN_CHARACTERS * self.context_length:
            raise self._too_long(f"The texts are {characters} characters long")
        if not images and not videos:
            return {}
        own = processor.video_processor
        frames = sampling.get("num_frames") or ("fps" not in sampling and own.num_frames) or 1
        counts = processor._get_num_multimodal_tokens([(0, 0)] * images, [(frames, 0, 0)] * videos)
        least = sum(counts.num_image_tokens) + sum(counts.num_video_tokens)
        if least >= self.context_length:
            found = f"{images} images and {videos} clips of at least {frames} frames take at least {least} tokens"
            raise self._too_long(found, "chat_template_kwargs" if "num_frames" in sampling else "messages")
        if not videos:
            return {}
        # No clip may take more than its share of what is left: all of them together are kept in memory.
        share = (self.context_length - least) // videos + frames
        return {**sampling, "max_frames": min(sampling.get("max_frames") or own.max_frames or share, share)}

    def _too_long(self, found: str, param: str = "messages") -> RequestError:
        return RequestError(
            f"{found}; the model reads {self.context_length} tokens, its answer included. Send less text, fewer or "
            'shorter clips, or fewer frames of each ("chat_template_kwargs": {"num_frames": 8}).',
            param,
            code="context_length_exceeded",
        )


def _blocks(messages: list[dict], types: tuple[str, ...]) -> Iterator[dict]:
    for message in messages:
        if isinstance(message.get("content"), list):
            yield from (block for block in message["content"] if block["type"] in types)


def _has_visuals(messages: list[dict]) -> bool:
    return any(_blocks(messages, (*IMAGE_BLOCKS, *VIDEO_BLOCKS)))


def _checked_messages(messages: Any) -> list[dict]:
    """The messages, each with a string `role` and a `content` that is a string or a list of known blocks."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("A request needs a chat: a list with at least one message.", "messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError("A message is an object with a 'role' and a 'content'.", "messages")
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise RequestError(f"A content is a text or a list of blocks, found {type(content).__name__}.", "messages")
        if isinstance(content, str):
            _check_text(content, "messages")
        for block in content if isinstance(content, list) else ():
            _check_block(block)
    return messages


def _check_block(block: Any) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in TEXT_BLOCKS:
        if not isinstance(block.get("text"), str):
            raise RequestError(f"A content block of type {kind!r} needs a string 'text'.", "messages")
        _check_text(block["text"], "messages")
    elif kind in (*IMAGE_BLOCKS, *VIDEO_BLOCKS):
        name = "video_url" if kind in VIDEO_BLOCKS else "image_url"
        value = block.get(name)
        if not isinstance(value.get("url") if isinstance(value, dict) else value, str):
            raise RequestError(f"A content block of type {kind!r} needs '{name}': {{'url': ADDRESS}}.", "messages")
    else:
        raise RequestError(
            f"A content block is of type text, image_url or video_url, found {_shorten(str(kind or block))!r}.",
            "messages",
        )


def _check_text(text: str, param: str) -> None:
    if half := re.search("[\ud800-\udfff]", text):  # JSON can hold it, UTF-8 cannot
        raise RequestError(f"A text has half a character at {half.start()}, {half[0]!a}: it was cut in two.", param)


def _checked_sampling(sampling: Any) -> dict:
    sampling = _checked_keys(sampling, (*SAMPLING_NUMBERS, "on_error"), "chat_template_kwargs")
    _check_numbers(sampling, SAMPLING_NUMBERS, "chat_template_kwargs")
    if sampling.get("on_error", "raise") not in ("raise", "partial"):
        raise RequestError("on_error is 'raise' or 'partial'.", "chat_template_kwargs")
    return sampling


def _checked_settings(text: Any) -> dict:
    """The settings in `generation_config`: the JSON of an object."""
    try:
        settings = None if text is None else json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"generation_config is no JSON in a string: {error}.", "generation_config") from error
    settings = _checked_keys(settings, (*GENERATION_NUMBERS, "do_sample", "stop_strings"), "generation_config")
    _check_numbers(settings, GENERATION_NUMBERS, "generation_config")
    _check_booleans(settings, ("do_sample",), "generation_config")
    settings["stop_strings"] = _checked_stops(settings.get("stop_strings"), "stop_strings", "generation_config")
    for name in settings.keys() & GENERATION_NUMBERS:
        settings[name] = GENERATION_NUMBERS[name][0](settings[name])  # transformers takes no 1 for 1.0
    return settings


def _checked_stops(stops: Any, name: str, param: str) -> list[str]:
    stops = [stops] if isinstance(stops, str) else [] if stops is None else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError(f"{name} is a text or a list of texts, found {_shorten(str(stops))!r}.", param)
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        longest = max(map(len, stops))
        raise RequestError(
            f"{name} may be {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters each, found {len(stops)} of up to "
            f"{longest}.",
            param,
        )
    for stop in stops:
        _check_text(stop, param)
    return stops


def _checked_bias(bias: Any, vocabulary_size: int) -> dict[str, float] | None:
    def fits(token: str, value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_token = token.isdecimal() and len(token) < 10 and int(token) < vocabulary_size
        return is_token and is_number and -100 <= value <= 100

    bias = {} if bias is None else bias
    wrong = [bias] if not isinstance(bias, dict) else [item for item in bias.items() if not fits(*item)]
    if wrong:
        raise RequestError(
            f"logit_bias is an object with token numbers below {vocabulary_size} and for each a number from -100 to "
            f"100, found {_shorten(str(wrong[0]))!r}.",
            "logit_bias",
        )
    return {token: float(value) for token, value in bias.items()} or None


def _checked_keys(values: Any, names: tuple[str, ...], param: str) -> dict:
    """What an object holds that is not null; other names than these are an error."""
    values = {} if values is None else values
    if not isinstance(values, dict) or values.keys() - set(names):
        is_dict = isinstance(values, dict)
        found = ", ".join(name for name in values if name not in names) if is_dict else type(values).__name__
        raise RequestError(f"{param} may hold {', '.join(names)}, found {_shorten(found)}.", param)
    return {name: value for name, value in values.items() if value is not None}


def _check_booleans(values: dict, names: tuple[str, ...], param: str | None = None) -> None:
    for name in names:
        if not isinstance(values.get(name), bool | None):
            raise RequestError(f"{name} is true or false, found {_shorten(str(values[name]))!r}.", param or name)


def _check_numbers(values: dict, limits: dict, param: str | None = None) -> None:
    for name, (kind, least, most) in limits.items():
        value = values.get(name)
        fits = isinstance(value, int | kind) and not isinstance(value, bool) and least <= value <= most
        if value is not None and not fits:
            number = "whole number" if kind is int else "number"
            found = _shorten(str(value))
            raise RequestError(f"{name} is a {number} from {least:,} to {most:,}, found {found!r}.", param or name)


def _load_image(place: str, visuals: _Visuals, image_processor: Any) -> torch.Tensor:
    """Opens an image as transformers does, upright and RGB, and resizes it: large ones must not pile up.

    The resizing is the processor's own, which then finds nothing left to do.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    shown = visuals.names.get(place, "data:...")
    try:
        with contextlib.ExitStack() as stack:
            file = resolve(place, stack)[0] if place.startswith("data:") else place
            with pillow_errors(shown):
                image = stack.enter_context(Image.open(file))
                short, long = sorted(image.size)
                visuals.pixels += short * long
                if visuals.pixels > MAX_IMAGE_PIXELS:
                    raise ValueError(f"with it the images of the request have more than {MAX_IMAGE_PIXELS} pixels")
                if short * long > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
                if long > MAX_IMAGE_RATIO * short:
                    raise ValueError(
                        f"of {image.width}x{image.height} one is more than {MAX_IMAGE_RATIO} times the other"
                    )
                image = ImageOps.exif_transpose(image).convert("RGB")
    except VideoDecodeError as error:
        strange = isinstance(error.__cause__, UnidentifiedImageError)  # whose message names our file
        reason = "its content is not that of an image." if strange else error.reason
        raise RequestError(f"Cannot read image {shown!r}: {reason}", "messages") from error
    later = dict.fromkeys(("do_center_crop", "do_rescale", "do_normalize"), False)
    return image_processor(image, **later, return_tensors="pt")["pixel_values"][0]


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:160]}... ({len(text)} characters)"


# --- How they are answered -----------------------------------------------------------------------------------------


class _Folder(str):
    """A folder in place of `name@revision`: an "@" in its path begins no revision."""

    def split(self, *args: Any) -> list[str]:
        return [str(self), "main"]


class ValleyModelManager(ModelManager):
    """Loads one Valley and keeps it.

    Args:
        checkpoint (`str`): a folder, or a name on the Hub, `@revision` included.
        **kwargs: `device`, `dtype`, `attn_implementation` and `quantization` of transformers' `ModelManager`.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: it is no Valley, or an argument makes no sense.
    """

    def __init__(self, checkpoint: str, **kwargs: Any):
        _check_checkpoint(checkpoint)
        _check_device(kwargs.get("device") or "auto")
        # What clients call it: they need not know where it lies.
        self.name = Path(checkpoint).resolve().name if os.path.isdir(checkpoint) else checkpoint
        super().__init__(force_model=checkpoint, **kwargs)
        self.model, self.processor = self.load_model_and_processor(self.process_model_name(checkpoint))

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name with its revision, as the base class wants it."""
        return _Folder(model_id) if os.path.isdir(model_id) else ModelManager.process_model_name(model_id)

    def get_gen_models(self) -> list[dict]:
        return [{"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "transformers_valley"}]

    async def load_model_streaming(self, model_id_and_revision: str, gguf_file: str | None = None):
        """Says that it is loaded: `transformers chat` asks. Other models are never loaded for a client."""
        yield f"data: {json.dumps({'status': 'ready', 'model': self.name, 'cached': True})}\n\n"


class _ValleyHandler:
    """What the two endpoints share: requests are read by a `RequestReader`, away from the event loop."""

    def __init__(self, manager: ValleyModelManager, state: GenerationState, reader: RequestReader):
        super().__init__(manager, state)
        self.reader = reader

    async def handle_request(self, body: dict, request_id: str) -> JSONResponse | StreamingResponse:
        """Reads, checks and answers a request.

        Raises:
            RequestError, HTTPException: it cannot be answered.
        """
        self._validate_request(body)
        body = {name: value for name, value in body.items() if value is not None}  # null is as good as nothing
        model_id, model, processor = self._resolve_model(body)
        settings = _checked_settings(body.get("generation_config"))
        stops = [*_checked_stops(body.get("stop"), "stop", "stop"), *settings.pop("stop_strings")]
        config = self._configure(body, settings, model)
        inputs = await self.reader.read_aside(self._messages(body), body.get("chat_template_kwargs"))
        length = inputs["input_ids"].shape[-1]
        if self.reader.context_length is not None:
            room = self.reader.context_length - length
            config.max_new_tokens = min(config.max_new_tokens or room, room)
        arguments = {
            "request_id": request_id,
            "model": _Answerer(model, processor.tokenizer, length, stops),
            "processor": _with_answer_ends(processor, config, stops),
            "model_id": model_id,
            "inputs": inputs.to(model.device),
            "gen_config": config,
            "gen_manager": self.generation_state.get_manager(model_id),
        }
        return await self._answer(body, arguments)

    async def _answer(self, body: dict, arguments: dict) -> JSONResponse | StreamingResponse:
        return self._streaming(**arguments) if body.get("stream") else await self._non_streaming(**arguments)

    def _messages(self, body: dict) -> Any:
        return body.get("messages")

    def _resolve_model(self, body: dict) -> tuple[str, Any, Any]:
        manager, wanted = self.model_manager, body.get("model")
        if wanted not in (None, manager.name, manager.force_model):
            raise RequestError(
                f"There is no model {_shorten(str(wanted))!r} here, only {manager.name!r}; leave 'model' out or give "
                "that.",
                "model",
                status=404,
                code="model_not_found",
            )
        return manager.name, manager.model, manager.processor

    def _configure(self, body: dict, settings: dict, model: Any) -> GenerationConfig:
        """The checkpoint's settings, those of `generation_config` over them, and the request's own over both."""
        _check_numbers(body, NUMBERS)
        _check_booleans(body, ("stream", "parallel_tool_calls"))
        if 0 < (body.get("temperature") or 0) < LEAST_TEMPERATURE:
            raise RequestError(
                f"temperature is 0, the likeliest answer, or at least {LEAST_TEMPERATURE}, found "
                f"{body['temperature']}.",
                "temperature",
            )
        bias = _checked_bias(body.get("logit_bias"), model.config.get_text_config().vocab_size)
        config = copy.deepcopy(model.generation_config)
        config.update(**settings)
        config = self._build_generation_config(
            {**body, "generation_config": None, "stop": None, "logit_bias": bias}, config
        )
        length = next((body[name] for name in LENGTHS if name in body), settings.get("max_new_tokens"))
        if length is not None:
            config.max_new_tokens = length
        if body.get("temperature"):
            config.do_sample = True  # a checkpoint that answers greedily would ignore it
        if body.get("stream") and (config.num_beams or 1) > 1:
            raise RequestError(
                f"The checkpoint searches with {config.num_beams} beams, and their answer is known at its end alone. "
                "Leave stream out.",
                "stream",
            )
        config.num_return_sequences = 1
        config.return_dict_in_generate = False  # the server wants tokens alone
        return config


class ValleyChatHandler(_ValleyHandler, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    async def _answer(self, body: dict, arguments: dict) -> JSONResponse | StreamingResponse:
        response = await super()._answer(body, arguments)
        if isinstance(response, StreamingResponse):
            response.body_iterator = _openai_stream(response.body_iterator)
        return response


class _ResponseParams(TransformersResponseCreateParamsStreaming, total=False):
    chat_template_kwargs: dict


class ValleyResponseHandler(_ValleyHandler, ResponseHandler):
    """`/v1/responses`."""

    _valid_params_class = _ResponseParams

    async def _answer(self, body: dict, arguments: dict) -> JSONResponse | StreamingResponse:
        return await super()._answer(body, {**arguments, "body": body})

    def _messages(self, body: dict) -> Any:
        try:
            return self._normalize_input(body)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise RequestError("input is a text, or a list of messages or of content blocks.", "input") from error


class _Answerer:
    """The model as the server calls it for one request: it ends where the client says, and streams no tracebacks."""

    def __init__(self, model: Any, tokenizer: Any, prompt_length: int, stops: list[str]):
        self.model = model
        self.criteria = StoppingCriteriaList([_StopStrings(tokenizer, prompt_length, stops)] if stops else [])

    def generate(self, **kwargs: Any) -> torch.Tensor:
        try:
            return self.model.generate(**kwargs, stopping_criteria=self.criteria)
        except _GenerationCancelled:
            raise
        except Exception as error:
            if "streamer" not in kwargs:
                raise
            logger.exception("An answer failed in the middle of its stream.")  # whose errors are not logged otherwise
            raise RuntimeError(FAILED) from error


class _StopStrings(StoppingCriteria):
    """Ends an answer with one of a client's strings.

    transformers' `stop_strings` are compared with the whole vocabulary beforehand: sixteen long ones take the model's
    thread some twenty seconds, and 200 MB. Those of the checkpoint stay that way: they are prepared once.
    """

    def __init__(self, tokenizer: Any, prompt_length: int, stops: list[str]):
        self.tokenizer, self.prompt_length, self.stops = tokenizer, prompt_length, stops
        # A token has a byte at least. Some more, because a decoder may change what a text begins with.
        self.window = max(len(stop.encode()) for stop in stops) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        begin = max(self.prompt_length, input_ids.shape[1] - self.window)
        texts = self.tokenizer.batch_decode(input_ids[:, begin:])
        found = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def _with_answer_ends(processor: ValleyProcessor, config: GenerationConfig, stops: list[str]) -> ValleyProcessor:
    """A view of the processor with which the server cuts an answer out of what the model writes.

    The answer begins after the space that the prompt leaves to the model, and ends before the end token or a stop
    string. This is not stored with the tokenizer: transformers' pipelines would then show end tokens.
    """
    ids = config.eos_token_id
    ids = [processor.tokenizer.eos_token_id] if ids is None else ids if isinstance(ids, list) else [ids]
    own = config.stop_strings or []
    own = [own] if isinstance(own, str) else own
    ends = [*processor.tokenizer.convert_ids_to_tokens(ids), *own, *stops]
    view = copy.copy(processor)
    view.tokenizer = copy.copy(processor.tokenizer)
    view.tokenizer.response_template = {
        "start_anchor_pattern": r"\Z",  # whatever the prompt is, the answer begins after it
        "fields": {
            "content": {
                "open_pattern": r"\A\s*",
                "close_pattern": rf"\s*(?:{'|'.join(map(re.escape, ends))}).*",
            }
        },
    }
    return view


async def _openai_stream(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Server-sent events as OpenAI's: errors are objects, and the end is told."""
    async with contextlib.aclosing(events):
        async for event in events:
            before, mark, _ = event.partition('data: {"error": "')  # a bare message
            if mark:
                event = f"{before}data: {json.dumps(_error_body(FAILED, 'server_error'))}\n\n"
            yield event
    yield "data: [DONE]\n\n"


# --- The server ----------------------------------------------------------------------------------------------------


def build_app(
    manager: ValleyModelManager, folders: Iterable[str | os.PathLike] = (), compile: bool = False
) -> FastAPI:
    """Joins transformers' server and the handlers of this file.

    Args:
        manager ([`ValleyModelManager`]): the loaded model.
        folders (`Iterable` of paths): where requests may open files of this machine.
        compile (`bool`, *optional*): whether decoding is compiled, with a static cache.
    """
    context_length = getattr(manager.model.config.get_text_config(), "max_position_embeddings", None)
    reader = RequestReader(manager.processor, context_length, folders)
    state = GenerationState(compile=compile)
    handlers = {name: None for name in inspect.signature(build_server).parameters if name.endswith("_handler")}
    handlers["chat_handler"] = ValleyChatHandler(manager, state, reader)
    handlers["response_handler"] = ValleyResponseHandler(manager, state, reader)
    app = build_server(manager, generation_state=state, **handlers)
    # The others load models that a client names, unload this one, or know nothing of clips.
    app.router.routes[:] = [route for route in app.routes if route.path in ROUTES]

    @app.post("/load_model")
    async def load_model(body: dict):
        if not isinstance(body.get("model"), str):
            raise RequestError(f"model is a name, found {_shorten(str(body.get('model')))!r}.", "model")
        return StreamingResponse(manager.load_model_streaming(body["model"]), media_type="text/event-stream")

    for kind in (RequestError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _error_response)
    app.user_middleware.append(Middleware(_BodyLimit))  # inside the others, which wrap its error in a group
    return app


class _BodyLimit:
    """Reads no more of a request than it may have, whether it tells its length or not."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        size = int(dict(scope.get("headers", ())).get(b"content-length", 0))  # a number: uvicorn has seen to it
        read = 0

        async def limited() -> dict:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if max(size, read) > MAX_BODY_BYTES:
                reason = f"The request is larger than {MAX_BODY_BYTES} bytes. Give http or https addresses."
                raise fastapi.HTTPException(413, reason)  # the one kind of error that FastAPI lets pass here
            return message

        await self.app(scope, limited, send)


def _error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    message = message.encode(errors="backslashreplace").decode()  # JSON can hold what UTF-8 cannot
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _error_response(request: Request, error: Exception) -> JSONResponse:
    """What went wrong as OpenAI's servers tell it; what is not the client's fault is told to the log alone."""
    if isinstance(error, RequestError):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        return JSONResponse(_error_body(str(error), kind, error.param, error.code), error.status)
    if isinstance(error, HTTPException):
        return JSONResponse(_error_body(str(error.detail), "invalid_request_error"), error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        found = "; ".join(problem["msg"] for problem in error.errors())
        return JSONResponse(
            _error_body(
                f"The request is no JSON object (Content-Type: application/json): {found}", "invalid_request_error"
            ),
            422,
        )
    return JSONResponse(_error_body(FAILED, "server_error"), 500)


class _Server(uvicorn.Server):
    """Tells where it is once it answers."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.config.host, sockets[0].getsockname()[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        chat = {"messages": [{"role": "user", "content": "Who are you?"}]}
        print(
            f"Ready at {url}. Try: curl {url}/chat/completions -H 'Content-Type: application/json' "
            f"-d '{json.dumps(chat)}'",
            flush=True,
        )


def serve(
    checkpoint: str,
    host: str = "localhost",
    port: int = 8000,
    folders: Iterable[str | os.PathLike] = (),
    compile: bool = False,
    **loading: Any,
) -> None:
    """Loads a checkpoint and answers requests until it is interrupted.

    Args:
        checkpoint (`str`): a folder, or a name on the Hub.
        host (`str`, *optional*, defaults to `"localhost"`): the address to listen at.
        port (`int`, *optional*, defaults to 8000): 0 takes a free one.
        folders (`Iterable` of paths): where requests may open files of this machine.
        compile (`bool`, *optional*): whether decoding is compiled, with a static cache.
        **loading: `device`, `dtype`, `attn_implementation` and `quantization`.

    Raises:
        OSError: the address is not free, or a folder or the checkpoint is not there.
        ValueError: the checkpoint is no Valley, or an argument makes no sense.
    """
    folders = [_check_folder(folder) for folder in folders]
    with _bind(host, port) as listener:  # first: loading takes long
        app = build_app(ValleyModelManager(checkpoint, **loading), folders, compile)
        server = _Server(uvicorn.Config(app, host=host, port=port))
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        server.run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Cannot listen at {host}:{port}: {reason}. Choose another --host or --port.") from error
    return listener


def _check_folder(folder: str | os.PathLike) -> str | os.PathLike:
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"--allow-local-files {folder}: there is no such folder.")
    return folder


def _check_checkpoint(checkpoint: str) -> None:
    name, _, revision = (checkpoint, "", "") if os.path.isdir(checkpoint) else checkpoint.partition("@")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
    except OSError as error:
        is_path = name.count("/") > 1 or name.startswith((".", "/", "~"))
        reason = "there is no such folder." if is_path and not os.path.isdir(name) else str(error).splitlines()[0]
        raise OSError(f"There is no checkpoint {checkpoint!r}: {reason}") from error
    if config.model_type != "valley":
        raise ValueError(
            f"{checkpoint!r} is no Valley, but a {config.model_type!r}: that is for `transformers serve`."
        )


def _check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        torch.empty(1, device=int(device) if device.isdigit() else device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"--device {device} cannot be used ({reason}). Leave it out, or give cpu.") from error
