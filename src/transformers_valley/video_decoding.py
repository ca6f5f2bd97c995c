# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which frames of a clip the model sees, and how they leave the file.

In goes a clip in any form people have one (path, URL, bytes, folder of images, arrays, a segment of these);
out comes a `SampledVideo`: uint8 frames, their times, and what is known about the clip.
Files are decoded with PyAV, one forward pass, and only where a wanted frame needs it.
"""

import contextlib
import logging
import math
import numbers
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch

from .video_files import FrameBuffer, decode
from .video_packets import FLOAT32_ERROR, Clip, Timeline
from .video_sources import (
    MAX_PIXELS,
    Pictures,
    ReadInterrupted,
    SharedFile,
    VideoDecodeError,
    VideoSegment,
    download_video,
    load_image,
    lock_of,
    resolve,
    unwrap_segment,
)


__all__ = [
    "DEFAULT_FPS",
    "SampledVideo",
    "SamplingRule",
    "VideoDecodeError",
    "VideoSegment",
    "available_cores",
    "available_threads",
    "check_count",
    "count_sampled_frames",
    "download_video",
    "sample_video",
    "scale_frame",
    "uniform_indices",
    "use_one_thread_in_forks",
]

logger = logging.getLogger(__name__)

DEFAULT_FPS = 0.5  # one frame every two seconds, as the paper samples
HALF_TICK = 0.0005  # seconds; of an unknown clock
MAX_SAMPLED_FRAMES = 100_000  # timestamps may claim that a clip lasts for years


@dataclass
class SampledVideo:
    """The frames taken from one clip.

    Attributes:
        frames (`torch.Tensor`): uint8 of shape (T, 3, height, width), RGB.
        timestamps (`list[float]`, *optional*): when each frame appears, in seconds from the first displayed frame
            of the whole clip. `None` for images and arrays without a `frame_rate`: nobody knows.
        metadata (`dict`): `total_num_frames` (as counted, or else as the header says), `fps` (average rate), `width`,
            `height` (as displayed, before resizing), `duration` in seconds, `video_backend`, and `frames_indices`,
            the display index of each frame (`round(time * fps)` where counting would mean reading the whole file).
            What is unknown is `None`.
        num_lost (`int`): frames that were wanted and are not here because they are damaged (`on_error="partial"`).
    """

    frames: torch.Tensor
    timestamps: list[float] | None
    metadata: dict[str, Any] = field(default_factory=dict)
    num_lost: int = 0

    @property
    def is_still(self) -> bool:
        """Whether this was an image; a clip of one frame has its time."""
        return self.timestamps is None and len(self.frames) == 1


def sample_video(
    source: Any,
    fps: float | None = None,
    num_frames: int | Literal["all"] | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    size: int | None = None,
    frame_rate: float | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    on_error: Literal["raise", "partial"] = "raise",
    num_threads: int | None = None,
) -> SampledVideo:
    """Takes frames out of a clip, evenly in time (`fps`) or a fixed number of them (`num_frames`).

    Frames are what a player shows: upright, not mirrored, with square pixels, in RGB. Interlaced pictures are not
    deinterlaced, HDR is not tone-mapped and transparency is dropped, as in FFmpeg's own conversion. Sound, subtitles
    and cover art are ignored.

    Args:
        source: a path, an http(s), file or data URL, bytes, a binary file object, a folder of images (in natural
            order), a list of PIL images, arrays or image paths, a uint8 array or tensor (T, 3, H, W) or
            (T, H, W, 3), grey with 1 channel, a torchcodec `VideoDecoder`, a `{"path": ..., "bytes": ...}` of
            `datasets.Video(decode=False)` (also with `url`, `video`, `start`, `end`), or a [`VideoSegment`].
        fps (`float`, *optional*, defaults to 0.5 where `num_frames` is not given): takes the frames that a player
            shows at `start`, `start + 1 / fps`, ... before the end; at least one.
        num_frames (`int` or `"all"`, *optional*): takes frames number `np.linspace(0, n - 1, num_frames).astype(int)`
            of the n frames between `start` and `end`, as the original code does; short clips repeat frames. `"all"`
            takes each of the n once.
        max_frames (`int`, *optional*): where `fps` gives more, that many times spread uniformly from the first to
            the last of them. `num_frames` does not look at it.
        start (`float`, *optional*): second where the clip begins.
        end (`float`, *optional*): second before which it ends.
        size (`int`, *optional*): pixels of the short side, bicubic; the aspect is kept. By default the displayed size.
        frame_rate (`float`, *optional*): frames per second of images and arrays. Without it they count as already
            sampled: `fps` takes them all (at most `max_frames`).
        transform (callable, *optional*): instead of `size`, what to do with each frame as it leaves the decoder,
            uint8 (3, H, W) to uint8 (3, h, w). Large frames never pile up. Called from several threads.
        on_error (`str`, *optional*, defaults to `"raise"`): what damage leads to. `"raise"`: an error if a wanted
            frame is damaged, or the file is truncated before a wanted time. `"partial"`: the good frames, one warning
            for the clip, and `num_lost`.
        num_threads (`int`, *optional*): decoders that may work side by side on a file. By default
            `available_threads()`, and fewer where pictures are large or the work is small.

    Returns:
        [`SampledVideo`]

    Raises:
        `VideoDecodeError`: the source cannot be read, holds no picture, is damaged, or ends before `start`.
        `ValueError`, `TypeError`: an argument, or an array, has a value or a type that makes no sense.
    """
    rule = SamplingRule(fps, num_frames, max_frames, start, end)
    source, rule = rule.unwrap(source)
    size = check_count("size", size)
    frame_rate = _check_seconds("frame_rate", frame_rate, positive=True)
    num_threads = check_count("num_threads", num_threads)
    _check_choice("on_error", on_error, ("raise", "partial"))
    if size is not None and transform is not None:
        raise ValueError(f"Both size={size} and a transform are given; choose one.")
    use_one_thread_in_forks()
    with contextlib.ExitStack() as stack:
        source, name = resolve(source, stack)
        if size is not None:
            transform = partial(_resize, size=size, name=name)
        if isinstance(source, Pictures):
            return _sample_pictures(source, name, rule, transform, frame_rate, on_error)
        if frame_rate is not None:
            raise ValueError(
                f"frame_rate={frame_rate} is for images and arrays; {name!r} is a video with its own times."
            )
        if hasattr(source, "get_frames_played_at"):
            return _sample_torchcodec(source, name, rule, transform)
        return _sample_file(source, name, rule, transform, on_error, num_threads or available_threads())


def count_sampled_frames(
    source: Any,
    fps: float | None = None,
    num_frames: int | Literal["all"] | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> int:
    """Gives how many frames `sample_video` takes, without decoding any where the file's index tells.

    A fixed `num_frames` is the answer, and nothing is opened. A file whose times turn out to be wrong while it is
    decoded may give another number.

    Args:
        source: as for `sample_video`, but no torchcodec decoder.
        fps, num_frames, max_frames, start, end: as for `sample_video`.

    Raises:
        `VideoDecodeError`: the clip cannot be opened, or `start` is past its end.
        `ValueError`, `TypeError`: an argument has a value or a type that makes no sense.
    """
    rule = SamplingRule(fps, num_frames, max_frames, start, end)
    source, rule = rule.unwrap(source)
    if rule.num_frames not in (None, "all"):
        return rule.num_frames
    with contextlib.ExitStack() as stack:
        source, name = resolve(source, stack)
        if isinstance(source, Pictures):
            return len(rule.picture_indices(source.count, source.begins, source.length, name))
        with contextlib.closing(Clip(source, name)) as clip:
            timeline = Timeline.read(clip, count=rule.num_frames is not None)
            return len(_wanted_ticks(timeline, rule, name))


def available_threads() -> int:
    """Gives how many threads may decode: as many as torch computes with, and one in a worker of a `DataLoader`."""
    if torch.utils.data.get_worker_info() is not None:
        return 1
    return max(1, min(torch.get_num_threads(), available_cores()))


def available_cores() -> int:
    """Gives how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@cache
