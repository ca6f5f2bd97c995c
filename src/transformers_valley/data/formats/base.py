# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What formats of records share: their description, fields that name clips and images, and placeholders in texts."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..rows import CLIP_SETTINGS, check_text, clip_block, describe, image_block, text_block


@dataclass(frozen=True)
class Format:
    """A form of records.

    Args:
        name (`str`): as messages and the docs call it.
        marks (`tuple[str, ...]`): the fields that tell it; a record has all of them.
        read (`Callable`): makes messages of a record and its position in its file, see [`make_row`].
        reads (`tuple[str, ...]`): further fields that `read` looks at.
        describes (`tuple[str, ...]`): fields that only describe, though their names sound as if they had to be read.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[dict[str, Any], int], list[dict[str, Any]]]
    reads: tuple[str, ...] = ()
    describes: tuple[str, ...] = ()

    def recognizes(self, record: dict[str, Any]) -> bool:
        """Whether a record, without its empty fields, is of this form."""
        return all(name in record for name in self.marks)


# --- fields that name clips and images ---

IMAGES, CLIPS = ("image", "images"), ("video", "videos")
MEDIA = (*IMAGES, *CLIPS, *CLIP_SETTINGS, "source")


def read_images(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Blocks of the images that a record names in `image` or `images`, a path or a list."""
    return [image_block(path) for path in _paths(record, IMAGES)]


def read_clips(record: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Blocks of the clips that a record names in `video` or `videos`, a path or a list, in the folder named by `source`.

    `start`, `end`, `fps`, `num_frames` and `max_frames` of the record are those of its clip; of several clips each is
    a list with one value, or null, per clip.
    """
    paths = _paths(record, CLIPS)
    if "source" in record:
        folder = check_text(record["source"], "`source`").strip("/")
        paths = [f"{folder}/{path}" if isinstance(path, str) and not _is_rooted(path) else path for path in paths]
    if "start" in record and "end" not in record and "duration" in record:
        raise ValueError("it has `start` and `duration`: write `end`, the second before which its clip ends")
    settings = [{} for _ in paths]
    for name in record.keys() & set(CLIP_SETTINGS):
        values = record[name] if isinstance(record[name], list) else [record[name]]
        if len(values) != len(paths):
            raise ValueError(f"it has {len(values)} of `{name}` for {len(paths)} clips: give one, or null, per clip")
        for setting, value in zip(settings, values, strict=True):
            setting[name] = value
    return [clip_block(path, setting) for path, setting in zip(paths, settings, strict=True)]


def _paths(record: dict[str, Any], names: tuple[str, str]) -> list[Any]:
    found = [name for name in names if name in record]
    if len(found) > 1:
        raise ValueError(f"it has both {' and '.join(f'`{name}`' for name in found)}: keep one")
    paths = record[found[0]] if found else []
    paths = paths if isinstance(paths, list) else [paths]
    if frames := next((path for path in paths if isinstance(path, list)), None):
        raise ValueError(f"a clip is {describe(frames)}: put its frames into a folder, and name the folder")
    return paths


def _is_rooted(path: str) -> bool:
    return path.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", path) is not None


# --- placeholders in texts ---


def split_text(text: str) -> list[dict[str, Any]]:
    """Blocks of a text whose `<image>` and `<video>` stand for visuals: blocks without a path."""
    blocks = []
    for part in re.split(r"(<image>|<video>)", text):
        if part in ("<image>", "<video>"):
            blocks.append({"type": part.strip("<>")})
        elif part.strip():
            blocks.append(text_block(part.strip()))
    return blocks


def fill_placeholders(messages: list[dict[str, Any]], images: Sequence[dict], clips: Sequence[dict]) -> None:
    """
    Put visuals into the blocks without a path that stand for them, in order, in place. Where no block stands for any,
    they come first in the first turn of the user.

    Raises:
        ValueError: if there are not as many places as visuals, or nothing tells the place of images beside clips.
    """
    waiting = {"image": list(images), "video": list(clips)}
    visuals = [(message["content"], i) for message in messages for i in _visuals(message["content"])]
    places = [(blocks, i) for blocks, i in visuals if "path" not in blocks[i]]
    kinds = [blocks[i]["type"] for blocks, i in places]
    if not places and (images or clips):
        if (images and clips) or visuals:
            raise ValueError("nothing says where the images and clips belong that it names: write <image> and <video>")
        first = next((message for message in messages if message["role"] in ("user", "human")), None)
        if first is None:
            raise ValueError(f"it names {len(images) + len(clips)} paths and has no turn of the user to show them in")
        first["content"] = [*images, *clips, *first["content"]]
        return
    for kind, blocks in waiting.items():
        if kinds.count(kind) != len(blocks):
            raise ValueError(f"it has {kinds.count(kind)} places for {kind}s, and names {len(blocks)}")
    for blocks, i in places:
        blocks[i] = waiting[blocks[i]["type"]].pop(0)


def _visuals(blocks: list[dict[str, Any]]) -> list[int]:
    return [i for i, block in enumerate(blocks) if block["type"] != "text"]


__all__ = [
    "CLIPS",
    "IMAGES",
    "MEDIA",
    "Format",
    "fill_placeholders",
    "read_clips",
    "read_images",
    "split_text",
]
