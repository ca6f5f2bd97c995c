# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Chat messages: this library's own rows, and those of LLaMA-Factory and ms-swift with `videos` and `images` beside.

What a text spells is text. Only where a record names visuals beside its messages do `<video>` and `<image>` in a
user's content that is a string say where they belong.
"""

from typing import Any

from ...processing_valley import iter_visuals
from ..fields import check_closed
from ..rows import clip_block, describe, image_block, text_block
from .base import CLIPS, IMAGES, Format, fill_placeholders, read_clips, read_images, split_text


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of a record, with the visuals of its lists in their places."""
    if not isinstance(record["messages"], list):
        raise ValueError(f"`messages` is {describe(record['messages'])}, expected a list of messages")
    media = {name: record[name] for name in (*CLIPS, *IMAGES) if name in record}
    messages = [_read_message(message, bool(media)) for message in record["messages"]]
    fill_placeholders(messages, read_images(media), read_clips(media))
    return messages


def _read_message(message: Any, has_media: bool) -> dict[str, Any]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError(f'a message is {describe(message)}, expected an object with "role" and "content"')
    check_closed(message, {"role", "content"}, "a message")
    content = message["content"]
    if isinstance(content, str) and has_media and message["role"] == "user":
        blocks = split_text(text_block(content)["text"])
    elif isinstance(content, str):
        blocks = [text_block(content)]
    elif isinstance(content, list):
        blocks = [_read_block(block) for block in content]
    else:
        raise ValueError(f"the content of a message is {describe(content)}, expected text or a list of blocks")
    return {"role": message["role"], "content": blocks}


def _read_block(block: Any) -> dict[str, Any]:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise ValueError(f'a block is {describe(block)}, expected an object with a "type"')
    if block["type"] == "text":
        check_closed(block, {"type", "text"}, "a block of text")
        return text_block(block.get("text"))
    visual = next(iter_visuals([{"content": [block]}]), None)
    if visual is None:
        raise ValueError(f"content of type {block['type']!r} is unknown, expected text, image or video")
    if visual.source is None:
        return {"type": visual.modality}
    if visual.modality == "image":
        return image_block(visual.source)
    return clip_block(visual.source["video"], visual.source)


FORMAT = Format("messages", ("messages",), read, (*CLIPS, *IMAGES))
