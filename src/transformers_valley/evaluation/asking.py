# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How a question is asked: the chat around it, and what is shown with it.

`build_chat` writes the chat, with examples and chain of thought; `show` opens its clips and images, as a view wants.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.rows import CLIP_SETTINGS
from ..endpoint import file_url
from ..video_decoding import SampledVideo, VideoDecodeError, load_image
from .benchmark import Sample


COT = "you need to think step by step"  # paper, Section 5.2: added to the system prompt
# What is shown: all as it should be; nothing; the frames in another order; the middle one.
VIEWS = ("clip", "blind", "shuffled", "one_frame")
SERVED_VIEWS = ("clip", "blind")  # a server samples clips itself
MAX_SENT_BYTES = 150 * 1024**2  # of a file in a request


def build_chat(sample: Sample, shots: Sequence[Sample] = (), cot: bool = False, system: str = "") -> list[dict]:
    """
    The chat that asks a question.

    Args:
        sample ([`Sample`]):
            The question; a system message of its own stays.
        shots (`list[Sample]`, *optional*):
            Examples: turns before it.
        cot (`bool`, *optional*, defaults to `False`):
            Whether the system prompt ends with `COT`.
        system (`str`, *optional*):
            What the chat template would write where there is no system message; a chain of thought is added to it.
    """
    messages = list(sample.messages)
    has_own = messages[0]["role"] == "system"
    if has_own:
        system = _text(messages.pop(0))
    for shot in reversed(shots):
        turns = [message for message in shot.messages if message["role"] != "system"]
        messages = [*turns, _message("assistant", shot.example or shot.answers[0]), *messages]
    if cot:
        system = f"{system} {COT}".lstrip()
    return [_message("system", system), *messages] if has_own or cot else messages


def default_system(processor: Any) -> str:
    """What a chat template writes as the system prompt where a chat has none."""
    question, mark = _message("user", "?"), "\ue000"
    bare = processor.apply_chat_template([question], add_generation_prompt=True)
    before, _, after = processor.apply_chat_template(
        [_message("system", mark), question], add_generation_prompt=True
    ).partition(mark)
    # Where a template writes a system prompt only if it is given, what surrounds it is longer than all.
    fits = bare.startswith(before) and bare.endswith(after) and len(bare) >= len(before) + len(after)
    return bare[len(before) : len(bare) - len(after)] if fits else ""


def show(
    messages: Sequence[Mapping],
    view: str,
    seed: str,
    sample_clip: Callable[[Mapping], SampledVideo],
    keep: Callable[[str, Any], dict] = lambda name, frames: {},
) -> tuple[list[dict], list[dict]]:
    """
    Open the clips and images of a chat.

    Args:
        messages (`list[dict]`):
            With a `path` in each visual's block.
        view (`str`):
            One of `VIEWS`.
        seed (`str`):
            Decides the order of `"shuffled"` frames, the same each time.
        sample_clip (callable):
            A clip's block to its frames.
        keep (callable, *optional*):
            Keeps a clip's frames or an image for people, under a name; gives what to say of it.

    Returns:
        `tuple`: the messages for a processor, and for each visual `path`, `num_frames`, `times` (seconds; `None` where
        nobody knows) and, where they are shuffled, their `order`.

    Raises:
        VideoDecodeError: if one cannot be read.
    """
    shown, opened = [], []
    for message in messages:
        blocks = []
        for block in message["content"]:
            if block["type"] == "text":
                blocks.append(block)
            elif view != "blind" and block["type"] == "image":
                image = load_image(block["path"])
                blocks.append({"type": "image", "image": image})
                shown.append({"path": block["path"], "num_frames": 1, "times": None, **keep(block["path"], image)})
            elif view != "blind":
                sampled, order = _rearrange(sample_clip(block), view, seed)
                blocks.append({"type": "video", "video": sampled})
                about = {"num_frames": len(sampled.frames), "times": sampled.timestamps}
                about |= (
                    {"order": order} if view == "shuffled" else keep(f"{view} {sorted(block.items())}", sampled.frames)
                )
                shown.append({**block, **about})
        opened.append({**message, "content": blocks})
    return opened, [{key: value for key, value in each.items() if key != "type"} for each in shown]


def _rearrange(sampled: SampledVideo, view: str, seed: str) -> tuple[SampledVideo, list[int]]:
    count = len(sampled.frames)
    order = list(range(count))
    if view == "one_frame":
        order = [count // 2]
    elif view == "shuffled":
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(number)).tolist()
        if order == sorted(order):  # two frames may stay as they are
            order = order[1:] + order[:1]
    if view == "clip":
        return sampled, order

    def pick(values: list | None) -> list | None:
        return values and [values[index] for index in order]

    metadata = {**sampled.metadata, "frames_indices": pick(sampled.metadata.get("frames_indices"))}
    times = pick(sampled.timestamps)
    return replace(sampled, frames=sampled.frames[order], timestamps=times, metadata=metadata), order


def clip_settings(block: Mapping[str, Any]) -> dict[str, Any]:
    """What a block says of how its clip is sampled: part, rate or number of frames."""
    return {name: block[name] for name in CLIP_SETTINGS if block.get(name) is not None}


def served_messages(messages: Sequence[Mapping], view: str) -> list[dict]:
    """
    The chat as an OpenAI-compatible server takes it, files within it as `data:` addresses.

    Raises:
        VideoDecodeError: if a file is missing or too large to be sent.
    """
    sent = []
    for message in messages:
        blocks = []
        for block in message["content"]:
            if block["type"] == "text":
                blocks.append(block)
            elif view != "blind":
                kind = f"{block['type']}_url"
                blocks.append({"type": kind, kind: {"url": _address(block["path"]), **clip_settings(block)}})
        is_text = all(block["type"] == "text" for block in blocks)
        text = "\n".join(block["text"] for block in blocks) if is_text else None
        sent.append({"role": message["role"], "content": blocks if text is None else text})
    return sent


def _address(path: str) -> str:
    if path.startswith(("http://", "https://", "data:")):
        return path
    file = Path(path)
    if not file.is_file():
        raise VideoDecodeError(path, "there is no such file.")
    if file.stat().st_size > MAX_SENT_BYTES:
        raise VideoDecodeError(path, f"it has {file.stat().st_size} bytes; a request carries {MAX_SENT_BYTES}.")
    return file_url(file)


def _message(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _text(message: Mapping) -> str:
    return "\n".join(block["text"] for block in message["content"])


__all__ = ["COT", "SERVED_VIEWS", "VIEWS", "build_chat", "clip_settings", "default_system", "served_messages", "show"]
