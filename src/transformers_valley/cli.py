# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The command `valley`: each subcommand parses what was typed, calls the library and prints.

What a subcommand needs is imported inside it, so that `--help` and wrong options wait for none of it.
"""

import contextlib
import importlib.metadata
import io
import os
import sys
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


__all__ = ["app"]

MOST_FRAMES = 1000  # on a sheet; with more, thumbnails would be no wider than their times
FRAMES_BY_DEFAULT = 64  # of a long clip, where nothing says how many
MAX_PICTURE_PIXELS = 1280 * 960  # of one frame; a sheet shows none larger
MAX_SAMPLED_PIXELS = 64_000_000  # of all frames before they are drawn: 192 MB

_settings = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(help="Valley, a video LLM: look at clips, convert checkpoints.", **_settings)
data = typer.Typer(help="Look after training data.", **_settings)
app.add_typer(data, name="data")
train = typer.Typer(help="Plan a training.", **_settings)
app.add_typer(train, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"transformers-valley {importlib.metadata.version('transformers-valley')}")
        raise typer.Exit()


@app.callback()  # also keeps typer from making an only subcommand the whole program
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def frames(
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A video or image file, a folder of images, or a URL.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The picture to write. Its suffix chooses the format.",
            show_default="CLIP_frames.png, in this folder",
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second to take.", show_default="0.5", metavar="NUMBER")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="How many frames to take instead, spread evenly.", metavar="NUMBER")
    ] = None,
    max_frames: Annotated[
        int | None,
        typer.Option(
            help="Where --fps gives more, take that many, spread evenly.",
            show_default=f"{FRAMES_BY_DEFAULT}, without --fps",
            metavar="NUMBER",
        ),
    ] = None,
    start: Annotated[float | None, typer.Option(help="Where to begin.", metavar="SECOND")] = None,
    end: Annotated[float | None, typer.Option(help="Where to end.", metavar="SECOND")] = None,
    columns: Annotated[int | None, typer.Option(help="Frames in a row.", metavar="NUMBER")] = None,
    on_error: Annotated[
        Literal["raise", "partial"],
        typer.Option(help="With damaged frames: stop with an error, or draw the good ones."),
    ] = "raise",
) -> None:
    """Draw frames of a clip, each with its time, as one picture."""
    with _errors_in_one_line():
        output = output or Path(f"{_stem(clip)}_frames.png")
        picture_format = _check_output(output, clip)
        limit = _frame_limit(fps, num_frames, max_frames)

        from .contact_sheet import clock, draw_contact_sheet, shrink
        from .video_decoding import sample_video

        sampled = sample_video(
            clip,
            fps=fps,
            num_frames=num_frames,
            max_frames=limit if num_frames is None else None,
            start=start,
            end=end,
            transform=partial(shrink, pixels=min(MAX_PICTURE_PIXELS, MAX_SAMPLED_PIXELS // max(1, limit))),
            on_error=on_error,
        )
        count, times = len(sampled.frames), sampled.timestamps
        if count + sampled.num_lost > MOST_FRAMES:
            raise ValueError(
                f"--fps {fps:g} takes more than {MOST_FRAMES} frames, the most that a sheet shows; "
                "lower it, or set --max-frames."
            )
        draw_contact_sheet(sampled, columns).save(output, picture_format)

        line = f"{output}: {count} frame{'s' * (count > 1)}"
        different = len(set(sampled.metadata["frames_indices"] if times is None else times))
        if different < count:
            line += f" ({different} without repeats)"
        if times is None:
            line += f" of {sampled.metadata['total_num_frames']}, without times"
        else:
            first, last, length = (clock(time, 2) for time in (times[0], times[-1], sampled.metadata["duration"]))
            line += f" at {first}" if different == 1 else f" from {first} to {last}"
            line += f", of a clip {length} long"
        if sampled.num_lost:
            line += f"; {sampled.num_lost} damaged and left out"
        typer.echo(line)


@app.command()
def serve(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A folder with a Valley, or its name on the Hub.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535, metavar="NUMBER")] = 8000,
    allow_local_files: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Let requests open files in this folder. May be given several times; by default none.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model runs, such as cuda:0 or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the weights, such as bfloat16.")] = "auto",
    attn_implementation: Annotated[
        str | None, typer.Option(help="Attention, such as sdpa or flash_attention_2.", metavar="NAME")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the decoding of answers.")] = False,
    quantization: Annotated[
        Literal["bnb-4bit", "bnb-8bit"] | None, typer.Option(help="Load the weights in fewer bits.")
    ] = None,
) -> None:
    """Answer requests of OpenAI's clients about clips and images."""
    with _errors_in_one_line():
        from .serving import serve as serve_checkpoint

        serve_checkpoint(
            checkpoint,
            host=host,
            port=port,
            folders=allow_local_files or (),
            compile=compile,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization=quantization,
        )


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder or Hub id of an original Valley checkpoint, or of its adapter."),
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
    """Turn a checkpoint of the original Valley repository into one that transformers loads."""
    with _errors_in_one_line():
        from .hub.convert_valley_weights import convert as convert_checkpoint

        typer.echo(convert_checkpoint(source, destination, base, dtype, push_to_hub=push_to_hub))


