# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files of captions: WebVid's tables, and any CSV, JSON or JSONL that names a clip or an image and what is in it.

In goes a path; out come captions one at a time, and in the place of one that cannot be read the reason.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..files import check_file, read_records
from ..rows import check_text, describe


@dataclass(frozen=True)
class Caption:
    """A clip or an image, and what people wrote about it; `title` where they gave it one."""

    id: str
    kind: Literal["video", "image"]
    path: str
    text: str
    title: str | None = None


def read_captions(file: str | os.PathLike) -> Iterator[Caption | ValueError]:
    """
    The captions of a file, in order.

    WebVid's columns are read in any order: `videoid`, `page_dir` and `name`, the caption; its clips lie in
    `page_dir/videoid.mp4`. All other records have `video` or `image`, `caption`, and perhaps `id` and `title`.

    Yields:
        [`Caption`], or a `ValueError` that says why a record is none.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    check_file(file)
    for position, record in enumerate(read_records(file)):
        if not isinstance(record, ValueError):
            try:
                record = _read(record, position)
            except ValueError as error:
                record = ValueError(f"{file}, record {position}: {error}.")
        yield record


def _read(record: Any, position: int) -> Caption:
    if not isinstance(record, dict):
        raise ValueError(f"it is {describe(record)}, expected an object with `video` and `caption`")
    if {"videoid", "page_dir", "name"} <= record.keys():
        if not record["page_dir"]:
            raise ValueError("it has no `page_dir`, so that nobody knows where its clip is")
        record = {
            "id": record["videoid"],
            "video": f"{record['page_dir']}/{record['videoid']}.mp4",
            "caption": record["name"],
        }
    kinds = [kind for kind in ("video", "image") if record.get(kind)]
    if len(kinds) != 1 or "caption" not in record:
        raise ValueError(
            f"it has the fields {sorted(map(str, record))}, expected `caption` and either `video` or `image`, or "
            "WebVid's `videoid`, `page_dir` and `name`"
        )
    text = check_text(record["caption"], "`caption`").strip()
    if not text:
        raise ValueError("its caption is empty")
    title = check_text(record["title"], "`title`").strip() if record.get("title") else None
    path = check_text(record[kinds[0]], f"`{kinds[0]}`")
    return Caption(str(record.get("id") or path or position), kinds[0], path, text, title)


__all__ = ["Caption", "read_captions"]
