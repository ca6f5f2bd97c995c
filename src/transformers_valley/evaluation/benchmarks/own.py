# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Your own questions: rows that training reads, or records of a clip, a question and an answer.

Files: JSON, JSONL or CSV, or data sets of `datasets`, see `own_questions.py`. Clips: paths in the records, from the
media folder or, by default, from the folder of the file.
Numbers: exact match, containment and choices by themselves, a judge where one is asked; by source and type.
"""

from collections.abc import Iterator

from ...data.frames import is_packed
from ...data.hub import version_of
from ...data.mixtures import find_description
from ..annotations import AnnotationFiles, Clips
from ..benchmark import Benchmark, Column, Item, Sample, mean_of
from ..own_questions import read_questions


def load(files: AnnotationFiles, clips: Clips, split: str) -> Iterator[Sample]:
    packed = [path for path in files.paths if is_packed(path)] + list(filter(find_description, files.data_sets))
    if packed:
        raise ValueError(f"{packed[0]} holds packed rows, of which no questions are made: give the rows themselves.")
    for file in files.paths:
        files.note(file)
        yield from read_questions(file, clips.given or file.parent)
    for source in files.data_sets:
        about = {"config": source.config, "split": source.split, "revision": version_of(source)}
        files.used.append({"name": str(source), **about, "sha256": None, "bytes": None, "is_published": None})
        yield from read_questions(source, source.media)


def columns(items: list[Item]) -> list[Column]:
    names = {"exact": "exact match", "contains": "contained", "choice": "choice", "yes": "judge: right"}
    return [
        mean_of("right", items, "correct", 100),
        *(mean_of(title, items, measure, 100) for measure, title in names.items()),
        mean_of("judge: score", items, "score"),
    ]


def aspects(record: dict) -> tuple[str, ...]:
    return () if record["choices"] else ("qa",)


BENCHMARK = Benchmark("own", "own questions", load, columns, judged_by="video_chatgpt", aspects=aspects)
