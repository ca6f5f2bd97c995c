# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""All benchmarks by name, and one of them with its questions read."""

import dataclasses
import inspect
import os
from typing import Any

from transformers.utils import logging

from ..annotations import AnnotationFiles, Clips
from ..benchmark import BenchmarkData, visuals_in
from . import activitynet_qa, meme_cap, msrvtt_qa, msvd_qa, own, science_qa, video_bench, video_chatgpt


logger = logging.get_logger(__name__)

_MODULES = (own, msvd_qa, msrvtt_qa, activitynet_qa, video_chatgpt, video_bench, meme_cap, science_qa)
BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in _MODULES}


def load_benchmark(
    name: str,
    data: str | os.PathLike | list,
    media_root: str | os.PathLike | None = None,
    split: str = "test",
    limit: int | None = None,
    **options: Any,
) -> BenchmarkData:
    """
    Read the questions of a benchmark.

    Args:
        name (`str`):
            One of `BENCHMARKS`; `"own"` for questions of your own.
        data (path):
            The folder of its files as they are published; of your own questions the file, a list of files, or
            [`Source`]s of data sets of `datasets`.
        media_root (path, *optional*):
            The folder of its clips and images; by default that of the files.
        split (`str`, *optional*, defaults to `"test"`):
            Which part of it. It stands beside every number.
        limit (`int`, *optional*):
            Only the first so many questions, for a try.
        **options:
            Those of the benchmark, see its page.

    Raises:
        FileNotFoundError: if a file is missing, or none of the clips is there.
        ValueError: if the benchmark is unknown, or its files are not what they should be.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    own = list(inspect.signature(benchmark.load).parameters)[3:]
    if unknown := sorted(options.keys() - set(own)):
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(own) or 'none'}.")
    split = "" if name == "own" else split  # rows name their `source` themselves
    files = AnnotationFiles(name, data, split)
    if files.data_sets and name != "own":
        raise ValueError(f"{name} is read from its files as they were published, and not from data sets.")
    if media_root:
        files.data_sets = [dataclasses.replace(source, media=str(media_root)) for source in files.data_sets]
    clips = Clips(media_root, files.folder)
    try:
        samples = list(benchmark.load(files, clips, split, **options))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{files.path} is not laid out as {benchmark.title} is published ({error!r}). Is it of another benchmark?"
        ) from error
    samples = samples[:limit]
    if not samples:
        raise ValueError(f"There are no questions in {files.path}.")
    _check_ids([sample.id for sample in samples], files)
    _check_visuals([block["path"] for sample in samples for block in visuals_in(sample.messages)], clips)
    return BenchmarkData(benchmark, samples, split, {**options, **({"limit": limit} if limit else {})}, files.used)


def _check_ids(ids: list[str], files: AnnotationFiles) -> None:
    """Everything is joined by id: one that stands for two questions would mix their answers."""
    if len(set(ids)) < len(ids):
        seen = set()
        twice = sorted({name for name in ids if name in seen or seen.add(name)})
        raise ValueError(
            f"{files.path}: several questions have the id {twice[0]!r}, and {len(twice) - 1} other ids occur more "
            "than once as well. Give each question its own."
        )


def _check_visuals(paths: list[str], clips: Clips) -> None:
    files = sorted({path for path in paths if "://" not in path and not path.startswith("data:")})
    missing = [path for path in files if not os.path.exists(path)]
    if missing and len(missing) == len(set(paths)):
        raise FileNotFoundError(
            f"None of the {len(missing)} clips and images is there, {missing[0]} for one. They were looked for from "
            f"{clips.given or 'the folder of their file'}; give another one as media_root (--media-root)."
        )
    if missing:
        logger.warning(
            f"{len(missing)} of {len(files)} clips and images are not there, {missing[0]} for one. Questions about "
            "them are counted as not answered."
        )


__all__ = ["BENCHMARKS", "load_benchmark"]
