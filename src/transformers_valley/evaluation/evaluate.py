# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""All three stages in a row, as `valley evaluate` runs them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from ..checkpoint import find_checkpoint
from .asking import VIEWS
from .benchmarks import BENCHMARKS, load_benchmark
from .bertscore import BertScorer
from .judge import DEFAULT_JUDGE, EndpointJudge, Judge, LocalJudge, describe_judging
from .judge import judge as judge_answers
from .predict import RUN, predict, read_predictions
from .records import read_json
from .report import NEEDS_CLIP, Report, check_together, report
from .run import Run, load_run


def evaluate(
    checkpoint: str | None,
    data: str | os.PathLike | Sequence,
    output: str | os.PathLike,
    *,
    benchmark: str = "own",
    media_root: str | os.PathLike | None = None,
    split: str = "test",
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    views: Sequence[str] | None = None,
    cot: bool = False,
    shots: int = 0,
    shots_data: str | os.PathLike | None = None,
    shots_split: str = "train",
    judge: str | None = None,
    judge_server: str | None = None,
    judge_revision: str | None = None,
    prompts: Literal["protocol", "corrected"] = "protocol",
    compare_with: Sequence[str | os.PathLike] = (),
    **predicting: Any,
) -> Report | None:
    """
    Answer the questions of a benchmark, judge the answers and report. A run that was killed resumes with the same
    call.

    Args:
        checkpoint (`str`):
            Folder or name of a Valley; with `server`, the name of the model there or `None`.
        data (path or `list`):
            Your own questions, files or [`Source`]s of data sets; or the folder of a benchmark's files.
        output (path):
            The folder of the run.
        benchmark (`str`, *optional*, defaults to `"own"`), media_root, split, limit, options:
            As for [`load_benchmark`]; `options` are those of the benchmark.
        views (`list[str]`, *optional*):
            As for [`predict`]; by default `"clip"` and `"blind"` for questions of your own, otherwise `"clip"`.
        cot (`bool`, *optional*, defaults to `False`):
            Chain of thought.
        shots (`int`, *optional*, defaults to 0), shots_data (path, *optional*), shots_split (`str`, *optional*):
            How many examples stand before each question; the first of these files, by default of those of `data`.
        judge (`str`, *optional*):
            Folder or name of a language model, or its name on `judge_server`; `"default"` is `DEFAULT_JUDGE`. For
            MemeCap that of an encoder, by default `roberta-large`. Without one, words are compared and no judge is
            asked.
        judge_server (`str`, *optional*):
            URL of an OpenAI-compatible server that judges.
        judge_revision (`str`, *optional*):
            Of the judge's weights.
        prompts (`str`, *optional*, defaults to `"protocol"`):
            The judge's, as for [`judge`].
        compare_with (`list[path]`, *optional*):
            Folders of other runs, judged alike: they stand in the report as well, before this one. Where they were
            asked the same questions, differences to the first of them follow, with their significance.
        **predicting:
            Of [`predict`]: `batch_size`, `generation`, `sampling`, `dtype`, `device`, `server`, `label`.

    Returns:
        [`Report`]; `None` in all processes but the first one.

    Raises:
        FileNotFoundError: before anything is asked, if there is no run to compare with, or it was not judged so.
        ValueError: before anything is asked, if the run cannot share a report with those to compare with.
    """
    asked = load_benchmark(benchmark, data, media_root, split, limit, **(options or {}))
    examples = []
    if shots:
        pool = load_benchmark(benchmark, shots_data or data, media_root, shots_split, shots, **(options or {}))
        examples = pool.samples[:shots]
        if len(examples) < shots:
            raise ValueError(f"{shots} examples were asked for, and {shots_data or data} has {len(examples)}.")
    views = views or (("clip", "blind") if benchmark == "own" else ("clip",))
    before = read_predictions(output) if Path(output, RUN).exists() else []
    if set(views) <= set(VIEWS) and "clip" not in {*views, *(record["view"] for record in before)}:
        raise ValueError(f"Views are {', '.join(views)}: {NEEDS_CLIP}")
    # A missing judge, or runs that cannot be compared, are reported before any work.
    judges = _find_judge(benchmark, judge, judge_server, judge_revision)
    name, judging = describe_judging(judges, asked.benchmark, prompts) if judges else (None, None)
    if compare_with:
        judging = judging or (load_run(output).judge if before else None)  # the report reads what judged it before
        label = _find_label(checkpoint, Path(output), predicting.get("label"), predicting.get("server"))
        settings = {"label": label, "benchmark": asked.describe(), "cot": cot, "shots": [each.id for each in examples]}
        coming = Run(Path(output), settings, judging, items={})
        check_together([*(load_run(folder, name) for folder in compare_with), coming])
    predict(checkpoint, asked, output, views=views, cot=cot, shots=examples, **predicting)
    if not PartialState().is_main_process:
        return None
    if judges is not None:
        judge_answers(output, judges, prompts=prompts)
    return report([*compare_with, output], Path(output) / "report", judge=name)


def _find_label(checkpoint: str | None, output: Path, label: str | None, server: str | None) -> str:
    """What [`predict`] will call the model. A server is not asked for its name, but may be called by its address."""
    if label is None and (output / RUN).exists():
        return read_json(output / RUN)["label"]
    return label or (server and (checkpoint or server)) or find_checkpoint(checkpoint).name


def _find_judge(benchmark: str, judge: str | None, server: str | None, revision: str | None) -> Judge | None:
    if BENCHMARKS[benchmark].judged_by == "bertscore":
        return BertScorer("roberta-large" if judge in (None, "default") else judge, revision=revision)
    if judge == "default":
        judge, revision = DEFAULT_JUDGE["model"], revision or DEFAULT_JUDGE["revision"]
    if server:
        return EndpointJudge(server, judge, revision)
    return LocalJudge(judge, revision) if judge else None


__all__ = ["evaluate"]
