# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""JSON and JSONL files to one data set of training rows. Clips stay paths until a batch is made of them."""

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from . import messages
from .messages import to_row


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
                        "start": Value("float64"),
                        "end": Value("float64"),
                    }
                ),
            }
        ),
        # TRL takes its collator for visual data where a row has this column, even an empty one.
        "images": List(Value("string")),
        # Who a row is, for messages: the record's own id or "FILE STEM:POSITION", and the stem of its file.
        "id": Value("string"),
        "source": Value("string"),
    }
)
_KEYS = tuple(FEATURES["messages"].feature["content"].feature)


def load_rows(
    files: Sequence[str | os.PathLike], media_root: str | os.PathLike | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """
    Read training rows.

    Args:
        files (`list[str]`):
            JSON files (a list of records) and JSONL files (a record per line), see [`to_row`].
        media_root (`str`, *optional*):
            Folder that relative paths of clips and images start from.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the files anew in every epoch, in their order, instead of once into a cache on disk. Every file is a
            shard: as many workers read side by side as there are files.

    Returns:
        `datasets.Dataset` with the columns `messages`, `images`, `id` (the record's, or "FILE STEM:POSITION" counted
        from 0) and `source` (the file's stem), cached on disk until a file changes. An `IterableDataset` of the same
        rows when streaming.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no rows, or a record is none; it names file, position and reason. When streaming, a
            bad record shows when it is reached.
    """
    if isinstance(files, str | os.PathLike) or not files:
        raise ValueError(f"`files` must be a non-empty list of JSON or JSONL files, got {files!r}.")
    stamps = []
    for file in files:
        status = Path(file).stat()
        stamps.append((os.path.abspath(file), status.st_mtime_ns, status.st_size))
    root = None if media_root is None else os.path.abspath(media_root)
    if streaming:
        shards = [file for file, _, _ in stamps]
        rows = IterableDataset.from_generator(
            _iter_rows, features=FEATURES, gen_kwargs={"files": shards, "root": root}
        )
        if next(iter(rows), None) is None:
            raise ValueError(f"There are no rows in {shards}.")
        return rows
    code = inspect.getsource(messages)
    try:
        return Dataset.from_generator(
            _iter_all_rows, features=FEATURES, gen_kwargs={"stamps": [tuple(stamps)], "root": root, "code": code}
        )
    except Exception as error:
        # datasets wraps what the generator raises; the reader needs the cause.
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None


def _iter_all_rows(stamps: list[tuple], root: str | None, code: str) -> Iterator[dict[str, Any]]:
    """Rows of all files. Their size and time, and the code, are arguments so that the cache sees a change."""
    files = [file for file, _, _ in stamps[0]]
    empty = True
    for row in _iter_rows(files, root):
        yield row
        empty = False
    if empty:
        raise ValueError(f"There are no rows in {files}.")


def _iter_rows(files: list[str], root: str | None) -> Iterator[dict[str, Any]]:
    for _, _, row in iter_records(files, root):
        if isinstance(row, ValueError):
            raise row
        for message in row["messages"]:
            message["content"] = [{key: block.get(key) for key in _KEYS} for block in message["content"]]
        yield row


def iter_records(
    files: Sequence[str | os.PathLike], root: str | os.PathLike | None
) -> Iterator[tuple[str, str, dict[str, Any] | ValueError]]:
    """`id`, `source` and row of every record; in the place of a row that is none the error that says why."""
    for file in map(Path, files):
        for position, record in enumerate(_read_records(file)):
            name = f"{file.stem}:{position}"
            if isinstance(record, dict) and record.get("id") is not None:
                name = str(record["id"])
            if not isinstance(record, ValueError):
                try:
                    record = to_row(record, root) | {"id": name, "source": file.stem}
                except ValueError as error:
                    record = ValueError(f"{file}, record {position}: {error}")
            yield name, file.stem, record


def _read_records(file: Path) -> Iterator[Any]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            start = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            if start.lstrip().startswith("["):
                try:
                    yield from json.load(lines)
                except json.JSONDecodeError as error:
                    yield ValueError(f"{file} is not JSON: {error}")
                return
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    record = ValueError(f"{file}, line {number} is not JSON: {error}")
                yield record
    except UnicodeDecodeError as error:
        yield ValueError(f"{file} is not UTF-8: {error}")


__all__ = ["FEATURES", "iter_records", "load_rows"]
