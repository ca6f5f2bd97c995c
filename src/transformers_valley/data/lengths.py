# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Counts the tokens of each row without decoding a pixel: for rows that are too long, and for batches of like
length.

A clip of T frames takes P + T placeholders and four delimiters, an image P + 1 and four.
"""

import contextlib
import hashlib
import math
import os
from collections import Counter
from typing import Any

import torch
from datasets import Dataset
from jinja2 import TemplateError
from pyarrow import Table, compute

from ..configuration_valley import SPECIAL_TOKENS
from ..processing_valley import ValleyProcessor, output_size
from ..video_decoding import SampledVideo, SamplingRule
from ..video_processing_valley import ValleyVideoProcessor
from .decode import visuals_of
from .media import find


LENGTH = "length"  # transformers' `length_column_name`
VISUALS_END = "visuals_end"
_REFUSED = (ValueError, TemplateError)  # by a chat template, as the collator tells a bad row


def add_lengths(
    dataset: Dataset, processor: ValleyProcessor, max_length: int | None = None, num_proc: int | None = None
) -> Dataset:
    """
    A data set with the columns `length`, tokens of each row, and `visuals_end`, those up to its last visual's end.

    With `num_frames` no clip is opened. With `fps` the length of a clip in seconds decides, so that its file is opened
    and the index in it read; with `max_length` only where that decides whether the row is longer, and the columns
    are then bounds that lie on the same side of it. Settings of a clip's own hold. A clip that cannot be opened, or
    has no such part, counts as one frame: its row is bad. So is one that the chat template refuses, of which the
    visuals alone are counted.

    Args:
        dataset (`datasets.Dataset`):
            Of [`load_rows`].
        processor ([`ValleyProcessor`]):
            Tokenizer, chat template and sampling rule.
        max_length (`int`, *optional*):
            Give it if the lengths are wanted only to find the rows that are longer.
        num_proc (`int`, *optional*):
            Processes that count side by side.

    Returns:
        `datasets.Dataset`, cached on disk as `map` does, until a clip changes whose length in seconds counts.
    """
    stamp = _stamp_clips(dataset, processor)
    return dataset.map(
        _count_batch,
        batched=True,
        batch_size=256,
        fn_kwargs={"processor": processor, "max_length": max_length, "stamp": stamp},
        num_proc=num_proc,
        desc="Counting tokens",
    )


def _stamp_clips(dataset: Dataset, processor: ValleyProcessor) -> str:
    """A hash of the clips whose length decides how many frames are taken: of their paths, sizes and times."""
    digest, seen = hashlib.blake2b(digest_size=16), set()
    for batch in dataset.select_columns("messages").with_format("arrow").iter(batch_size=10_000):
        contents = compute.struct_field(compute.list_flatten(batch["messages"]), "content")
        blocks = Table.from_struct_array(compute.list_flatten(contents).combine_chunks())
        blocks = blocks.filter(compute.equal(blocks["type"], "video"))
        blocks = blocks.filter(compute.is_null(blocks["num_frames"]))
        if processor.video_processor.num_frames is not None:
            blocks = blocks.filter(compute.is_valid(blocks["fps"]))
        for path in compute.unique(blocks["path"]).to_pylist():
            if path in seen:
                continue
            seen.add(path)
            with contextlib.suppress(OSError, ValueError):  # not there, or no path: its name alone
                status = os.stat(find(path))
                path = f"{path} {status.st_size} {status.st_mtime_ns}"
            digest.update(f"{path}\n".encode())
    return digest.hexdigest()


def _count_batch(
    rows: dict[str, list], processor: ValleyProcessor, max_length: int | None, stamp: str
) -> dict[str, list[int]]:
    lengths, ends = _count(rows["messages"], processor, max_length)
    return {LENGTH: lengths, VISUALS_END: ends}


def count_tokens(
    conversations: list[list[dict[str, Any]]], processor: ValleyProcessor, max_length: int | None = None
) -> list[int]:
    """Tokens of conversations whose clips are paths, see [`add_lengths`]."""
    return _count(conversations, processor, max_length)[0]


def _count(conversations: list, processor: ValleyProcessor, max_length: int | None) -> tuple[list[int], list[int]]:
    """Tokens of conversations, and those up to the end of the last visual."""
    control = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    spelt = {index for index, messages in enumerate(conversations) if _spells(messages, control)}
    plain = [messages for index, messages in enumerate(conversations) if index not in spelt]
    texts = _render(plain, processor) if plain else []
    # With one placeholder for each visual, and its delimiters.
    ids = iter(_encode_texts(texts, processor) if plain else [])
    visuals = {processor.image_token_id, processor.video_token_id}
    lengths, ends = [], []
    for index, messages in enumerate(conversations):
        text = _encode(messages, processor) if index in spelt else next(ids)
        tail = next((i for i, token in enumerate(reversed(text)) if token in visuals), None)
        lengths.append(max(1, _count_row(len(text), messages, processor, max_length)))
        ends.append(0 if tail is None else lengths[-1] - tail)
    return lengths, ends


def _render(conversations: list, processor: ValleyProcessor) -> list[str]:
    """Conversations as text."""
    try:
        return processor.apply_chat_template(conversations, tokenize=False)
    except _REFUSED:
        if len(conversations) > 1:  # which one is it?
            return [text for messages in conversations for text in _render([messages], processor)]
        return [_visuals_alone(conversations[0], processor)]


def _encode_texts(texts: list[str], processor: ValleyProcessor) -> list[list[int]]:
    """Tokens of texts as the processor encodes each on its own."""
    begin = processor.tokenizer("")["input_ids"]  # nothing ends a text that is not complete
    ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [own if complete else begin + own for own, complete in zip(ids, processor.are_complete(texts), strict=True)]


def _visuals_alone(messages: list[dict[str, Any]], processor: ValleyProcessor) -> str:
    """What stands for a conversation that the chat template refuses: its row is bad, and a batch says why."""
    tokens = {"image": processor.image_token, "video": processor.video_token}
    return "".join(tokens[visual.modality] for visual in visuals_of({"messages": messages}))


def _spells(messages: list[dict[str, Any]], control: set[str]) -> bool:
    texts = [block["text"] for message in messages for block in message["content"] if block["type"] == "text"]
    return any(token in text for text in texts for token in control)


def _encode(messages: list[dict[str, Any]], processor: ValleyProcessor) -> list[int]:
    """Tokens of a conversation that spells a control token in a text, where it is text, as the processor encodes it;
    but each visual is one placeholder, as if it were not expanded."""

    def blank(kind: str) -> torch.Tensor:  # on the meta device nothing is computed
        part = processor.image_processor if kind == "image" else processor.video_processor
        frames = torch.empty(1, 3, *output_size(part), dtype=torch.uint8, device="meta")
        return frames[0] if kind == "image" else SampledVideo(frames, None)

    def block_of(block: dict[str, Any]) -> dict[str, Any]:
        kind = block["type"]
        return {"type": "text", "text": block["text"]} if kind == "text" else {"type": kind, kind: blank(kind)}

    chat = [{**message, "content": [block_of(block) for block in message["content"]]} for message in messages]
    kinds = {processor.image_token_id: "image", processor.video_token_id: "video"}
    delimiters = set(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS[2:])))
    kept, seen = [], Counter()
    try:
        ids = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    except _REFUSED:
        return processor.tokenizer(_visuals_alone(messages, processor), add_special_tokens=False)["input_ids"]
    for token in ids:
        if token in kinds:
            seen[token] += 1
            if seen[token] % processor.count_placeholders(kinds[token]):
                continue
        if token not in delimiters:
            kept.append(token)
    return kept


def _count_row(length: int, messages: list[dict[str, Any]], processor: ValleyProcessor, max_length: int | None) -> int:
    """Tokens of a row whose text, one placeholder per visual, takes `length`."""
    visuals = list(visuals_of({"messages": messages}))
    clips = [visual.source for visual in visuals if visual.modality == "video"]
    images = len(visuals) - len(clips)
    if images:
        length += images * (image_tokens(processor) - 1)
    if not clips:
        return length
    length += len(clips) * (clip_tokens(processor, 0) - 1)
    if max_length is not None:
        shortest, longest = map(sum, zip(*(_bounds(clip, processor.video_processor) for clip in clips), strict=True))
        if length + shortest > max_length:
            return length + shortest
        if length + longest <= max_length:
            return int(length + longest)
    for clip in clips:
        try:
            length += processor.video_processor.count_frames(clip)
        except ValueError:  # it cannot be opened, or it has no such part: a bad sample
            length += 1
    return length


def _bounds(clip: dict[str, Any], processor: ValleyVideoProcessor) -> tuple[int, float]:
    """The fewest and the most frames that are taken of a clip, whatever is in it."""
    if not processor.do_sample_frames:
        return 1, math.inf
    settings = {name: clip.get(name) for name in ("fps", "num_frames", "max_frames")}
    try:
        rule = SamplingRule(processor.fps, processor.num_frames, processor.max_frames).override(**settings)
    except ValueError:
        return 1, 1
    return (rule.num_frames,) * 2 if rule.num_frames else (1, rule.max_frames or math.inf)


def image_tokens(processor: ValleyProcessor) -> int:
    """Tokens of an image with its delimiters."""
    return processor.count_placeholders("image") + _DELIMITERS


def clip_tokens(processor: ValleyProcessor, num_frames: int) -> int:
    """Tokens of a clip with its delimiters."""
    return processor.count_placeholders("video", num_frames) + _DELIMITERS


def check_max_length(max_length: int | None, processor: ValleyProcessor) -> None:
    """
    Refuse a `max_length` that no row with a visual fits in.

    Raises:
        ValueError: says how many tokens an image and the shortest clip take.
    """
    frames = processor.video_processor.num_frames or 1
    image, clip = image_tokens(processor), clip_tokens(processor, frames)
    if max_length is not None and max_length <= min(image, clip):
        raise ValueError(
            f"max_length={max_length} has no room for a visual and a word about it: an image takes {image} tokens, a "
            f"clip of {frames} frame{'s'[: frames > 1]} {clip}. The recipes set 2048."
        )


_DELIMITERS = len(SPECIAL_TOKENS) - 2


def describe_long_rows(dataset: Dataset, max_length: int) -> str:
    """How many rows of which source are longer than `max_length`, a line for each that has some."""
    sources, lengths = dataset["source"][:], dataset[LENGTH][:]
    rows = Counter(sources)
    long = Counter(source for source, length in zip(sources, lengths, strict=True) if length > max_length)
    return "\n".join(
        f"{source}: {count} of {rows[source]} rows are longer than max_length={max_length}"
        for source, count in sorted(long.items())
    )


__all__ = [
    "LENGTH",
    "VISUALS_END",
    "add_lengths",
    "check_max_length",
    "clip_tokens",
    "count_tokens",
    "describe_long_rows",
    "image_tokens",
]
