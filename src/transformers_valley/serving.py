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
import os
import re
import socket
import tempfile
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BatchFeature, GenerationConfig
from transformers.utils.import_utils import is_serve_available

from .processing_valley import ValleyProcessor
from .video_files import MAX_PIXELS
from .video_sources import MAX_DOWNLOAD_BYTES, VideoDecodeError, download_video, pillow_errors, resolve


if not is_serve_available():
    raise ImportError('Serving needs FastAPI, uvicorn and openai: pip install "transformers[serving]"')

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler, TransformersResponseCreateParamsStreaming
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState


__all__ = ["RequestError", "RequestReader", "ValleyModelManager", "build_app", "serve"]

MAX_IMAGE_BYTES = 128 * 1024**2  # of one image that is downloaded
ROUTES = {"/v1/chat/completions", "/v1/responses", "/v1/models", "/load_model", "/health"}

# Types of content blocks: of Chat Completions, then of Responses.
TEXT_BLOCKS = ("text", "input_text", "output_text")
IMAGE_BLOCKS = ("image_url", "input_image")
VIDEO_BLOCKS = ("video_url",)

MAX_COUNT = 1_000_000
# Numbers of a request: their type, least and greatest value.
NUMBERS = {
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 0.0, 1.0),
    "frequency_penalty": (float, -0.99, 2.0),  # transformers divides by 1 + this
    "seed": (int, 0, 2**63 - 1),
    "max_tokens": (int, 1, MAX_COUNT),
    "max_completion_tokens": (int, 1, MAX_COUNT),
    "max_output_tokens": (int, 1, MAX_COUNT),
}
SAMPLING_NUMBERS = {  # those of `chat_template_kwargs`
    "fps": (float, 0.001, 1000.0),
    "num_frames": (int, 1, MAX_COUNT),
    "max_frames": (int, 1, MAX_COUNT),
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
        self._processor = copy.deepcopy(processor)
        self._lock = threading.Lock()

    def read(self, messages: Any, sampling: Any = None) -> BatchFeature:
        """Opens what the messages point at, and decodes and tokenizes them.

        Args:
            messages (`list[dict]`): as OpenAI's clients send them.
            sampling (`dict`, *optional*): `fps` or `num_frames`, `max_frames` and `on_error` for all clips; without
                it the rule of the checkpoint holds.

        Raises:
            RequestError: anything is wrong with them.
        """
        opened: dict[str, str] = {}  # paths on this machine, and what the client calls them
        with contextlib.ExitStack() as stack:
            try:
                kwargs = self._check_cost(_checked_messages(messages), _checked_sampling(sampling))
                chat = [self._read_message(message, opened, stack) for message in messages]
                with self._lock:
                    inputs = self._processor.apply_chat_template(
                        chat,
                        add_generation_prompt=True,
                        tokenize=True,
                        return_dict=True,
                        return_tensors="pt",
                        processor_kwargs=kwargs,
                    )
            except (ValueError, TypeError, TemplateError) as error:  # a `VideoDecodeError` is a `ValueError`
                message = str(error)
                for path, address in opened.items():
                    message = message.replace(path, address)
                raise RequestError(message, "messages") from error
        length = inputs["input_ids"].shape[-1]
        if self.context_length is not None and length >= self.context_length:
            raise self._too_long(f"The prompt is {length} tokens long, those of its images and clips included")
        return inputs

    def _read_message(self, message: dict, opened: dict, stack: contextlib.ExitStack) -> dict:
        role, content = message["role"], message.get("content") or ""
        role = "system" if role == "developer" else role  # OpenAI's newer name
        if isinstance(content, str):
            return {"role": role, "content": content}
        return {"role": role, "content": [self._read_block(block, opened, stack) for block in content]}

    def _read_block(self, block: dict, opened: dict, stack: contextlib.ExitStack) -> dict:
        """One content block of Chat Completions or Responses as one of `ValleyProcessor`."""
        if block["type"] in TEXT_BLOCKS:
            return {"type": "text", "text": block["text"]}
        modality = "video" if block["type"] in VIDEO_BLOCKS else "image"
        value = block[f"{modality}_url"]
        value = value if isinstance(value, dict) else {"url": value}
        max_bytes = MAX_IMAGE_BYTES if modality == "image" else MAX_DOWNLOAD_BYTES
        place = self._locate(value["url"], max_bytes, opened, stack)
        if modality == "image":
            return {"type": "image", "image": _load_image(place, opened.get(place, "data:..."))}
        return {"type": "video", "video": place, "start": value.get("start"), "end": value.get("end")}

    def _locate(self, address: str, max_bytes: int, opened: dict, stack: contextlib.ExitStack) -> str:
        """Checks an address and gives the file it leads to, downloaded if need be; `data:` addresses stay."""
        shown = _shorten(address)
        try:
            scheme = urllib.parse.urlsplit(address).scheme
        except ValueError as error:
            raise RequestError(f"{shown!r} is no address ({error}).", "messages") from error
        if scheme == "data":
            return f"data{address[len(scheme) :]}"
        if scheme in ("http", "https"):
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "file")
            try:
                download_video(address, path, max_bytes=max_bytes)
            except VideoDecodeError as error:
                raise RequestError(f"Cannot open {shown!r}: {error.reason}", "messages") from error
        elif scheme in ("", "file"):
            path = self._allowed_path(address, shown)
        else:
            raise RequestError(f"Cannot open {shown!r}: {scheme!r} addresses are not http, https or data.", "messages")
        opened[path] = shown
        return path

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

    def _check_cost(self, messages: list[dict], sampling: dict) -> dict:
        """Refuses what cannot fit into the context before it is opened; gives the arguments of the processor."""
        blocks = [
            block for message in messages if isinstance(message.get("content"), list) for block in message["content"]
        ]
        videos = sum(block["type"] in VIDEO_BLOCKS for block in blocks)
        visuals = videos + sum(block["type"] in IMAGE_BLOCKS for block in blocks)
        if self.context_length is None or not visuals:
            return sampling if videos else {}
        (least,) = self._processor._get_num_multimodal_tokens(video_sizes=[(1, 0, 0)]).num_video_tokens
        if visuals * least >= self.context_length:
            raise self._too_long(f"The request has {visuals} images and clips of at least {least} tokens each")
        if not videos:
            return {}
        for name in ("num_frames", "max_frames"):
            if sampling.get(name, 0) >= self.context_length:
                raise self._too_long(f"{name}={sampling[name]} takes as many tokens of a clip", "chat_template_kwargs")
        own = self._processor.video_processor.max_frames or self.context_length
        return {"max_frames": min(own, self.context_length), **sampling}

    def _too_long(self, found: str, param: str = "messages") -> RequestError:
        return RequestError(
            f"{found}; the model reads {self.context_length}, its answer included. Send fewer or shorter clips, or "
            'fewer frames of each ("chat_template_kwargs": {"num_frames": 8}).',
            param,
            code="context_length_exceeded",
        )


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
        for block in content if isinstance(content, list) else ():
            _check_block(block)
    return messages


