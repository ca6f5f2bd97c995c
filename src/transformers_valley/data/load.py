# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files and data sets of records to one data set of training rows. Clips stay paths until a batch is made of them."""

import dataclasses
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet
from datasets import Dataset, Features, IterableDataset, concatenate_datasets, interleave_datasets

from .decode import visuals_of
from .files import check_files, read_records
from .formats import to_row
from .frames import PACKED_FEATURES, is_packed, iter_packed, list_shards, open_packed, read_description
from .hub import home_of, open_data_set, read_data_set, stamp_of, with_paths
from .media import MissingMedia, as_folders, is_address
from .mixtures import Source, as_sources, is_mixture
from .rows import FEATURES, fill_features


logger = logging.getLogger(__name__)

SHARDS = 8  # of each source of a stream that is mixed: as many workers can read it side by side
Media = str | os.PathLike | Mapping[str, str | os.PathLike] | None
Convert = Callable[[Any, Any, int], dict[str, Any]]  # of a record, folders of its media, and its position


def load_rows(
    files: Sequence[str | os.PathLike | Source],
    media_root: Media = None,
    streaming: bool = False,
    on_missing: Literal["keep", "raise", "skip"] = "keep",
) -> Dataset | IterableDataset:
    """
    Read training rows.

    Args:
        files (`list`):
            Files of records: JSON (a list), JSONL (a record per line) and CSV, of any known format, see [`to_row`];
            mixtures of sources in YAML, see [`read_mixture`]; folders of packed rows, see [`pack`]; and [`Source`]s.
        media_root (`str` or `Mapping`, *optional*):
            Folder that relative paths of clips and images start from, or folders by name, see [`as_folders`].
        streaming (`bool`, *optional*, defaults to `False`):
            Read the sources again in every epoch, instead of once into a cache on disk. Files follow each other, and
            each is a shard: as many workers read side by side as there are files. The sources of a mixture are mixed
            in proportion to their rows, each in its order.
        on_missing (`str`, *optional*, defaults to `"keep"`):
            What is done with rows that show a clip or an image that is not there. `"keep"`: they stay, and are bad
            samples when they are reached. `"raise"`: an error that counts them. `"skip"`: they are left out, and a
            warning counts them. URLs are not looked at.

    Returns:
        `datasets.Dataset` with the columns `messages`, `images`, `id` (the record's, or "SOURCE:POSITION" counted from
        0) and `source` (the file's stem), cached on disk until a file changes. An `IterableDataset` of the same rows
        when streaming, whose `state_dict` tells where it is.

    Raises:
        FileNotFoundError: if files are missing; it names all.
        ValueError: if there are no rows, a record is none, or clips are missing; it names source, position and
            reason. When streaming, a bad record shows when it is reached.
        OSError: if the cache cannot be written.
    """
    if on_missing not in ("keep", "raise", "skip"):
        raise ValueError(f"on_missing must be one of keep, raise and skip, got {on_missing!r}.")
    sources = as_sources(files, media_root)
    check_files([source.path for source in sources if source.path is not None])
    sources = [_settle(source) for source in sources]
    if streaming:
        is_mixed = len(sources) > len(files) or any(isinstance(file, Source) or is_mixture(file) for file in files)
        is_whole = len(sources) == 1 and sources[0].dataset and sources[0].take == "all" and sources[0].weight == 1
        return _stream(sources, is_mixed and not is_whole, on_missing)
    parts, missing = [], MissingMedia()
    for source in sources:
        rows = _load(source)
        if on_missing != "keep":
            rows = _without_missing(rows, missing)
        parts.append(rows)
    if missing.rows:
        if on_missing == "raise":
            raise ValueError(f"{missing}. Is the media folder right? on_missing='skip' leaves these rows out.")
        logger.warning("%s. They are left out.", missing)
    rows = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    if not len(rows):
        raise ValueError(f"There are no rows in {', '.join(map(str, sources))}.")
    return rows


def _settle(source: Source) -> Source:
    """A source whose paths do not depend on the folder that one is in."""
    if source.path is not None:
        folders = {name: os.path.abspath(folder) for name, folder in as_folders(source.media).items()}
        return dataclasses.replace(source, path=os.path.abspath(source.path), media=folders)
    media = home_of(source) if source.media is None else source.media
    folders = {
        name: folder if is_address(folder) else os.path.abspath(folder) for name, folder in as_folders(media).items()
    }
    return dataclasses.replace(source, media=folders)


# --- one data set in a cache ---


def _load(source: Source) -> Dataset:
    if is_packed(source.dataset):
        return _choose(open_packed(source.dataset), source)
    everything = dataclasses.replace(source, take="all" if source.limit is None else source.take, weight=1)
    stamp = _stamp(source)
    try:
        rows = Dataset.from_generator(
            _iter_rows, features=FEATURES, gen_kwargs={"source": everything, "stamp": stamp, "code": _code()}
        )
    except Exception as error:
        # datasets wraps what the generator and the disk raise, and says nothing; the reader needs the cause.
        raise (error.__cause__ or error) from None
    return _choose(rows, source)


