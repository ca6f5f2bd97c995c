# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The visuals of a training row, and the error that names row, file and reason where one cannot be read.

A training batch and `valley data check` read rows with it, so that the one finds what the other would.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ..processing_valley import Visual, iter_visuals
from .frames import read_clip, read_picture
from .media import find


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


def visuals_of(row: dict[str, Any]) -> Iterator[Visual]:
    """
    The clips and images that a row shows, in order. A file that is not there is looked for under the other names that
    copies of published sets give it, see [`find`].

    Args:
        row (`dict`):
            As [`load_rows`] gives it: an image block without a source stands for the next of `images`. What a packed
            row shows comes from its own columns.

    Yields:
        [`Visual`], whose source is `None` where an image is missing.

    Raises:
        VideoDecodeError: if a packed clip or image is damaged.
    """
    images = iter(row.get("images") or ())
    packed = row.get("clips") is not None
    clips, pictures = iter(row.get("clips") or ()), iter(row.get("pictures") or ())
    for visual in iter_visuals(row["messages"]):
        if visual.source is None and visual.modality == "image":
            visual.source = next(images, None)
        if packed and visual.modality == "video":
            visual.source = read_clip(next(clips), visual.source["video"])
        elif packed:
            visual.source = read_picture(next(pictures), visual.source)
        elif isinstance(visual.source, str):
            visual.source = find(visual.source)
        elif isinstance(visual.source, dict) and isinstance(visual.source["video"], str):
            visual.source["video"] = find(visual.source["video"])
        yield visual


def messages_of(row: dict[str, Any], shown: Iterable[Any] | None = None) -> list[dict[str, Any]]:
    """
    The messages of a row as `processor.apply_chat_template` reads them: every visual in its block.

    Args:
        row (`dict`):
            As [`load_rows`] gives it.
        shown (`Iterable`, *optional*):
            What stands in the blocks of the visuals, in their order; by default what [`visuals_of`] reads.
    """
    visuals = iter(shown) if shown is not None else (visual.source for visual in visuals_of(row))

    def block_of(block: dict[str, Any]) -> dict[str, Any]:
        if block["type"] == "text":
            return {"type": "text", "text": block["text"]}
        return {"type": block["type"], block["type"]: next(visuals)}

    return [
        {"role": message["role"], "content": [block_of(block) for block in message["content"]]}
        for message in row["messages"]
    ]


__all__ = ["BadSampleError", "messages_of", "visuals_of"]
