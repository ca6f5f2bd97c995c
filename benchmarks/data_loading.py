# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows a second of one core on their way into a batch: packed rows against the clips themselves, on clips made here.

    pip install "transformers-valley[train,dev]" torchcodec   # and the shared libraries of an FFmpeg that it supports
    python benchmarks/data_loading.py [--clips 8] [--seconds 60] [--size 1280x720] [--rounds 3]

Each row shows one clip, of which training takes a frame every two seconds. What is timed ends with
`pixel_values_videos`: reading the row, decoding, resizing, normalizing, in seconds of one core, which other programs
on the machine hardly change. Candidates take turns. "the `Video` column" is what `datasets` itself offers for clips: a
decoder of torchcodec, asked for the same times; where torchcodec does not load, the last line says why. Packing is
timed once, by the clock, with all cores. Prints medians, and the ratios to the clips themselves.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import imageio_ffmpeg
import torch
from datasets import Dataset, Video

from transformers_valley import ValleyVideoProcessor
from transformers_valley.data import load_rows
from transformers_valley.data.decode import visuals_of
from transformers_valley.data.frames import PackSettings
from transformers_valley.data.packing import pack


def make_rows(folder: Path, clips: int, seconds: int, size: str) -> Path:
    """Moving patterns with a little noise, other ones in each clip."""
    lines = []
    for number in range(clips):
        clip = folder / f"{number}.mp4"
        source = f"testsrc2=size={size}:rate=30:duration={seconds},noise=alls=6:allf=t:all_seed={number}"
        encoder = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -bf 3 -g 250 -sc_threshold 0"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source, *encoder.split()]
        subprocess.run([*command, clip], check=True)
        lines.append(json.dumps({"video": str(clip), "question": "What happens?", "answer": f"Number {number}."}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def candidates(file: Path, packed: Path, processor: ValleyVideoProcessor) -> dict[str, Callable[[], Iterator[Any]]]:
    """Each goes through all rows and gives the pixels of each."""

    def read(files: Path, streaming: bool) -> Iterator[torch.Tensor]:
        for row in load_rows([files], streaming=streaming):
            for visual in visuals_of(row):
                yield processor(visual.source, return_tensors="pt")["pixel_values_videos"]

    def read_column() -> Iterator[torch.Tensor]:
        paths = [json.loads(line)["video"] for line in file.read_text().splitlines()]
        for row in Dataset.from_dict({"video": paths}).cast_column("video", Video()):
            decoder = row["video"]
            times = torch.arange(0, decoder.metadata.duration_seconds, 2.0)
            frames = decoder.get_frames_played_at(times.tolist()).data
            yield processor(frames, return_tensors="pt")["pixel_values_videos"]

    found = {
        "the clips themselves": lambda: read(file, False),
        "packed rows": lambda: read(packed, False),
        "packed rows, streamed": lambda: read(packed, True),
    }
    if why_no_column() is None:
        found["the `Video` column"] = read_column
    return found


def why_no_column() -> str | None:
    """Why `datasets` could not decode its own clips here, if so."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:  # it is there, and finds no FFmpeg that it was built for
        return str(error).strip().splitlines()[0]
    return None


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    processor = ValleyVideoProcessor()
    with tempfile.TemporaryDirectory() as work:
        datasets.config.HF_DATASETS_CACHE = Path(work, "cache")
        file = make_rows(Path(work), args.clips, args.seconds, args.size)
        packed, started = Path(work, "packed"), time.perf_counter()
        pack(load_rows([file]), packed, PackSettings.of(processor), num_shards=min(args.clips, 4))
        spent = time.perf_counter() - started
        frames = sum(len(clip["frames"]) for row in load_rows([packed]) for clip in row["clips"])
        size = sum(shard.stat().st_size for shard in packed.glob("*.parquet"))
        print(
            f"{args.clips} clips of {args.seconds} s, {args.size}: packed in {spent:.1f} s, {frames} frames, "
            f"{size / frames / 1000:.1f} kB a frame, {size / args.clips / 1000:.0f} kB a clip"
        )
        found = candidates(file, packed, processor)
        rates = {name: [] for name in found}
        for number in range(args.rounds + 1):  # the first warms up
            for name, go in found.items():
                started = time.process_time()
                count = sum(1 for _ in go())
                if number:
                    rates[name].append(count / (time.process_time() - started))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in median.items():
        print(f"{name:<24} {rate:8.2f} rows per core second  {rate / median['the clips themselves']:6.2f} times")
    if "the `Video` column" not in median:
        print(f"{'the `Video` column':<24} NOT MEASURED, torchcodec does not load: {why_no_column()}")
    return median


if __name__ == "__main__":
    main()
