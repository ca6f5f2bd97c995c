# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a data set is made of: rows, clips, images, turns, words and tokens of each of its sources.

In go rows, read before or streamed; out come counts by source, as a table and as a picture. No clip is decoded.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..processing_valley import ValleyProcessor
from ..tables import format_table
from .lengths import count_tokens
from .load import missing_paths


@dataclass
class SourceCounts:
    """
    Counts of a source.

    Attributes:
        rows, clips, images (`int`): of them.
        missing (`int`): rows that show a clip or an image which is not there.
        turns (`list[int]`): questions of each row.
        words (`list[int]`): words of each answer.
        lengths (`list[int]`): tokens of each row; empty without a processor.
        learnt, unknown (`int`): tokens of all answers, and those among them that the tokenizer does not know.
    """

    rows: int = 0
    clips: int = 0
    images: int = 0
    missing: int = 0
    turns: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    learnt: int = 0
    unknown: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Count everything of a row except its tokens."""
        kinds = [block["type"] for message in row["messages"] for block in message["content"]]
        self.rows += 1
        self.clips += kinds.count("video")
        self.images += kinds.count("image")
        self.missing += bool(missing_paths(row))
        self.turns.append(sum(message["role"] == "user" for message in row["messages"]))
        self.words += [len(answer.split()) for answer in answers_in(row["messages"])]

    def summary(self, max_length: int | None = None) -> dict[str, int | float | str]:
        """The counts; of answers the mean of words; of tokens mean, median, most and how many rows are longer."""
        counts = {"rows": self.rows, "clips": self.clips, "images": self.images, "missing": self.missing}
        counts |= {"turns": sum(self.turns), "words an answer": round(fmean(self.words), 1) if self.words else 0}
        if self.lengths:
            counts |= {
                "mean tokens": round(fmean(self.lengths), 1),
                "median tokens": median(self.lengths),
                "most tokens": max(self.lengths),
                "unknown": f"{100 * self.unknown / max(1, self.learnt):.2f}%",
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
    is_packed = rows.column_names is not None and "clips" in rows.column_names
    for batch in rows.iter(batch_size=16 if is_packed else 256):  # packed rows hold pictures
        several = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        for row in several:
            found.setdefault(row["source"], SourceCounts()).add(row)
        if processor is not None:
            for row, length in zip(several, count_tokens(batch["messages"], processor), strict=True):
                counts = found[row["source"]]
                counts.lengths.append(length)
                for _, ids in encode_answers(processor.tokenizer, row["messages"]):
                    counts.learnt += len(ids)
                    counts.unknown += ids.count(processor.tokenizer.unk_token_id)
    return found


def describe_sources(found: Mapping[str, SourceCounts], max_length: int | None = None) -> str:
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


def draw_sources(found: Mapping[str, SourceCounts], file: str | os.PathLike, max_length: int | None = None) -> None:
    """
    Draw what the paper's Figure 4 shows of texts, and what decides how a run goes: words of answers, turns and tokens
    of rows, each source in a colour.

    Args:
        found (`dict[str, SourceCounts]`):
            Of [`count_sources`].
        file (`str`):
            The picture; its suffix chooses the format.
        max_length (`int`, *optional*):
            Drawn into the picture of tokens.
    """
    from matplotlib.figure import Figure

    panels = [("words of an answer", "words", "answers"), ("turns of a row", "turns", "rows")]
    if any(counts.lengths for counts in found.values()):
        panels.append(("tokens of a row", "lengths", "rows"))
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (title, name, what) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        values = [getattr(counts, name) for counts in found.values()]
        largest = max(max(one, default=0) for one in values)
        # A bar for each number where they are few: there is no row of one and a half turns.
        bins = [number - 0.5 for number in range(largest + 2)] if largest < 40 else 40
        axes.hist(values, bins, stacked=True, label=list(found))
        if name == "lengths" and max_length is not None:
            axes.axvline(max_length, color="black", linestyle="--", label=f"max_length={max_length}")
        axes.set(xlabel=title, ylabel=what)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=110)


def answers_in(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of a row's answers, which are what is learnt."""
    return [
        block["text"]
        for message in messages
        if message["role"] == "assistant"
        for block in message["content"]
        if block["type"] == "text"
    ]


def encode_answers(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    """Each of a row's answers with its tokens, the space that the chat template puts before it included: a tokenizer
    of words may know a word only with it."""
    answers = answers_in(messages)
    return [(answer, tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) for answer in answers]


__all__ = ["SourceCounts", "answers_in", "count_sources", "describe_sources", "draw_sources", "encode_answers"]