def use_one_thread_in_forks() -> None:
    """
    Sets torch to one thread in processes that are forked from this one, such as those of `datasets.map(num_proc=2)`.

    A fork has none of the threads that torch has started and would wait for them for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def uniform_indices(n: int, num_frames: int) -> np.ndarray:
    """`num_frames` of the indices 0 to n - 1, evenly spaced, first and last included: the original code's rule."""
    return np.linspace(0, n - 1, num_frames).astype(int)


def _metadata(
    total: int | None, fps: float | None, size: tuple, duration: float | None, backend: str, indices: Iterable[int]
) -> dict[str, Any]:
    return {
        "total_num_frames": total,
        "fps": fps,
        "width": size[0],
        "height": size[1],
        "duration": duration,
        "video_backend": backend,
        "frames_indices": [int(index) for index in indices],
    }


# ---------------------------------------------------------------------------------------------------------------
# Which frames
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingRule:
    """
    Which frames are taken of a clip, for files, arrays and servers alike; see [`sample_video`] for the fields.

    Raises:
        ValueError, TypeError: if a field makes no sense, or both `fps` and `num_frames` are given.
    """

    fps: float | None = None
    num_frames: int | Literal["all"] | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self):
        for name, check in (("fps", partial(_check_seconds, positive=True)), ("max_frames", check_count)):
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.num_frames != "all":
            object.__setattr__(self, "num_frames", check_count("num_frames", self.num_frames))
        object.__setattr__(self, "start", _check_seconds("start", self.start))
        object.__setattr__(self, "end", _check_seconds("end", self.end, positive=True))
        if self.fps is not None and self.num_frames is not None:
            raise ValueError(
                f"Give either fps or num_frames, not both: got fps={self.fps} and num_frames={self.num_frames}."
            )
        if self.end is not None and (self.start or 0.0) >= self.end:
            raise ValueError(f"The clip must start before it ends, found start={self.start} and end={self.end}.")

    def override(self, **settings: Any) -> "SamplingRule":
        """This rule with other settings, where they are not `None`. `num_frames` replaces `fps`, and `fps` it."""
        settings = {name: value for name, value in settings.items() if value is not None}
        for name, other in (("num_frames", "fps"), ("fps", "num_frames")):
            if name in settings:
                settings.setdefault(other, None)
        return replace(self, **settings)

    def unwrap(self, source: Any) -> tuple[Any, "SamplingRule"]:
        """Takes the settings that a [`VideoSegment`] or dict has of its own into the rule; gives the inner source.

        Raises:
            ValueError: if `start` or `end` is given both with the source and in the rule.
        """
        segment = unwrap_segment(source)
        settings = segment.settings
        if {"start", "end"} & settings.keys() and (self.start, self.end) != (None, None):
            raise ValueError("start and end are given both with the source and as arguments; give them once.")
        return segment.source, self.override(**settings)

    def window(self, length: float, name: str) -> tuple[float, float]:
        """Gives the wanted part of a clip of `length` seconds."""
        start = self.start or 0.0
        if start and start >= length:
            raise VideoDecodeError(name, f"start={start} is past its end; it lasts {length:.3f} seconds.")
        return start, length if self.end is None else min(self.end, length)

    def times(self, length: float, name: str, rounded_by: float = 0.0) -> np.ndarray:
        """Gives the seconds at which to look at a clip of `length` seconds, which may be rounded up by some."""
        start, end = self.window(length, name)
        fps = DEFAULT_FPS if self.fps is None else self.fps
        count = max(1, math.ceil((end * (1 - FLOAT32_ERROR) - rounded_by - start) * fps - 1e-6))
        if self.max_frames is None or count <= self.max_frames:
            if count > MAX_SAMPLED_FRAMES:
                raise VideoDecodeError(name, f"fps={fps} takes {count} frames; lower it or set max_frames.")
            return start + np.arange(count) / fps
        return start + np.linspace(0, count - 1, self.max_frames) / fps

    def positions(self, begins: list, window: tuple, name: str) -> np.ndarray:
        """Gives `num_frames` positions in a sorted list of when frames begin, of those on screen in the window."""
        first = max(0, bisect_right(begins, window[0]) - 1)
        stop = max(first + 1, bisect_left(begins, window[1]))
        return first + self.indices(stop - first, name)

    def picture_indices(
        self, count: int, begins: Sequence[float] | None, length: float | None, name: str
    ) -> np.ndarray:
        """Gives which of `count` pictures are wanted; `begins` and `length`, in seconds, say when they appear."""
        if begins is not None and self.num_frames is not None:
            start, end = self.window(length, name)
            return self.positions(begins, (_just_after(start), end - (_just_after(end) - end)), name)
        if begins is not None:
            return np.searchsorted(begins, _just_after(self.times(length, name)), side="right") - 1
        if self.start is not None or self.end is not None:
            raise VideoDecodeError(name, "start and end cut a clip in seconds, but it has no times; give frame_rate.")
        if self.num_frames:
            return self.indices(count, name)
        return uniform_indices(count, min(count, self.max_frames or count))

    def indices(self, n: int, name: str) -> np.ndarray:
        """Gives `num_frames` of the indices 0 to n - 1."""
        count = n if self.num_frames == "all" else self.num_frames
        if count > MAX_SAMPLED_FRAMES:
            reason = f"num_frames={self.num_frames!r} takes {count} frames, more than {MAX_SAMPLED_FRAMES}."
            raise VideoDecodeError(name, reason)
        return np.arange(n) if self.num_frames == "all" else uniform_indices(n, self.num_frames)


