# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""JSON and JSONL files to one `datasets.Dataset` of training rows. Clips stay paths until a batch is made of them."""

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

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
    }
)
_KEYS = tuple(FEATURES["messages"].feature["content"].feature)


def load_rows(files: Sequence[str | os.PathLike], media_root: str | os.PathLike | None = None) -> Dataset:
    """
    Read training rows.

    Args:
        files (`list[str]`):
            JSON files (a list of records) and JSONL files (a record per line), see [`to_row`].
        media_root (`str`, *optional*):
            Folder that relative paths of clips and images start from.

    Returns:
        `datasets.Dataset` with the columns `messages` and `images`, cached on disk until a file changes.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no rows, or a record is none; it names file, position and reason.
    """
    if isinstance(files, str | os.PathLike) or not files:
        raise ValueError(f"`files` must be a non-empty list of JSON or JSONL files, got {files!r}.")
    stamps = []
    for file in files:
        status = Path(file).stat()
        stamps.append((os.path.abspath(file), status.st_mtime_ns, status.st_size))
    root = None if media_root is None else os.path.abspath(media_root)
    code = inspect.getsource(messages)
    try:
        return Dataset.from_generator(
            _iter_rows, features=FEATURES, gen_kwargs={"stamps": [tuple(stamps)], "root": root, "code": code}
        )
    except Exception as error:
        # datasets wraps what the generator raises; the reader needs the cause.
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None


def _iter_rows(stamps: list[tuple], root: str | None, code: str) -> Iterator[dict[str, Any]]:
    """Rows of all files. Their size and time, and the code, are arguments so that the cache sees a change."""
    empty = True
    for file, _, _ in stamps[0]:
        for position, record in enumerate(_iter_records(Path(file))):
            try:
                row = to_row(record, root)
            except ValueError as error:
                raise ValueError(f"{file}, record {position}: {error}") from error
            for message in row["messages"]:
                message["content"] = [{key: block.get(key) for key in _KEYS} for block in message["content"]]
            yield row
            empty = False
    if empty:
        raise ValueError(f"There are no rows in {[file for file, _, _ in stamps[0]]}.")


def _iter_records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        start = next((line for line in lines if line.strip()), "")
        lines.seek(0)
        if start.lstrip().startswith("["):
            try:
                yield from json.load(lines)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} is not JSON: {error}") from error
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from error


__all__ = ["FEATURES", "load_rows"]
