# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley convert`: the original Valley repository's checkpoints, as transformers loads them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import examples


EPILOG = examples(
    "valley convert luoruipu1/Valley2-7b valley2-7b",
    "valley convert path/to/delta valley-13b --base path/to/llama-13b",
)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder or Hub id of a checkpoint of RupertLuo/Valley, or of an adapter of it."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write, which is new or empty.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub id of the LLaMA that SRC is the delta to, or of what its adapter was trained on.",
            metavar="BASE",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option(help="Of the weights; auto keeps that of each tensor."),
    ] = "auto",
    push_to_hub: Annotated[
        str | None, typer.Option(help="Repository on the Hub to upload the result to.", metavar="ID")
    ] = None,
) -> None:
    """Convert a checkpoint of the original Valley repository into one that transformers loads."""
    from transformers_valley.hub.convert_valley_weights import convert as convert_checkpoint

    typer.echo(convert_checkpoint(source, destination, base, dtype, push_to_hub=push_to_hub))
