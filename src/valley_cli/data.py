# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley data`: from captions and clips to rows that training reads."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import SETTINGS, examples


app = typer.Typer(help="Look after training data.", **SETTINGS)


@app.callback()  # keeps typer from making an only command the whole group
def data() -> None:
    pass


@app.command(
    epilog=examples(
        "valley data check rows.jsonl --media-root clips",
        "valley data check rows.jsonl --model path/to/valley --max-length 2048 --full -o bad.jsonl",
    )
)
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="JSON and JSONL files of training rows.")],
    media_root: Annotated[
        str | None, typer.Option(help="Folder that relative paths of clips and images start from.", metavar="FOLDER")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The checkpoint to train: how it samples clips, and its tokenizer.", metavar="CKPT"),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Count rows with more tokens than this; needs --model.", metavar="NUMBER")
    ] = None,
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
    try:
        from transformers_valley.data.check import check_data
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; `pip install 'transformers-valley[data]'` brings it along.") from error
    from transformers_valley.processing_valley import ValleyProcessor

    if output is not None and not output.parent.is_dir():
        raise ValueError(f"Cannot write '{output}': there is no folder '{output.parent}'.")
    processor = None if model is None else ValleyProcessor.from_pretrained(model)
    report = check_data(files, media_root, processor, max_length, full, num_proc)
    for error in report.bad:
        typer.echo(str(error))
    typer.echo(report.table())
    if output is not None:
        entries = [{name: getattr(error, name) for name in ("id", "source", "file", "reason")} for error in report.bad]
        output.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    if report.bad:
        raise typer.Exit(1)
