# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The third stage: runs to tables, plots, a page to read and results for a model card.

Rows of the paper stand beside ours as they were published. Every table says what was asked, of which split, how much
of it was answered, and who judged; numbers of different judges or different questions share none.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from .asking import VIEWS
from .benchmark import Item
from .page import write_page
from .plots import draw_bars
from .records import read_json, write_json, write_text
from .run import Run, load_run
from .statistics import compare, estimate
from .table import Table, common_notes


RESULTS = "results.json"
PAPER = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
VIEW_TITLES = {"clip": "with its clip", "blind": "blind", "shuffled": "shuffled frames", "one_frame": "one frame"}
NEEDS_CLIP = "all numbers are of answers with the clips shown. Ask with the view clip (--view clip) as well."


@dataclass(frozen=True)
class Report:
    """
    What a report says.

    Attributes:
        folder (`Path`): where its files are: `report.md`, a `.csv` and a `.tex` for each table, plots, `index.html`
            and `results.json`.
        tables (`list[Table]`): in their order.
        runs (`list[Run]`): of which.
    """

    folder: Path
    tables: list[Table]
    runs: list[Run]

    def eval_results(self) -> list[EvalResult]:
        """For [`write_model_card`]: the numbers that the paper reports; for your own questions, all numbers."""
        return [result for run in self.runs for result in _eval_results(run)]

    def __str__(self) -> str:
        common = common_notes(self.tables)
        return "\n".join([*(table.to_markdown(common) for table in self.tables), *(f"{note}\n" for note in common)])


def report(
    runs: Sequence[str | os.PathLike] | str | os.PathLike,
    output: str | os.PathLike | None = None,
    judge: str | None = None,
    most_strips: int = 400,
) -> Report:
    """
    Report on one or several runs.

    Args:
        runs (path or `list`):
            Their folders. Two of the same benchmark are compared question by question.
        output (path, *optional*):
            Where to; by default `report` in the folder of the first run. An older report there is replaced.
        judge (`str`, *optional*):
            Name of the judge whose verdicts are used, where several judged.
        most_strips (`int`, *optional*, defaults to 400):
            Clips whose frames are put into the page; those that were answered wrongly come first.

    Raises:
        FileNotFoundError: if a run is missing.
        ValueError: if the runs cannot share a report (other questions, other judges, one name), or one has answers
            without the clips only.
    """
    runs = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    read = [load_run(run, judge) for run in runs]
    if blind := [run for run in read if run.items and "clip" not in run.items]:
        raise ValueError(f"{blind[0].folder} has {', '.join(blind[0].items)} answers only: {NEEDS_CLIP}")
    check_together(read)
    folder = Path(output or Path(runs[0]) / "report")
    folder.mkdir(parents=True, exist_ok=True)
    tables = [
        *_paper_tables(read),
        *itertools.chain.from_iterable(_run_tables(run, number) for number, run in enumerate(read, start=1)),
        *_comparisons(read),
    ]
    files: dict[str, Callable[[Path], Any]] = {"report.md": lambda file: write_text(file, str(result))}
    for table in tables:
        files[f"{table.name}.csv"] = lambda file, table=table: write_text(file, table.to_csv())
        files[f"{table.name}.tex"] = lambda file, table=table: write_text(file, table.to_latex())
    for number, run in enumerate(read, start=1):
        files[f"run{number}.png"] = lambda file, run=run: _draw_views(run, file)
        if run.benchmark.export and (content := run.benchmark.export(run.items.get("clip", []))):
            name = f"run{number}-{run.benchmark.name}-submission.json"
            files[name] = lambda file, content=content: write_json(file, content)
    for number, same in enumerate(_same_benchmark(read), start=1):
        files[f"comparison{number}.png"] = lambda file, same=same: _draw_comparison(same, file)
    result = Report(folder, tables, read)
    for name, write in files.items():
        write(folder / name)
    plots = [folder / name for name in files if name.endswith(".png")]
    write_page(folder / "index.html", read, tables, plots, most_strips)
    _forget_older(folder, [*files, "index.html"])
    write_json(folder / RESULTS, {"files": [*files, "index.html"], "runs": [_results(run) for run in read]})
    return result


# --- Tables --------------------------------------------------------------------------------------------------------


