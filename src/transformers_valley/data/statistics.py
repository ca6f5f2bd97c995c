# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a data set is made of: rows, clips, images and tokens of each of its sources.

In go rows, read before or streamed; out come counts by source. No clip is decoded.
"""

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from datasets import Dataset, IterableDataset

from ..processing_valley import ValleyProcessor
from ..tables import format_table
from .lengths import count_tokens


@dataclass
class SourceCounts:
    """Rows of a source, and the clips, images and questions in them; `lengths` are the tokens of each row."""

    rows: int = 0
    clips: int = 0
    images: int = 0
    turns: int = 0
    lengths: list[int] = field(default_factory=list)

    def add(self, messages: list[dict[str, Any]], length: int | None) -> None:
        """Count a row."""
        kinds = [block["type"] for message in messages for block in message["content"]]
        self.rows += 1
        self.clips += kinds.count("video")
        self.images += kinds.count("image")
        self.turns += sum(message["role"] == "user" for message in messages)
        self.lengths += [] if length is None else [length]

    def summary(self, max_length: int | None = None) -> dict[str, int | float]:
        """The counts, and of the lengths mean, median, the longest and, with `max_length`, how many are longer."""
        counts = {"rows": self.rows, "clips": self.clips, "images": self.images, "turns": self.turns}
        if self.lengths:
            counts |= {
                "mean tokens": round(fmean(self.lengths), 1),
                "median tokens": median(self.lengths),
                "most tokens": max(self.lengths),
            }
        if self.lengths and max_length is not None:
            counts["too long"] = sum(length > max_length for length in self.lengths)
        return counts


def count_sources(
    rows: Dataset | IterableDataset, processor: ValleyProcessor | None = None
) -> dict[str, SourceCounts]:
    """
    Count rows by source.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`):
            Of [`load_rows`].
        processor ([`ValleyProcessor`], *optional*):
            Of a model: its tokenizer and its way to sample clips tell how long rows are. Without `num_frames` the
            index of each clip is read.

    Returns:
        `dict[str, SourceCounts]`: by the name of the source, in the order in which they come.
    """
    found: dict[str, SourceCounts] = {}
    for batch in rows.iter(batch_size=256):
        chats = batch["messages"]
        lengths = [None] * len(chats) if processor is None else count_tokens(chats, processor)
        for source, messages, length in zip(batch["source"], chats, lengths, strict=True):
            found.setdefault(source, SourceCounts()).add(messages, length)
    return found


def describe_sources(found: dict[str, SourceCounts], max_length: int | None = None) -> str:
    """
    Counts as a table: a line per source, and one for all if there are several.

    Args:
        found (`dict[str, SourceCounts]`):
            Of [`count_sources`].
        max_length (`int`, *optional*):
            Rows with more tokens are counted.
    """
    every = dict(found)
    if len(found) > 1:
        every["all"] = SourceCounts()
        for counts in found.values():
            for name, value in vars(counts).items():
                setattr(every["all"], name, getattr(every["all"], name) + value)
    lines = [{"source": name} | counts.summary(max_length) for name, counts in every.items()]
    return format_table([list(lines[0]), *(line.values() for line in lines)], "l" + "r" * (len(lines[0]) - 1), False)


__all__ = ["SourceCounts", "count_sources", "describe_sources"]
