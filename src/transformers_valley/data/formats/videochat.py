# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""VideoChat's records (OpenGVLab), of its instruct-11K and of the image sets beside it: `QA`, a list of `{"q", "a"}`.

`i` in an item is an instruction, which VideoChat2's loader puts before the conversation; an empty `q` asks for nothing
but the caption. `start` and `end` beside the clip are seconds.
"""

from typing import Any

from ..fields import check_closed
from ..rows import check_text, describe, text_block
from .base import MEDIA, Format, read_clips, read_images


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of a record: the instruction, if there is one, and the visual before the first question."""
    items = record["QA"]
    if not isinstance(items, list) or not items:
        raise ValueError(f"`QA` is {describe(items)}, expected a list of questions and answers")
    messages, told = [], []
    for item in items:
        if not isinstance(item, dict) or "a" not in item:
            raise ValueError(f'an item of `QA` is {describe(item)}, expected an object with "q" and "a"')
        check_closed(item, {"i", "q", "a"}, "an item of `QA`")
        told += [check_text(item["i"], "`i`")] if item.get("i") else []
        question = check_text(item.get("q") or "", "`q`").strip()
        messages.append({"role": "user", "content": [text_block(question)] if question else []})
        messages.append({"role": "assistant", "content": [text_block(check_text(item["a"], "`a`").strip())]})
    messages[0]["content"] = [*read_images(record), *read_clips(record), *messages[0]["content"]]
    if len(set(told)) > 1:
        raise ValueError(f"its `QA` has {len(set(told))} instructions `i`, and a conversation has one")
    return [{"role": "system", "content": [text_block(text)]} for text in told[:1]] + messages


FORMAT = Format("videochat", ("QA",), read, MEDIA)
