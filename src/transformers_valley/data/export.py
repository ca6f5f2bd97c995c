# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Training rows back to records of LLaVA, which other tools read. Nothing is lost: what they cannot say is refused.

In go rows of any format; out come records with `conversations`, or a JSON file of them.
"""

import json
import os
from collections.abc import Iterable
from typing import Any

from ..whole_files import whole_file
from .formats import to_row
from .media import as_folders
from .rows import CLIP_SETTINGS


_NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def to_llava(row: dict[str, Any], media_root: str | os.PathLike | None = None) -> dict[str, Any]:
    """
    A row as a record of LLaVA.

    Args:
        row (`dict`):
            As [`to_row`] and [`load_rows`] give it.
        media_root (`str`, *optional*):
            Folder that paths become relative to, where they lie below it.

    Returns:
        `dict` with `conversations`, `video` and `image` as far as there are any (a path, or a list of several), the
        settings of the clips beside them, `id`, and the row's source as `data_source`.

    Raises:
        ValueError: if the record would be read as another row: if an answer shows a clip, or a question spells
            `<video>`, or a text begins or ends with space.
    """
    root = as_folders(media_root).get("")
    clips, turns = [], []
    for message in row["messages"]:
        parts = []
        for block in message["content"]:
            parts.append(block["text"] if block["type"] == "text" else f"<{block['type']}>")
            if block["type"] == "video":
                clips.append(block)
        turns.append({"from": _NAMES[message["role"]], "value": "\n".join(parts)})
    record = {"id": row["id"]} if row.get("id") is not None else {}
    record |= {"data_source": row["source"]} if row.get("source") else {}
    record |= _listed("image", [_relative(path, root) for path in row["images"]])
    record |= _listed("video", [_relative(clip["path"], root) for clip in clips])
    for name in CLIP_SETTINGS:
        if any(clip.get(name) is not None for clip in clips):
            record |= _listed(name, [clip.get(name) for clip in clips])
    record["conversations"] = turns
    if _prompt(to_row(record, media_root)) != _prompt(row):
        raise ValueError(
            f"Row {row.get('id')!r} cannot be a record of LLaVA without loss: an answer shows a clip or an image, or "
            "a text spells <image> or <video> or begins or ends with space. Keep it as messages."
        )
    return record


def write_llava(
    rows: Iterable[dict[str, Any]], file: str | os.PathLike, media_root: str | os.PathLike | None = None
) -> int:
    """
    Write rows as a JSON file of LLaVA's records, one at a time; the file is there when all of them are.

    Returns:
        `int`: how many they are.

    Raises:
        ValueError: as [`to_llava`], before anything is there.
        OSError: if the file cannot be written.
    """
    count = 0
    with whole_file(file) as part, part.open("w", encoding="utf-8") as text:
        for count, row in enumerate(rows, start=1):
            text.write("[\n" if count == 1 else ",\n")
            json.dump(to_llava(row, media_root), text, ensure_ascii=False)
        text.write("\n]\n" if count else "[]\n")
    return count


def _listed(name: str, values: list[Any]) -> dict[str, Any]:
    return {name: values[0] if len(values) == 1 else values} if values else {}


def _relative(path: str, root: str | None) -> str:
    return path if root is None or not path.startswith(os.path.join(root, "")) else os.path.relpath(path, root)


def _prompt(row: dict[str, Any]) -> tuple:
    """What a row shows and says, in a form to compare: texts that follow each other are one, as in the prompt."""
    turns = []
    for message in row["messages"]:
        blocks = []
        for block in message["content"]:
            if block["type"] == "text" and blocks and isinstance(blocks[-1], str):
                blocks[-1] += "\n" + block["text"]
            elif block["type"] == "text":
                blocks.append(block["text"])
            else:
                settings = {name: block[name] for name in ("path", *CLIP_SETTINGS) if block.get(name) is not None}
                blocks.append((block["type"], settings))
        turns.append((message["role"], blocks))
    return turns, list(row["images"])


__all__ = ["to_llava", "write_llava"]
