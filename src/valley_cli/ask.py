# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley ask`: one question about clips, for a shell or a script."""

import json
import os
from functools import partial
from typing import Annotated

import typer

from .options import Attention, Checkpoint, Device, Dtype, Fps, MaxNewTokens, NumFrames, OnError, System, examples
from .visuals import open_visual, set_sampling


EPILOG = examples(
    'valley ask path/to/valley clip.mp4 "What happens?"',
    'valley ask path/to/valley before.jpg after.jpg "What changed?" --json',
    'valley ask path/to/valley clip.mp4 "What happens?" --num-frames 8 --max-new-tokens 100',
)


def ask(
    checkpoint: Checkpoint,
    clips: Annotated[
        list[str] | None, typer.Argument(metavar="CLIP", help="What it is about: clips and images, in their order.")
    ] = None,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")] = ...,
    system: System = None,
    num_frames: NumFrames = None,
    fps: Fps = None,
    on_error: OnError = "raise",
    max_new_tokens: MaxNewTokens = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object: the answer, and which frames it is about.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
) -> None:
    """Ask one question about clips and images, and print the answer."""
    from transformers_valley.chat import VideoChat
    from transformers_valley.checkpoint import find_checkpoint

    if os.path.isfile(question):
        raise ValueError(
            f"'{question}' is a file, and the question comes last: valley ask CKPT CLIP \"What happens?\""
        )
    found = find_checkpoint(checkpoint)
    processor = found.load_processor()
    set_sampling(processor, num_frames, fps, on_error)
    shown = [open_visual(processor, clip) for clip in clips or []]  # a wrong path is said before the weights are read
    model = found.load_model(device, dtype, attn_implementation)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    conversation = VideoChat(model, processor, system, **options)
    blocks = [{"type": kind, kind: visual} for kind, visual, _ in shown] + [{"type": "text", "text": question}]
    answer = conversation.ask(blocks, on_text=None if as_json else partial(typer.echo, nl=False))
    if not as_json:
        typer.echo()
        return
    clips_seen = [
        {"clip": clip} if kind == "image" else {"clip": clip, "timestamps": visual.timestamps}
        for clip, (kind, visual, _) in zip(clips or [], shown, strict=True)
    ]
    answered = {"answer": answer, "question": question, "clips": clips_seen, "checkpoint": checkpoint}
    typer.echo(json.dumps(answered, ensure_ascii=False))
