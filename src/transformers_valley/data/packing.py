# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows to packed rows: each clip is decoded once, by all cores or many machines, and never for training again.

In go rows of [`load_rows`]; out come the Parquet files of `frames.py`. Each appears whole or not at all, and its bytes
depend on the rows and the settings alone, so that a run that was killed resumes where it was, and parts of it may be
run anywhere.
"""

import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from ..video_decoding import SampledVideo, available_cores
from ..video_processing_valley import ValleyVideoProcessor
from ..video_sources import VideoDecodeError, load_image
from ..whole_files import claim_folder, whole_file, write_whole
from .decode import BadSampleError, visuals_of
from .frames import DESCRIPTION, PACKED_FEATURES, PackSettings, name_shard, read_description
from .rows import CLIP_SETTINGS, fill_features


ROWS_PER_SHARD = 1000
_ROWS_AT_ONCE = 32  # of a row group: what is held in memory
_CLIPS_KEPT = 16  # rows about one clip often follow each other


def pack(
    rows: Dataset,
    folder: str | os.PathLike,
    settings: PackSettings,
    num_shards: int | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    skip_bad: bool = False,
) -> tuple[int, list[dict[str, Any]]]:
    """
    Pack rows into a folder. Shards that are there already are left as they are.

    Args:
        rows (`datasets.Dataset`):
            Of [`load_rows`].
        folder (`str`):
            Made if need be. One that holds the beginning of the same pack is completed.
        settings ([`PackSettings`]):
            How clips and images are stored.
        num_shards (`int`, *optional*):
            Files; by default one for a thousand rows.
        part (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            Number of this run, from 0, and of all runs that share the work: it makes every n-th shard.
        workers (`int`, *optional*):
            Processes; by default one for each core.
        skip_bad (`bool`, *optional*, defaults to `False`):
            Leave rows out whose clips or images cannot be read, instead of ending at the first.

    Returns:
        `tuple`: how many shards were made, and the rows that were left out of the shards of this part, each with `id`,
        `source`, `file` and `reason`.

    Raises:
        ValueError: if the folder holds another pack or other files, or a part makes no sense.
        BadSampleError: if a row cannot be read.
        DiskFullError: if the disk is full; what is whole stays.
        RuntimeError: if a worker was killed.
    """
    index, parts = part
    if not 0 <= index < parts:
        raise ValueError(f"The part is {index} of {parts}, expected a number from 0 below {parts}.")
    if num_shards is None:
        num_shards = max(1, -(-len(rows) // ROWS_PER_SHARD))
    if not 1 <= num_shards <= max(1, len(rows)):
        raise ValueError(f"num_shards is {num_shards}, expected 1 to {len(rows)}, the number of rows.")
    folder = Path(folder)
    _begin(folder, rows, settings, num_shards)
    own = [shard for shard in range(num_shards) if shard % parts == index]
    missing = [shard for shard in own if not (folder / name_shard(shard, num_shards)).exists()]
    work = functools.partial(pack_shard, rows, folder, settings, num_shards, skip_bad=skip_bad)
    with tqdm(total=len(own), initial=len(own) - len(missing), desc="Packing", unit=" shards", disable=None) as bar:
        for _ in _run(work, missing, workers or available_cores()):
            bar.update()
    return len(missing), [entry for shard in own for entry in _read_bad(folder, shard, num_shards)]


def pack_shard(
    rows: Dataset, folder: str | os.PathLike, settings: PackSettings, num_shards: int, shard: int, skip_bad: bool
) -> None:
    """
    Pack one of the shards, whatever becomes of the others: what an executor of a cluster calls, see [`pack`].

    Raises:
        BadSampleError: if a row cannot be read, unless `skip_bad`.
        DiskFullError: if the disk is full.
    """
    torch.set_num_threads(1)  # and so decode: the other cores have a process each
    path = Path(folder, name_shard(shard, num_shards))
    rows, bad = rows.shard(num_shards, shard, contiguous=True), []
    schema = PACKED_FEATURES.arrow_schema
    with whole_file(path) as part:
        with pyarrow.parquet.ParquetWriter(part, schema, use_dictionary=False) as file:
            for batch in _batches(_pack_rows(rows, settings, bad if skip_bad else None)):
                file.write_table(pyarrow.Table.from_pylist(batch, schema))
        # The list comes first: a shard that is there is whole, and so is what is known of it.
        if bad:
            write_whole(_bad_file(path), "".join(json.dumps(entry) + "\n" for entry in bad).encode())


def _begin(folder: Path, rows: Dataset, settings: PackSettings, num_shards: int) -> None:
    """Say what the folder is to hold, or see that it is the same."""
    wanted = {
        "settings": dataclasses.asdict(settings),
        "num_shards": num_shards,
        "rows": len(rows),
        "sources": sorted(set(rows.unique("source"))),
        "content": _hash(rows),
    }
    names = os.listdir(folder) if folder.exists() else []  # one look: another part may begin at this moment
    if DESCRIPTION in names:
        read_description(folder)  # which says what is wrong with it
    elif any(not name.startswith(".") for name in names):
        raise ValueError(f"{folder} holds other files and no {DESCRIPTION}: choose a new or empty folder.")
    claim_folder(folder / DESCRIPTION, wanted)


def _hash(rows: Dataset) -> str:
    """What tells rows from others: their messages and images, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in rows.select_columns(["messages", "images", "id"]).with_format("arrow").iter(batch_size=1000):
        digest.update(json.dumps(batch.to_pylist(), sort_keys=True).encode())
    return digest.hexdigest()


def _run(work: functools.partial, shards: Sequence[int], workers: int) -> Iterator[None]:
    if workers == 1 or len(shards) < 2:
        for shard in shards:
            yield work(shard)
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(min(workers, len(shards)), multiprocessing.get_context(method)) as pool:
        pending = [pool.submit(work, shard) for shard in shards]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process that packs was killed, most often for lack of memory: run the same command again with "
                "fewer workers: it resumes. `valley data check` finds a clip that kills its reader."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pack_rows(rows: Dataset, settings: PackSettings, bad: list | None) -> Iterator[dict[str, Any]]:
    reader = _Reader(settings)
    for row in rows:
        try:
            yield reader.pack(row)
        except BadSampleError as error:
            if bad is None:
                raise
            bad.append({name: getattr(error, name) for name in ("id", "source", "file", "reason")})


class _Reader:
    """Rows with what they show, in the size and format of some settings."""

    def __init__(self, settings: PackSettings):
        self.settings = settings
        self.video_processor = ValleyVideoProcessor(size={"shortest_edge": settings.size})
        for name in ("fps", "num_frames", "max_frames"):  # None is a setting, too
            setattr(self.video_processor, name, getattr(settings, name))
        self.kept: dict[tuple, dict[str, Any]] = {}

    def pack(self, row: dict[str, Any]) -> dict[str, Any]:
        clips, pictures = [], []
        try:
            for visual in visuals_of(row):
                if visual.modality == "video":
                    clips.append(self._pack_clip(visual.source))
                else:
                    pictures.append(self._encode(self._resize(load_image(visual.source))))
        except VideoDecodeError as error:
            raise BadSampleError(row["id"], row["source"], error.path, error.reason) from error
        except ValueError as error:
            raise BadSampleError(row["id"], row["source"], None, str(error)) from error
        counts = iter([len(clip["frames"]) for clip in clips])

        def block_of(block: dict[str, Any]) -> dict[str, Any]:
            if block["type"] != "video":
                return block
            # Its own settings have been followed; the number of frames is what is left to be counted.
            settings = dict.fromkeys(CLIP_SETTINGS) | {name: block.get(name) for name in ("start", "end")}
            return block | settings | {"num_frames": next(counts)}

        messages = [{**turn, "content": [block_of(block) for block in turn["content"]]} for turn in row["messages"]]
        return fill_features({**row, "messages": messages}) | {"clips": clips, "pictures": pictures}

    def _pack_clip(self, source: dict[str, Any]) -> dict[str, Any]:
        key = tuple(sorted(source.items()))
        if key not in self.kept:
            sampled: SampledVideo = self.video_processor.sample(source)
            pictures = map(Image.fromarray, sampled.frames.permute(0, 2, 3, 1).numpy())
            while len(self.kept) >= _CLIPS_KEPT:
                self.kept.pop(next(iter(self.kept)))
            self.kept[key] = {"frames": [self._encode(picture) for picture in pictures], "times": sampled.timestamps}
        return self.kept[key]

    def _resize(self, picture: Image.Image) -> Image.Image:
        scale = self.settings.size / min(picture.size)
        return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)

    def _encode(self, picture: Image.Image) -> bytes:
        data = io.BytesIO()
        picture.save(data, self.settings.format, quality=self.settings.quality)
        return data.getvalue()


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _bad_file(path: Path) -> Path:
    return path.with_suffix(".bad.jsonl")


def _read_bad(folder: Path, shard: int, num_shards: int) -> list[dict[str, Any]]:
    file = _bad_file(folder / name_shard(shard, num_shards))
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


__all__ = ["pack", "pack_shard"]
