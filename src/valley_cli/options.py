# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Arguments and options that several commands share, so that each means and says the same everywhere."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # errors look the same whoever words them, and long choices stay in one piece
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

Checkpoint = Annotated[
    str, typer.Argument(metavar="CKPT", help="A folder with a Valley checkpoint, or its name on the Hub.")
]
System = Annotated[str | None, typer.Option(help="Instructions for the whole conversation.", metavar="TEXT")]
NumFrames = Annotated[
    int | None, typer.Option(help="Frames to sample from a clip, evenly spread.", metavar="NUMBER", min=1)
]
Fps = Annotated[float | None, typer.Option(help="Frames to sample per second instead.", metavar="NUMBER")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.", metavar="NUMBER", min=1)]
OnError = Annotated[
    Literal["raise", "partial"],
    typer.Option(help="With damaged frames: stop with an error, or take the good ones."),
]
Device = Annotated[
    str,
    typer.Option(help="Where the model runs, such as cuda:0; auto is all GPUs, or the CPU.", metavar="NAME"),
]
Dtype = Annotated[
    str, typer.Option(help="Type of the weights, such as bfloat16; auto is that of the checkpoint.", metavar="NAME")
]
Attention = Annotated[str | None, typer.Option(help="Attention, such as sdpa or flash_attention_2.", metavar="NAME")]


def check_sampling(num_frames: int | None, fps: float | None) -> None:
    """Refuse both ways to say how many frames are sampled at once."""
    if num_frames is not None and fps is not None:
        raise ValueError("--num-frames and --fps exclude each other; choose one.")


def check_folder(output: Path | None) -> None:
    """Refuse a file in a folder that is not there, before the work."""
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"Cannot write '{output}': there is no folder '{output.parent}'.")


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Imports that need an extra of this package, whose error names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; `pip install 'transformers-valley[{name}]'` brings it along.") from error


def as_typed(message: str, command: Any) -> str:
    """An error of the library that advises `name='value'`, in the words of a command that has that as an option."""
    options = {param.name: param.opts[0] for param in command.params if param.opts[0].startswith("--")}
    return re.sub(
        r"\b(\w+)='(\w+)'",
        lambda match: f"{options[match[1]]} {match[2]}" if match[1] in options else match[0],
        message,
    )


def examples(*commands: str) -> str:
    """The last lines of a command's help."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {command}" for command in commands)])
