# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a clip, a caption and a row cost on one core, what that makes of millions of them, and a run over a million.

    python benchmarks/scale.py                                   # an hour or more on two cores; not run whole yet
    python benchmarks/scale.py --rows 10000 --captions 20000     # to try it
    python benchmarks/scale.py --only core                       # a part

Three parts. "One core": clips made here, decoded and packed by one process; captions through spaCy's noun phrases;
rows that are read, checked and trained. Seconds are those of a core's own work, which other programs on the machine
hardly change. "Sizes": these numbers times the number of clips, in days of a core and terabytes. "A run": a million
rows without clips are read and packed in a process that is killed twice on the way; what is there at the end is
compared with what a run without an interruption writes. And millions of captions are filtered, with words in the place
of spaCy's phrases, which would take hours. Each is a process of its own, whose memory is read ten times a second.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import torch
import training
from common import memory
from data_loading import make_rows

from transformers_valley import ValleyVideoProcessor
from transformers_valley.data import load_rows
from transformers_valley.data.build import phrases
from transformers_valley.data.build.valley_702k import select_captions
from transformers_valley.data.check import check_data
from transformers_valley.data.decode import visuals_of
from transformers_valley.data.frames import PackSettings
from transformers_valley.data.packing import pack, pack_shard
from transformers_valley.tables import format_table


SIZES = {"700 thousand": 700_000, "10 million": 10_000_000, "1 billion": 1_000_000_000}
DAY = 86_400
NOUNS = 20_000  # of made captions, the n-th as often as 1 / n
SETTINGS = PackSettings(num_frames=8)
PARTS = ("core", "run", "filter")


# --- Processes -------------------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """The memory of this process in MB, ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen: list[float] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.1):
            self.seen.append(memory("VmRSS") / 1024)


def _watched(function: Callable, arguments: tuple, cache: str, results: Any) -> None:
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    watch = Watch()
    watch.start()
    began, wall = time.process_time(), time.perf_counter()
    result = function(*arguments)
    spent = time.process_time() - began, time.perf_counter() - wall
    watch.is_over.set()
    watch.join()
    results.send((result, *spent, watch.seen))


