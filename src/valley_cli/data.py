# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley data`: from captions and clips to rows that training reads."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import SETTINGS, examples


app = typer.Typer(help="Look after training data.", **SETTINGS)

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="JSON, JSONL and CSV files of training rows, and mixtures of them in YAML."),
]
MediaRoot = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder that relative paths of clips and images start from; NAME=FOLDER for those that begin with NAME, "
        "may be repeated.",
        metavar="[NAME=]FOLDER",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="The checkpoint to train: how it samples clips, and its tokenizer.", metavar="CKPT"),
]
MaxLength = Annotated[
    int | None, typer.Option(help="Count rows with more tokens than this; needs --model.", metavar="NUMBER")
]


@app.command(
    epilog=examples(
        "valley data check rows.jsonl --media-root clips",
        "valley data check rows.jsonl --model path/to/valley --max-length 2048 --full -o bad.jsonl",
    )
)
def check(
    files: Files,
    media_root: MediaRoot = None,
    model: Model = None,
    max_length: MaxLength = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Decode what training decodes, or a frame of each clip.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the bad rows to this JSONL file.", metavar="FILE")
    ] = None,
    num_proc: Annotated[
        int | None, typer.Option(help="Processes.", metavar="NUMBER", show_default="one for each core", min=1)
    ] = None,
) -> None:
    """Find rows that training cannot read. Ends with code 1 if there are any."""
    with needs_datasets():
        from transformers_valley.data.check import check_data

    check_output(output)
    report = check_data(files, folders_of(media_root), processor_of(model), max_length, full, num_proc)
    for error in report.bad:
        typer.echo(str(error))
    typer.echo(report.table())
    if output is not None:
        entries = [{name: getattr(error, name) for name in ("id", "source", "file", "reason")} for error in report.bad]
        output.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    if report.bad:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "valley data stats rows.jsonl",
        "valley data stats examples/mixtures/stage2.yaml --model path/to/valley --max-length 2048",
    )
)
def stats(
    files: Files,
    media_root: MediaRoot = None,
    model: Model = None,
    max_length: MaxLength = None,
) -> None:
    """Count rows, clips, images, turns and, with --model, tokens of each source. No clip is decoded."""
    with needs_datasets():
        from transformers_valley.data import load_rows
        from transformers_valley.data.statistics import count_sources, describe_sources

    if max_length is not None and model is None:
        raise ValueError("Whether a row is longer than --max-length, its tokenizer knows: give --model, too.")
    rows = load_rows(files, folders_of(media_root))
    typer.echo(describe_sources(count_sources(rows, processor_of(model)), max_length))


@app.command(
    epilog=examples(
        "valley data export rows.jsonl -o llava.json",
        "valley data export VideoInstruct100K.json --media-root activitynet -o llava.json",
    )
)
def export(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.", metavar="FILE")],
    media_root: MediaRoot = None,
) -> None:
    """Write rows of any format as records of LLaVA, which other tools read. What they cannot say is an error."""
    with needs_datasets():
        from transformers_valley.data import load_rows
        from transformers_valley.data.export import write_llava

    check_output(output)
    folders = folders_of(media_root)
    root = (folders or {}).get("")
    number = write_llava(load_rows(files, folders), output, root and os.path.abspath(root))
    typer.echo(f"{output}: {number} records")


# --- what the commands share ---


@contextlib.contextmanager
def needs_datasets() -> Iterator[None]:
    """Imports that need the extra `data`, whose error says so."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; `pip install 'transformers-valley[data]'` brings it along.") from error


def check_output(output: Path | None) -> None:
    """Refuse a file in a folder that is not there, before the work."""
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"Cannot write '{output}': there is no folder '{output.parent}'.")


def folders_of(media_root: list[str] | None) -> dict[str, str] | None:
    """The folders that `--media-root` names."""
    from transformers_valley.data.media import parse_media

    return parse_media(media_root) if media_root else None


def processor_of(model: str | None) -> Any:
    """The processor of a checkpoint, if one is named."""
    from transformers_valley.processing_valley import ValleyProcessor

    return None if model is None else ValleyProcessor.from_pretrained(model)
