# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""LLaVA's records, which most sets of image and video instructions have, each with small differences.

LLaVA-CC3M-Pretrain-595K, LLaVA-Instruct-150K, Valley-webvid2M-Pretrain-703K, LLaVA-Video-178K (which writes `<image>`
for a clip), the lists of VideoLLaMA3, and LLaMA-Factory's `conversations` beside `videos` and `images`.
"""

from typing import Any

from ..fields import check_closed
from ..rows import check_text, describe
from .base import MEDIA, Format, fill_placeholders, read_clips, read_images, split_text


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of `conversations`, a list of `{"from", "value"}`, whose human turns may hold placeholders."""
    turns = record["conversations"]
    if not isinstance(turns, list):
        raise ValueError(f"`conversations` is {describe(turns)}, expected a list of turns")
    images, clips = read_images(record), read_clips(record)
    messages = [_read_turn(turn) for turn in turns]
    spelt = [block for message in messages for block in message["content"] if block.keys() == {"type"}]
    elsewhere = [turn["from"] for turn in turns if turn["from"] not in ("human", "user") and _spells(turn["value"])]
    if not spelt and elsewhere and (images or clips):
        raise ValueError(
            f"its placeholder stands in a turn of {elsewhere[0]!r}: visuals are shown in those of 'human'"
        )
    if not (images and clips):  # some sets write <image> for a clip: what counts is which file the record names
        for block in spelt:
            block["type"] = "video" if clips else "image" if images else block["type"]
    fill_placeholders(messages, images, clips)
    return messages


def _read_turn(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        raise ValueError(f'a turn is {describe(turn)}, expected an object with "from" and "value"')
    check_closed(turn, {"from", "value"}, "a turn")
    text = check_text(turn["value"], f"a turn of {turn['from']!r}")
    if turn["from"] in ("human", "user"):
        return {"role": "user", "content": split_text(text)}
    return {"role": turn["from"], "content": [{"type": "text", "text": text.strip()}]}


def _spells(text: str) -> bool:
    return "<image>" in text or "<video>" in text


FORMAT = Format("llava", ("conversations",), read, MEDIA)
