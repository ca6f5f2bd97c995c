# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The files of an evaluation: JSONL that survives a kill, and JSON.

A record is on the disk when it has been written; a line that a kill tore is dropped and done again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..whole_files import write_whole


class RecordWriter:
    """
    Adds records to a JSONL file that no other process writes to.

    Args:
        path (path):
            The file; a torn last line is removed.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = open(path, "ab+")
        self._file.seek(0)
        whole = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole[0]) + len(whole[1]))

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records, which are on the disk when this returns."""
        self._file.write(_encode(_lines(records)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.close()


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    The whole records of a JSONL file, none if it is missing.

    Raises:
        ValueError: if a line before the last one is damaged.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn, or nothing
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:  # a disk may keep the length of a file and lose its end
                break
            raise ValueError(
                f"{path}, line {number} is damaged ({error}). Delete this line and run the same command again: what "
                "it held is done again."
            ) from None
    return records


def write_text(path: str | os.PathLike, text: str) -> None:
    """A text file that appears whole or not at all."""
    write_whole(path, _encode(text))


def write_records(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file that appears whole or not at all."""
    write_text(path, _lines(records))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """A JSON file, indented, that appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """
    The content of a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not valid JSON, for example truncated; it names the file and the place.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        size = Path(path).stat().st_size
        reason = "it is empty" if size == 0 else str(error)
        raise ValueError(
            f"{path} is not valid JSON ({reason}; {size} bytes). Is it truncated? Download it again."
        ) from None


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _encode(text: str) -> bytes:
    """UTF-8. JSON can hold half of a surrogate pair, which a byte-level decoder may write; UTF-8 cannot."""
    return text.encode(errors="backslashreplace")


__all__ = ["RecordWriter", "read_json", "read_records", "write_json", "write_records", "write_text"]
