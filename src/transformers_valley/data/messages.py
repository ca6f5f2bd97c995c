# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""One JSON record to one training row; the only place that knows the `conversations` of 2023.

A row is `{"messages": [{"role", "content": [blocks]}], "images": [paths]}`. A video block carries its own `path` (and
`start`, `end` in seconds); an image block is filled from `images`, in order, which is what TRL's collator expects.
"""

import os
import re
from pathlib import Path
from typing import Any

from ..configuration_valley import SPECIAL_TOKENS


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def to_row(record: dict[str, Any], media_root: str | os.PathLike | None = None) -> dict[str, Any]:
    """
    A record to a row.

    Args:
        record (`dict`):
            Either a row (`messages`), or a record of LLaVA and of Valley's code of 2023: `conversations` of
            `{"from": "human" | "gpt", "value"}`, and at most one of `video` and `image`, a path or a list of paths.
            Placeholders `<video>` and `<image>` stand in the human turns; without any, one per path is put first.
        media_root (`str` or `os.PathLike`, *optional*):
            Folder that relative paths start from. A record of 2023 with a `source` is looked up in the folder of that
            name below it, as the released code does.

    Returns:
        `dict` with `messages` and `images`.

    Raises:
        ValueError: if the record is of neither form, or placeholders and paths do not match; it names the record.
    """
    try:
        if "messages" in record:
            return _from_messages(record["messages"], record.get("images") or [], media_root)
        if "conversations" in record:
            return _from_conversations(record, media_root)
        raise ValueError(f"it has the fields {sorted(record)}, expected `messages` or `conversations`")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        name = record.get("id", "without id") if isinstance(record, dict) else repr(record)[:80]
        reason = f"a field {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"Record {name!r} is no training row: {reason}.") from error


def _from_messages(messages: list[dict], images: list[str], media_root: Any) -> dict[str, Any]:
    images = [_resolve(image, media_root) for image in images]
    queue, used, rows = iter(images), [], []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        blocks = []
        for block in content:
            source = next((block[key] for key in ("path", "url", "video", "image") if block.get(key)), None)
            if block["type"] == "text":
                blocks.append({"type": "text", "text": block["text"]})
            elif block["type"] == "image":
                used.append(_resolve(source, media_root) if source else next(queue, None))
                blocks.append({"type": "image"})
            elif block["type"] == "video":
                if not isinstance(source, str):
                    raise ValueError(f"a video block needs the path of its clip, got {source!r}")
                clip = {"type": "video", "path": _resolve(source, media_root)}
                blocks.append(
                    clip | {key: float(block[key]) for key in ("start", "end") if block.get(key) is not None}
                )
            else:
                raise ValueError(f"content of type {block['type']!r} is unknown, expected text, image or video")
        rows.append({"role": _role(message["role"]), "content": blocks})
    if None in used:
        raise ValueError(f"{used.count(None)} of its image blocks have no image; `images` holds {len(images)}")
    if left := len(list(queue)):
        raise ValueError(f"{left} of its {len(images)} `images` stand in no image block")
    return _check_turns({"messages": rows, "images": used})


def _from_conversations(record: dict[str, Any], media_root: Any) -> dict[str, Any]:
    if record.get("video") and record.get("image"):
        raise ValueError("it has both `video` and `image`; write it with `messages` instead")
    modality = "video" if record.get("video") else "image"
    media = record.get(modality) or []
    media = [media] if isinstance(media, str) else list(media)
    folder = Path(record["source"]) if modality == "video" and record.get("source") else Path()
    paths = [path if _is_absolute(path) else str(folder / path) for path in media]

    turns = [(_role(turn["from"]), turn["value"]) for turn in record["conversations"]]
    # Some sets write <image> for a clip: what counts is which file the record names.
    pattern = re.compile(r"<(?:image|video)>")
    written = sum(len(pattern.findall(text)) for role, text in turns if role == "user")
    if written == 0 and paths:
        index = next((i for i, (role, _) in enumerate(turns) if role == "user"), None)
        if index is None:
            raise ValueError(f"it names {len(paths)} paths and has no turn of the user to show them in")
        turns[index] = ("user", "<video>\n" * len(paths) + turns[index][1])
    elif written != len(paths):
        raise ValueError(f"it has {written} placeholders for {len(paths)} paths")

    queue, messages = iter(paths), []
    for role, text in turns:
        blocks = []
        for part in re.split(f"({pattern.pattern})", text) if role == "user" else [text]:
            if role == "user" and pattern.fullmatch(part):
                path = next(queue)
                blocks.append(
                    {"type": "video", "path": path} if modality == "video" else {"type": "image", "path": path}
                )
            elif part.strip():
                blocks.append({"type": "text", "text": part.strip()})
        messages.append({"role": role, "content": blocks})
    return _from_messages(messages, [], media_root)


def _check_turns(row: dict[str, Any]) -> dict[str, Any]:
    if not any(message["role"] == "assistant" for message in row["messages"]):
        raise ValueError("no turn of the assistant: there is nothing to learn")
    for message in row["messages"]:
        if not message["content"]:
            raise ValueError("a turn is empty")
        for block in message["content"]:
            # In text they would become real placeholders, and every clip after them would be misplaced.
            if spelt := [token for token in SPECIAL_TOKENS if token in block.get("text", "")]:
                raise ValueError(f"its text spells Valley's special tokens {spelt}; write visuals as blocks")
    return row


def _role(name: str) -> str:
    if name not in _ROLES:
        raise ValueError(f"the role {name!r} is unknown, expected one of {sorted(_ROLES)}")
    return _ROLES[name]


def _is_absolute(path: str) -> bool:
    return path.startswith(("http://", "https://", "file:", "data:")) or os.path.isabs(path)


def _resolve(path: str, media_root: Any) -> str:
    return path if media_root is None or _is_absolute(path) else os.path.join(os.fspath(media_root), path)


__all__ = ["to_row"]