def _just_after(seconds: Any) -> Any:
    """Moments that may have been kept as float32, so late that they do not fall short of the frame they name."""
    return seconds * (1 + FLOAT32_ERROR) + 1e-9


def check_count(name: str, value: Any) -> int | None:
    """Gives a positive whole number, or `None`; of numpy too. Raises a `TypeError` or `ValueError` for others."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError(f"{name} must be a whole number or None, found {value!r} of type {type(value).__name__}.")
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, found {value}.")
    return value if value is None else int(value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, found {value!r}.")


def _check_seconds(name: str, value: Any, positive: bool = False) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a number or None, found {value!r} of type {type(value).__name__}.")
    if value is not None and (not math.isfinite(value) or value < 0 or (positive and value == 0)):
        raise ValueError(f"{name} must be finite and {'above 0' if positive else 'not negative'}, found {value}.")
    return value if value is None else float(value)


def _short_side(width: int, height: int, size: int, name: str) -> tuple[int, int]:
    """Gives (width, height) with the short side at `size`; the long one is cut to whole pixels, as CLIP's is."""
    long_side = int(size * max(width, height) / min(width, height))
    if size * long_side > MAX_PIXELS:
        raise VideoDecodeError(name, f"{width}x{height} at size={size} makes more than {MAX_PIXELS} pixels.")
    return (size, long_side) if width <= height else (long_side, size)