def apart(
    function: Callable, *arguments: Any, cache: Path, kill_when: Callable[[], bool] | None = None
) -> tuple | None:
    """What a function gives, its core seconds, its seconds and its memory, in a process; nothing if that is killed."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_watched, args=(function, arguments, str(cache), send))
    process.start()
    send.close()
    while kill_when is not None and not receive.poll(0.2):
        if kill_when():
            process.kill()
            process.join()
            return None
    found = receive.recv()
    process.join()
    return found


def flat(seen: list[float]) -> str:
    """The peak of memory in the second and in the last fifth of a run: the first still imports."""
    fifth = max(1, len(seen) // 5)
    return f"{max(seen[fifth : 2 * fifth] or seen):,.0f} MB in the second fifth, {max(seen[-fifth:]):,.0f} in the last"


# --- One core --------------------------------------------------------------------------------------------------------


def pack_clips(file: Path, folder: Path) -> tuple[int, int]:
    pack(load_rows([file]), folder, SETTINGS, num_shards=1, workers=1)
    rows = load_rows([folder])
    return sum(len(clip["frames"]) for row in rows for clip in row["clips"]), sum(
        shard.stat().st_size for shard in folder.glob("*.parquet")
    )


def seconds_of(run: Callable[[], Any]) -> float:
    """Of a core, in this process and in those that it started."""
    began = sum(os.times()[:4])
    run()
    return sum(os.times()[:4]) - began


def measure_core(work: Path, clips: int, language_model: str) -> dict[str, float]:
    """Seconds of a core for one of each, and bytes."""
    file = make_rows(work, clips, 18, "596x336")  # a clip of WebVid's length and size
    sizes = [clip.stat().st_size for clip in work.glob("*.mp4")]
    (frames, size), first, _, _ = apart(pack_clips, file, work / "warm", cache=work / "cache")
    once = work / "one.jsonl"
    once.write_text(file.read_text().splitlines()[0])
    _, start, _, _ = apart(pack_clips, once, work / "one", cache=work / "cache")  # what starting takes
    found = {"pack": (first - start) / (clips - 1), "packed bytes": size / clips, "clip bytes": sum(sizes) / clips}
    print(f"{clips} clips of 18 s, 596x336, {frames / clips:.0f} frames of each")

    many = work / "many.jsonl"
    lines = []
    for number in range(200):  # what is said of a file is kept: each row has its own
        os.link(work / f"{number % clips}.mp4", work / f"{number}.link.mp4")
        lines.append(json.dumps({"video": f"{work / f'{number}.link.mp4'}", "question": "What?", "answer": "A dog."}))
    many.write_text("\n".join(lines))
    load_rows([file])  # imports
    once.write_text(lines[0])
    start = seconds_of(lambda: check_data([once], num_proc=1))
    found["check"] = (seconds_of(lambda: check_data([many], num_proc=1)) - start) / (len(lines) - 1)
    processor, packed = ValleyVideoProcessor(num_frames=8), load_rows([work / "warm"])
    found["load packed"] = seconds_of(lambda: [training_pixels(row, processor) for row in packed]) / clips
    try:
        find = phrases.NounPhrases(language_model)
    except (ImportError, ValueError) as error:
        print(f"captions are left out: {error}")
    else:
        texts = list(itertools.islice(make_captions(seed=1), 3000))
        list(find(texts[:500]))
        found["caption"] = seconds_of(lambda: list(find(texts))) / len(texts)
    return found


def training_pixels(row: dict[str, Any], processor: ValleyVideoProcessor) -> torch.Tensor:
    (visual,) = visuals_of(row)
    return processor(visual.source, return_tensors="pt")["pixel_values_videos"]


def measure_training() -> float:
    """Seconds of a core for a position of a row in stage 2, 8 frames a clip, of the small model that suits a CPU."""
    frames = 8
    model = training.build_valley("25M", training.STAGE2).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)
    inputs = training.batch(256 + frames, frames)

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return sorted(seconds_of(step) for _ in range(3))[1] / inputs["input_ids"].numel()


# --- A run -----------------------------------------------------------------------------------------------------------


def write_rows(file: Path, count: int) -> None:
    with file.open("w") as lines:
        for number in range(count):
            turns = [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": f"It is {number}."}]
            lines.write(json.dumps({"id": str(number), "conversations": turns}) + "\n")


def read_rows(file: Path) -> int:
    return len(load_rows([file]))


def pack_rows(file: Path, folder: Path, num_shards: int) -> int:
    return pack(load_rows([file]), folder, SETTINGS, num_shards, workers=1)[0]


def pack_again(file: Path, folder: Path, num_shards: int, shards: list[int]) -> None:
    folder.mkdir()
    for shard in shards:
        pack_shard(load_rows([file]), folder, SETTINGS, num_shards, shard, False)


def digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes()).hexdigest()


def simulate(work: Path, count: int) -> None:
    file, folder, num_shards = work / "million.jsonl", work / "packed", max(10, count // 10_000)
    write_rows(file, count)
    read, _, seconds, seen = apart(read_rows, file, cache=work / "cache")
    print(f"{read:,} rows read: {read / seconds:,.0f} a second, {flat(seen)}")

    def count_shards() -> int:
        return len(list(folder.glob("*.parquet")))

    killed = []
    for share in (0.3, 0.7):
        apart(
            pack_rows,
            file,
            folder,
            num_shards,
            cache=work / "cache",
            kill_when=lambda share=share: count_shards() >= share * num_shards,
        )
        killed.append(count_shards())
    made, _, seconds, seen = apart(pack_rows, file, folder, num_shards, cache=work / "cache")
    print(f"packed by a process that was killed after {killed[0]} and {killed[1]} of {num_shards} shards")
    print(f"the last run: {made * count / num_shards / seconds:,.0f} rows a second, {flat(seen)}")

    ids, sizes = [], []
    for shard in sorted(folder.glob("*.parquet")):
        column = pyarrow.parquet.read_table(shard, columns=["id"])["id"].to_pylist()
        ids += column
        sizes.append(len(column))
    whole = ids == [str(number) for number in range(count)]
    some = list(range(0, num_shards, max(1, num_shards // 10)))
    apart(pack_again, file, work / "again", num_shards, some, cache=work / "cache")
    equal = [digest(shard) == digest(folder / shard.name) for shard in (work / "again").glob("*.parquet")]
    left = [path.name for path in folder.iterdir() if path.name.startswith(".incomplete")]
    print(
        f"{len(sizes)} shards of {min(sizes):,} to {max(sizes):,} rows; each row once and in order: {whole}; "
        f"{sum(equal)} of {len(equal)} shards equal those of a run that was not killed; "
        f"unfinished files left: {len(left)}"
    )


def make_captions(seed: int = 0) -> Iterator[str]:
    """Sentences whose nouns are as unevenly frequent as words are."""
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, NOUNS + 1)
    nouns, heads = [f"thing{number}" for number in range(NOUNS)], "dog man woman car tree river city child".split()
    verbs, kinds = "walks runs stands turns falls waits".split(), "red small old happy young green".split()
    while True:
        drawn = generator.choice(NOUNS, (10_000, 2), p=weights / weights.sum())
        for (first, second), pick in zip(drawn.tolist(), generator.integers(0, 2**30, 10_000).tolist(), strict=True):
            head, verb, kind = heads[pick % 8], verbs[pick // 8 % 6], kinds[pick // 48 % 6]
            yield f"a {kind} {head} {verb} near the {nouns[first]} with a {nouns[second]} in the background"


def words(texts: Iterator[str]) -> Iterator[list[str]]:
    """In the place of noun phrases: what stands behind each article."""
    for text in texts:
        parts = text.split()
        yield [f"{parts[i]} {parts[i + 1]}" for i in range(len(parts) - 1) if parts[i] in ("a", "the")]


def choose(file: Path, output: Path) -> tuple[int, int, int]:
    found = select_captions(file, output, words)
    return found.captions, found.phrases, found.chosen


def filter_captions(work: Path, count: int) -> None:
    file = work / "captions.jsonl"
    with file.open("w") as lines:
        for number, text in enumerate(itertools.islice(make_captions(), count)):
            lines.write(json.dumps({"video": f"{number}.mp4", "caption": text}) + "\n")
    (captions, kinds, chosen), core, seconds, seen = apart(choose, file, work / "chosen.jsonl", cache=work / "cache")
    print(
        f"{captions:,} captions filtered, without spaCy: {chosen:,} chosen by {kinds:,} phrases, in {seconds:.0f} s "
        f"({core:.0f} of a core), {max(seen):,.0f} MB at the peak; {min(seen[len(seen) // 20 :]):,.0f} MB at the start"
    )


# --- All of it -------------------------------------------------------------------------------------------------------


NAMES = {
    "pack": "decode and pack a clip",
    "load packed": "load a packed clip",
    "check": "check a row, quick",
    "caption": "find the noun phrases of a caption",
    "train": "train a position of stage 2, 25 million weights",
}


def show(found: dict[str, float]) -> None:
    rows = [[name, f"{found[n] * 1000:.3g}", f"{1 / found[n]:,.0f}"] for n, name in NAMES.items() if n in found]
    print(format_table([["to", "ms of a core", "a second"], *rows], "lrr"))
    print(f"a clip {found['clip bytes'] / 1000:.0f} kB, packed {found['packed bytes'] / 1000:.0f} kB\n")
    table = []
    for name, count in SIZES.items():
        cells = [f"{found[part] * count / DAY:,.3g}" for part in ("caption", "check", "pack") if part in found]
        table.append([name, *cells, f"{found['packed bytes'] * count / 1e12:,.3g}"])
    columns = [f"{part}, core days" for part in ("caption", "check", "pack") if part in found]
    print(format_table([["clips", *columns, "packed, TB"], *table], "l" + "r" * (len(columns) + 1)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--captions", type=int, default=2_500_000)
    parser.add_argument("--language-model", default=phrases.MODEL, help="of spaCy")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        datasets.config.HF_DATASETS_CACHE = work / "cache"
        if "core" in args.only:
            show(measure_core(work, args.clips, args.language_model) | {"train": measure_training()})
        if "run" in args.only:
            simulate(work, args.rows)
        if "filter" in args.only:
            filter_captions(work, args.captions)


if __name__ == "__main__":
    main()
