# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Data sets of `datasets`, on the Hub or in a folder, as records: their clips and images become paths.

In go a name and a split; out come records whose columns of `Video` and `Image` hold paths. What is stored inside of
the data set itself is written to files beside the caches of `datasets`, once.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Image, IterableDataset, List, Video, load_dataset

from ..whole_files import write_whole
from .mixtures import Source


_SUFFIXES = {"Video": ".mp4", "Image": ".png"}  # decoders look at the content; people look at the name


def open_data_set(source: Source, streaming: bool = False) -> Dataset | IterableDataset:
    """
    A split of a data set, with its clips and images undecoded.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as `datasets` says.
    """
    name = os.path.abspath(source.dataset) if os.path.isdir(source.dataset) else source.dataset
    rows = load_dataset(name, source.config, split=source.split, revision=source.revision, streaming=streaming)
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Video | Image):
            rows = rows.cast_column(column, type(feature)(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Video | Image):
            rows = rows.cast_column(column, List(type(feature.feature)(decode=False)))
    return rows


def read_data_set(source: Source, streaming: bool = False) -> Iterator[dict[str, Any]]:
    """The records of a data set, in order."""
    rows = open_data_set(source, streaming)
    kinds = {}
    for column, feature in (rows.features or {}).items():
        kind = feature.feature if isinstance(feature, List) else feature
        if isinstance(kind, Video | Image):
            kinds[column] = _SUFFIXES[type(kind).__name__]
    for row in rows:
        yield row | {column: _as_paths(row[column], suffix) for column, suffix in kinds.items()}


def home_of(source: Source) -> str:
    """Where relative paths in the texts of a data set start from: its folder, or its repository."""
    if os.path.isdir(source.dataset):
        return os.path.abspath(source.dataset)
    return f"hf://datasets/{source.dataset}" + (f"@{source.revision}" if source.revision else "")


def _as_paths(value: Any, suffix: str) -> Any:
    if isinstance(value, list):
        return [_as_paths(item, suffix) for item in value]
    if not isinstance(value, dict) or value.get("bytes") is None:
        return value["path"] if isinstance(value, dict) else value
    content = value["bytes"]
    name = hashlib.blake2b(content, digest_size=16).hexdigest() + (Path(value.get("path") or "").suffix or suffix)
    file = Path(datasets.config.HF_DATASETS_CACHE, "valley_media", name[:2], name)
    if not file.exists():
        write_whole(file, content)  # several processes may read one data set
    return str(file)


__all__ = ["home_of", "open_data_set", "read_data_set"]
