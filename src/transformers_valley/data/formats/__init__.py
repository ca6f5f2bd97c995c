# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Records of any known format to training rows. A format is one file here, recognised by the fields of a record."""

import os
from collections.abc import Mapping
from typing import Any

from ..fields import check_fields, given
from ..media import as_folders, place
from ..rows import describe, make_row, text_block
from . import llava, messages, question_answer, sharegpt4video, valley_instruct, video_instruct_100k, videochat
from .base import Format


# In the order in which they are tried: those that look at more fields first.
FORMATS: tuple[Format, ...] = (
    messages.FORMAT,
    valley_instruct.FORMAT,
    llava.FORMAT,
    videochat.FORMAT,
    sharegpt4video.FORMAT,
    video_instruct_100k.FORMAT,
    question_answer.FORMAT,
)


def recognize(record: Any) -> Format:
    """
    The format of a record.

    Raises:
        ValueError: if it is of none; it says which fields it has, and which would tell a format.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {describe(record)}, expected an object with fields")
    fields = given(record)
    for form in FORMATS:
        if form.recognizes(fields):
            return form
    empty = sorted(map(str, record.keys() - fields.keys()))
    without = f" and nothing in {empty}" if empty else ""
    known = "; ".join(f"{', '.join(form.marks)} ({form.name})" for form in FORMATS)
    raise ValueError(
        f"it has the fields {sorted(map(str, fields))}{without}, expected those of a known format: {known}"
    )


def to_row(
    record: Mapping[str, Any],
    media_root: str | os.PathLike | Mapping[str, str | os.PathLike] | None = None,
    position: int = 0,
) -> dict[str, Any]:
    """
    A record to a training row.

    Args:
        record (`Mapping`):
            Of any of the [`FORMATS`]. A `system` at its top is the first turn, whatever the format.
        media_root (`str` or `Mapping`, *optional*):
            Folder that relative paths start from, or folders by name, see [`as_folders`].
        position (`int`, *optional*, defaults to 0):
            Of the record in its file, which VideoInstruct100K goes by.

    Returns:
        `dict` with `messages` and `images`, see `rows.py`.

    Raises:
        ValueError: if the record is of no known format, something in it would not be read, or it cannot be learnt
            from; it names the record by its `id` and says what to do.
    """
    try:
        form, fields = recognize(record), given(record)
        turns = form.read(fields, position)
        shows = any(block["type"] != "text" for turn in turns for block in turn["content"])
        check_fields(fields, {*form.marks, *form.reads, *form.describes, "id", "system"}, shows)
        if "system" in fields:
            if turns and turns[0]["role"] == "system":
                raise ValueError("it has both a `system` and a first turn of the system: keep one")
            turns = [{"role": "system", "content": [text_block(fields["system"], "`system`")]}, *turns]
        folders = as_folders(media_root)
        for turn in turns:
            turn["content"] = [
                {**block, "path": place(block["path"], folders)} if "path" in block else block
                for block in turn["content"]
            ]
        return make_row(turns)
    except ValueError as error:
        name = record.get("id", "without id") if isinstance(record, Mapping) else record
        reason = str(error).rstrip(".")
        raise ValueError(f"Record {repr(name)[:80]} is not a training row: {reason}.") from error


__all__ = ["FORMATS", "Format", "recognize", "to_row"]
