# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""One HTML page to read every question with its frames, answers, references and verdicts; it needs no other file.

The page is a template, `page.html.jinja`. What models, judges and annotations wrote is text on it, never markup.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..endpoint import file_url
from .benchmark import Item
from .records import write_text
from .run import Run
from .table import Table, common_notes


LOW = 3  # of a judge's score from 0 to 5: what is lower is listed as wrong


def write_page(
    file: str | os.PathLike, runs: Sequence[Run], tables: Sequence[Table], plots: Iterable[Path], most_strips: int
) -> None:
    """
    Write the page.

    Args:
        file (path): the HTML file.
        runs (`list[Run]`): what was asked; questions of one benchmark stand together.
        tables (`list[Table]`), plots (`list[Path]`): above the questions.
        most_strips (`int`): clips whose frames are in the page, those that were answered wrongly first.
    """
    questions = list(_questions(runs))
    strips, common = _strips(questions, most_strips), common_notes(tables)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("page.html.jinja").render(
        names=[run.name for run in runs],
        tables=[
            {
                "title": table.title,
                "rows": [table.header, *table.shown_rows()],
                "notes": [note for note in table.notes if note not in common],
            }
            for table in tables
        ],
        common=common,
        plots=[file_url(plot) for plot in plots],
        questions=questions,
        strips=strips,
        left_out=len({q["strip"] for q in questions if q["strip"]} - strips.keys()),
        low=LOW,
    )
    write_text(file, text)


def _questions(runs: Sequence[Run]) -> Iterable[dict[str, Any]]:
    """Each question once, with the answers of all runs that were asked it."""
    found: dict[tuple, dict] = {}
    for number, run in enumerate(runs):
        others = {(view, i.record["id"]): i for view, items in run.items.items() for i in items if view != "clip"}
        for item in run.items.get("clip", []):
            record = item.record
            question = found.setdefault(
                (run.benchmark.name, record["id"]),
                {
                    **{key: record[key] for key in ("id", "source", "type", "question", "answers", "choices")},
                    "benchmark": run.benchmark.title,
                    "strip": None,
                    "shown": [],
                    "runs": [],
                },
            )
            if not question["shown"]:
                question["shown"] = [_shown(each) for each in record["shown"]]
                kept = [run.folder / each["strip"] for each in record["shown"] if "strip" in each]
                question["strip"] = str(kept[-1]) if kept else None
            question["runs"].append({"run": number, **_answer(item, run.benchmark.main)})
            for view in ("blind", "shuffled", "one_frame"):
                if other := others.get((view, record["id"])):
                    question["runs"].append({"run": number, "view": view, **_answer(other, run.benchmark.main)})
    return found.values()


def _answer(item: Item, main: str) -> dict[str, Any]:
    record, measures = item.record, item.measures
    right = measures.get("correct") if main == "correct" else None
    if main == "score" and "score" in measures:
        right = float(measures["score"] >= LOW)
    status = "failed" if record["answer"] is None else "undecided" if right is None else "right" if right else "wrong"
    shown = {name: value for name, value in measures.items() if name not in ("empty", "unparsed")}
    return {
        "answer": record["answer"],
        "error": record["error"],
        "is_cut": record["is_cut"],
        "status": status,
        "measures": {name: round(value, 3) for name, value in shown.items()},
        "replies": [
            {"aspect": v["aspect"], "unjudged": v["unjudged"], "text": reply}
            for v in item.verdicts
            for reply in v.get("replies", ())
        ],
    }


def _shown(each: dict[str, Any]) -> dict[str, Any]:
    times = each["times"]
    kept = each.get("strip_frames", [])
    path = each["path"] if not each["path"].startswith("data:") else "data:…"
    part = {key: each[key] for key in ("start", "end") if key in each}
    return {"path": path, "count": each["num_frames"], "times": times and [times[i] for i in kept], **part}


def _strips(questions: Sequence[dict], most: int) -> dict[str, str]:
    """Pictures as `data:` addresses, by their path."""
    order = sorted(questions, key=lambda question: not any(run["status"] == "wrong" for run in question["runs"]))
    paths = dict.fromkeys(question["strip"] for question in order if question["strip"])
    there = [path for path in paths if os.path.exists(path)][:most]
    return {path: file_url(path) for path in there}


__all__ = ["write_page"]
