# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a benchmark is: questions, the numbers made of their answers, and the judge that those need.

A benchmark is a file in `benchmarks/`; what it loads are `Sample`s, what it reports are `Column`s of `Item`s.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """
    One question.

    Attributes:
        id (`str`): unique in its benchmark; everything is joined by it.
        messages (`list[dict]`): the chat up to the question, its last text block. Clips and images are content blocks
            with a `path`.
        answers (`tuple[str]`): references, each of which is right; letters where there are choices. Empty where the
            benchmark keeps them.
        choices (`dict[str, str]`): letter to text, in the order of the annotation.
        source (`str`): which part of the data it comes from.
        type (`str`): what kind of question it is.
        example (`str`): how the question is answered where it is an example before another one; by default with the
            first reference.
        facts (`dict`): what else the numbers of this benchmark need, as JSON can hold it.
    """

    id: str
    messages: list[dict[str, Any]]
    answers: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    type: str = ""
    example: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        return self.messages[-1]["content"][-1]["text"]


@dataclass(frozen=True)
class Item:
    """
    A question with its answer and what was made of it.

    Attributes:
        record (`dict`): the record of `predictions.jsonl`.
        measures (`dict[str, float]`): what is known about the answer, such as `exact`, from 0 to 1, or a judge's
            `score`. What is not known is not there.
        verdicts (`list[dict]`): the records of `verdicts.jsonl`.
    """

    record: Mapping[str, Any]
    measures: Mapping[str, float]
    verdicts: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Column:
    """
    A number: the mean of a measure; or the weighted mean of its means over groups of items, none of them empty.

    Attributes:
        name (`str`): its header.
        groups (`tuple`): weight, and items by measure: the (id, clip, value) of those that have it.
        scale (`float`): 100 for percentages.
    """

    name: str
    groups: tuple[tuple[float, tuple[tuple[str, str, float], ...]], ...]
    scale: float = 1.0

    @property
    def count(self) -> int:
        return sum(len(values) for _, values in self.groups)


def mean_of(name: str, items: Iterable[Item], measure: str, scale: float = 1.0) -> Column:
    """The column that is the mean of a measure over the items that have it."""
    return weighted_mean_of(name, [(1.0, items)], measure, scale)


def weighted_mean_of(
    name: str, groups: Iterable[tuple[float, Iterable[Item]]], measure: str, scale: float = 1.0
) -> Column:
    """The column that is the weighted mean of the means of some groups of items."""
    found = tuple(
        (
            weight,
            tuple(
                (item.record["id"], item.record["clip"], item.measures[measure])
                for item in items
                if measure in item.measures
            ),
        )
        for weight, items in groups
    )
    return Column(name, found, scale)


@dataclass(frozen=True)
class Benchmark:
    """
    One benchmark.

    Attributes:
        name (`str`): as it is typed.
        title (`str`): as it is written.
        load (callable): `(files, clips, split, **options)` to its samples.
        columns (callable): items to the numbers that it is reported with.
        main (`str`): the measure by which checkpoints, and the model with and without frames, are compared: `correct`,
            a judge's `score`, or `bertscore`.
        judged_by (`str`, *optional*): a protocol, whose prompts are a file in `prompts/`, or `"bertscore"`.
        aspects (callable): a record to what the judge is asked about it.
        export (callable, *optional*): items to the file that a leaderboard takes, as JSON can hold it.
    """

    name: str
    title: str
    load: Callable[..., Iterator[Sample]]
    columns: Callable[[list[Item]], list[Column]]
    main: str = "correct"
    judged_by: str | None = None
    aspects: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda record: ()
    export: Callable[[list[Item]], Any] | None = None


@dataclass(frozen=True)
class BenchmarkData:
    """
    The questions of a benchmark as they were read.

    Attributes:
        benchmark ([`Benchmark`]): which.
        samples (`list[Sample]`): in the order of the file.
        split (`str`): of which part of it.
        options (`dict`): with which it was loaded.
        files (`list[dict]`): what was read, see `AnnotationFiles.used`.
    """

    benchmark: Benchmark
    samples: list[Sample]
    split: str
    options: Mapping[str, Any]
    files: list[dict[str, Any]]

    def describe(self) -> dict[str, Any]:
        """What makes two runs comparable: benchmark, split, files, and a digest of questions and references."""
        asked = [[s.id, s.question, list(s.answers), dict(s.choices)] for s in self.samples]
        return {
            "name": self.benchmark.name,
            "split": self.split,
            "options": dict(self.options),
            "files": self.files,
            "questions": len(self.samples),
            "digest": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        }


def chat_about(question: str, video: str | None = None, image: str | None = None, **times: Any) -> list[dict]:
    """A chat with one question, below its clip or image."""
    content = [{"type": "image", "path": image}] if image else []
    times = {name: value for name, value in times.items() if value is not None}
    content += [{"type": "video", "path": video, **times}] if video else []
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def visuals_in(messages: Iterable[Mapping]) -> list[Mapping]:
    """The content blocks of clips and images, in order."""
    return [
        block
        for message in messages
        for block in (message["content"] if isinstance(message["content"], list) else ())
        if block["type"] != "text"
    ]


__all__ = [
    "Benchmark",
    "BenchmarkData",
    "Column",
    "Item",
    "Sample",
    "chat_about",
    "mean_of",
    "visuals_in",
    "weighted_mean_of",
]
