# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How many tokens each row takes, told without decoding a pixel: for rows that are too long, and for batches of like
length.

A clip of T frames takes P + T placeholders and four delimiters, an image P + 1 and four.
"""

from collections import Counter
from typing import Any

from datasets import Dataset

from ..configuration_valley import SPECIAL_TOKENS
from ..processing_valley import ValleyProcessor
from ..video_sources import VideoDecodeError
from .decode import visuals_of


LENGTH = "length"  # transformers' `length_column_name`
VISUALS_END = "visuals_end"


def add_lengths(
    dataset: Dataset, processor: ValleyProcessor, max_length: int | None = None, num_proc: int | None = None
) -> Dataset:
    """
    A data set with the columns `length`, tokens of each row, and `visuals_end`, those up to its last visual's end.

    With `num_frames` no clip is opened. With `fps` the length of a clip in seconds decides, so that its file is opened
    and the index in it read; with `max_length` only where that decides whether the row is longer, and the columns
    are then bounds that lie on the same side of it. A clip that cannot be opened counts as one frame.

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
        `datasets.Dataset`, cached on disk as `map` does.
    """
    return dataset.map(
        _count_batch,
        batched=True,
        batch_size=256,
        fn_kwargs={"processor": processor, "max_length": max_length},
        num_proc=num_proc,
        desc="Counting tokens",
    )


def _count_batch(rows: dict[str, list], processor: ValleyProcessor, max_length: int | None) -> dict[str, list[int]]:
    ids, lengths = _count(rows["messages"], processor, max_length)
    visuals = {processor.image_token_id, processor.video_token_id}
    tails = [next((i for i, token in enumerate(reversed(text)) if token in visuals), None) for text in ids]
    ends = [0 if tail is None else length - tail for length, tail in zip(lengths, tails, strict=True)]
    return {LENGTH: lengths, VISUALS_END: ends}


def count_tokens(
    conversations: list[list[dict[str, Any]]], processor: ValleyProcessor, max_length: int | None = None
) -> list[int]:
    """Tokens of conversations whose clips are paths, see [`add_lengths`]."""
    return _count(conversations, processor, max_length)[1]


def _count(conversations: list, processor: ValleyProcessor, max_length: int | None) -> tuple[list, list[int]]:
    """Tokens of the texts, with one placeholder for each visual, and their number with all placeholders."""
    texts = processor.apply_chat_template(conversations, tokenize=False)
    ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids, [
        _count_row(len(text), messages, processor, max_length)
        for text, messages in zip(ids, conversations, strict=True)
    ]


def _count_row(length: int, messages: list[dict[str, Any]], processor: ValleyProcessor, max_length: int | None) -> int:
    """Tokens of a row whose text, one placeholder per visual, takes `length`."""
    rule = processor.video_processor
    visuals = list(visuals_of({"messages": messages}))
    clips = [visual.source for visual in visuals if visual.modality == "video"]
    images = len(visuals) - len(clips)
    if images:
        length += images * (image_tokens(processor) - 1)
    if not clips:
        return length
    length += len(clips) * (clip_tokens(processor, 0) - 1)
    shortest, longest = length + len(clips), length + len(clips) * (rule.max_frames or float("inf"))
    if rule.fps is not None and max_length is not None:
        if shortest > max_length:
            return shortest
        if longest <= max_length:
            return longest
    for clip in clips:
        try:
            length += rule.count_frames(clip)
        except VideoDecodeError:
            length += 1
    return length


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
