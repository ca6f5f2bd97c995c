# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How answers and errors look to OpenAI's clients.

Input: an answer as far as it is written. Output: JSON objects and server-sent events of Chat Completions or Responses.
"""

import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from .engine import Answer
from .requests import RequestError


__all__ = ["ChatForm", "ResponseForm", "error_body", "sse_event"]


def sse_event(data: dict, name: str | None = None) -> str:
    """One server-sent event."""
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict:
    """An error as OpenAI's servers tell it."""
    message = message.encode(errors="backslashreplace").decode()  # JSON can hold what UTF-8 cannot
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ChatForm:
    """An answer as `/v1/chat/completions` tells it."""

    def __init__(self, answer: Answer, model: str):
        self.answer = answer
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def _usage(self, prompt: str = "prompt", answer: str = "completion") -> dict[str, int]:
        counts = len(self.answer.prompt.ids), len(self.answer.ids)
        return {f"{prompt}_tokens": counts[0], f"{answer}_tokens": counts[1], "total_tokens": sum(counts)}

    def whole(self) -> dict:
        """The answer in one piece."""
        message = {"role": "assistant", "content": self.answer.text}
        choice = {"index": 0, "message": message, "finish_reason": self.answer.finish_reason}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    async def events(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for piece in pieces:
                yield self._chunk({"content": piece})
        except RequestError as error:
            yield sse_event(error_body(str(error), error.status, code=error.code))
        else:
            usage = {"usage": self._usage()}
            is_apart = self.answer.request.stream_options.include_usage  # OpenAI's clients then add up all they find
            yield self._chunk({}, self.answer.finish_reason, **({} if is_apart else usage))
            if is_apart:
                yield sse_event({**self.head, "object": "chat.completion.chunk", "choices": [], **usage})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict, finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return sse_event({**self.head, "object": "chat.completion.chunk", "choices": [choice], **more})


class ResponseForm(ChatForm):
    """An answer as `/v1/responses` tells it."""

    def whole(self) -> dict:
        is_cut = self.answer.finish_reason == "length"
        return self._response(
            "incomplete" if is_cut else "completed",
            output=[self._item("completed", self.answer.text)],
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            usage={
                **self._usage("input", "output"),
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        )

    async def events(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        numbers = itertools.count()

        def event(kind: str, **more: Any) -> str:
            kind = f"response.{kind}"
            return sse_event({"type": kind, "sequence_number": next(numbers), **more}, kind)

        text, place = "", {"item_id": self._id("msg"), "output_index": 0, "content_index": 0}
        yield event("created", response=self._response("in_progress"))
        yield event("in_progress", response=self._response("in_progress"))
        yield event("output_item.added", output_index=0, item=self._item("in_progress"))
        yield event("content_part.added", **place, part=self._part(text))
        try:
            async for piece in pieces:
                text += piece
                yield event("output_text.delta", **place, delta=piece, logprobs=[])
        except RequestError as error:
            reason = {"code": "server_error", "message": str(error)}
            yield event("failed", response=self._response("failed", error=reason))
            return
        yield event("output_text.done", **place, text=text, logprobs=[])
        yield event("content_part.done", **place, part=self._part(text))
        yield event("output_item.done", output_index=0, item=self._item("completed", text))
        yield event("completed", response=self.whole())

    def _id(self, kind: str) -> str:
        return self.head["id"].replace("chatcmpl", kind)

    def _part(self, text: str) -> dict:
        return {"type": "output_text", "text": text, "annotations": []}

    def _item(self, status: str, text: str | None = None) -> dict:
        content = [] if text is None else [self._part(text)]
        return {"id": self._id("msg"), "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, **more: Any) -> dict:
        head = {"id": self._id("resp"), "object": "response", "created_at": self.head["created"]}
        fixed = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": [], "error": None}
        return {**head, "model": self.head["model"], "status": status, **fixed, **more}
