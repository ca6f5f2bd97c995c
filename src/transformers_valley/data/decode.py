# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""One training row to chat messages whose visuals are decoded, or to an error that names row, file and reason.

A training batch and `valley data check` read rows with it, so that the one finds what the other would.
"""

import os
import tempfile
from typing import Any

from transformers.image_utils import load_image

from ..processing_valley import ValleyProcessor
from ..video_sources import VideoDecodeError, download_video, pillow_errors


class BadSampleError(ValueError):
    """A row that cannot be trained on: which one, and why.

    Args:
        id (`str`): of the row. Alone, the whole message: what a `DataLoader` makes of the error of its worker.
        source (`str`): where the row comes from, the stem of its file.
        file (`str`, *optional*): the clip or image at fault, if it is one.
        reason (`str`): what is wrong, in words.
    """

    def __init__(self, id: str, source: str | None = None, file: str | None = None, reason: str | None = None):
        super().__init__(id, source, file, reason)  # all in `args`, so that it crosses process borders
        self.id, self.source, self.file, self.reason = id, source, file, reason

    def __str__(self) -> str:
        if self.reason is None:
            return self.id
        what = self.reason if self.file is None else f"{self.file}: {self.reason}"
        return f"Row {self.id!r} of {self.source!r} cannot be trained on: {what}"


def decode_row(row: dict[str, Any], processor: ValleyProcessor) -> list[dict[str, Any]]:
    """
    The messages of a row, with each clip sampled as training samples it and each image opened.

    Args:
        row (`dict`):
            As [`load_rows`] gives it. A clip is the `path` of its block (with `start` and `end`), an image the next of
            `images`: a path, a URL or a picture.
        processor ([`ValleyProcessor`]):
            Its video processor says which frames are taken, and in which size.

    Returns:
        `list[dict]`, messages as `processor.apply_chat_template` reads them.

    Raises:
        BadSampleError: if a clip or an image cannot be read.
    """
    images = iter(row.get("images") or [])
    try:
        return [
            {
                "role": message["role"],
                "content": [_decode_block(block, images, processor) for block in message["content"]],
            }
            for message in row["messages"]
        ]
    except VideoDecodeError as error:
        raise BadSampleError(str(row.get("id")), str(row.get("source")), error.path, error.reason) from error


def _decode_block(block: dict[str, Any], images: Any, processor: ValleyProcessor) -> dict[str, Any]:
    if block["type"] == "video":
        return {"type": "video", "video": processor.video_processor.sample(clip_of(block))}
    if block["type"] == "image":
        return {"type": "image", "image": open_image(next(images, None))}
    return {"type": "text", "text": block["text"]}


def clip_of(block: dict[str, Any]) -> dict[str, Any]:
    """The clip of a content block, as `sample_video` reads it."""
    return {key: block.get(key) for key in ("path", "start", "end")}


def open_image(image: Any) -> Any:
    """A path, URL or picture to a picture that is fully read; a `VideoDecodeError` where it cannot be."""
    name = str(image)[:200]  # base64 has no end
    if name.startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "image")
            download_video(image, path)  # under the same limits as a clip
            with pillow_errors(name):
                return load_image(path)
    if isinstance(image, str) and not image.startswith("data:") and not os.path.isfile(image):
        raise VideoDecodeError(name, "there is no such file.")
    with pillow_errors(name):
        return load_image(image)


__all__ = ["BadSampleError", "clip_of", "decode_row", "open_image"]