# ---------------------------------------------------------------------------------------------------------------
# Pictures that are already frames
# ---------------------------------------------------------------------------------------------------------------


def _sample_pictures(
    pictures: Pictures,
    name: str,
    rule: SamplingRule,
    transform: Callable | None,
    frame_rate: float | None,
    on_error: str,
) -> SampledVideo:
    begins, length = pictures.begins, pictures.length
    if frame_rate is not None:
        begins = [i / frame_rate for i in range(pictures.count)]
        length = pictures.count / frame_rate
    indices = rule.picture_indices(pictures.count, begins, length, name).tolist()
    buffer = FrameBuffer(len(indices), transform, name)
    shown, size = _load_pictures(pictures, indices, buffer, on_error)
    frames = buffer.finish(shown)
    kept = [index for index in shown if index is not None]
    return SampledVideo(
        frames,
        None if begins is None else [begins[i] for i in kept],
        _metadata(pictures.count, length and pictures.count / length, size, length, pictures.backend, kept),
        _count_lost(shown, name),
    )


def _load_pictures(
    pictures: Pictures, indices: list[int], buffer: FrameBuffer, on_error: str
) -> tuple[list[int | None], tuple[int, int]]:
    """Loads each chosen frame once; gives which could be, and the (width, height) of the first before resizing."""
    shape, loaded, shown = None, {}, []
    for slot, index in enumerate(indices):
        if index not in loaded:
            try:
                picture = _to_tensor(pictures.load(index), buffer.name)
                shape = shape or picture.shape
                if picture.shape != shape:
                    found, expected = f"{picture.shape[2]}x{picture.shape[1]}", f"{shape[2]}x{shape[1]}"
                    raise VideoDecodeError(buffer.name, f"frame {index} is {found}, the first {expected}.")
                buffer.put(slot, picture)
                loaded[index] = index
            except VideoDecodeError as error:
                if on_error == "raise" or isinstance(error, ReadInterrupted):
                    raise
                loaded[index] = None
        shown.append(loaded[index])
    return shown, shape and (shape[2], shape[1])


