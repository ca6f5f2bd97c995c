# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""VideoInstruct100K of Video-ChatGPT: `q`, `a` and `video_id`, the name of an ActivityNet clip without its suffix.

The clip comes behind the question in records at even positions and before it in the others, as in Video-ChatGPT's own
`scripts/convert_instruction_json_to_training_format.py`.
"""

from typing import Any

from ..rows import CLIP_SETTINGS, check_text, clip_block, text_block
from .base import Format


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of a record."""
    clip = clip_block(record["video_id"], record)
    question = [clip, text_block(check_text(record["q"], "`q`").strip())]
    return [
        {"role": "user", "content": question if position % 2 else question[::-1]},
        {"role": "assistant", "content": [text_block(check_text(record["a"], "`a`").strip())]},
    ]


FORMAT = Format("video_instruct_100k", ("q", "a", "video_id"), read, CLIP_SETTINGS)