@app.command()
def chat(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A folder with a Valley, or its name on the Hub.")],
    clips: Annotated[
        list[str] | None, typer.Argument(metavar="[CLIP]...", help="What to talk about: clips and images.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions for the whole conversation.", metavar="TEXT")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames to take of a clip, spread evenly.", metavar="NUMBER")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second to take instead.", metavar="NUMBER")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer.", metavar="NUMBER")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs.", show_default="a GPU if there is one", metavar="NAME")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights, such as bfloat16.", metavar="NAME")] = "auto",
    attn_implementation: Annotated[
        str | None, typer.Option(help="Attention, such as sdpa or flash_attention_2.", metavar="NAME")
    ] = None,
) -> None:
    """Talk about clips in the terminal, over several turns."""
    with _errors_in_one_line():
        import torch

        from .chat import VideoChat
        from .modeling_valley import ValleyForConditionalGeneration
        from .processing_valley import ValleyProcessor

        if num_frames is not None and fps is not None:
            raise ValueError("--num-frames and --fps exclude each other; choose one.")
        processor = ValleyProcessor.from_pretrained(checkpoint)
        if num_frames is not None or fps is not None:
            processor.video_processor.num_frames, processor.video_processor.fps = num_frames, fps
        shown = [_show(processor, clip) for clip in clips or []]  # a wrong path is said before the weights are read
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model = ValleyForConditionalGeneration.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation=attn_implementation
        )
        options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        conversation = VideoChat(model.to(device), processor, system, **options)
    _talk(conversation, shown)


@data.command()
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
    import json

    with _errors_in_one_line():
        try:
            from .data.check import check_data
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}; `pip install 'transformers-valley[data]'` brings it along.") from error
        from .processing_valley import ValleyProcessor

        if output is not None and not output.parent.is_dir():
            raise ValueError(f"Cannot write '{output}': there is no folder '{output.parent}'.")
        processor = None if model is None else ValleyProcessor.from_pretrained(model)
        report = check_data(files, media_root, processor, max_length, full, num_proc)
        for error in report.bad:
            typer.echo(str(error))
        typer.echo(report.table())
        if output is not None:
            entries = [
                {name: getattr(error, name) for name in ("id", "source", "file", "reason")} for error in report.bad
            ]
            output.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    if report.bad:
        raise typer.Exit(1)


@train.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def estimate(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option(help="A recipe of examples/sft.py. Its flags may follow, and win.", metavar="YAML")
    ],
    num_gpus: Annotated[int, typer.Option(help="GPUs, over all machines.", min=1, metavar="NUMBER")] = 8,
    gpu: Annotated[
        Literal["A100-40GB", "A100-80GB", "H100-SXM", "H200-SXM", "L40S", "RTX4090"], typer.Option(help="Which.")
    ] = "A100-80GB",
    gpu_memory: Annotated[
        float | None, typer.Option(help="Its memory.", min=1, metavar="GIB", show_default="that of the GPU")
    ] = None,
    utilization: Annotated[
        float, typer.Option(help="Share of its peak arithmetic that is reached: an assumption.", min=0.01, max=1)
    ] = 0.4,
    frames: Annotated[int, typer.Option(help="Frames of the clip that a row has.", min=1, metavar="NUMBER")] = 8,
    text_tokens: Annotated[int, typer.Option(help="Tokens of its text.", min=2, metavar="NUMBER")] = 256,
    rows: Annotated[int, typer.Option(help="Rows of an epoch.", min=1, metavar="NUMBER")] = 100_000,
) -> None:
    """Tell what a recipe will need, memory and time, from the shapes of its model. No weights are loaded."""
    with _errors_in_one_line():
        import warnings

        warnings.simplefilter("ignore", FutureWarning)  # about keys that older versions of transformers still need
        from .training.estimate import estimate as estimate_recipe
        from .training.estimate import format_estimate, read_recipe

        recipe = read_recipe(["--config", str(config), *context.args])
        found = estimate_recipe(*recipe, num_gpus=num_gpus, num_frames=frames, text_tokens=text_tokens)
        typer.echo(format_estimate(found, gpu, gpu_memory, utilization, rows))