def _count_lost(shown: list[int | None], name: str) -> int:
    lost = shown.count(None)
    if lost:
        logger.warning("%s: %d of %d frames are damaged and left out.", name, lost, len(shown))
    return lost


def _to_tensor(picture: Any, name: str) -> torch.Tensor:
    """Turns a picture in any form, or a uint8 array of one frame, into a uint8 tensor (3, H, W)."""
    if isinstance(picture, np.ndarray):
        picture = np.require(picture, requirements=("C", "W"))  # torch takes no negative strides, and warns of others
    elif not isinstance(picture, torch.Tensor):
        picture = np.array(load_image(picture))
    picture = torch.as_tensor(picture).cpu()
    if picture.dtype != torch.uint8:
        raise ValueError(
            f"Frames must be uint8 from 0 to 255, found {picture.dtype}. "
            "Convert them first; floats from 0 to 1 with (frames * 255).round() and a cast to uint8."
        )
    if picture.ndim != 3 or 0 in picture.shape or not {picture.shape[0], picture.shape[2]} & {1, 3}:
        raise ValueError(f"A frame of {name} must be (3, H, W) or (H, W, 3), found {tuple(picture.shape)}.")
    picture = picture if picture.shape[0] in (1, 3) else picture.permute(2, 0, 1)
    return picture.expand(3, -1, -1)


def _resize(picture: torch.Tensor, size: int, name: str) -> torch.Tensor:
    new_width, new_height = _short_side(picture.shape[2], picture.shape[1], size, name)
    return scale_frame(picture, new_width, new_height)


def scale_frame(picture: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resizes a uint8 picture (3, H, W) as Pillow's bicubic does, within one grey level."""
    if picture.shape[1:] == (height, width):
        return picture
    return torch.nn.functional.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0]


# ---------------------------------------------------------------------------------------------------------------
# Video files
# ---------------------------------------------------------------------------------------------------------------