def _choose(rows: Dataset, source: Source) -> Dataset:
    if source.take == "all" and source.weight == 1:
        return rows
    return rows.select(np.concatenate(source.choose(len(rows))))


def _stamp(source: Source) -> Any:
    """What changes when the records do."""
    if source.path is None:
        return stamp_of(source)
    status = Path(source.path).stat()
    return status.st_mtime_ns, status.st_size


@functools.cache
def _code() -> str:
    """The code that makes rows of records: where it has changed, rows in a cache are those of another version."""
    folder = Path(__file__).parent
    return "".join(file.read_text() for file in sorted([*folder.glob("*.py"), *folder.glob("formats/*.py")]))


def _iter_rows(source: Source, stamp: Any, code: str) -> Iterator[dict[str, Any]]:
    is_empty = True
    for _, _, row in iter_source(source):
        if isinstance(row, ValueError):
            raise row
        is_empty = False
        yield fill_features(row)
    if is_empty:
        raise ValueError(f"There are no rows in {source}.")


def _without_missing(rows: Dataset, missing: MissingMedia) -> Dataset:
    kept = []
    for index, row in enumerate(rows):
        if paths := missing_paths(row):
            missing.add(row["source"], paths)
        else:
            kept.append(index)
    return rows.select(kept)


def missing_paths(row: dict[str, Any]) -> list[str]:
    """The clips and images of a row that are not there. Addresses are not looked at."""
    if row.get("clips") is not None:
        return []  # packed: all is in the row
    sources = (visual.source for visual in visuals_of(row))
    paths = (source["video"] if isinstance(source, dict) else source for source in sources)
    return [path for path in paths if not is_address(path) and not os.path.exists(path)]


# --- a stream ---


def _stream(sources: list[Source], is_mixture: bool, on_missing: str) -> IterableDataset:
    packed = any(is_packed(source.dataset) for source in sources)  # then all rows have its columns
    if is_mixture:
        plans = [_plan(source) for source in sources]
        parts = [
            _from_generator([(source, passes, *part) for part in _readers(source)], on_missing, packed)
            for source, (passes, _) in zip(sources, plans, strict=True)
        ]
        weights = np.array([expected for _, expected in plans], dtype=float)
        rows = interleave_datasets(
            parts,
            probabilities=(weights / weights.sum()).tolist(),
            seed=sources[0].seed,
            stopping_strategy="all_exhausted_without_replacement",
        )
    else:
        shards = [(source, [None], *part) for source in sources for part in _parts(source)]
        rows = _from_generator(shards, on_missing, packed)
    if next(iter(rows), None) is None:
        raise ValueError(f"There are no rows in {', '.join(map(str, sources))}.")
    return rows


def _from_generator(shards: list[tuple], on_missing: str, packed: bool) -> IterableDataset:
    return IterableDataset.from_generator(
        _stream_rows,
        features=PACKED_FEATURES if packed else FEATURES,
        gen_kwargs={"shards": shards, "on_missing": on_missing, "packed": packed},
    )


def _parts(source: Source) -> list[tuple[int, int]]:
    """The shards of a source: the files of packed rows, and all records of others."""
    count = len(list_shards(source.dataset)) if is_packed(source.dataset) else 1
    return [(shard, count) for shard in range(count)]


def _readers(source: Source) -> list[tuple[int, int]]:
    """The shards of a source that is mixed. Each reads all, unless it is packed, and takes its own rows: too much to
    fetch."""
    count = SHARDS if source.path is not None or os.path.isdir(source.dataset) else 1
    return [(shard, count) for shard in range(count)]


def _plan(source: Source) -> tuple[list[np.ndarray | None], float]:
    """The positions taken in each pass through a source, `None` for all that are read; and about how many in all."""
    if source.must_count:
        passes = source.choose(_count(source))
        return passes, sum(map(len, passes))
    return [None] * int(source.weight), source.weight * (source.limit or _estimate(source))


def _count(source: Source) -> int:
    if is_packed(source.dataset):
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in list_shards(source.dataset))
    return sum(1 for _ in _records_of(source))


def _estimate(source: Source, sample: int = 200) -> float:
    """Estimate the number of rows from the first of them and the size of the file."""
    if is_packed(source.dataset):
        return read_description(source.dataset)["rows"]
    if source.path is None:
        rows = open_data_set(source, streaming=True)
        if isinstance(rows, Dataset):
            return len(rows)
        split = (rows.info.splits or {}).get(source.split)
        return split.num_examples if split and split.num_examples else 10_000
    first = list(itertools.islice(read_records(source.path), sample))
    if len(first) < sample:
        return max(1, len(first))
    size = sum(len(json.dumps(record, ensure_ascii=False, default=str)) for record in first)
    return os.path.getsize(source.path) * sample / size


