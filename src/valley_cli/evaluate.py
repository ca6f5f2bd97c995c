# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley evaluate`: questions with known answers, asked, compared and reported."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Device, Dtype, Fps, MaxNewTokens, NumFrames, check_sampling, examples, needs_extra


EPILOG = examples(
    "valley evaluate path/to/valley --data held_out.jsonl -o outputs/evaluation",
    "valley evaluate path/to/valley --dataset owner/name --split test -o outputs/evaluation",
    "valley evaluate path/to/valley --data held_out.jsonl --view clip --view shuffled -o outputs/order",
    "valley evaluate path/to/valley --benchmark msvd_qa --data MSVD_QA --judge default -o outputs/msvd",
    "valley evaluate --server http://localhost:8000/v1 --data held_out.jsonl -o outputs/served",
)


def evaluate(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; the same command resumes there.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="Your questions (JSONL, JSON or CSV), or a benchmark's folder. May be given again."
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Your questions in a data set of `datasets`: a name on the Hub, also as NAME@REVISION, or a folder. "
            "May be given again.",
            metavar="NAME",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the data sets.", metavar="NAME")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CKPT",
            help="A folder with a Valley or an adapter, or its name on the Hub; with --server, its name there.",
        ),
    ] = None,
    benchmark: Annotated[
        Literal[
            "own",
            "msvd_qa",
            "msrvtt_qa",
            "activitynet_qa",
            "video_chatgpt",
            "video_bench",
            "meme_cap",
            "science_qa",
        ],
        typer.Option(help="The benchmark that is asked."),
    ] = "own",
    media_root: Annotated[
        Path | None,
        typer.Option(help="Folder of the clips and images.", metavar="FOLDER", show_default="that of the data"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the benchmark or the data sets.", metavar="NAME")] = "test",
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the benchmark, such as asks-politely. May be given again.", metavar="NAME"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first questions.", metavar="NUMBER", min=1)] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            help="What is shown with the questions: clip, blind (nothing), shuffled (its frames in another order) or "
            "one-frame. May be given again.",
            metavar="VIEW",
            show_default="clip and blind; of a benchmark, clip",
        ),
    ] = None,
    cot: Annotated[bool, typer.Option("--cot", help="Chain of thought: ask to think step by step.")] = False,
    shots: Annotated[int, typer.Option(help="Examples before each question.", metavar="NUMBER", min=0)] = 0,
    shots_data: Annotated[
        Path | None, typer.Option(help="Where examples come from.", metavar="PATH", show_default="the data")
    ] = None,
    shots_split: Annotated[str, typer.Option(help="Split that examples come from.", metavar="NAME")] = "train",
    judge: Annotated[
        str | None,
        typer.Option(
            help="A language model that compares answers; default is the one of the docs.",
            metavar="NAME",
            show_default="none: words are compared",
        ),
    ] = None,
    judge_server: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server that judges.", metavar="URL")
    ] = None,
    judge_revision: Annotated[str | None, typer.Option(help="Of the judge's weights.", metavar="COMMIT")] = None,
    prompts: Annotated[
        Literal["protocol", "corrected"],
        typer.Option(help="The judge's prompts: as published, or without their slips."),
    ] = "protocol",
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of another run, to compare with. Of several, the first is the baseline.", metavar="FOLDER"
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Name of the model in tables.", metavar="TEXT", show_default="that of its folder"),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server that answers instead.", metavar="URL")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Questions at once.", metavar="NUMBER", min=1, show_default="8; of a server, 64"),
    ] = None,
    num_frames: NumFrames = None,
    fps: Fps = None,
    max_new_tokens: MaxNewTokens = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Ask questions with known answers, compare, and report: tables, plots and a page with every answer."""
    if checkpoint is None and server is None:
        raise ValueError("Nobody answers: give a checkpoint, or --server URL.")
    if not data and not dataset:
        raise ValueError("There are no questions: give --data PATH or --dataset NAME.")
    check_sampling(num_frames, fps)
    with needs_extra("eval"):
        from transformers_valley.data.mixtures import name_data_sets
        from transformers_valley.evaluation import evaluate as run

    questions = [*(data or ()), *name_data_sets(dataset or (), config, split)]
    sampling = {"num_frames": num_frames, "fps": fps}
    generation = {"max_new_tokens": max_new_tokens}
    report = run(
        checkpoint,
        questions[0] if len(questions) == 1 else questions,
        output,
        benchmark=benchmark,
        media_root=media_root,
        split=split,
        limit=limit,
        options={name.replace("-", "_"): True for name in option or ()},
        views=[name.replace("-", "_") for name in view or ()],
        cot=cot,
        shots=shots,
        shots_data=shots_data,
        shots_split=shots_split,
        judge=judge,
        judge_server=judge_server,
        judge_revision=judge_revision,
        prompts=prompts,
        compare_with=compare_with or (),
        batch_size=batch_size,
        generation={name: value for name, value in generation.items() if value is not None},
        sampling={name: value for name, value in sampling.items() if value is not None},
        dtype=dtype,
        device=device,
        server=server,
        label=label,
    )
    if report is not None:  # with several processes, the first one reports
        typer.echo(str(report))
        typer.echo(f"Read every answer beside its frames: {report.folder / 'index.html'}")
