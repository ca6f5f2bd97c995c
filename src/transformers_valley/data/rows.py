# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a training row is: the pieces that formats make of a record, and what is refused.

In go texts, paths and settings as a record has them; out comes
`{"messages": [{"role", "content": [blocks]}], "images": [paths]}`. A clip's block holds its own `path` and settings,
an image's block stands for the next of `images`, which is what TRL's collator expects.
"""

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from datasets import Features, List, Value


# What a block says of its clip beside the path; see `VideoSegment`.
CLIP_SETTINGS = ("start", "end", "fps", "num_frames", "max_frames")
_COUNTS = ("num_frames", "max_frames")

FEATURES = Features(
    {
        "messages": List(
            {
                "role": Value("string"),
                "content": List(
                    {
                        "type": Value("string"),
                        "text": Value("string"),
                        "path": Value("string"),
                        **{name: Value("int64" if name in _COUNTS else "float64") for name in CLIP_SETTINGS},
                    }
                ),
            }
        ),
        # TRL takes its collator for visual data where a row has this column, even an empty one.
        "images": List(Value("string")),
        # Who a row is, for messages: the record's own id or "SOURCE:POSITION", and the name of its source.
        "id": Value("string"),
        "source": Value("string"),
    }
)
_BLOCK_KEYS = tuple(FEATURES["messages"].feature["content"].feature)

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def text_block(text: Any, place: str = "a text") -> dict[str, str]:
    """A block of text. Raises a `ValueError` that names its `place` if it is none."""
    return {"type": "text", "text": check_text(text, place)}


def image_block(path: Any) -> dict[str, str]:
    """A block of an image at a path or URL. Raises a `ValueError` if that is none."""
    return {"type": "image", "path": _check_path(path, "an image")}


def clip_block(path: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    A block of a clip.

    Args:
        path (`str`):
            A path or URL.
        settings (`Mapping`):
            `start` and `end` in seconds, `fps`, `num_frames`, `max_frames`, where given; other keys are not looked at.

    Raises:
        ValueError: if one of these is not a number, or `fps` comes with `num_frames`. Numbers that make no sense for a
            clip, such as an end before the start, show when it is read.
    """
    block = {"type": "video", "path": _check_path(path, "a clip")}
    for name in CLIP_SETTINGS:
        if (value := settings.get(name)) is not None:
            block[name] = _check_number(value, name)
    if {"fps", "num_frames"} <= block.keys():
        raise ValueError("a clip has both `fps` and `num_frames`: keep one")
    return block


def make_row(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    A row of messages whose content is blocks.

    Args:
        messages (`list[dict]`):
            `role`, in the words of any tool, and `content`, a list of [`text_block`], [`image_block`] and
            [`clip_block`].

    Raises:
        ValueError: if a role is unknown, a turn is empty, an answer has no words, or there is no answer.
    """
    turns, images = [], []
    for message in messages:
        role, blocks = _role(message["role"]), []
        shows = any(block["type"] != "text" for block in message["content"])
        speaks = any(block.get("text", "").strip() for block in message["content"])
        if not speaks and role == "assistant":
            raise ValueError("an answer of the assistant is empty, and the model would learn to say nothing")
        if not speaks and not shows:
            raise ValueError(f"a turn of the {role} is empty")
        for block in message["content"]:
            if block["type"] == "image":
                images.append(block["path"])
                block = {"type": "image"}
            blocks.append(block)
        turns.append({"role": role, "content": blocks})
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("no turn of the assistant: there is nothing to learn")
    return {"messages": turns, "images": images}


def fill_features(row: dict[str, Any]) -> dict[str, Any]:
    """A row with every key of [`FEATURES`] in every block, which Arrow wants."""

    def fill(message: dict[str, Any]) -> dict[str, Any]:
        return {**message, "content": [{key: block.get(key) for key in _BLOCK_KEYS} for block in message["content"]]}

    return {**row, "messages": [fill(message) for message in row["messages"]]}


def check_text(value: Any, place: str) -> str:
    """The text. Raises a `ValueError` that names its `place` if it is none, or cannot be stored."""
    if not isinstance(value, str):
        raise ValueError(f"{place} is {describe(value)}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} holds a lone surrogate, {value[error.start]!a}, at character {error.start}: half of an emoji, "
            "as text that was cut leaves it. Take it out"
        ) from None
    return value


def describe(value: Any) -> str:
    """What a value is, in words that people who do not know Python know."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"an object with the fields {sorted(map(str, value))}"[:200]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    kind = "the text " if isinstance(value, str) else "the number " if isinstance(value, Real) else ""
    return "null" if value is None else kind + repr(value)[:80]


def _check_path(value: Any, what: str) -> str:
    path = check_text(os.fspath(value) if isinstance(value, os.PathLike) else value, f"the path of {what}")
    if not path.strip():
        raise ValueError(f"the path of {what} is empty")
    return path


def _check_number(value: Any, name: str) -> float | int:
    if isinstance(value, bool) or not isinstance(value, Real):
        unit = "a whole number" if name in _COUNTS else "a number" if name == "fps" else "seconds as a number"
        raise ValueError(f"`{name}` of a clip is {describe(value)}, expected {unit}")
    if name not in _COUNTS:
        try:
            return float(value)
        except OverflowError:  # a whole number that no clip is as long as
            return math.inf
    if not math.isfinite(value) or value != int(value) or abs(value) >= 2**31:
        raise ValueError(f"`{name}` of a clip is {describe(value)}, expected a whole number below 2^31")
    return int(value)


def _role(name: Any) -> str:
    if not isinstance(name, str) or name not in _ROLES:
        found = repr(name) if isinstance(name, str) else describe(name)
        raise ValueError(f"the role {found} is unknown, expected one of {', '.join(_ROLES)}")
    return _ROLES[name]


__all__ = [
    "CLIP_SETTINGS",
    "FEATURES",
    "check_text",
    "clip_block",
    "describe",
    "fill_features",
    "image_block",
    "make_row",
    "text_block",
]