def _stream_rows(shards: list[tuple], on_missing: str, packed: bool) -> Iterator[dict[str, Any]]:
    for source, passes, shard, num_shards in shards:
        missing = MissingMedia()
        for positions in passes:
            for _, _, row in iter_source(source, positions, (shard, num_shards), streaming=True):
                if isinstance(row, ValueError):
                    raise row
                if on_missing != "keep" and (paths := missing_paths(row)):
                    if on_missing == "raise":
                        raise ValueError(
                            f"Row {row['id']!r} of {row['source']!r} shows {paths[0]}, which is not there."
                        )
                    missing.add(row["source"], paths)
                    continue
                yield _NOT_PACKED | fill_features(row) if packed else fill_features(row)
        if missing.rows:
            logger.warning("%s. They are left out.", missing)


_NOT_PACKED = {"clips": None, "pictures": None}


# --- records ---


def iter_records(
    files: Sequence[str | os.PathLike | Source], media_root: Media = None, convert: Convert = to_row
) -> Iterator[tuple[str, str, dict[str, Any] | ValueError]]:
    """`id`, `source` and row of every record of [`load_rows`]' sources, whatever is taken of them; in the place of a
    row that is none the error that says why. `convert` is [`to_row`], or takes and returns the same."""
    sources = as_sources(files, media_root)
    check_files([source.path for source in sources if source.path is not None])
    for source in sources:
        yield from iter_source(source, convert=convert)


def iter_source(
    source: Source,
    positions: np.ndarray | None = None,
    part: tuple[int, int] = (0, 1),
    streaming: bool = False,
    convert: Convert = to_row,
) -> Iterator[tuple[str, str, dict[str, Any] | ValueError]]:
    """
    `id`, name of the source and row of its records; in the place of a row that is none the error that says why.

    Args:
        source ([`Source`]):
            Of which all that it may begin with are read, whatever it takes.
        positions (`np.ndarray`, *optional*):
            Of the records that are wanted.
        part (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            Number of this reader, and of all that share the records.
        streaming (`bool`, *optional*, defaults to `False`):
            Read a data set from where it is.
        convert (`Callable`, *optional*, defaults to [`to_row`]):
            Makes a row of a record.
    """
    shard, num_shards = part
    if is_packed(source.dataset):
        if positions is None and source.limit is not None:
            positions = range(min(source.limit, read_description(source.dataset)["rows"]))
        for row in iter_packed(source.dataset, shard, num_shards, positions):
            yield row["id"], row["source"], row
        return
    folders = as_folders(home_of(source) if source.media is None and source.path is None else source.media)
    for position, record in enumerate(itertools.islice(_records_of(source, streaming), source.limit)):
        is_wanted = position % num_shards == shard and (positions is None or _is_in(position, positions))
        if not is_wanted and not isinstance(record, ValueError):
            continue
        name = f"{source.name}:{position}"
        if isinstance(record, dict) and record.get("id") is not None:
            name = str(record["id"]).encode(errors="backslashreplace").decode()
        if not isinstance(record, ValueError):
            try:
                record = with_paths(record) if source.path is None else record
                record = convert(record, folders, position) | {"id": name, "source": source.name}
            except ValueError as error:
                record = ValueError(f"{source}, record {position}: {error}")
        yield name, source.name, record


def _is_in(position: int, positions: np.ndarray) -> bool:
    """Whether it is one of some ascending positions."""
    place = np.searchsorted(positions, position)
    return place < len(positions) and positions[place] == position


def load_converted(
    files: Sequence[str | os.PathLike], media_root: Media, features: Features, convert: Callable[[Any, Any], dict]
) -> Dataset:
    """
    Read files of records that are not training rows, such as preferences: `convert(record, folders)` makes a row of
    each, without the columns `id` and `source`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no records, or `convert` refuses one; it names file, position and reason.
    """
    check_files(files)
    stamps = [(os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]  # another cache when one changes
    arguments = {"files": [os.path.abspath(file) for file in files], "folders": as_folders(media_root)}
    arguments |= {"convert": convert, "stamps": stamps}
    try:
        return Dataset.from_generator(_iter_converted, features, gen_kwargs=arguments)
    except Exception as error:
        raise (error.__cause__ or error) from None


def _iter_converted(
    files: list[str], folders: dict[str, str], convert: Callable[[Any, Any], dict], stamps: list
) -> Iterator[dict[str, Any]]:
    count = 0
    for file in files:
        source = os.path.splitext(os.path.basename(file))[0]
        for position, record in enumerate(read_records(file)):
            if isinstance(record, ValueError):
                raise record
            try:
                row = convert(record, folders)
            except ValueError as error:
                raise ValueError(f"{file}, record {position}: {error}") from error
            yield row | {"id": str(record.get("id", f"{source}:{position}")), "source": source}
            count += 1
    if not count:
        raise ValueError(f"There are no rows in {files}.")


def _records_of(source: Source, streaming: bool = False) -> Iterator[Any]:
    return read_data_set(source, streaming) if source.path is None else read_records(source.path)


__all__ = ["FEATURES", "Media", "iter_records", "iter_source", "load_converted", "load_rows", "missing_paths"]