def _sample_file(
    source: str | SharedFile,
    name: str,
    rule: SamplingRule,
    transform: Callable | None,
    on_error: str,
    num_threads: int,
) -> SampledVideo:
    with contextlib.closing(Clip(source, name)) as clip:
        assume = True
        while True:
            timeline = Timeline.read(clip, rule.num_frames is not None, assume)
            missing = _seconds_missing(clip, timeline, rule)
            if missing and on_error == "raise":
                raise VideoDecodeError(name, f"it is truncated: {missing}.", "on_error='partial' takes what is there.")
            ticks = _wanted_ticks(timeline, rule, name)
            buffer = FrameBuffer(len(ticks), transform, name)
            known = clip.in_order, clip.false_keyframes
            shown = decode(clip, ticks, buffer, timeline, num_threads)
            uneven = timeline.assumed and shown != ticks and None not in shown
            if (clip.in_order, clip.false_keyframes) == known and not uneven:
                break
            assume = False
        if None in shown and on_error == "raise":
            if clip.encrypted:
                raise VideoDecodeError(name, "it is encrypted.")
            reason = f"{shown.count(None)} of the {len(shown)} frames wanted are damaged, the first one at "
            reason += f"{timeline.seconds(ticks[shown.index(None)]):.1f} s."
            raise VideoDecodeError(name, reason, "on_error='partial' leaves them out.")
        frames = buffer.finish(shown)
        if missing:
            logger.warning("%s is truncated: %s.", name, missing)
        kept = [pts for pts in shown if pts is not None]
        times = [timeline.seconds(pts) for pts in kept]
        rate = clip.rate and float(clip.rate)
        if timeline.shown is None:
            total, indices = clip.stream.frames or None, [round(time * (rate or 0)) for time in times]
        else:
            total, indices = len(timeline.shown), [bisect_left(timeline.shown, pts) for pts in kept]
        about = _metadata(total, rate, buffer.shown_size, timeline.seconds(timeline.stop), "pyav", indices)
        return SampledVideo(frames, times, about, _count_lost(shown, name))


def _seconds_missing(clip: Clip, timeline: Timeline, rule: SamplingRule) -> str | None:
    """Says what part of the clip's wanted seconds the file no longer has, if any."""
    there, declared = timeline.seconds(timeline.stop), clip.declared_seconds()
    if not declared or min(declared, rule.end or declared) <= there or not clip.is_cut_off():
        return None
    return f"{there:.1f} of its {declared:.1f} seconds are there"


def _wanted_ticks(timeline: Timeline, rule: SamplingRule, name: str) -> list[int]:
    """Gives the moments to look at, in ticks of the stream's clock."""
    if rule.num_frames is None:
        rounded_by = 2 * timeline.tolerance * float(timeline.tick_seconds)  # the last frame's time and its length
        times = rule.times(timeline.seconds(timeline.stop), name, rounded_by)
        return [timeline.tick(second) for second in times]
    start, end = rule.window(timeline.seconds(timeline.stop), name)
    window = timeline.tick(start), min(timeline.tick_after(end), timeline.stop)
    return [int(timeline.shown[i]) for i in rule.positions(timeline.shown, window, name)]


def _sample_torchcodec(decoder: Any, name: str, rule: SamplingRule, transform: Callable | None) -> SampledVideo:
    """Takes frames from an open decoder; it cannot say when each frame begins, only how many there are."""
    about = decoder.metadata
    begin, total, rate = about.begin_stream_seconds or 0.0, about.num_frames, about.average_fps
    length = about.end_stream_seconds - begin
    if rule.num_frames is None:
        # Its clock is not known; most that round do so to milliseconds. It refuses to look at the very end.
        times = np.minimum(rule.times(length, name, HALF_TICK) + HALF_TICK, max(0.0, length - 1e-6))
        wanted, take = (begin + times).tolist(), decoder.get_frames_played_at
    else:
        wanted = rule.picture_indices(total, [i / rate for i in range(total)], length, name).tolist()
        take = decoder.get_frames_at
    buffer, times = FrameBuffer(len(wanted), transform, name), []
    for first in range(0, len(wanted), 8):  # never many pictures of the stored size at once
        with lock_of(decoder):
            batch = take(wanted[first : first + 8])
        pictures = batch.data if batch.data.shape[1] == 3 else batch.data.permute(0, 3, 1, 2)
        for slot, picture in enumerate(pictures.cpu(), first):
            buffer.put(slot, picture)
        times += [float(seconds) - begin for seconds in batch.pts_seconds]
    indices = [round(time * rate) for time in times] if rule.num_frames is None else wanted
    about = _metadata(total, rate, (about.width, about.height), length, "torchcodec", indices)
    return SampledVideo(buffer.finish(wanted), times, about)
