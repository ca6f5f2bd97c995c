# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Data sets of `datasets`, on the Hub or in a folder, as records: their clips and images become paths.

In go a name and a split; out come records, and of each that is wanted, by [`with_paths`], one in which every value of
`Video` and `Image` is a path, wherever it stands.
What is stored inside of the data set itself is written to files beside the caches of `datasets`, once.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_dataset_builder, load_from_disk

from ..whole_files import write_whole
from .mixtures import Source


# Decoders look at the content; people look at the name. Where the magic bytes stand, what they are, and of what.
_MAGIC = (
    (4, b"ftyp", ".mp4"),
    (0, b"\x1aE\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"),
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (8, b"WEBP", ".webp"),
    (0, b"GIF8", ".gif"),
)


def open_data_set(source: Source, streaming: bool = False) -> Dataset | IterableDataset:
    """
    A split of a data set on the Hub, in a folder of files, or in one that `save_to_disk` wrote.

    Raises:
        ValueError: if a folder of `save_to_disk` has no such split.
        FileNotFoundError, ValueError, ConnectionError: as `datasets` says.
    """
    if not os.path.isdir(source.dataset):
        return load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision, streaming=streaming
        )
    folder = os.path.abspath(source.dataset)
    if not any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json")):
        return load_dataset(folder, source.config, split=source.split, streaming=streaming)
    saved = load_from_disk(folder)
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or source.split): saved}
    if source.split not in splits:
        raise ValueError(f"{source.dataset} has no split {source.split!r}, it has {', '.join(splits)}.")
    return splits[source.split]


def stamp_of(source: Source) -> list[tuple[str, int, int]]:
    """What changes when a data set does: its files, as `datasets` keeps them, with times and sizes."""
    files = [file["filename"] for file in open_data_set(source).cache_files]
    return [(file, os.stat(file).st_mtime_ns, os.path.getsize(file)) for file in files]


def version_of(source: Source) -> str:
    """What tells one version of a data set from another: its commit on the Hub, or the sha256 of a folder's stamp."""
    if os.path.isdir(source.dataset):
        return hashlib.sha256(json.dumps(stamp_of(source)).encode()).hexdigest()
    return load_dataset_builder(source.dataset, source.config, revision=source.revision).hash


def read_data_set(source: Source, streaming: bool = False) -> Iterator[dict[str, Any]]:
    """The records of a data set, in order, as it stores them: nothing is decoded."""
    rows = open_data_set(source, streaming)
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset()
    yield from rows.decode(False)  # else clips and images come as decoders and pictures


def home_of(source: Source) -> str:
    """Where relative paths in the texts of a data set start from: its folder, or its repository."""
    if os.path.isdir(source.dataset):
        return os.path.abspath(source.dataset)
    return f"hf://datasets/{source.dataset}" + (f"@{source.revision}" if source.revision else "")


def with_paths(value: Any) -> Any:
    """A record, or a value of one, in which files, as `Video` and `Image` store them and as bytes alone, are paths."""
    if isinstance(value, list):
        return [with_paths(item) for item in value]
    if isinstance(value, bytes):
        return _as_file(value, "")
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["path"] if value["bytes"] is None else _as_file(value["bytes"], value["path"] or "")
    if isinstance(value, dict):
        return {name: with_paths(item) for name, item in value.items()}
    return value


def _as_file(content: bytes, name: str) -> str:
    guess = (suffix for place, magic, suffix in _MAGIC if content.startswith(magic, place))
    suffix = Path(name).suffix or next(guess, "")
    name = hashlib.blake2b(content, digest_size=16).hexdigest() + suffix
    file = Path(datasets.config.HF_DATASETS_CACHE, "valley_media", name[:2], name)
    if not file.exists():
        write_whole(file, content)  # several processes may read one data set
    return str(file)


__all__ = ["home_of", "open_data_set", "read_data_set", "stamp_of", "version_of", "with_paths"]
