# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve`: an OpenAI-compatible server around one Valley, safe to expose to untrusted clients.

Input: requests for Chat Completions and Responses. Output: answers, whole or streamed, or errors in OpenAI's form.
"""

import asyncio
import contextlib
import copy
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..checkpoint import find_checkpoint
from ..processing_valley import ValleyProcessor
from ..request_checks import MAX_BODY_BYTES, host_name, names_of
from .engine import FAILED, Answer, Engine, read_prompt
from .forms import ChatForm, ResponseForm, error_body, sse_event
from .media import MAX_DOWNLOADS, MediaAccess
from .requests import ChatRequest, RequestError, ResponsesRequest, parse_request, shorten


try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.datastructures import Headers
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
except ModuleNotFoundError as error:
    raise ImportError(f'{error}; pip install "transformers-valley[serve]" brings it along.') from error


__all__ = ["Service", "build_app", "serve"]

STOP_SECONDS = 5  # that answers have to end after Ctrl-C
STALLED_SECONDS = 60  # after which a client that reads nothing of its answer is gone
LATENCIES = (0.1, 0.3, 1, 3, 10, 30, 100)  # seconds: bounds of the histogram
CLIENT_GONE = 499  # nginx's word for it; nobody reads the response


class Service:
    """
    What the routes share: requests are read by threads of their own, answered by the engine, and counted.

    Args:
        engine ([`Engine`]): the model at work.
        processor ([`ValleyProcessor`]): its processor.
        name (`str`): what clients call the model.
        folders (`Iterable` of paths): where requests may open files of this machine.
    """

    def __init__(
        self, engine: Engine, processor: ValleyProcessor, name: str, folders: Iterable[str | os.PathLike] = ()
    ):
        self.engine, self.name, self.access = engine, name, MediaAccess(folders)
        self.scratch = tempfile.mkdtemp(prefix="valley-")
        # Chats of text alone have a thread and a processor of their own: they wait for no download and no decoder. The
        # others have more threads than there may be downloads: a clip that needs none does not wait for those.
        self._lanes = {
            has_visuals: (copy.deepcopy(processor), threading.Lock(), ThreadPoolExecutor(threads))
            for has_visuals, threads in ((False, 1), (True, MAX_DOWNLOADS + 8))
        }
        self.statuses, self.tokens = Counter(), Counter(prompt=0, generated=0)
        self.latencies, self.seconds = [0] * (len(LATENCIES) + 1), 0.0

    async def respond(self, http: "Request", kind: type[ChatRequest], form: "type[ChatForm]") -> "Response":
        """Answers one request.

        Raises:
            RequestError: it cannot be answered.
        """
        if "json" not in http.headers.get("content-type", ""):  # web pages may send other types to foreign servers
            raise RequestError(
                "The request is not a valid JSON object with Content-Type: application/json.", status=422
            )
        request = parse_request(kind, await _read_body(http), self.engine.context_length, self.engine.vocabulary_size)
        self._check_model(request.model)
        if request.stream and (beams := self.engine.model.generation_config.num_beams or 1) > 1:
            reason = f"The checkpoint searches with {beams} beams, and their answer is known at its end alone."
            raise RequestError(f"{reason} Leave stream out.", "stream")
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        def hand_on(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(queue.put_nowait, item)

        answer = Answer(request, hand_on)
        lane = self._lanes[request.has_visuals]
        try:
            await _while_connected(http, loop.run_in_executor(lane[2], self._read, answer, *lane[:2]))
            written, pieces = form(answer, self.name), self._pieces(answer, queue)
            if request.stream:
                return _Stream(written.events(pieces), answer)
            await _while_connected(http, _exhaust(pieces))
            return JSONResponse(written.whole())
        except BaseException:
            answer.abandon()
            raise

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            found = f"There is no model {shorten(name)!r} here, only {self.name!r}; leave 'model' out or give that."
            raise RequestError(found, "model", status=404, code="model_not_found")

    def _read(self, answer: Answer, processor: ValleyProcessor, lock: threading.Lock) -> None:
        """From a request to its place in the queue of the engine. Wherever its client is gone, it ends."""
        request = answer.request
        request.check_cost(processor, self.engine.context_length)
        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            if answer.is_over:
                return
            chat, names = self.access.fetch(request, scratch)
            request.forget_media()
            with self.engine.expecting(), lock:
                if answer.is_over:
                    return
                sampling = request.chat_template_kwargs.model_dump(exclude_none=True)
                answer.prompt = read_prompt(processor, chat, names, sampling, lambda: answer.is_over)
                self.engine.submit(answer)

    async def _pieces(self, answer: Answer, queue: asyncio.Queue) -> AsyncIterator[str]:
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, RequestError):
                    raise item
                yield item
        finally:
            self.tokens.update(prompt=len(answer.prompt.ids), generated=len(answer.ids))

    def count(self, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self.statuses[status] += 1
        self.seconds += seconds
        self.latencies[bisect_left(LATENCIES, seconds)] += 1

    def metrics(self) -> str:
        """All counts in the text format of Prometheus."""
        waiting, running = self.engine.counts
        lines = ["# TYPE valley_requests_total counter"]
        lines += [f'valley_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.statuses.items())]
        for name, value in (
            *((f"{kind}_tokens_total", n) for kind, n in self.tokens.items()),
            ("features_reused_total", self.engine.features.num_reused),
            ("requests_waiting", waiting),
            ("requests_running", running),
        ):
            kind = "counter" if name.endswith("total") else "gauge"
            lines += [f"# TYPE valley_{name} {kind}", f"valley_{name} {value}"]
        lines.append("# TYPE valley_request_seconds histogram")
        total = 0
        for bound, n in zip((*LATENCIES, "+Inf"), self.latencies, strict=True):
            lines.append(f'valley_request_seconds_bucket{{le="{bound}"}} {(total := total + n)}')
        return "\n".join(
            [*lines, f"valley_request_seconds_sum {self.seconds:.3f}", f"valley_request_seconds_count {total}\n"]
        )


async def _read_body(http: "Request") -> bytes:
    """As `http.body()`, which would keep it until the answer is read."""
    return b"".join([piece async for piece in http.stream()])


async def _while_connected(http: "Request", work: Awaitable) -> None:
    """Waits for some work, unless the client hangs up before."""

    async def hang_up() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    work, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _exhaust(pieces: AsyncIterator[str]) -> None:
    async for _ in pieces:
        pass


class _Stream(StreamingResponse):
    """Server-sent events. The answer ends where its client is gone, be it before the first one."""

    def __init__(self, events: AsyncIterator[str], answer: Answer):
        super().__init__(events, media_type="text/event-stream")
        self.answer = answer

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self.answer.abandon()


# --- The server ----------------------------------------------------------------------------------------------------


class _Gate:
    """Refuses requests before they are read, bounds what is read of the others, and counts all of them."""

    def __init__(self, app: Any, service: Service, api_key: str | None, hosts: Iterable[str]):
        self.app, self.service, self.api_key, self.hosts = app, service, api_key, {host_name(name) for name in hosts}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status, num_bytes = time.monotonic(), CLIENT_GONE, 0

        async def counted(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def limited() -> dict:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_BODY_BYTES:
                raise self._too_large()
            return message

        try:
            self._check(Headers(scope=scope), scope["path"])
            await self.app(scope, limited, counted)
        except RequestError as error:
            await _error_response(None, error)(scope, receive, counted)
        except asyncio.CancelledError:  # it has had its time after Ctrl-C, such as a slow upload
            if status == CLIENT_GONE:
                error = RequestError("The server is stopping.", status=503, code="stopping")
                await _error_response(None, error)(scope, receive, counted)
        finally:
            self.service.count(status, time.monotonic() - begin)

    def _check(self, headers: Headers, path: str) -> None:
        host = host_name(headers.get("host", ""))
        if self.hosts and host not in self.hosts:  # a web page may have pointed its own name at this machine
            reason = (
                f"The Host {shorten(host)!r} is not one of this server's: start it with --allowed-host {host[:100]}."
            )
            raise RequestError(reason, code="host_not_allowed")
        key = headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        is_open = self.api_key is None or path in ("/health", "/metrics")
        if not is_open and not secrets.compare_digest(key, self.api_key.encode()):
            raise RequestError(
                "This server needs an API key: Authorization: Bearer KEY.", None, 401, "invalid_api_key"
            )
        # h11 reads what is chunked by its chunks, whatever length it claims.
        if "transfer-encoding" not in headers and int(headers.get("content-length", 0)) > MAX_BODY_BYTES:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        reason = f"The request is larger than {MAX_BODY_BYTES} bytes. Give http or https addresses."
        return RequestError(reason, status=413)


def _error_response(http: "Request | None", error: Exception) -> "Response":
    """The error in the form of OpenAI's servers; what is not the client's fault appears in the log only."""
    if isinstance(error, RequestError):
        return JSONResponse(error_body(str(error), error.status, error.param, error.code), error.status)
    if isinstance(error, HTTPException) and error.status_code == 404 and http is not None:  # routes alone raise it
        reason = f"There is no {http.method} {shorten(http.url.path)} here. Questions go to /v1/chat/completions or "
        reason += "/v1/responses; a page for a browser is `valley demo --server ADDRESS`."
        return JSONResponse(error_body(reason, 404), 404)
    if isinstance(error, HTTPException):
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, error.headers)
    return JSONResponse(error_body(FAILED, 500), CLIENT_GONE if isinstance(error, ClientDisconnect) else 500)


def build_app(service: Service, api_key: str | None = None, hosts: Iterable[str] = ()) -> "FastAPI":
    """
    The routes around a service.

    Args:
        service ([`Service`]): what answers.
        api_key (`str`, *optional*): what clients must send, except to `/health` and `/metrics`.
        hosts (`Iterable[str]`, *optional*): names under which clients may reach it; all without any.
    """
    check_key(api_key)
    app = FastAPI(openapi_url=None)
    for kind in (RequestError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _error_response)
    app.add_middleware(_Gate, service=service, api_key=api_key, hosts=hosts)
    about = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "transformers_valley"}

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request):
        return await service.respond(http, ChatRequest, ChatForm)

    @app.post("/v1/responses")
    async def responses(http: Request):
        return await service.respond(http, ResponsesRequest, ResponseForm)

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [about]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str):
        service._check_model(name)
        return about

    @app.post("/load_model")  # `transformers chat` asks; other models are never loaded for a client
    async def load_model():
        ready = {"status": "ready", "model": service.name, "cached": True}
        return PlainTextResponse(sse_event(ready), media_type="text/event-stream")

    @app.get("/health")
    async def health():
        is_well = service.engine.is_alive
        return JSONResponse({"status": "ok" if is_well else "the model has stopped"}, 200 if is_well else 503)

    @app.get("/metrics")
    async def metrics():
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4")

    return app


class _Server(uvicorn.Server):
    """Prints its address once it answers, and what it waits for when it is asked to stop."""

    def __init__(self, service: Service, app: "FastAPI", **config: Any):
        # What has not ended a second after the engine, such as a slow upload, is cancelled.
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=STOP_SECONDS + 1, **config))
        self.service = service

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

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Ends gently at the first signal, at once at the second one."""
        if self.should_exit:
            self.leave(128 + sig)
        self.should_exit = True
        timer = threading.Timer(STOP_SECONDS, self.service.engine.close)
        timer.daemon = True
        timer.start()
        num_answers, num_connections = sum(self.service.engine.counts), len(self.server_state.connections)
        print(
            f"Stopping: {num_answers} answers and {num_connections} connections "
            f"have {STOP_SECONDS} seconds to end. A second signal stops at once.",
            flush=True,
        )

    def leave(self, code: int) -> None:
        """Ends the process. Threads inside of torch would abort it on the usual way, and downloads hold it up."""
        shutil.rmtree(self.service.scratch, ignore_errors=True)
        logging.shutdown()
        os._exit(code)


