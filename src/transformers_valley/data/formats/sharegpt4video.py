# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""ShareGPT4Video's captions: `video_path`, and `captions`, a list of `{"idx", "content"}`.

The one with `idx` "-1" is about the whole clip and becomes the answer to a fixed question; the others are about single
frames, whose times the record does not tell, and are not read.
"""

from typing import Any

from ..rows import check_text, clip_block, describe, text_block
from .base import Format


QUESTION = "Describe the video in detail."
WHOLE_CLIP = "-1"


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of a record."""
    captions = record["captions"]
    if not isinstance(captions, list) or not all(isinstance(caption, dict) for caption in captions):
        raise ValueError(f"`captions` is {describe(captions)}, expected a list of objects")
    whole = [caption.get("content") for caption in captions if str(caption.get("idx")) == WHOLE_CLIP]
    if len(whole) != 1:
        raise ValueError(f'{len(whole)} of its captions have the "idx" "-1" of the whole clip, expected one')
    caption = check_text(whole[0], "a caption").strip()
    return [
        {"role": "user", "content": [clip_block(record["video_path"], {}), text_block(QUESTION)]},
        {"role": "assistant", "content": [text_block(caption)]},
    ]


FORMAT = Format("sharegpt4video", ("captions", "video_path"), read, describes=("timestamp", "keyframe", "zip_folder"))