def _check_block(block: Any) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in TEXT_BLOCKS:
        if not isinstance(block.get("text"), str):
            raise RequestError(f"A content block of type {kind!r} needs a string 'text'.", "messages")
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


def _checked_sampling(sampling: Any) -> dict:
    names = (*SAMPLING_NUMBERS, "on_error")
    sampling = {} if sampling is None else sampling
    if not isinstance(sampling, dict) or sampling.keys() - set(names):
        found = ", ".join(sampling) if isinstance(sampling, dict) else type(sampling).__name__
        raise RequestError(
            f"chat_template_kwargs may hold {', '.join(names)}, found {_shorten(found)}.", "chat_template_kwargs"
        )
    sampling = {name: value for name, value in sampling.items() if value is not None}
    _check_numbers(sampling, SAMPLING_NUMBERS, "chat_template_kwargs")
    if sampling.get("on_error", "raise") not in ("raise", "partial"):
        raise RequestError("on_error is 'raise' or 'partial'.", "chat_template_kwargs")
    return sampling


def _check_numbers(values: dict, limits: dict, param: str | None = None) -> None:
    for name, (kind, least, most) in limits.items():
        value = values.get(name)
        fits = isinstance(value, int | kind) and not isinstance(value, bool) and least <= value <= most
        if value is not None and not fits:
            number = "whole number" if kind is int else "number"
            found = _shorten(str(value))
            raise RequestError(f"{name} is a {number} from {least:,} to {most:,}, found {found!r}.", param or name)


