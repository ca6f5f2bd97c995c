# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files of records: JSON lists, JSONL and CSV, read one record at a time, however large they are.

In goes a path; out come records, and in the place of one that cannot be read a `ValueError` that says why.
"""

import csv
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from .rows import CLIP_SETTINGS


CHUNK = 2**20  # characters that a list is read by

# What a file is that begins so, and what to do with it. A name says little: downloads keep theirs whatever came.
_OTHERS = (
    (b"version https://git-lfs", "the pointer of a file that Git LFS keeps: fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "compressed with gzip: unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it with `unzstd`"),
    (b"BZh", "compressed with bzip2: unpack it with `bunzip2`"),
    (b"\xfd7zXZ", "compressed with xz: unpack it with `unxz`"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"PAR1", "Parquet: name its folder as a data set"),
    (b"ARROW1", "Arrow: name its folder as a data set"),
    (b"\xff\xfe", "UTF-16, expected UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16, expected UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"<", "HTML or XML, perhaps the page of a failed download"),
)


def check_file(file: str | os.PathLike) -> None:
    """
    Refuse what cannot be opened as a file.

    Raises:
        FileNotFoundError: if there is none; it says from which folder its path begins.
        PermissionError: as the system says.
        ValueError: if it is a folder, or no regular file.
    """
    if os.path.isdir(file):
        raise ValueError(f"{file} is a folder, expected a file of records: name the files in it, or it as a data set.")
    if not os.path.exists(file):
        where = "" if os.path.isabs(file) else f" The path begins in {os.getcwd()}."
        raise FileNotFoundError(f"There is no file {file}.{where}")
    with open(file, "rb"):
        pass
    if not os.path.isfile(file):
        raise ValueError(f"{file} is not a regular file, and records are read several times.")


def check_files(files: Sequence[str | os.PathLike]) -> None:
    """
    Refuse files of which one cannot be opened, as [`check_file`] does; if several are missing, all are named.

    Raises:
        FileNotFoundError, PermissionError, ValueError: as [`check_file`] says.
    """
    missing = [os.fspath(file) for file in dict.fromkeys(files) if not os.path.exists(file)]
    if len(missing) > 1:
        where = "" if all(map(os.path.isabs, missing)) else f" Relative paths begin in {os.getcwd()}."
        raise FileNotFoundError(f"{len(missing)} files are missing: {', '.join(missing)}.{where}")
    for file in files:
        check_file(file)


def read_records(file: str | os.PathLike) -> Iterator[Any]:
    """
    The records of a file, in order.

    A `.csv` or `.tsv` is a table with a header. All others are JSON: a list of records, or a record in each line.

    Yields:
        Records, and a `ValueError` for each that is not one. What follows it is still read where it is clear where the
        next one begins: in lines, and not in a list.
    """
    file = Path(file)
    try:
        with file.open("rb") as raw:
            begin = raw.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        for magic, what in _OTHERS:
            if begin.startswith(magic):
                yield ValueError(f"{file} is {what}.")
                return
        if file.suffix.lower() in (".csv", ".tsv"):
            yield from _read_table(file)
            return
        with file.open(encoding="utf-8-sig") as text:
            yield from _read_list(file, text) if begin.startswith(b"[") else _read_lines(file, text)
    except UnicodeDecodeError as error:
        yield ValueError(f"{file} is not UTF-8: {error}")


def _read_lines(file: Path, text: TextIO) -> Iterator[Any]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record = ValueError(f"{file}, line {number} is not JSON: {_reason(error)}")
            if number == 1 and line.strip() == "{":
                yield ValueError(f"{file} holds one object over several lines: make it a list, or a line per record.")
                return
            if number == 1 and re.match(r"[\w\"]+\s*[,;\t]", line):
                yield ValueError(f"{file} looks like CSV, expected JSON: name it with the suffix .csv.")
                return
        yield record


def _read_list(file: Path, text: TextIO) -> Iterator[Any]:
    """The items of a JSON list, of which no more than a chunk and a record are held at a time."""
    scan = json.JSONDecoder().raw_decode
    buffer, number = text.read(CHUNK), 0
    while not re.match(r"\s*\[\s*\S", buffer) and (more := text.read(CHUNK)):
        buffer += more
    position = _skip_space(buffer, buffer.index("[") + 1)
    is_open = not buffer.startswith("]", position)
    position += not is_open
    while is_open:
        try:
            record, end = scan(buffer, _skip_space(buffer, position))
            end = _skip_space(buffer, end)
            if not buffer.startswith((",", "]"), end):
                raise json.JSONDecodeError("Expecting ',' delimiter", buffer, end)
        except (ValueError, RecursionError) as error:
            # As much again each time: a long record is not scanned once for every chunk of it.
            if _is_cut(error, buffer) and (more := text.read(max(CHUNK, len(buffer)))):
                buffer, position = buffer[position:] + more, 0
                continue
            yield ValueError(f"{file} is not JSON: record {number}: {_reason(error)}")
            return
        yield record
        is_open, position, number = buffer[end] == ",", end + 1, number + 1
    if any(rest.strip() for rest in itertools.chain([buffer[position:]], iter(lambda: text.read(CHUNK), ""))):
        yield ValueError(f"{file} continues after the end of its list, expected one list or a record in each line.")


def _is_cut(error: Exception, buffer: str) -> bool:
    """Whether the text is wrong only because it ends too early: the longest words, NaN and escapes, are short."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos >= len(buffer) - 16 or error.msg.startswith("Unterminated string")


def _skip_space(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in " \t\r\n":
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string"):
            return "it ends too early"
        return f"{error.msg} at {error.doc[error.pos : error.pos + 20]!r}"
    return f"a whole number in it has more than {sys.get_int_max_str_digits()} digits"


def _read_table(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        header = text.readline()
        text.seek(0)
        delimiter = max(",;\t", key=header.count)
        table = csv.DictReader(text, delimiter=delimiter, restkey=_MORE, restval=_MORE)
        while True:
            try:
                record = next(table, None)
            except csv.Error as error:
                yield ValueError(f"{file}, line {table.line_num + 1} is not CSV: {error}")
                return
            if record is None:
                return
            if _MORE in record or _MORE in record.values():
                yield ValueError(f"{file}, line {table.line_num} has not as many cells as the header has names.")
                continue
            yield {name: _cell(name, value) for name, value in record.items()}


_MORE = object()


def _cell(name: str, value: str) -> Any:
    """What a cell of CSV, which knows no types, stands for."""
    try:
        if name in CLIP_SETTINGS:
            return float(value) if value else None
        if name == "choices" and value.startswith(("[", "{")):
            return json.loads(value)
    except ValueError:
        pass  # the format says what it expects
    return value


__all__ = ["check_file", "check_files", "read_records"]