def _talk(conversation: Any, shown: list[tuple[str, Any]]) -> None:
    """Reads questions until the input ends. What goes wrong with one is said, and the next one is read."""
    if sys.stdin.isatty():
        typer.echo("Ask. /show CLIP shows a clip or an image, /reset begins anew, /quit ends.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if line == "/quit":
                return
            elif line == "/reset":
                conversation.reset()
                shown = []
            elif line.startswith("/show "):
                shown.append(_show(conversation.processor, line.removeprefix("/show ").strip()))
            elif line.startswith("/"):
                raise ValueError(f"There is no command {line.split()[0]}; there are /show CLIP, /reset and /quit.")
            elif line:
                visuals = {kind: [visual for k, visual in shown if k == kind] for kind in ("images", "videos")}
                conversation.ask(line, **visuals, on_text=partial(typer.echo, nl=False))
                shown = []
                typer.echo()
        except KeyboardInterrupt:
            typer.echo("\n(stopped)")
        except (ValueError, OSError, RuntimeError) as error:  # of these, a full GPU is the last
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)


def _show(processor: Any, path: str) -> tuple[str, Any]:
    """Opens a clip or an image for the next question, and says what is seen of it."""
    from .contact_sheet import clock

    sampled = processor.video_processor.sample(path)
    if sampled.timestamps is None and len(sampled.frames) == 1:  # a still; a clip of one frame has its time
        typer.echo(f"{path}: an image", err=True)
        return "images", sampled.frames[0]
    times = sampled.timestamps
    span = "" if times is None else f" from {clock(times[0], 2)} to {clock(times[-1], 2)}"
    typer.echo(f"{path}: {len(sampled.frames)} frames{span}", err=True)
    return "videos", sampled


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line on stderr where a clip, a value or a file is at fault."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # a `VideoDecodeError` is a `ValueError`
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error


def _stem(clip: str) -> str:
    """Gives the name of a file, folder or URL without its suffix."""
    return Path(urllib.parse.urlsplit(clip).path if "://" in clip else os.path.abspath(clip)).stem or "clip"


def _check_output(output: Path, clip: str) -> str:
    """Gives Pillow's name of the format; refuses what cannot or must not be written before anything is decoded."""
    from PIL import Image

    picture_format = Image.registered_extensions().get(output.suffix.lower(), "")
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), picture_format)
    except (KeyError, OSError, ValueError) as error:  # unknown, read only, or not for colours
        found = f"'{output.suffix}' is no format" if output.suffix else "no suffix names a format"
        raise ValueError(f"Cannot write '{output}': {found} that Pillow writes; use .png, .jpg or .webp.") from error
    if not output.parent.is_dir():
        raise ValueError(f"Cannot write '{output}': there is no folder '{output.parent}'.")
    if output.is_dir():
        raise ValueError(f"Cannot write '{output}': it is a folder; name a file in it.")
    source = Path(urllib.parse.unquote(urllib.parse.urlsplit(clip).path) if clip.startswith("file:") else clip)
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"Cannot write '{output}': it is the clip itself.")
    if source.is_dir() and output.parent.samefile(source):
        raise ValueError(f"Cannot write '{output}': it would become one of the clip's pictures; use another folder.")
    return picture_format


def _frame_limit(fps: float | None, num_frames: int | None, max_frames: int | None) -> int:
    """Gives how many frames may come: as many as are asked for, or with `--fps` alone one too many to notice it."""
    for name, value in (("--fps", fps), ("--max-frames", max_frames)):
        if num_frames is not None and value is not None:
            raise ValueError(f"--num-frames and {name} exclude each other; choose one.")
    wanted = num_frames or max_frames
    if wanted is not None and wanted > MOST_FRAMES:
        name = "--num-frames" if num_frames else "--max-frames"
        raise ValueError(f"{name} {wanted} is more than the {MOST_FRAMES} frames that a sheet shows; lower it.")
    if num_frames is not None:
        return num_frames
    if max_frames is not None:
        return max_frames
    return FRAMES_BY_DEFAULT if fps is None else MOST_FRAMES + 1