def _load_image(place: str, shown: str) -> Any:
    """Opens an image as transformers does: upright and RGB."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with contextlib.ExitStack() as stack:
            file = resolve(place, stack)[0] if place.startswith("data:") else place
            with pillow_errors(shown):
                image = stack.enter_context(Image.open(file))
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
                return ImageOps.exif_transpose(image).convert("RGB")
    except VideoDecodeError as error:
        strange = isinstance(error.__cause__, UnidentifiedImageError)  # whose message names our file
        reason = "its content is not that of an image." if strange else error.reason
        raise RequestError(f"Cannot read image {shown!r}: {reason}", "messages") from error


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:160]}... ({len(text)} characters)"


# --- How they are answered -----------------------------------------------------------------------------------------


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
        model_id, model, processor = self._resolve_model(body)
        config = self._build_generation_config(body, model.generation_config)
        inputs = await asyncio.to_thread(self.reader.read, self._messages(body), body.get("chat_template_kwargs"))
        if self.reader.context_length is not None:
            room = self.reader.context_length - inputs["input_ids"].shape[-1]
            config.max_new_tokens = min(config.max_new_tokens or room, room)
        arguments = {
            "request_id": request_id,
            "model": model,
            "processor": _with_answer_ends(processor, config),
            "model_id": model_id,
            "inputs": inputs.to(model.device),
            "gen_config": config,
            "gen_manager": self.generation_state.get_manager(model_id),
        }
        return await self._answer(body, arguments)

    async def _answer(self, body: dict, arguments: dict) -> JSONResponse | StreamingResponse:
        if body.get("stream"):
            return self._streaming(**arguments)
        try:
            return await self._non_streaming(**arguments)
        except ValueError as error:  # `generate` refuses settings that do not go together
            raise RequestError(str(error), "generation_config") from error

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

    def _build_generation_config(
        self, body: dict, model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        _check_numbers(body, NUMBERS)
        stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
            raise RequestError(f"stop is a text or a list of texts, found {_shorten(str(body['stop']))!r}.", "stop")
        try:
            config = super()._build_generation_config({**body, "stop": None}, model_generation_config, use_cb=use_cb)
        except (ValueError, TypeError, AttributeError) as error:
            raise RequestError(
                f"generation_config or logit_bias makes no sense: {error}", "generation_config"
            ) from error
        if body.get("temperature"):
            config.do_sample = True  # a checkpoint that answers greedily would ignore it
        config.return_dict_in_generate = False  # the server wants tokens alone
        own = config.stop_strings or []
        config.stop_strings = [*([own] if isinstance(own, str) else own), *stop] or None
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


def _with_answer_ends(processor: ValleyProcessor, config: GenerationConfig) -> ValleyProcessor:
    """A view of the processor with which the server cuts an answer out of what the model writes.

    The answer begins after the space that the prompt leaves to the model, and ends before the end token or a stop
    string. This is not stored with the tokenizer: transformers' pipelines would then show end tokens.
    """
    ids = config.eos_token_id
    ids = [processor.tokenizer.eos_token_id] if ids is None else ids if isinstance(ids, list) else [ids]
    ends = [*processor.tokenizer.convert_ids_to_tokens(ids), *(config.stop_strings or [])]
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
            before, mark, message = event.partition('data: {"error": "')  # a bare message, not escaped
            if mark:
                error = _error_body(message.removesuffix('"}\n\n'), "server_error")
                event = f"{before}data: {json.dumps(error)}\n\n"
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
    for kind in (RequestError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _error_response)
    return app


def _error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _error_response(request: Request, error: Exception) -> JSONResponse:
    """What went wrong as OpenAI's servers tell it; what is not the client's fault is told to the log alone."""
    if isinstance(error, RequestError):
        body = _error_body(str(error), "invalid_request_error", error.param, error.code)
        return JSONResponse(body, error.status)
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
    return JSONResponse(_error_body("The server failed; its log says why.", "server_error"), 500)


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
    name, _, revision = checkpoint.partition("@")
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
