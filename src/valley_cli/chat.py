# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley chat`: several turns about clips, in the terminal."""

import sys
from functools import partial
from typing import Annotated, Any

import typer

from .options import (
    Attention,
    Checkpoint,
    Device,
    Dtype,
    Fps,
    MaxNewTokens,
    NumFrames,
    OnError,
    System,
    as_typed,
    examples,
)
from .visuals import open_visual, set_sampling


EPILOG = examples(
    "valley chat path/to/valley clip.mp4",
    "valley chat path/to/valley --num-frames 8 --dtype bfloat16",
    "valley chat path/to/valley clip.mp4 < questions.txt > answers.txt",
)

HELP = """/show CLIP  show another clip, image, folder of images or URL
/reset      start over
/help       this list
/quit       end"""


def chat(
    ctx: typer.Context,
    checkpoint: Checkpoint,
    clips: Annotated[
        list[str] | None, typer.Argument(metavar="CLIP", help="What to talk about: clips and images.")
    ] = None,
    system: System = None,
    num_frames: NumFrames = None,
    fps: Fps = None,
    on_error: OnError = "raise",
    max_new_tokens: MaxNewTokens = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
) -> None:
    """Talk about clips in the terminal, over several turns."""
    from transformers_valley.chat import VideoChat
    from transformers_valley.checkpoint import find_checkpoint

    found = find_checkpoint(checkpoint)
    processor = found.load_processor()
    set_sampling(processor, num_frames, fps, on_error)
    shown = [_show(processor, clip) for clip in clips or []]  # a wrong path is said before the weights are read
    model = found.load_model(device, dtype, attn_implementation)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    _talk(VideoChat(model, processor, system, **options), shown, ctx.command)


def _talk(conversation: Any, shown: list[dict[str, Any]], command: Any) -> None:
    """Read questions until the input ends. What goes wrong with one is said, and the next one is read."""
    if sys.stdin.isatty():
        typer.echo(f"Ask, or give a command.\n{HELP}")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if line == "/quit":
                return
            elif line == "/help":
                typer.echo(HELP)
            elif line == "/reset":
                conversation.reset()
                shown = []
            elif line.startswith("/show "):
                shown.append(_show(conversation.processor, line.removeprefix("/show ").strip()))
            elif line.startswith("/"):
                raise ValueError(f"There is no command {line.split()[0]}; /help lists them.")
            elif line:
                conversation.ask([*shown, {"type": "text", "text": line}], on_text=partial(typer.echo, nl=False))
                shown = []
                typer.echo()
        except KeyboardInterrupt:
            typer.echo("\n(stopped)")
        except (ValueError, OSError, RuntimeError) as error:  # of these, a full GPU is the last
            typer.echo(f"Error: {' '.join(as_typed(str(error), command).split())}", err=True)


def _show(processor: Any, path: str) -> dict[str, Any]:
    """Open a clip or an image as a block of the next question, and say what is seen of it."""
    kind, visual, seen = open_visual(processor, path)
    typer.echo(f"{path}: {seen}", err=True)
    return {"type": kind, kind: visual}
