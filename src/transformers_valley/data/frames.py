# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Packed rows: what a row shows is stored beside its messages, as pictures that are decoded in a moment.

    FOLDER/pack.json                       how the clips were sampled, and of which files
    FOLDER/train-00000-of-00008.parquet    rows: `messages`, `images`, `id`, `source`, `clips`, `pictures`

In goes a row of such a folder; out come the frames of its clips, and its images. `packing.py` writes them.
"""

import dataclasses
import io
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image

from ..video_decoding import SampledVideo, SamplingRule
from ..video_processing_valley import ValleyVideoProcessor
from ..video_sources import VideoDecodeError, check_picture_size, pillow_errors
from ..whole_files import read_json
from .rows import FEATURES


DESCRIPTION = "pack.json"
_RULE = ("fps", "num_frames", "max_frames")
_ROWS_AT_ONCE = 16
_MOST_SHARDS = 10**6  # each is looked for, and a description may come from anybody
PACKED_FEATURES = Features(
    {
        **FEATURES,
        # Of each clip the frames that were sampled, and the second of each in the whole file, where a file tells any.
        "clips": List({"frames": List(Value("binary")), "times": List(Value("float64"))}),
        # Of each of `images` its picture.
        "pictures": List(Value("binary")),
    }
)


@dataclass(frozen=True)
class PackSettings:
    """
    How clips and images are packed.

    Args:
        fps, num_frames, max_frames (*optional*):
            Which frames of a clip are taken, see [`sample_video`]; settings of a clip's own win.
        size (`int`, *optional*, defaults to 224):
            Pixels of the short side, which is what the model's processors make of it.
        format (`str`, *optional*, defaults to `"jpeg"`):
            `"jpeg"` or `"webp"`.
        quality (`int`, *optional*, defaults to 90):
            From 1 to 100.

    Raises:
        ValueError: if a value makes no sense.
    """

    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    size: int = 224
    format: Literal["jpeg", "webp"] = "jpeg"
    quality: int = 90

    def __post_init__(self):
        SamplingRule(self.fps, self.num_frames, self.max_frames)
        if self.format not in ("jpeg", "webp"):
            raise ValueError(f"The format of packed frames is {self.format!r}, expected jpeg or webp.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"The quality of packed frames is {self.quality}, expected 1 to 100.")
        if self.size < 1:
            raise ValueError(f"The size of packed frames is {self.size}, expected pixels of the short side.")

    @classmethod
    def of(cls, video_processor: ValleyVideoProcessor, **others: Any) -> "PackSettings":
        """
        Those with which a model sees clips.

        Args:
            video_processor ([`ValleyVideoProcessor`]):
                Of the model.
            **others:
                `format` and `quality`, and in place of the processor's `fps`, `num_frames` and `max_frames`.

        Raises:
            ValueError: if it does not resize clips by their short side, so that packed frames would not be its own.
        """
        size = video_processor.size and video_processor.size.shortest_edge
        if not size or not video_processor.do_resize:
            raise ValueError(
                f"Clips are packed by their short side, and this processor has size={video_processor.size} and "
                f"do_resize={video_processor.do_resize}: it cannot be packed for."
            )
        rule = SamplingRule(video_processor.fps, video_processor.num_frames, video_processor.max_frames)
        rule = rule.override(**{name: others.pop(name, None) for name in _RULE})
        return cls(**{name: getattr(rule, name) for name in _RULE}, size=size, **others)


def is_packed(place: str | os.PathLike | None) -> bool:
    """Whether this is a folder of packed rows."""
    return place is not None and os.path.isfile(os.path.join(place, DESCRIPTION))


def read_description(folder: str | os.PathLike) -> dict[str, Any]:
    """
    What `pack.json` says: `settings`, `num_shards`, `rows` and `sources`.

    Raises:
        ValueError: if it cannot be read, or does not describe packed rows.
    """
    about = read_json(file := Path(folder, DESCRIPTION))
    names = [field.name for field in dataclasses.fields(PackSettings)]
    shards, rows, settings = (about.get(name) for name in ("num_shards", "rows", "settings"))
    are_counts = type(shards) is type(rows) is int and 1 <= shards <= _MOST_SHARDS and rows >= 0
    if not are_counts or not isinstance(settings, dict) or not settings.keys() >= set(names):
        raise ValueError(
            f"{file} does not describe packed rows: expected the numbers `num_shards` and `rows`, and `settings` with "
            f"{', '.join(names)}, as `valley data pack` writes them."
        )
    return about


def list_shards(folder: str | os.PathLike) -> list[str]:
    """
    The files of packed rows, in order.

    Raises:
        ValueError: if some are not there; it says how many, and what makes them.
    """
    count = read_description(folder)["num_shards"]
    files = [os.path.join(folder, name_shard(shard, count)) for shard in range(count)]
    if missing := [os.path.basename(file) for file in files if not os.path.isfile(file)]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {count} shards, the first is {missing[0]}: run the same `valley data "
            "pack` again, it makes those that are missing."
        )
    return files


def name_shard(shard: int, num_shards: int) -> str:
    """The name of a file of packed rows."""
    return f"train-{shard:05d}-of-{num_shards:05d}.parquet"


def open_packed(folder: str | os.PathLike) -> Dataset:
    """Packed rows as a data set, whose files `datasets` turns into Arrow once."""
    return Dataset.from_parquet(list_shards(folder), features=PACKED_FEATURES)


def iter_packed(
    folder: str | os.PathLike, shard: int = 0, num_shards: int = 1, positions: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """
    The packed rows that fall to one of `num_shards` readers, of which little is held at a time.

    Args:
        folder (`str`):
            Of packed rows.
        shard, num_shards (`int`, *optional*, defaults to 0 and 1):
            Number of the reader, and of all that share the rows. Where there are files enough, each has its own;
            otherwise, and of `positions`, each has as many rows as the others.
        positions (`Sequence[int]`, *optional*):
            Of the rows that are wanted, in ascending order; all by default.
    """
    files = list_shards(folder)
    if positions is None and len(files) >= num_shards:
        for path in files[shard::num_shards]:
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                    yield from batch.to_pylist()
        return
    if positions is None:
        positions = range(sum(pyarrow.parquet.read_metadata(file).num_rows for file in files))
    positions = positions[len(positions) * shard // num_shards : len(positions) * (shard + 1) // num_shards]
    begin = 0
    for path in files:
        if not len(positions) or begin > positions[-1]:
            return
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _rows_at(file, positions, begin)
            begin += file.metadata.num_rows


def _rows_at(file: pyarrow.parquet.ParquetFile, positions: Sequence[int], begin: int) -> Iterator[dict[str, Any]]:
    """The rows at ascending positions of a file whose first row is at `begin`. Groups without one are not read."""

    def places_in(count: int) -> np.ndarray:
        first, last = bisect_left(positions, begin), bisect_left(positions, begin + count)
        return np.asarray(positions[first:last], dtype=np.int64) - begin

    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if not len(places_in(size)):
            begin += size
            continue
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group]):
            yield from batch.take(pyarrow.array(places_in(len(batch)))).to_pylist()
            begin += len(batch)


def read_clip(clip: dict[str, Any], name: str) -> SampledVideo:
    """
    A packed clip as the frames of `ValleyVideoProcessor.sample`.

    Args:
        clip (`dict`):
            `frames`, T pictures as bytes, and `times`, T seconds or none.
        name (`str`):
            For messages, its path.

    Raises:
        VideoDecodeError: if a frame is damaged or too large, or of another size than the others.
    """
    frames = [np.asarray(read_picture(frame, name)) for frame in clip["frames"]]
    if not frames:
        raise VideoDecodeError(name, "it was packed without frames.")
    if len(sizes := {f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames}) > 1:
        raise VideoDecodeError(
            name, f"its packed frames have several sizes, {', '.join(sorted(sizes))}: pack it again."
        )
    return SampledVideo(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(), clip["times"] or None)


def read_picture(data: bytes, name: str) -> Image.Image:
    """
    A packed picture in RGB.

    Raises:
        VideoDecodeError: if it is damaged or too large.
    """
    try:
        with pillow_errors(name), Image.open(io.BytesIO(data), formats=("JPEG", "WEBP")) as picture:
            check_picture_size(*picture.size, name)
            return picture.convert("RGB")
    except VideoDecodeError as error:
        reason = error.reason.rstrip(".")
        raise VideoDecodeError(name, f"its packed picture is damaged ({reason}): pack it again.") from error


def check_packed(folders: Iterable[str], video_processor: ValleyVideoProcessor) -> None:
    """
    Refuse rows that were packed for another way to sample clips.

    Args:
        folders (`list[str]`):
            Of packed rows.
        video_processor ([`ValleyVideoProcessor`]):
            Of the model to be trained.

    Raises:
        ValueError: names the settings that differ.
    """
    for folder in folders:
        packed, wanted = read_description(folder)["settings"], dataclasses.asdict(PackSettings.of(video_processor))
        told = [f"{name}={packed[name]} and not {wanted[name]}" for name in (*_RULE, "size")]
        if differing := [
            words for words, name in zip(told, (*_RULE, "size"), strict=True) if packed[name] != wanted[name]
        ]:
            raise ValueError(
                f"{folder} was packed with {', '.join(differing)}, as the model's processor samples clips: pack it "
                "with `valley data pack --model`, or give the processor these settings."
            )


__all__ = [
    "DESCRIPTION",
    "PACKED_FEATURES",
    "PackSettings",
    "check_packed",
    "is_packed",
    "iter_packed",
    "list_shards",
    "name_shard",
    "open_packed",
    "read_clip",
    "read_description",
    "read_picture",
]