def serve(
    checkpoint: str,
    host: str = "localhost",
    port: int = 8000,
    folders: Iterable[str | os.PathLike] = (),
    max_batch: int = 8,
    api_key: str | None = None,
    allowed_hosts: Iterable[str] = (),
    compile: bool = False,
    **loading: Any,
) -> None:
    """
    Loads a checkpoint and answers requests until it is interrupted. Does not return: the process ends with it.

    Args:
        checkpoint (`str`): a folder, or a name on the Hub.
        host (`str`, *optional*, defaults to `"localhost"`): the address to listen at.
        port (`int`, *optional*, defaults to 8000): 0 takes a free one.
        folders (`Iterable` of paths): where requests may open files of this machine.
        max_batch (`int`, *optional*, defaults to 8): requests that are answered together.
        api_key (`str`, *optional*): what clients must send.
        allowed_hosts (`Iterable[str]`): names under which clients reach it, beside those of this machine itself.
        compile (`bool`, *optional*): whether decoding is compiled on a GPU, with a static cache.
        **loading: as of [`~transformers_valley.checkpoint.Checkpoint.load_model`].

    Raises:
        OSError: the address is not free, or a folder or the checkpoint is not there.
        ValueError: the checkpoint is not a Valley, or an argument makes no sense.
    """
    check_key(api_key)
    for folder in folders:
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"--allow-local-files {folder}: there is no such folder.")
    with _bind(host, port) as listener:  # first: loading takes long
        found = find_checkpoint(checkpoint)
        processor, model = found.load_processor(), found.load_model(**loading)
        service = Service(Engine(model, processor, max_batch, compile), processor, found.name, folders)
        app = build_app(service, api_key, names_of(host, allowed_hosts))
        server = _Server(service, app, host=host, port=port)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        server.run(sockets=[listener])
        server.leave(0)


def check_key(api_key: str | None) -> None:
    """
    Check an API key: an empty one, such as of a variable that is not set, would leave the server open to all.

    Raises:
        ValueError: if it is empty.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError("--api-key is empty, which would let everyone in: give a key, or leave --api-key out.")


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STALLED_SECONDS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Cannot listen at {host}:{port}: {reason}. Choose another --host or --port.") from error
    return listener
