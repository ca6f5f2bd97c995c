# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The frames of a clip side by side in one picture, each with its time: what the model was shown, for people.

In goes a `SampledVideo`; out comes a PIL image.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .video_decoding import SampledVideo, scale_frame


if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont


__all__ = ["clock", "draw_contact_sheet", "shrink"]

MARGIN, GAP = 16, 8  # pixels around the sheet, and between its cells
BACKGROUND, INK = (240, 240, 240), (40, 40, 40)  # neither white nor black: such frames keep their edges
SMALLEST_FONT, LARGEST_FONT = 10, 16  # pixels
SMALLEST_PICTURE = 8  # pixels of height that a picture needs for itself; with fewer the sheet is too full
ENLARGED_TO = 160  # pixels of the long side up to which small frames grow, so that the times do not dwarf them
MAX_SIDE = 16_000  # pixels; WebP ends at 16383
MAX_PIXELS = 64_000_000  # 192 MB in memory, and Pillow opens it again without fear of a decompression bomb
FRAMES_IN_A_SQUARE = 64  # more let the sheet grow down instead of making every frame smaller
TALLEST = 4  # heights over width; from there on frames do get smaller


@dataclass(frozen=True)
class _Layout:
    """Where things are on a sheet: all in pixels but `columns` and `rows`."""

    columns: int
    rows: int
    picture: tuple[int, int]
    cell_width: int
    caption_height: int
    font_size: int

    @property
    def size(self) -> tuple[int, int]:
        width = 2 * MARGIN - GAP + self.columns * (self.cell_width + GAP)
        return width, 2 * MARGIN - GAP + self.rows * (self.picture[1] + self.caption_height + GAP)


