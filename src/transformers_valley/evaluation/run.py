# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A run as a report reads it: its settings, one judge, and every question with what is known of its answer."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .benchmark import Benchmark, Column, Item, mean_of
from .benchmarks import BENCHMARKS
from .judge import JUDGE, is_whole, read_verdicts
from .predict import RUN, read_predictions
from .records import read_json
from .scores import measure


@dataclass(frozen=True)
class Run:
    """
    A run's folder, read.

    Attributes:
        folder (`Path`): where it is.
        settings (`dict`): of `run.json`.
        judge (`dict`, *optional*): of `judge.json`, where answers were judged.
        items (`dict[str, list[Item]]`): by view, those that failed included.
    """

    folder: Path
    settings: Mapping[str, Any]
    judge: Mapping[str, Any] | None
    items: Mapping[str, list[Item]]

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.settings["benchmark"]["name"]]

    @property
    def asked(self) -> int:
        """Questions of the benchmark, whatever became of them."""
        return self.settings["benchmark"]["questions"]

    @property
    def name(self) -> str:
        """What tables call it: the model, and how it was asked."""
        shots = {0: "", 1: ", one-shot"}.get(count := len(self.settings["shots"]), f", {count}-shot")
        return f"{self.settings['label']}{shots}{' + CoT' * self.settings['cot']}"

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The benchmark's numbers by name, of what was shown as it should be."""
        return {column.name: column for column in self.benchmark.columns(self.items.get("clip", []))}

    def main(self, view: str = "clip", items: Iterable[Item] | None = None) -> Column:
        """The number by which views and checkpoints are compared."""
        measure, scale = self.benchmark.main, 1 if self.benchmark.main == "score" else 100
        items = self.items.get(view, []) if items is None else items
        return mean_of({"correct": "right", "bertscore": "BERT F1-score"}.get(measure, measure), items, measure, scale)

    def answered(self, view: str = "clip") -> int:
        return sum(item.record["answer"] is not None for item in self.items.get(view, []))

    def unjudged(self) -> int:
        """Answers that the judge of the run did not decide on, or was not asked about."""
        if self.judge is None:
            return 0
        items = [item for items in self.items.values() for item in items if item.record["answer"] is not None]
        answered = {(item.record["view"], item.record["id"]): item.record for item in items}
        decided = [{v["aspect"] for v in item.verdicts if not v["unjudged"]} for item in items]
        return sum(
            is_whole(item.record, answered) and not aspects.issuperset(self.benchmark.aspects(item.record))
            for item, aspects in zip(items, decided, strict=True)
        )

    def describe_judge(self) -> str:
        """One sentence on who judged."""
        if self.judge is None:
            return "Judge: none; words against the references."
        by, date = self.judge["judge"], self.judge["created"][:10]
        revision = by.get("revision") or "unknown"
        if by["kind"] == "bertscore":
            return f"BERTScore: {by['model']}, revision {revision}, layer {by['layer']}, no idf, not rescaled, {date}."
        return (
            f"Judge: {by['model']} ({by['kind']}), revision {revision}, temperature {by['temperature']:g}, "
            f"{self.judge['prompts']} prompts, {date}."
        )

    def describe_questions(self) -> str:
        """One sentence on what was asked."""
        about, left, unjudged = self.settings["benchmark"], self.asked - self.answered(), self.unjudged()
        published = [file["is_published"] for file in about["files"]]
        files = "as published" if all(published) else "not as published" if False in published else "not known to us"
        parts = [
            f"{self.benchmark.title}{', ' + about['split'] + ' split' if about['split'] else ''}",
            f"{self.asked:,} question{'s' * (self.asked != 1)}",
            *([f"files {files}"] if about["name"] != "own" else []),
            *([f"{left:,} not answered"] if left else []),
            *([f"{unjudged:,} answer{'s' * (unjudged != 1)} unjudged"] if unjudged else []),
        ]
        return f"{self.name}: {', '.join(parts)}."


def load_run(folder: str | os.PathLike, judge: str | None = None) -> Run:
    """
    Read the folder of a run.

    Args:
        folder (path):
            Where `predict` wrote.
        judge (`str`, *optional*):
            The judge whose verdicts are read: the end of its folder's name. It may be left out where there is one.

    Raises:
        FileNotFoundError: if there is no run, or no such judge.
        ValueError: if there are several judges and none is named.
    """
    folder = Path(folder)
    records = read_predictions(folder)
    judges = {path.parent.name.removeprefix("judge-"): path.parent for path in sorted(folder.glob(f"judge-*/{JUDGE}"))}
    if judge is None and len(judges) > 1:
        raise ValueError(
            f"{folder} was judged by {', '.join(judges)}: their numbers share no table. Name one as judge."
        )
    if judge is not None and judge not in judges:
        raise FileNotFoundError(f"{folder} was not judged by {judge!r}; judges there: {', '.join(judges) or 'none'}.")
    chosen = judges.get(judge) if judge else next(iter(judges.values()), None)
    settings, verdicts = read_json(folder / RUN), {}
    benchmark = BENCHMARKS[settings["benchmark"]["name"]]
    for (view, name, _), verdict in (read_verdicts(chosen) if chosen else {}).items():
        verdicts.setdefault((view, name), []).append(verdict)
    items: dict[str, list[Item]] = {}
    for record in records:
        given = verdicts.get((record["view"], record["id"]), [])
        aspects = benchmark.aspects(record) if chosen else ()
        items.setdefault(record["view"], []).append(Item(record, measure(record, given, aspects), given))
    return Run(folder, settings, read_json(chosen / JUDGE) if chosen else None, items)


__all__ = ["Run", "load_run"]
