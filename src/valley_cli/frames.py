# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley frames`: the frames that a model would see, drawn as one picture."""

import io
import os
import urllib.parse
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import OnError, check_folder, examples


MOST_FRAMES = 1000  # on a sheet; with more, thumbnails would be no wider than their times
FRAMES_BY_DEFAULT = 64  # of a long clip, where nothing says how many
MAX_PICTURE_PIXELS = 1280 * 960  # of one frame; a sheet shows none larger
MAX_SAMPLED_PIXELS = 64_000_000  # of all frames before they are drawn: 192 MB

EPILOG = examples("valley frames clip.mp4", "valley frames clip.mp4 -o sheet.png --fps 2 --start 10 --end 20")


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
    on_error: OnError = "raise",
) -> None:
    """Draw frames of a clip, each with its time, as one picture."""
    output = output or Path(f"{_stem(clip)}_frames.png")
    picture_format = _check_output(output, clip)
    limit = _frame_limit(fps, num_frames, max_frames)

    from transformers_valley.contact_sheet import clock, draw_contact_sheet, shrink
    from transformers_valley.video_decoding import sample_video

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
        found = f"'{output.suffix}' is not a format" if output.suffix else "no suffix names a format"
        raise ValueError(f"Cannot write '{output}': {found} that Pillow writes; use .png, .jpg or .webp.") from error
    check_folder(output)
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