def draw_contact_sheet(sampled: SampledVideo, columns: int | None = None, width: int = 1280) -> "Image":
    """Draws sampled frames row by row, in order, each above its time.

    Times read `minutes:seconds`, or `hours:minutes:seconds`, with as many decimals (1 to 3) as tell neighbours apart.
    Where a clip has no times, `#1` is its first picture. Frames keep their aspect; only those with less than 160
    pixels on the long side are enlarged, to that.

    Args:
        sampled ([`SampledVideo`]): what `sample_video` gave.
        columns (`int`, *optional*): frames in a row, at most as many as there are. By default the sheet is about
            square, and grows to four times its width where there are hundreds of frames.
        width (`int`, *optional*, defaults to 1280): pixels that the sheet may be wide; it is narrower where the
            frames do not fill it.

    Returns:
        `PIL.Image.Image`: the sheet, RGB, no side longer than 16000 pixels.

    Raises:
        `ValueError`: there are no frames, `columns` or `width` make no sense, or so many frames do not fit.
    """
    from PIL import Image, ImageDraw

    if len(sampled.frames) == 0:
        raise ValueError("There are no frames to draw.")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, found {columns}.")
    if not 1 <= width <= MAX_SIDE:
        raise ValueError(f"width must be from 1 to {MAX_SIDE} pixels, found {width}.")

    captions = _captions(sampled)
    layout = _choose_layout(sampled, captions, columns, width)
    font = _font(layout.font_size)
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for i, (frame, caption) in enumerate(zip(sampled.frames, captions, strict=True)):
        row, column = divmod(i, layout.columns)
        left = MARGIN + column * (layout.cell_width + GAP)
        top = MARGIN + row * (layout.picture[1] + layout.caption_height + GAP)
        picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
        if picture.size != layout.picture:
            picture = picture.resize(layout.picture, Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (layout.cell_width - picture.width) // 2, top))
        middle = left + layout.cell_width / 2
        draw.text((middle, top + layout.picture[1] + layout.caption_height), caption, INK, font, anchor="md")
    return sheet


def shrink(frame: torch.Tensor, pixels: int) -> torch.Tensor:
    """Makes a frame at most so many pixels large, as a `transform` of `sample_video`.

    Args:
        frame (`torch.Tensor`): uint8 of shape (3, height, width).
        pixels (`int`): what height times width may be.

    Returns:
        `torch.Tensor`: uint8 of shape (3, height, width), the aspect kept; the same tensor if it is small enough.
    """
    height, width = frame.shape[1:]
    scale = math.sqrt(pixels / (height * width))
    if scale >= 1:
        return frame
    return scale_frame(frame, max(1, int(width * scale)), max(1, int(height * scale)))


def clock(seconds: float, decimals: int = 1) -> str:
    """Writes a time as `0:02.0`, or `1:00:02.0` from one hour on.

    Args:
        seconds (`float`): the time, not negative.
        decimals (`int`, *optional*, defaults to 1): digits after the point, at least 1.
    """
    parts = 10**decimals
    whole, part = divmod(round(seconds * parts), parts)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return (f"{hours}:{minute:02}" if hours else f"{minute}") + f":{second:02}.{part:0{decimals}}"


def _captions(sampled: SampledVideo) -> list[str]:
    if sampled.timestamps is None:
        return [f"#{index + 1}" for index in sampled.metadata.get("frames_indices", range(len(sampled.frames)))]
    for decimals in (1, 2, 3):
        captions = [clock(second, decimals) for second in sampled.timestamps]
        neighbours = itertools.pairwise(zip(sampled.timestamps, captions, strict=True))
        if all(time == next_time or text != next_text for (time, text), (next_time, next_text) in neighbours):
            break
    return captions


def _choose_layout(sampled: SampledVideo, captions: list[str], columns: int | None, width: int) -> _Layout:
    count, (frame_height, frame_width) = len(captions), sampled.frames.shape[2:]
    longest = max(captions, key=_font(LARGEST_FONT).getlength)
    tallest = min(MAX_SIDE, MAX_PIXELS // width, MAX_SIDE if columns else TALLEST * width)
    layouts = {}
    for n in [min(columns, count)] if columns else range(1, count + 1):
        layout = _lay_out(count, (frame_width, frame_height), longest, n, (width, tallest))
        if layout is not None:
            layouts[n] = layout
    if not layouts:
        rows = f" in {columns} columns" if columns else ""
        raise ValueError(
            f"{count} frames{rows} do not fit on a sheet {width} pixels wide and at most {tallest} high; "
            f"take fewer frames or {'another number of columns' if columns else 'a larger width'}."
        )
    heights = min(TALLEST, max(1, count / FRAMES_IN_A_SQUARE))
    fewest = next((n for n, it in layouts.items() if it.size[1] <= heights * it.size[0]), max(layouts))
    # One column more may leave fewer empty places in the last row.
    return min((layouts[n] for n in (fewest, fewest + 1) if n in layouts), key=lambda it: it.columns * it.rows)


def _lay_out(count: int, frame: tuple[int, int], longest: str, columns: int, sheet: tuple[int, int]) -> _Layout | None:
    """Fits cells into so many columns; `None` where pictures or their captions find no room."""
    rows = math.ceil(count / columns)
    width, tallest = sheet
    room = (width - 2 * MARGIN + GAP) // columns - GAP
    font_size = min(LARGEST_FONT, max(SMALLEST_FONT, room // 12))
    font = _font(font_size)
    caption_width, caption_height = math.ceil(font.getlength(longest)), sum(font.getmetrics()) + 2
    height = (tallest - 2 * MARGIN + GAP) // rows - GAP - caption_height
    if caption_width > room or height < SMALLEST_PICTURE:
        return None
    height = min(height, width * 3 // 4)  # one upright frame does not need more
    scale = min(room / frame[0], height / frame[1], max(1, ENLARGED_TO / max(frame)))
    picture = max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale))
    return _Layout(columns, rows, picture, max(picture[0], caption_width), caption_height, font_size)


@functools.cache  # every number of columns is tried, and a font takes a millisecond to load
def _font(size: int) -> "FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
