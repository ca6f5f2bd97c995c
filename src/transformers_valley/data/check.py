# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Checks training data before a run, in several processes: which rows cannot be trained on, and which are too long.

In go the files that training reads; out comes what was found, per source and row by row.
"""

import itertools
import multiprocessing
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jinja2 import TemplateError
from tqdm import tqdm

from ..processing_valley import ValleyProcessor
from ..tables import format_table
from ..video_decoding import SamplingRule, available_cores, sample_video
from ..video_processing_valley import ValleyVideoProcessor
from ..video_sources import NO_SUCH_FILE, VideoDecodeError, load_image
from .decode import BadSampleError, visuals_of
from .formats import to_row
from .lengths import count_tokens
from .load import Media, iter_records
from .mixtures import Source
from .preferences import to_preference
from .rows import CLIP_SETTINGS


CHUNK = 16  # rows that a process takes at once


@dataclass
class DataReport:
    """
    What a check found. `rows`, `preferences` among them, `clips`, `images` and `too_long` count per source, `by_path`
    rows that show files by their paths; `bad` holds an error per row.
    """

    rows: Counter = field(default_factory=Counter)
    preferences: Counter = field(default_factory=Counter)
    by_path: Counter = field(default_factory=Counter)
    clips: Counter = field(default_factory=Counter)
    images: Counter = field(default_factory=Counter)
    too_long: Counter = field(default_factory=Counter)
    bad: list[BadSampleError] = field(default_factory=list)

    def table(self) -> str:
        """A line per source: its rows, clips, images, bad rows and rows that are too long."""
        bad = Counter(error.source for error in self.bad)
        counts = (self.rows, self.clips, self.images, bad, self.too_long)
        lines = [("source", "rows", "clips", "images", "bad", "too long")]
        lines += [(source, *(count[source] for count in counts)) for source in self.rows]
        if len(self.rows) > 1:
            lines.append(("all", *(count.total() for count in counts)))
        return format_table(lines, "lrrrrr", markdown=False)

    def hint(self) -> str | None:
        """What to do about sources of which no clip or image is there; `None` if there are none."""
        gone = [error for error in self.bad if error.reason == NO_SUCH_FILE]
        counts = Counter(error.source for error in gone)
        sources = [source for source, count in counts.items() if count == self.by_path[source]]
        if not sources:
            return None
        place = next(os.path.abspath(error.file) for error in gone if error.source in sources)
        return (
            f"None of the clips and images of {', '.join(sources)} is there: {place} was looked for, for one. Give "
            "their folder as media_root (--media-root), or as `media` in a mixture."
        )


def check_data(
    files: Sequence[str | os.PathLike | Source],
    media_root: Media = None,
    processor: ValleyProcessor | None = None,
    max_length: int | None = None,
    full: bool = False,
    num_proc: int | None = None,
) -> DataReport:
    """
    Find the rows that would stop a training or be skipped by it; also preferences, as [`load_preferences`] reads them.

    A row is bad if it does not parse, a clip or an image of it cannot be read, or a clip has no such part. Images are
    read wholly. Of a clip both ends of the file and the first frame are; with `full` all frames are decoded that
    training takes.

    Args:
        files (`list[str]`):
            As for [`load_rows`].
        media_root (`str` or `Mapping`, *optional*):
            Folder that relative paths start from, or folders by name.
        processor ([`ValleyProcessor`], *optional*):
            Of the model to be trained. Its video processor says which frames `full` decodes (by default one in two
            seconds), and `max_length` needs it.
        max_length (`int`, *optional*):
            Rows with more tokens are counted as too long; that makes none bad. Of a preference the longer
            answer counts.
        full (`bool`, *optional*, defaults to `False`):
            Decode what training decodes.
        num_proc (`int`, *optional*):
            Processes; by default one for each core.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no rows, or `max_length` comes without a processor.
    """
    if max_length is not None and processor is None:
        raise ValueError("Whether a row is longer than max_length, its tokenizer knows: give the model, too.")
    report = DataReport()
    settings = (processor, max_length, full)
    with tqdm(desc="Checking rows", unit=" rows", disable=None) as bar:
        for found in _in_processes(_good_records(files, media_root, report), settings, num_proc or available_cores()):
            for error, is_long, source in found:
                report.bad += [error] if error else []
                report.too_long[source] += is_long
                bar.update()
    if not report.rows:
        raise ValueError(f"There are no rows in {', '.join(map(str, files))}.")
    return report


def _good_records(files: Sequence, media_root: Media, report: DataReport) -> Iterator[dict]:
    """Rows that parse; all are counted, and the others are bad."""
    kinds: dict[str, bool] = {}  # of a source whether it holds preferences, which no file mixes with rows
    for name, source, row in iter_records(files, media_root, _row_or_preference):
        report.rows[source] += 1
        if isinstance(row, ValueError):
            report.bad.append(BadSampleError(name, source, None, str(row)))
            continue
        if kinds.setdefault(source, "rejected" in row) != ("rejected" in row):
            found, others = ("a preference", "rows") if "rejected" in row else ("a row", "preferences")
            report.bad.append(BadSampleError(name, source, None, f"it is {found} among {others}: use two files."))
            continue
        report.preferences[source] += "rejected" in row
        blocks = [block["type"] for message in row["messages"] for block in message["content"]]
        report.clips[source] += blocks.count("video")
        report.images[source] += blocks.count("image")
        report.by_path[source] += row.get("clips") is None and not {"video", "image"}.isdisjoint(blocks)
        yield row


def _row_or_preference(record: Any, folders: Media, position: int) -> dict[str, Any]:
    is_preference = isinstance(record, Mapping) and {"chosen", "rejected"} <= record.keys()
    return to_preference(record, folders) if is_preference else to_row(record, folders, position)


Found = list[tuple[BadSampleError | None, bool, str]]  # of each row: what is wrong, whether it is too long, its source


def _in_processes(rows: Iterable[dict], settings: tuple, num_proc: int) -> Iterator[Found]:
    """What is found of the rows, in their order. A row that kills its process is bad, too."""
    pool, pending = _pool(num_proc, settings), deque()
    rows = iter(rows)
    try:
        while chunk := list(itertools.islice(rows, CHUNK)):
            try:
                future = pool.submit(_check_rows, chunk)
            except BrokenProcessPool:
                pool = _pool(num_proc, settings)
                future = pool.submit(_check_rows, chunk)
            pending.append((chunk, future))
            if len(pending) > 4 * num_proc:
                yield _result(*pending.popleft(), settings)
        while pending:
            yield _result(*pending.popleft(), settings)
    finally:
        pool.shutdown(cancel_futures=True)


def _result(chunk: list[dict], future: Future, settings: tuple) -> Found:
    try:
        return future.result()
    except BrokenProcessPool:  # which of the rows in work did it, only trying each alone tells
        return [found for row in chunk for found in _check_alone(row, settings)]


def _check_alone(row: dict, settings: tuple) -> Found:
    with _pool(1, settings) as pool:
        try:
            return pool.submit(_check_rows, [row]).result()
        except BrokenProcessPool:
            reason = "the process that read it died: out of memory, or a decoder crashed."
            return [(BadSampleError(row["id"], row["source"], None, reason), False, row["source"])]


def _pool(num_proc: int, settings: tuple) -> ProcessPoolExecutor:
    method = "fork" if sys.platform == "linux" else "spawn"
    return ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), _start, settings)


# --- in a process ---


def _start(processor: ValleyProcessor | None, max_length: int | None, full: bool) -> None:
    global _processor, _max_length, _full
    _processor, _max_length, _full = processor, max_length, full
    torch.set_num_threads(1)  # and so decode: the other cores have a process each
    _fault_of_clip.cache_clear()


def _check_rows(rows: list[dict]) -> Found:
    found = []
    for row in rows:
        fault, is_long = _fault(row), False
        if fault is None and _max_length is not None:
            try:
                is_long = max(count_tokens(_conversations(row), _processor, _max_length)) > _max_length
            except (ValueError, TemplateError) as error:
                fault = (None, str(error))
        error = None if fault is None else BadSampleError(row["id"], row["source"], *fault)
        found.append((error, is_long, row["source"]))
    return found


def _conversations(row: dict) -> list[list[dict[str, Any]]]:
    """The messages that a row trains on: those of a preference end in one answer or the other."""
    if "rejected" not in row:
        return [row["messages"]]
    worse = {"role": "assistant", "content": [{"type": "text", "text": row["rejected"]}]}
    return [row["messages"], [*row["messages"][:-1], worse]]


def _fault(row: dict) -> tuple[str, str] | None:
    """The first clip or image of a row that cannot be read, and why."""
    if row.get("clips") is not None:  # packed: to read is to decode
        return _error_of(lambda packed: list(visuals_of(packed)), row)
    for visual in visuals_of(row):
        if visual.modality == "video":
            fault = _fault_of_clip(tuple(sorted(visual.source.items())))
        else:
            fault = _error_of(load_image, visual.source)
        if fault:
            return fault
    return None


@lru_cache(maxsize=10_000)  # several rows in a row are often about one clip
def _fault_of_clip(clip: tuple[tuple[str, Any], ...]) -> tuple[str, str] | None:
    if _full:
        processor = ValleyVideoProcessor() if _processor is None else _processor.video_processor
        return _error_of(processor.sample, dict(clip))
    return _error_of(_glance, dict(clip))


def _glance(clip: dict[str, Any]) -> None:
    """Reads the first frame of a clip's part, and the end of its file."""
    SamplingRule(**{name: clip.get(name) for name in CLIP_SETTINGS})  # whether its settings make sense
    part = {name: clip[name] for name in ("video", "start", "end") if name in clip}
    on_error = "raise" if _processor is None else _processor.video_processor.on_error
    sample_video(part, fps=1e-6, max_frames=1, on_error=on_error)


def _error_of(read: Callable, source: Any) -> tuple[str, str] | None:
    try:
        read(source)
    except VideoDecodeError as error:
        return error.path, error.reason
    except ValueError as error:  # a part that no clip has
        return source["video"], str(error)
    return None


__all__ = ["DataReport", "check_data"]