def _paper_tables(runs: Sequence[Run]) -> list[Table]:
    """Those of the paper that there is a number for."""
    tables = []
    for published in PAPER["tables"]:
        names = dict.fromkeys(benchmark for benchmark, _, _ in published["columns"])
        ours = [run for run in runs if run.benchmark.name in names]
        if not ours:
            continue
        there = [name for name in names if any(run.benchmark.name == name for run in ours)]
        columns = [column for column in published["columns"] if column[0] in there]
        kept = [1 + i for i, column in enumerate(published["columns"]) if column[0] in there]
        rows = [[row[0], *(row[i] for i in kept), *[None] * len(there)] for row in published["rows"]]
        for name in dict.fromkeys(run.name for run in ours):
            by_benchmark = {run.benchmark.name: run for run in ours if run.name == name}
            cells = [
                estimate(by_benchmark[benchmark].columns[column]) if benchmark in by_benchmark else None
                for benchmark, column, _ in columns
            ]
            rows.append([name, *cells, *(_share(by_benchmark.get(benchmark)) for benchmark in there)])
        counts = ["answered"] if len(there) == 1 else [f"answered, {name}" for name in there]
        notes = [f"{PAPER['source']}. Below them ours, with 95% intervals.", *published["notes"], *_notes(ours)]
        header = ["model", *(title for _, _, title in columns), *counts]
        tables.append(Table(f"table{published['number']}", published["title"], header, rows, notes))
    return tables


def _run_tables(run: Run, number: int) -> list[Table]:
    """All numbers of a run by source and type; and, where there are several views, whether it looks at all."""
    groups = _groups(run)
    used = [name for name, column in run.columns.items() if column.count]
    rows = []
    for name, belongs in groups.items():
        items = [item for item in run.items.get("clip", []) if belongs(item)]
        columns = {column.name: column for column in run.benchmark.columns(items)}
        answered = sum(item.record["answer"] is not None for item in items)
        cut = sum(item.record["is_cut"] for item in items)
        rows.append([name, len(items), answered, cut, *(estimate(columns[column]) for column in used)])
    header = ["questions", "asked", "answered", "cut off", *used]
    title = f"{run.name} on {run.benchmark.title}"
    tables = [Table(f"run{number}", title, header, rows, [*_reading(used), *_notes([run])])]
    views = [view for view in VIEWS if view in run.items and view != "clip"]
    if views and "clip" in run.items:
        rows = []
        for name, belongs in groups.items():
            shown = {v: run.main(v, [item for item in run.items[v] if belongs(item)]) for v in ("clip", *views)}
            gains = [compare(shown[view], shown["clip"]).difference for view in views]
            pairs = [cell for view, gain in zip(views, gains, strict=True) for cell in (estimate(shown[view]), gain)]
            rows.append([name, estimate(shown["clip"]), *pairs])
        header = ["questions", VIEW_TITLES["clip"]]
        header += [title for view in views for title in (VIEW_TITLES[view], f"gain over {VIEW_TITLES[view]}")]
        note = (
            "Gains are of questions answered both ways. An interval that holds 0: nothing shows that the clip, or the "
            "order of its frames, matters to the model."
        )
        tables.append(Table(f"run{number}-views", f"{title}: does it look?", header, rows, [note, *_notes([run])]))
    return tables


def _comparisons(runs: Sequence[Run]) -> list[Table]:
    """Runs of one benchmark against the first of them, question by question."""
    tables = []
    for number, (first, *others) in enumerate(_same_benchmark(runs), start=1):
        rows = []
        for other in others:
            columns = {first.main().name: (first.main(), other.main())}
            columns |= {name: (column, other.columns[name]) for name, column in first.columns.items() if column.count}
            for name, (before, after) in columns.items():
                if after.count:
                    found = compare(before, after)
                    only = f"{found.only_first} / {found.only_second}" if found.test == "McNemar" else None
                    p = None if found.p_value is None else f"{found.p_value:.2g}"
                    rows.append(
                        [f"{other.name}: {name}", found.difference, found.difference.count, only, p, found.test]
                    )
        only = f"right: only {first.name} / only the other"
        header = [f"against {first.name}", "difference", "questions", only, "p", "test"]
        note = (
            "On the questions that both answered. Intervals resample clips; McNemar's exact test takes questions as "
            "independent. Several p-values are not corrected for their number."
        )
        title = f"Differences on {first.benchmark.title}"
        tables.append(Table(f"comparison{number}", title, header, rows, [note, *_notes([first, *others])]))
    return tables


def _groups(run: Run) -> dict[str, Callable[[Item], bool]]:
    """All, and each source and type where there are several."""
    records = [item.record for items in run.items.values() for item in items]
    groups = {"all": lambda item: True}
    for key in ("source", "type"):
        values = dict.fromkeys(record[key] for record in records)
        if len(values) > 1:
            for value in sorted(values):
                title = f"{key}: {value or 'not given'}"
                groups[title] = lambda item, key=key, value=value: item.record[key] == value
    return groups


def _notes(runs: Sequence[Run]) -> list[str]:
    judges = dict.fromkeys(run.describe_judge() for run in runs)
    return [*(run.describe_questions() for run in runs), *judges]


def _reading(columns: Sequence[str]) -> list[str]:
    """How the numbers of a run are read."""
    right = "Right is what the judge says; without one, the choice or the exact match." if "right" in columns else ""
    return [f"Percentages, and scores from 0 to 5, with 95% intervals. {right}".strip()]


