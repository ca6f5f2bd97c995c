# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Many requests to one OpenAI-compatible endpoint: bounded, paced, retried, paid for once.

Requests go in, arguments of `chat.completions.create`; a `Reply` for each comes out, in their order. Each reply is in
an SQLite file before anybody sees it, so that a killed run pays again for nothing but what was in flight.
"""

import asyncio
import base64
import hashlib
import json
import mimetypes
import os
import random
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tqdm import tqdm


__all__ = ["Endpoint", "EndpointError", "Reply", "Totals", "file_url", "request_key"]

PATIENCE = 600.0  # seconds that a server may put everybody off without answering anyone


class EndpointError(ConnectionError):
    """The endpoint answers nobody: it is not there, the key is wrong, the quota is spent. What came before is kept."""


@dataclass(frozen=True)
class Reply:
    """
    What became of a request.

    Attributes:
        key (`str`): [`request_key`] of the request.
        text (`str`, *optional*): the answer; `None` where there is none.
        error (`str`, *optional*): why there is none.
        finish_reason (`str`, *optional*): `"stop"`, or `"length"` where the answer was cut.
        model (`str`, *optional*): as the server calls itself.
        prompt_tokens, completion_tokens (`int`): as the server counts them.
        time (`str`): when it came, ISO 8601 in UTC.
        is_cached (`bool`): whether it was paid for before.
    """

    key: str
    text: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    time: str = ""
    is_cached: bool = False


@dataclass
class Totals:
    """What an endpoint was asked for since it was made; `cost` in the currency of its prices."""

    sent: int = 0  # those that failed and were sent again included
    answered: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


def request_key(request: Mapping[str, Any]) -> str:
    """sha256 of a request as JSON with sorted keys: equal requests have equal keys, in any process."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_url(path: str | os.PathLike) -> str:
    """A file as a `data:` address, which a request or a page carries within it."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    with open(path, "rb") as file:
        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"


class Endpoint:
    """
    One model behind an OpenAI-compatible server.

    Args:
        model (`str`, *optional*):
            Its name there; by default that of the only one that is served.
        base_url (`str`, *optional*):
            Such as `http://localhost:8000/v1`; OpenAI's own by default.
        api_key (`str`, *optional*):
            By default the environment variable `OPENAI_API_KEY`; your own servers need none. It is written
            nowhere.
        cache (path, *optional*):
            SQLite file of the replies; without one they are kept in memory only.
        concurrency (`int`, *optional*, defaults to 16):
            Requests in flight at once.
        max_retries (`int`, *optional*, defaults to 5):
            How often a request that failed through no fault of its own is sent again.
        timeout (`float`, *optional*, defaults to 120.0):
            Seconds to wait for one reply.
        prices (`tuple[float, float]`, *optional*):
            Of a million tokens of prompt and of completion.

    Raises:
        ImportError: if `openai` is missing.
        EndpointError: if `cache` is a file of another kind.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        cache: str | os.PathLike | None = None,
        concurrency: int = 16,
        max_retries: int = 5,
        timeout: float = 120.0,
        prices: tuple[float, float] = (0.0, 0.0),
    ):
        import openai

        self._openai = openai
        self.base_url, self.concurrency, self.max_retries, self.timeout = base_url, concurrency, max_retries, timeout
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.prices, self.totals = prices, Totals()
        self.keep_replies(cache)
        self._resume_at = 0.0  # on the monotonic clock: before it nobody sends anything
        self._budgets: dict[str, _Budget] = {}
        self._heard_at = 0.0  # when the server last answered anyone
        self._failed_in_a_row = 0
        self.model = model or self._only_model()

    def ask(
        self,
        requests: Iterable[Mapping[str, Any]],
        *,
        retry_failed: bool = False,
        desc: str = "requests",
        progress: bool = True,
    ) -> list[Reply]:
        """
        Send requests, those excepted whose reply is known.

        Args:
            requests (`Iterable[dict]`):
                Arguments of `chat.completions.create`, such as `messages` and `temperature`. They are taken one by
                one, as they can be sent. `model` is added.
            retry_failed (`bool`, *optional*, defaults to `False`):
                Send again what failed in an earlier run.
            desc (`str`, *optional*), progress (`bool`, *optional*, defaults to `True`):
                Name on the progress bar, and whether there is one.

        Returns:
            `list[Reply]`, one per request, in order.

        Raises:
            EndpointError: if the server answers nobody.
        """
        total = len(requests) if hasattr(requests, "__len__") else None
        self._heard_at, self._failed_in_a_row = time.monotonic(), 0
        with tqdm(total=total, desc=desc, disable=not progress) as bar:
            return _run(self._ask_all(iter(requests), retry_failed, bar))

    def keep_replies(self, cache: str | os.PathLike | None) -> None:
        """From now on, keep replies in this SQLite file, and send nothing whose reply is there."""
        self._cache = _Cache(cache)

    async def _ask_all(self, requests: Iterator, retry_failed: bool, progress: tqdm) -> list[Reply]:
        queue, replies, pending = enumerate(requests), {}, {}
        async with self._client() as client:

            async def work() -> None:
                for index, request in queue:
                    replies[index] = await self._answer(client, request, retry_failed, pending)
                    self._show(progress)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.concurrency):
                        group.create_task(work())
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [replies[index] for index in range(len(replies))]

    async def _answer(self, client: Any, request: Mapping, retry_failed: bool, pending: dict) -> Reply:
        request = {"model": self.model, **request}
        key = request_key(request)
        known = self._cache.get(key)
        if known is not None and not (known.error and retry_failed):
            self.totals.cached += 1
            return known
        if key in pending:  # another worker is paying for it
            return await asyncio.shield(pending[key])
        pending[key] = asyncio.get_running_loop().create_future()
        reply = await self._send(client, key, request)
        self._cache.put(reply)
        pending.pop(key).set_result(replace(reply, is_cached=True))
        return reply

    async def _send(self, client: Any, key: str, request: dict) -> Reply:
        """Send a request until there is a reply, or a failure that is its own."""
        attempt = 0
        while True:
            await self._wait_for_turn()
            self.totals.sent += 1
            try:
                response = await client.chat.completions.with_raw_response.create(**request)
                self._note_budgets(response.headers)
                reply = self._read(key, response)
                self._heard_at, self._failed_in_a_row = time.monotonic(), 0
                return reply
            except self._openai.RateLimitError as error:
                self._pause_everybody(error)
                continue
            except self._openai.APITimeoutError:
                reason = f"no answer within {self.timeout:g} seconds"
            except self._openai.APIConnectionError as error:
                if attempt >= min(self.max_retries, 3):
                    raise EndpointError(self._unreachable(error)) from None
                reason = "no connection"
            except self._openai.APIStatusError as error:
                reason = self._redact(f"HTTP {error.status_code}: {error.message}")
                if error.status_code in (401, 403, 404):
                    raise EndpointError(
                        f"{self._name()} refuses every request. {reason.rstrip('.')}{_about_key(error)}"
                    ) from None
                if error.status_code < 500 and error.status_code not in (408, 409):
                    return self._fail(key, reason)
            except _NoCompletion as error:
                reason = self._redact(str(error))
            if attempt == self.max_retries:
                self._failed_in_a_row += 1
                if self._failed_in_a_row > 2 * self.concurrency:
                    raise EndpointError(
                        f"{self._name()} failed {self._failed_in_a_row} requests in a row, each after "
                        f"{self.max_retries + 1} attempts, the last with: {reason}. See to the server and run again."
                    )
                return self._fail(key, reason)
            await asyncio.sleep(min(8.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
            attempt += 1

    def _read(self, key: str, response: Any) -> Reply:
        try:
            completion = response.parse()
            choice, usage = completion.choices[0], completion.usage
            text, finish_reason = choice.message.content, choice.finish_reason
        except (self._openai.APIResponseValidationError, ValueError, AttributeError, IndexError, TypeError):
            raise _NoCompletion(f"the server sent no chat completion, but {response.text[:200]!r}") from None
        prompt, written = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        self.totals.prompt_tokens += prompt
        self.totals.completion_tokens += written
        self.totals.cost += (prompt * self.prices[0] + written * self.prices[1]) / 1e6
        about = {"model": completion.model, "finish_reason": finish_reason, "time": _now()}
        about |= {"prompt_tokens": prompt, "completion_tokens": written}
        if text is None:
            self.totals.failed += 1
            return Reply(key, error=f"the answer is empty (finish_reason={finish_reason!r})", **about)
        self.totals.answered += 1
        return Reply(key, text, **about)

    def _fail(self, key: str, reason: str) -> Reply:
        self.totals.failed += 1
        return Reply(key, error=reason, time=_now())

    # --- Pace ----------------------------------------------------------------------------------------------------

    async def _wait_for_turn(self) -> None:
        """Wait while all are paused, or a budget is spent, and book one request."""
        tokens = (self.totals.prompt_tokens + self.totals.completion_tokens) / max(1, self.totals.answered)
        needs = {"requests": 1.0, "tokens": tokens}
        while True:
            now = time.monotonic()
            for kind, budget in self._budgets.items():
                if budget.left < needs[kind] and now < budget.renewed_at:
                    self._resume_at = max(self._resume_at, budget.renewed_at)
            if now >= self._resume_at:
                break
            await asyncio.sleep(self._resume_at - now)
        for kind, budget in self._budgets.items():
            budget.left -= needs[kind]

    def _note_budgets(self, headers: Mapping[str, str]) -> None:
        for kind in ("requests", "tokens"):
            left, renewal = (headers.get(f"x-ratelimit-{word}-{kind}") for word in ("remaining", "reset"))
            seconds = _seconds(renewal)
            if left is not None and left.isdecimal() and seconds is not None:
                self._budgets[kind] = _Budget(float(left), time.monotonic() + seconds)

    def _pause_everybody(self, error: Any) -> None:
        """After a 429, nobody sends anything until the server allows it."""
        if error.code == "insufficient_quota":
            raise EndpointError(f"{self._name()}: {self._redact(error.message)}")
        headers = error.response.headers
        seconds = _seconds(headers.get("retry-after-ms") and f"{headers['retry-after-ms']}ms")
        seconds = _seconds(headers.get("retry-after")) if seconds is None else seconds
        seconds = 1.0 if seconds is None else max(seconds, 0.05)
        now = time.monotonic()
        if max(now - self._heard_at, seconds) > PATIENCE:
            raise EndpointError(
                f"{self._name()} puts everybody off (HTTP 429) for another {seconds:.0f} seconds, and has answered "
                f"nobody for {now - self._heard_at:.0f}. Run again later: what was answered is kept."
            )
        self._resume_at = max(self._resume_at, now + seconds)

    # --- Words ---------------------------------------------------------------------------------------------------

    def _show(self, progress: tqdm) -> None:
        tokens = self.totals.prompt_tokens + self.totals.completion_tokens
        shown = {"tokens": tokens, "cached": self.totals.cached, "failed": self.totals.failed}
        if any(self.prices):
            shown["cost"] = f"{self.totals.cost:.2f}"
        progress.set_postfix(shown, refresh=False)
        progress.update()

    def _client(self) -> Any:
        return self._openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self._api_key, max_retries=0, timeout=self.timeout
        )

    def _name(self) -> str:
        return f"The endpoint {self.base_url or 'of OpenAI'}"

    def _unreachable(self, error: Exception) -> str:
        cause = error.__cause__ or error
        return (
            f"{self._name()} cannot be reached ({self._redact(str(cause))}). Is the server running, and at this URL?"
        )

    def _redact(self, text: str) -> str:
        return text if len(self._api_key) < 8 else text.replace(self._api_key, "[the key]")

    def _only_model(self) -> str:
        async def names() -> list[str]:
            async with self._client() as client:
                return [model.id async for model in client.models.list()]

        try:
            served = _run(names())
        except self._openai.APIConnectionError as error:
            raise EndpointError(self._unreachable(error)) from None
        except (self._openai.AuthenticationError, self._openai.PermissionDeniedError) as error:
            raise EndpointError(
                f"{self._name()}: {self._redact(error.message).rstrip('.')}{_about_key(error)}"
            ) from None
        except (self._openai.OpenAIError, AttributeError, TypeError) as error:
            reason = self._redact(str(error))
            raise EndpointError(f"{self._name()} does not tell its models ({reason}). Name one.") from None
        if len(served) != 1:
            raise EndpointError(f"{self._name()} serves {len(served)} models, {served[:20]}. Name one of them.")
        return served[0]


def _about_key(error: Any) -> str:
    """What to do where a key is refused."""
    return ". Is the key in OPENAI_API_KEY the one for this server?" if error.status_code in (401, 403) else ""


class _NoCompletion(Exception):
    """A reply with status 200 that is none."""


@dataclass
class _Budget:
    left: float
    renewed_at: float  # on the monotonic clock


_COLUMNS = [field.name for field in fields(Reply) if field.name != "is_cached"]


class _Cache:
    """Replies on disk. A row is durable when `put` returns; neither requests nor keys are in it."""

    def __init__(self, path: str | os.PathLike | None):
        # Replies come in a thread of their own where an event loop runs already, and never two at once.
        self._rows = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self._rows.execute(f"CREATE TABLE IF NOT EXISTS replies ({', '.join(_COLUMNS)}, PRIMARY KEY (key))")
        except sqlite3.DatabaseError as error:
            raise EndpointError(f"{path} is not a cache of replies ({error}). Move it away or name another.") from None

    def get(self, key: str) -> Reply | None:
        row = self._rows.execute(f"SELECT {', '.join(_COLUMNS)} FROM replies WHERE key = ?", (key,)).fetchone()
        return row and Reply(**dict(zip(_COLUMNS, row, strict=True)), is_cached=True)

    def put(self, reply: Reply) -> None:
        row = asdict(reply)
        marks = ", ".join("?" * len(_COLUMNS))
        self._rows.execute(f"INSERT OR REPLACE INTO replies VALUES ({marks})", [row[name] for name in _COLUMNS])


def _run(coroutine: Any) -> Any:
    """Run to the end, also inside of a notebook, whose event loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _seconds(text: str | None) -> float | None:
    """Seconds of `Retry-After` (a number or a date) or of `x-ratelimit-reset-*` (such as `6m0s` and `20ms`)."""
    if not text:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text := text.strip()):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