def _share(run: Run | None) -> str | None:
    return run and f"{run.answered():,} of {run.asked:,}"


def check_together(runs: Sequence[Run]) -> None:
    """
    Check that runs can share a report: numbers that look alike and mean different things cannot.

    Raises:
        ValueError: if they were asked different questions, were judged differently, or have one name.
    """
    judges = [run for run in runs if run.judge is not None and run.benchmark.judged_by != "bertscore"]
    scorers = [run for run in runs if run.judge is not None and run.benchmark.judged_by == "bertscore"]
    for first, other in itertools.chain(itertools.pairwise(judges), itertools.pairwise(scorers)):
        before, after = ({k: v for k, v in run.judge.items() if k != "created"} for run in (first, other))
        if first.benchmark.judged_by == other.benchmark.judged_by and before != after:
            raise ValueError(
                f"{first.folder} and {other.folder} were judged differently: {first.describe_judge()} "
                f"{other.describe_judge()} Their numbers share no table: have both judged by one, or report on each."
            )
    for first, other in itertools.combinations(runs, 2):
        if first.benchmark is not other.benchmark:
            continue
        if first.settings["benchmark"]["digest"] != other.settings["benchmark"]["digest"]:
            raise ValueError(
                f"{first.folder} and {other.folder} were asked different questions of {first.benchmark.title} "
                f"({first.asked:,} and {other.asked:,}): they cannot be compared."
            )
        if (first.judge is None) != (other.judge is None):
            judged, plain = (first, other) if first.judge else (other, first)
            raise ValueError(
                f"{judged.folder} was judged, and {plain.folder} was not: {judged.describe_judge()} Their numbers "
                "share no table: have both judged by one, or report on each."
            )
        if first.name == other.name:
            raise ValueError(
                f"{first.folder} and {other.folder} are both called {first.name!r}: repeat the command of one of them "
                "with another label (--label)."
            )


def _same_benchmark(runs: Sequence[Run]) -> list[list[Run]]:
    by_benchmark: dict[str, list[Run]] = {}
    for run in runs:
        by_benchmark.setdefault(run.benchmark.name, []).append(run)
    return [same for same in by_benchmark.values() if len(same) > 1]


# --- Plots and results ---------------------------------------------------------------------------------------------


def _axis(run: Run) -> tuple[str, float]:
    """What the axis of a run's main number says, and where it ends."""
    name, measure = run.main().name, run.benchmark.main
    return (name, 5) if measure == "score" else (f"% {name}" if measure == "correct" else name, 100)


def _draw_views(run: Run, file: Path) -> None:
    groups = _groups(run)
    series = {
        VIEW_TITLES[view]: [estimate(run.main(view, filter(belongs, run.items[view]))) for belongs in groups.values()]
        for view in VIEWS
        if view in run.items
    }
    draw_bars(file, f"{run.name} on {run.benchmark.title}", *_axis(run), list(groups), series)


def _draw_comparison(runs: Sequence[Run], file: Path) -> None:
    groups = _groups(runs[0])
    series = {
        run.name: [estimate(run.main("clip", filter(belongs, run.items["clip"]))) for belongs in groups.values()]
        for run in runs
    }
    draw_bars(file, f"On {runs[0].benchmark.title}", *_axis(runs[0]), list(groups), series)


def _results(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "settings": run.settings,
        "judge": run.judge,
        "asked": run.asked,
        "answered": run.answered(),
        "unjudged": run.unjudged(),
        "numbers": {name: asdict(estimate(column)) for name, column in run.columns.items() if column.count},
        "views": {view: asdict(estimate(run.main(view))) for view in run.items},
    }


def _eval_results(run: Run) -> list[EvalResult]:
    reported = {
        column for table in PAPER["tables"] for name, column, _ in table["columns"] if name == run.benchmark.name
    }
    results = []
    for name, column in run.columns.items():
        found = estimate(column)
        if found.value is None or reported and name not in reported:
            continue
        told = f"{name} [95%: {found.low:.2f}, {found.high:.2f}; {found.count:,} answers]. {run.describe_judge()}"
        results.append(
            EvalResult(
                task_type="video-text-to-text",
                dataset_type=run.benchmark.name,
                dataset_name=run.benchmark.title,
                dataset_split=run.settings["benchmark"]["split"] or None,
                metric_type=re.sub(r"\W+", "_", name.lower()).strip("_"),
                metric_name=told,
                metric_value=round(found.value, 2),
            )
        )
    return results


def _forget_older(folder: Path, files: Sequence[str]) -> None:
    """Delete what an older report wrote here and this one did not."""
    if (folder / RESULTS).exists():
        for name in set(read_json(folder / RESULTS)["files"]) - set(files):
            (folder / Path(name).name).unlink(missing_ok=True)


__all__ = ["PAPER", "RESULTS", "Report", "report"]
