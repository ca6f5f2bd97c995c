# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which frames of a clip the model sees, and how they leave the file.

In goes a clip in any form people have one (path, URL, bytes, folder of images, arrays, a segment of these);
out comes a `SampledVideo`: uint8 frames, their times, and what is known about the clip.
Files are decoded with PyAV, one forward pass, and only where a wanted frame needs it.
"""

import base64
import binascii
import contextlib
import io
import ipaddress
import itertools
import logging
import math
import numbers
import os
import re
import socket
import tempfile
import urllib.parse
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, Literal

import numpy as np
import torch


__all__ = [
    "DEFAULT_FPS",
    "SampledVideo",
    "VideoDecodeError",
    "VideoSegment",
    "download_video",
    "sample_video",
    "uniform_indices",
]

logger = logging.getLogger(__name__)

DEFAULT_FPS = 0.5  # one frame every two seconds, as the paper samples

MAX_PIXELS = 8192 * 8192  # of one picture; a header may claim more than any memory holds
MAX_PACKETS = 5_000_000  # 23 hours at 60 frames a second
MAX_SAMPLED_FRAMES = 100_000  # timestamps may claim that a clip lasts for years
MAX_DOWNLOAD_BYTES = 2 * 1024**3
MAX_REDIRECTS = 5
MAX_HELD_BYTES = 64 * 1024**2  # packets kept undecoded in the hope that a keyframe makes them unnecessary
TICK_TOLERANCE = 1e-3  # of a tick: float seconds must not fall just short of the frame they name

# FFmpeg's converter refuses all others, among them "reserved", which cameras write; unspecified is taken as BT.601.
CONVERTED_COLORSPACES = (0, 1, 2, 4, 5, 6, 7, 9)
UNSPECIFIED_COLORSPACE = 2

LOCAL_ADDRESSES_VARIABLE = "VALLEY_ALLOW_LOCAL_ADDRESSES"

# Containers that hold their own pictures. Playlists (hls, dash, concat) and image patterns open other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,nut,wtv,rm,dv,ivf,"
    "swf,h264,hevc,vvc,av1,obu,m4v,mjpeg,vc1,yuv4mpegpipe,wav,mp3,flac,aac"
)
# Their index of keyframes is complete and cheap to seek in.
INDEXED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


class VideoDecodeError(ValueError):
    """A clip that gives no frames: which one, and why.

    Args:
        path (`str`): the file or URL, or a short description of a source that has neither.
        reason (`str`): what is wrong with it, in words.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both in `args`, so that it crosses process borders
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"Cannot read video {self.path!r}: {self.reason}"


@dataclass(frozen=True)
class VideoSegment:
    """A clip cut out of a longer one: any `source` of `sample_video`, from `start` to `end` seconds."""

    source: Any
    start: float | None = None
    end: float | None = None


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
    """

    frames: torch.Tensor
    timestamps: list[float] | None
    metadata: dict[str, Any] = field(default_factory=dict)


def sample_video(
    source: Any,
    fps: float | None = None,
    num_frames: int | Literal["all"] | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    size: int | None = None,
    frame_rate: float | None = None,
) -> SampledVideo:
    """Takes frames out of a clip, evenly in time (`fps`) or a fixed number of them (`num_frames`).

    Sound, subtitles and cover art are ignored. Rotation stored in the file is applied; non-square pixels stay as
    stored; interlaced pictures are not deinterlaced. A damaged frame is replaced by the one before it, with one
    warning for the clip.

    Args:
        source: a path, an http(s), file or data URL, bytes, a binary file object, a folder of images (in natural
            order), a list of PIL images, arrays or image paths, a uint8 array or tensor (T, 3, H, W) or
            (T, H, W, 3), grey with 1 channel, a torchcodec `VideoDecoder`, a `{"path": ..., "bytes": ...}` of
            `datasets.Video(decode=False)` (also with `url`, `video`, `start`, `end`), or a [`VideoSegment`].
        fps (`float`, *optional*, defaults to 0.5 where `num_frames` is not given): takes the frames that a player
            shows at `start`, `start + 1 / fps`, ... before the end; at least one.
        num_frames (`int` or `"all"`, *optional*): takes frames number `np.linspace(0, n - 1, num_frames).astype(int)`
            of the n frames between `start` and `end`, as the 2023 code does; short clips repeat frames. `"all"`
            takes each of the n once.
        max_frames (`int`, *optional*): where `fps` gives more, that many times spread uniformly from the first to
            the last of them. `num_frames` does not look at it.
        start (`float`, *optional*): second where the clip begins.
        end (`float`, *optional*): second before which it ends.
        size (`int`, *optional*): pixels of the short side; the aspect is kept. By default the stored size.
        frame_rate (`float`, *optional*): frames per second of images and arrays. Without it they count as already
            sampled: `fps` takes them all (at most `max_frames`).

    Returns:
        [`SampledVideo`]

    Raises:
        `VideoDecodeError`: the source cannot be read, holds no picture, or ends before `start`.
        `ValueError`, `TypeError`: an argument, or an array, has a value or a type that makes no sense.
    """
    source, start, end = _unwrap_segment(source, start, end)
    rule = _Rule(fps, num_frames, max_frames, start, end)
    size = _check_count("size", size)
    frame_rate = _check_seconds("frame_rate", frame_rate, positive=True)
    with contextlib.ExitStack() as stack:
        source, name = _resolve(source, stack)
        if isinstance(source, _Pictures):
            return _sample_pictures(source, name, rule, size, frame_rate)
        if frame_rate is not None:
            raise ValueError(
                f"frame_rate={frame_rate} is for images and arrays; {name!r} is a video with its own times."
            )
        if hasattr(source, "get_frames_played_at"):
            return _sample_torchcodec(source, name, rule, size)
        return _sample_file(source, name, rule, size)


def uniform_indices(n: int, num_frames: int) -> np.ndarray:
    """Gives `num_frames` of the indices 0 to n - 1, evenly spaced, first and last included: the 2023 code's rule."""
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


class _Rule:
    """Which frames are asked for: times where the rule is `fps`, positions where it is `num_frames`."""

    def __init__(self, fps, num_frames, max_frames, start, end):
        if fps is not None and num_frames is not None:
            raise ValueError(
                f"Both fps={fps} and num_frames={num_frames} are given; choose one, leave the other None."
            )
        self.fps = DEFAULT_FPS if fps is None else _check_seconds("fps", fps, positive=True)
        self.num_frames = num_frames if num_frames == "all" else _check_count("num_frames", num_frames)
        self.max_frames = _check_count("max_frames", max_frames)
        self.start = _check_seconds("start", start)
        self.end = _check_seconds("end", end, positive=True)
        if self.end is not None and (self.start or 0.0) >= self.end:
            raise ValueError(f"The clip must start before it ends, found start={self.start} and end={self.end}.")

    def window(self, length: float, name: str) -> tuple[float, float]:
        """Gives the wanted part of a clip of `length` seconds."""
        start = self.start or 0.0
        if start and start >= length:
            raise VideoDecodeError(name, f"start={start} is past its end; it lasts {length:.3f} seconds.")
        return start, length if self.end is None else min(self.end, length)

    def times(self, length: float, name: str) -> np.ndarray:
        """Gives the seconds at which to look at a clip of `length` seconds."""
        start, end = self.window(length, name)
        count = max(1, math.ceil((end - start) * self.fps - 1e-6))
        if self.max_frames is None or count <= self.max_frames:
            if count > MAX_SAMPLED_FRAMES:
                raise VideoDecodeError(name, f"fps={self.fps} takes {count} frames; lower it or set max_frames.")
            return start + np.arange(count) / self.fps
        return start + np.linspace(0, count - 1, self.max_frames) / self.fps

    def positions(self, begins: list, window: tuple) -> np.ndarray:
        """Gives `num_frames` positions in a sorted list of when frames begin, of those on screen in the window."""
        first = max(0, bisect_right(begins, window[0]) - 1)
        stop = max(first + 1, bisect_left(begins, window[1]))
        return first + self.indices(stop - first)

    def indices(self, n: int) -> np.ndarray:
        """Gives `num_frames` of the indices 0 to n - 1."""
        count = n if self.num_frames == "all" else self.num_frames
        if count > MAX_SAMPLED_FRAMES:
            raise ValueError(f"num_frames={self.num_frames!r} takes {count} frames, more than {MAX_SAMPLED_FRAMES}.")
        return np.arange(n) if self.num_frames == "all" else uniform_indices(n, self.num_frames)


def _check_count(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError(f"{name} must be a whole number or None, found {value!r} of type {type(value).__name__}.")
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, found {value}.")
    return value


def _check_seconds(name: str, value: Any, positive: bool = False) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a number or None, found {value!r} of type {type(value).__name__}.")
    if value is not None and (not math.isfinite(value) or value < 0 or (positive and value == 0)):
        raise ValueError(f"{name} must be finite and {'above 0' if positive else 'not negative'}, found {value}.")
    return value if value is None else float(value)


def _short_side(width: int, height: int, size: int | None, name: str) -> tuple[int, int]:
    """Gives (width, height) with the short side at `size`; the long one is cut to whole pixels, as CLIP's is."""
    if size is None:
        return width, height
    long_side = int(size * max(width, height) / min(width, height))
    if size * long_side > MAX_PIXELS:
        raise VideoDecodeError(name, f"{width}x{height} at size={size} makes more than {MAX_PIXELS} pixels.")
    return (size, long_side) if width <= height else (long_side, size)


# ---------------------------------------------------------------------------------------------------------------
# Where clips come from
# ---------------------------------------------------------------------------------------------------------------


def _unwrap_segment(source: Any, start: float | None, end: float | None) -> tuple[Any, float | None, float | None]:
    """Takes `start` and `end` out of a segment or a dict, and the thing to read."""
    if isinstance(source, Mapping):
        inner = next((source[key] for key in ("bytes", "path", "url", "video") if source.get(key) is not None), None)
        if inner is None:
            raise ValueError(f"A video dict needs one of 'bytes', 'path', 'url', 'video'; found keys {list(source)}.")
        source = VideoSegment(inner, source.get("start"), source.get("end"))
    if not isinstance(source, VideoSegment):
        return source, start, end
    if (source.start, source.end) != (None, None):
        if (start, end) != (None, None):
            raise ValueError("start and end are given both with the source and as arguments; give them once.")
        start, end = source.start, source.end
    return _unwrap_segment(source.source, start, end)


def _resolve(source: Any, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """Turns a source into a path, file object, torchcodec decoder or `_Pictures`, and a name for messages."""
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*,)", source):
        return _resolve_url(source, stack)
    if isinstance(source, str | os.PathLike):
        return _resolve_path(os.fsdecode(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), f"<{memoryview(source).nbytes} bytes>"
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return _pictures_from_sequence(source), f"<{type(source).__name__} of frames>"
    if hasattr(source, "get_frames_played_at") and hasattr(source, "metadata"):
        return source, "<torchcodec decoder>"
    if hasattr(source, "read"):
        return _seekable(source), str(getattr(source, "name", f"<{type(source).__name__}>"))
    if hasattr(source, "convert") and hasattr(source, "size"):
        return _pictures_from_sequence([source]), "<image>"
    raise TypeError(
        f"Cannot read a video from {type(source).__name__}; expected a path, URL, bytes, binary file, folder, list of "
        "images, uint8 array (T, 3, H, W), torchcodec decoder, dict with 'path' or 'bytes', or VideoSegment."
    )


def _resolve_url(url: str, stack: contextlib.ExitStack) -> tuple[Any, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("http", "https"):
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "video")
        download_video(url, path)
        return path, url
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _resolve_path(urllib.parse.unquote(parts.path))
    if parts.scheme == "data":
        header, _, payload = url.partition(",")
        if not header.endswith(";base64"):
            raise VideoDecodeError(header[:64], "a data URL of a video must be base64 encoded.")
        try:
            return io.BytesIO(base64.b64decode(urllib.parse.unquote(payload), validate=True)), header[:64]
        except binascii.Error as error:
            raise VideoDecodeError(header[:64], f"its base64 is damaged ({error}).") from error
    raise VideoDecodeError(url, f"cannot open {parts.scheme!r} addresses; use http, https, file, data or a path.")


def _resolve_path(path: str) -> tuple[Any, str]:
    if os.path.isdir(path):
        return _pictures_from_folder(path), path
    if not os.path.exists(path):
        raise VideoDecodeError(path, "there is no such file.")
    if not os.path.isfile(path):
        raise VideoDecodeError(path, "it is not a regular file.")
    if path.lower().endswith(IMAGE_SUFFIXES):
        return _pictures_from_image(path), path
    return path, path


def _seekable(file: BinaryIO) -> BinaryIO:
    """Gives a file object at its beginning; one that cannot go back is read into memory."""
    if isinstance(file, io.TextIOBase):
        raise TypeError("The video file is open in text mode; open it with mode 'rb'.")
    if not file.seekable():
        return io.BytesIO(file.read())
    file.seek(0)
    return file


def download_video(
    url: str,
    path: str | os.PathLike,
    allow_local_addresses: bool | None = None,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout: float = 30.0,
) -> None:
    """Downloads an http(s) URL to `path`.

    A URL may come from a stranger, so that neither it nor a redirect may point into the local network: each host
    is resolved once, its addresses are checked, and the connection goes to the checked address.

    Args:
        url (`str`): where the video is.
        path (`str` or `os.PathLike`): the file to write.
        allow_local_addresses (`bool`, *optional*): also read from private, loopback and link-local addresses.
            By default what the environment variable `VALLEY_ALLOW_LOCAL_ADDRESSES` says ("1" allows).
        max_bytes (`int`, *optional*, defaults to 2 GiB): larger files are refused.
        timeout (`float`, *optional*, defaults to 30): seconds to wait for the connection and for each piece.

    Raises:
        `VideoDecodeError`: the address is refused, or the server, the network or the size is in the way.
    """
    import httpx2  # what huggingface_hub itself downloads with

    if allow_local_addresses is None:
        allow_local_addresses = os.environ.get(LOCAL_ADDRESSES_VARIABLE) == "1"
    address = httpx2.URL(url)
    try:
        with httpx2.Client(timeout=timeout, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                with client.stream("GET", **_pinned(address, url, allow_local_addresses)) as response:
                    if response.has_redirect_location:
                        address = address.join(response.headers["location"])
                        continue
                    response.raise_for_status()
                    return _write_limited(response.iter_bytes(), path, url, max_bytes)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise VideoDecodeError(url, f"the download failed: {error or type(error).__name__}") from error
    raise VideoDecodeError(url, f"more than {MAX_REDIRECTS} redirects.")


def _pinned(address: Any, url: str, allow_local: bool) -> dict[str, Any]:
    """Gives a request to the checked address of a host, under the host's name (a second look-up could differ)."""
    if address.scheme not in ("http", "https"):
        raise VideoDecodeError(url, f"it redirects to a {address.scheme!r} address; only http and https are read.")
    port = address.port or (443 if address.scheme == "https" else 80)
    found = [info[4][0] for info in socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM)]
    for ip in map(ipaddress.ip_address, found):
        # Inside an IPv6 address there may be an IPv4 one: mapped, 6to4, or behind a NAT64 gateway.
        ip = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if not (allow_local or (ip.is_global and not ip.is_multicast)):
            reason = f"{address.host} is the local address {ip}; set {LOCAL_ADDRESSES_VARIABLE}=1 to allow those."
            raise VideoDecodeError(url, reason)
    return {
        "url": address.copy_with(host=found[0]),
        "headers": {"Host": address.netloc.decode("ascii")},
        "extensions": {"sni_hostname": address.host},
    }


def _write_limited(pieces: Iterable[bytes], path: str | os.PathLike, url: str, max_bytes: int) -> None:
    size = 0
    with open(path, "wb") as file:
        for piece in pieces:
            size += len(piece)
            if size > max_bytes:
                raise VideoDecodeError(url, f"it is larger than {max_bytes} bytes.")
            file.write(piece)


# ---------------------------------------------------------------------------------------------------------------
# Pictures that are already frames
# ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Pictures:
    """Frames that need no video decoder; `load(i)` gives frame i, and `begins` when each appears, if known."""

    count: int
    load: Callable[[int], Any]
    backend: str
    begins: list[float] | None = None
    length: float | None = None


def _pictures_from_sequence(frames: Any) -> _Pictures:
    if isinstance(frames, np.ndarray | torch.Tensor) and frames.ndim != 4:
        raise ValueError(f"Frames must have shape (T, 3, H, W) or (T, H, W, 3), found {tuple(frames.shape)}.")
    if len(frames) == 0:
        raise ValueError("The clip has zero frames; expected at least one.")
    return _Pictures(len(frames), frames.__getitem__, "array" if hasattr(frames, "ndim") else "images")


def _pictures_from_folder(folder: str) -> _Pictures:
    def natural(name: str) -> list:  # frame2 before frame10
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.lower())]

    names = sorted((name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES)), key=natural)
    if not names:
        raise VideoDecodeError(folder, f"the folder has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return _Pictures(len(names), lambda i: os.path.join(folder, names[i]), "images")


def _pictures_from_image(path: str) -> _Pictures:
    """Opens a still image or an animated one (PNG, WebP; FFmpeg decodes GIF and not all of the others)."""
    with _pillow_errors(path):
        from PIL import Image

        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            if count == 1:
                return _Pictures(1, lambda i: path, "images")
            seconds = []
            for i in range(count):
                image.seek(i)
                image.load()
                seconds.append((image.info.get("duration") or 100) / 1000)

    def load(i: int) -> Any:
        with _pillow_errors(path), Image.open(path) as image:
            image.seek(i)
            return image.convert("RGB")

    ends = np.cumsum(seconds).tolist()
    return _Pictures(count, load, "images", [0.0, *ends[:-1]], ends[-1])


@contextlib.contextmanager
def _pillow_errors(path: str) -> Iterator[None]:
    from PIL import Image

    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow raises
        raise VideoDecodeError(path, f"not a readable image ({error}).") from error


def _sample_pictures(
    pictures: _Pictures, name: str, rule: _Rule, size: int | None, frame_rate: float | None
) -> SampledVideo:
    begins, length = pictures.begins, pictures.length
    if frame_rate is not None:
        begins = [i / frame_rate for i in range(pictures.count)]
        length = pictures.count / frame_rate
    if begins is not None and rule.num_frames is not None:
        indices = rule.positions(begins, rule.window(length, name))
    elif begins is not None:
        indices = np.searchsorted(begins, rule.times(length, name) + 1e-9, side="right") - 1
    elif rule.start is not None or rule.end is not None:
        raise ValueError(f"start and end cut a clip in seconds, but {name!r} has no times; give frame_rate.")
    else:
        count = min(pictures.count, rule.max_frames or pictures.count)
        indices = rule.indices(pictures.count) if rule.num_frames else uniform_indices(pictures.count, count)
    frames, height, width = _load_pictures(pictures, indices.tolist(), name, size)
    return SampledVideo(
        frames,
        None if begins is None else [begins[i] for i in indices],
        _metadata(
            pictures.count, length and pictures.count / length, (width, height), length, pictures.backend, indices
        ),
    )


def _load_pictures(
    pictures: _Pictures, indices: list[int], name: str, size: int | None
) -> tuple[torch.Tensor, int, int]:
    """Gives the chosen frames and the height and width of the first before resizing; repeated ones load once."""
    frames, shape, last = None, None, None
    for row, index in enumerate(indices):
        if index == last:
            frames[row] = frames[row - 1]
            continue
        picture = _to_tensor(pictures.load(index), name)
        shape = shape or picture.shape
        if picture.shape != shape:
            raise VideoDecodeError(
                name, f"frame {index} is {picture.shape[2]}x{picture.shape[1]}, the first {shape[2]}x{shape[1]}."
            )
        picture = _resize(picture, size, name)
        frames = torch.empty(len(indices), *picture.shape, dtype=torch.uint8) if frames is None else frames
        frames[row], last = picture, index
    return frames, shape[1], shape[2]


def _to_tensor(picture: Any, name: str) -> torch.Tensor:
    """Turns an image path, a PIL image or a uint8 array of one frame into a uint8 tensor (3, H, W)."""
    if isinstance(picture, str | os.PathLike):
        from PIL import Image, ImageOps

        with _pillow_errors(os.fsdecode(picture)), Image.open(picture) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
    elif hasattr(picture, "convert"):
        picture = picture.convert("RGB")
    elif not isinstance(picture, np.ndarray | torch.Tensor):
        raise TypeError(f"A frame must be an image, an image path or an array, found {type(picture).__name__}.")
    picture = torch.as_tensor(picture if isinstance(picture, torch.Tensor) else np.array(picture)).cpu()
    if picture.dtype != torch.uint8:
        raise ValueError(
            f"Frames must be uint8 from 0 to 255, found {picture.dtype}. "
            "Convert them first; floats from 0 to 1 with (frames * 255).round() and a cast to uint8."
        )
    if picture.ndim != 3 or 0 in picture.shape or not {picture.shape[0], picture.shape[2]} & {1, 3}:
        raise ValueError(f"A frame of {name} must be (3, H, W) or (H, W, 3), found {tuple(picture.shape)}.")
    picture = picture if picture.shape[0] in (1, 3) else picture.permute(2, 0, 1)
    return picture.expand(3, -1, -1)


def _resize(pictures: torch.Tensor, size: int | None, name: str) -> torch.Tensor:
    height, width = pictures.shape[-2:]
    new_width, new_height = _short_side(width, height, size, name)
    if (new_width, new_height) == (width, height):
        return pictures
    batch = pictures.reshape(-1, 3, height, width)
    resized = torch.nn.functional.interpolate(batch, (new_height, new_width), mode="bicubic", antialias=True)
    return resized.reshape(*pictures.shape[:-2], new_height, new_width)


def _sample_torchcodec(decoder: Any, name: str, rule: _Rule, size: int | None) -> SampledVideo:
    """Takes frames from a decoder that is already open; it cannot say when each frame begins, only how many."""
    about = decoder.metadata
    begin, total, rate = about.begin_stream_seconds or 0.0, about.num_frames, about.average_fps
    length = about.end_stream_seconds - begin
    if rule.num_frames is None:
        wanted, take = (begin + rule.times(length, name)).tolist(), decoder.get_frames_played_at
    else:
        wanted = rule.positions([i / rate for i in range(total)], rule.window(length, name)).tolist()
        take = decoder.get_frames_at
    frames, times = [], []
    for i in range(0, len(wanted), 8):  # never many pictures of the stored size at once
        batch = take(wanted[i : i + 8])
        pictures = batch.data if batch.data.shape[1] == 3 else batch.data.permute(0, 3, 1, 2)
        frames.append(_resize(pictures.cpu(), size, name))
        times += [float(seconds) - begin for seconds in batch.pts_seconds]
    indices = [round(time * rate) for time in times] if rule.num_frames is None else wanted
    return SampledVideo(
        torch.cat(frames),
        times,
        _metadata(total, rate, (about.width, about.height), length, "torchcodec", indices),
    )


# ---------------------------------------------------------------------------------------------------------------
# Video files
# ---------------------------------------------------------------------------------------------------------------


def _sample_file(source: str | BinaryIO, name: str, rule: _Rule, size: int | None) -> SampledVideo:
    with contextlib.closing(_Clip(source, name)) as clip:
        timeline = _Timeline.read(clip, count=rule.num_frames is not None)
        ticks = _wanted_ticks(timeline, rule, name)
        rows = _Rows(len(ticks), size, name)
        if clip.untimed:
            shown = ticks
            missing = _decode_in_order(clip, shown, rows)
        else:
            shown, missing = _decode_sparsely(clip, ticks, rows)
            if missing:  # a keyframe that does not stand alone, or damage: only a full decode can tell
                missing = _decode_in_order(clip, shown, rows)
        if missing:
            logger.warning("%s: %d damaged frames are replaced by the ones before them.", name, missing)
        frames = rows.finish(shown)
        times = [timeline.seconds(pts) for pts in shown]
        rate = clip.rate and float(clip.rate)
        if timeline.shown is None:
            total, indices = clip.stream.frames or None, [round(time * (rate or 0)) for time in times]
        else:
            total, indices = len(timeline.shown), [bisect_left(timeline.shown, pts) for pts in shown]
        duration = timeline.seconds(timeline.stop)
        return SampledVideo(frames, times, _metadata(total, rate, rows.stored, duration, "pyav", indices))


def _wanted_ticks(timeline: "_Timeline", rule: _Rule, name: str) -> list[int]:
    """Gives the moments to look at, in ticks of the stream's clock."""
    if rule.num_frames is None:
        return [timeline.tick(second) for second in rule.times(timeline.seconds(timeline.stop), name)]
    start, end = rule.window(timeline.seconds(timeline.stop), name)
    window = timeline.tick(start), min(math.ceil(timeline.ticks(end) - TICK_TOLERANCE), timeline.stop)
    return [timeline.shown[i] for i in rule.positions(timeline.shown, window)]


class _Clip:
    """The video stream of one open file: its packets in decode order, and what the container knows."""

    def __init__(self, source: str | BinaryIO, name: str):
        self.source, self.name = source, name
        self.container = None
        self.open()
        # A raw stream has no times, and AVI has none that fit pictures displayed out of order.
        self.untimed = self.container.format.name == "avi" and self.codec.name in ("h264", "hevc")

    def open(self) -> None:
        """Opens the file, or opens it again to read from its beginning."""
        import av
        from av.stream import Discard

        self.close()
        if not isinstance(self.source, str):
            self.source.seek(0)
        file = f"file:{self.source}" if isinstance(self.source, str) else self.source
        limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        limited_codec = {"max_pixels": str(MAX_PIXELS)}
        try:
            self.container = av.open(
                file, options=limited_codec, container_options=limits, metadata_errors="ignore", mode="r"
            )
        except av.FFmpegError as error:
            raise VideoDecodeError(self.name, self._why_not_opened(error)) from error
        self.stream = self._choose_stream()
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1  # few pictures are decoded in a row: threads cost more than they bring
        self.codec.options = limited_codec
        self.rate = self.stream.average_rate or self.stream.guessed_rate
        self.indexed = self.container.format.name in INDEXED_CONTAINERS

    def _why_not_opened(self, error: Exception) -> str:
        size = os.path.getsize(self.source) if isinstance(self.source, str) else self.source.seek(0, io.SEEK_END)
        if size == 0:
            return "the file is empty."
        return f"not a video, or its header is damaged or missing (FFmpeg: {error.strerror})."

    def _choose_stream(self) -> Any:
        from av.stream import Disposition

        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoDecodeError(self.name, "it has no video stream.")
        best = self.container.streams.best("video")
        stream = next((s for s in streams if s is best), streams[0])
        if stream.codec_context is None:
            raise VideoDecodeError(self.name, "there is no decoder for its codec.")
        if stream.width * stream.height > MAX_PIXELS:
            raise VideoDecodeError(
                self.name, f"it claims {stream.width}x{stream.height} pixels; the limit is {MAX_PIXELS}."
            )
        return stream

    def packets(self) -> Iterator[Any]:
        """Gives the packets from where the file stands to its end, or to where it cannot be read any further."""
        import av

        try:
            for count, packet in enumerate(self.container.demux(self.stream)):
                if count > MAX_PACKETS:
                    raise VideoDecodeError(self.name, f"it has more than {MAX_PACKETS} packets.")
                if packet.size:  # an empty packet would end the decoder's work
                    yield packet
        except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV at the end of a file that gained a stream
            logger.debug("%s: reading ends early: %s", self.name, error)

    def seek(self, timestamp: int) -> Iterator[Any]:
        """Gives the packets from the keyframe at or before an index time on."""
        import av

        try:
            self.container.seek(timestamp, stream=self.stream)
        except av.FFmpegError:
            return iter(())
        return self.packets()

    def learn_delay(self, first_pts: int) -> None:
        """Compares the first picture's time with the index, which in some containers holds decode times."""
        entries = self.stream.index_entries
        self.indexed = self.indexed and len(entries) > 0
        self.delay = first_pts - entries[0].timestamp if self.indexed else 0

    def skips_unreferenced(self) -> bool:
        """Whether the decoder can leave out exactly the pictures that no other picture needs."""
        if self.codec.name == "hevc":  # exact with one temporal layer, which only an hvcC header tells
            header = self.codec.extradata or b""
            return len(header) > 21 and header[0] == 1 and (header[21] >> 3) & 7 == 1
        return self.codec.name in ("h264", "mpeg1video", "mpeg2video")

    def close(self) -> None:
        if self.container is not None:
            self.container.close()


@dataclass
class _Timeline:
    """When a clip begins and ends, in ticks; `shown` are the times of all its frames, where they were counted."""

    first: int
    stop: int
    tick_seconds: Fraction
    shown: list[int] | None = None

    @classmethod
    def read(cls, clip: _Clip, count: bool) -> "_Timeline":
        """Looks at the packets, decoding nothing: all of them to `count`, else both ends where the index allows."""
        timeline = None if count or clip.untimed or not clip.indexed else cls._read_ends(clip)
        return timeline or cls._read_all(clip)

    @classmethod
    def _read_ends(cls, clip: _Clip) -> "_Timeline | None":
        tick = clip.stream.time_base
        length = clip.stream.duration or (clip.container.duration and int(clip.container.duration / 10**6 / tick))
        head = list(_Facts.until_known(clip.packets()))
        if not length or not _Facts.usable(head):
            return None
        first = _Facts.shown(head)[0].pts
        tail = [_Facts.of(packet) for packet in clip.seek(first + length)]
        if not _Facts.usable(tail) or not tail[0].key:
            return None
        clip.learn_delay(head[0].pts)
        return cls(first, _Facts.shown(tail)[-1].end(clip), tick)

    @classmethod
    def _read_all(cls, clip: _Clip) -> "_Timeline":
        clip.open()
        facts = [_Facts.of(packet) for packet in clip.packets()]
        if not facts:
            raise VideoDecodeError(clip.name, "it holds no pictures; the file is probably cut off.")
        if clip.untimed or not _Facts.usable(facts):  # frames have an order, and times only by the rate
            clip.untimed = True
            clip.rate = clip.stream.guessed_rate or clip.stream.average_rate or Fraction(25)
            return cls(0, len(facts), 1 / Fraction(clip.rate), list(range(len(facts))))
        clip.learn_delay(facts[0].pts)
        shown = _Facts.shown(facts)
        times = sorted({fact.pts for fact in shown})
        return cls(times[0], shown[-1].end(clip), clip.stream.time_base, times)

    def ticks(self, seconds: float) -> float:
        return self.first + seconds / float(self.tick_seconds)

    def tick(self, seconds: float) -> int:
        return math.floor(self.ticks(seconds) + TICK_TOLERANCE)

    def seconds(self, tick: int) -> float:
        return float((tick - self.first) * self.tick_seconds)


@dataclass(slots=True)
class _Facts:
    """What a packet says about its picture."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    discard: bool

    @classmethod
    def of(cls, packet: Any) -> "_Facts":
        return cls(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_discard)

    @classmethod
    def until_known(cls, packets: Iterator[Any]) -> Iterator["_Facts"]:
        """Gives the first packets, until none that follows can be shown before them."""
        earliest = math.inf
        for fact in map(cls.of, packets):
            yield fact
            if fact.pts is None or (fact.dts is not None and fact.dts >= earliest):
                return
            if not fact.discard:
                earliest = min(earliest, fact.pts)

    @staticmethod
    def usable(facts: list["_Facts"]) -> bool:
        return all(fact.pts is not None for fact in facts) and bool(_Facts.shown(facts))

    @staticmethod
    def shown(facts: list["_Facts"]) -> list["_Facts"]:
        """Gives what is displayed, in that order: nothing that leans on a picture before the first keyframe."""
        start = next((i for i, fact in enumerate(facts) if fact.key), len(facts))
        displayed = [fact for fact in facts[start:] if not fact.discard and fact.pts >= facts[start].pts]
        return sorted(displayed, key=lambda fact: fact.pts)

    def end(self, clip: _Clip) -> int:
        rate = clip.stream.guessed_rate or clip.rate
        return self.pts + (self.duration or (rate and round(1 / (rate * clip.stream.time_base))) or 1)


class _Rows:
    """The frames that leave: converted to RGB, resized and turned as they come, each into its row."""

    def __init__(self, count: int, size: int | None, name: str):
        self.count, self.size, self.name = count, size, name
        self.frames = None

    def put(self, row: int, frame: Any) -> None:
        if self.frames is None:
            self._allocate(frame)
        picture = self._to_rgb(frame).to_ndarray()
        picture = np.ascontiguousarray(np.rot90(picture, self.quarter_turns))
        self.frames[row] = torch.from_numpy(picture).permute(2, 0, 1)

    def _to_rgb(self, frame: Any) -> Any:
        import av

        if frame.colorspace not in CONVERTED_COLORSPACES:
            frame.colorspace = UNSPECIFIED_COLORSPACE
        try:
            return self.reformatter.reformat(
                frame, *self.stream_size, format="rgb24", interpolation=self.interpolation, threads=1
            )
        except av.FFmpegError as error:
            reason = f"{frame.format.name} pictures cannot be turned into RGB (FFmpeg: {error.strerror})."
            raise VideoDecodeError(self.name, reason) from error

    def _allocate(self, frame: Any) -> None:
        from av.video.reformatter import Interpolation as Use
        from av.video.reformatter import VideoReformatter

        self.reformatter = VideoReformatter()
        # Within 0.3 grey levels of Pillow's bicubic; without full chroma and accurate rounding it is 2.
        self.interpolation = Use.BICUBIC | Use.FULL_CHR_H_INT | Use.FULL_CHR_H_INP | Use.ACCURATE_RND
        self.quarter_turns = round(frame.rotation / 90) % 4
        self.stream_size = _short_side(frame.width, frame.height, self.size, self.name)
        turn = slice(None, None, -1 if self.quarter_turns % 2 else 1)
        self.stored = (frame.width, frame.height)[turn]
        shape = (self.count, 3, *self.stream_size[::-1][turn])
        try:
            self.frames = torch.empty(shape, dtype=torch.uint8)
        except RuntimeError as error:
            raise VideoDecodeError(self.name, f"frames {shape} do not fit into memory; lower fps or size.") from error

    def finish(self, shown: list[int]) -> torch.Tensor:
        """Gives the frames, with those that are wanted several times repeated."""
        if self.frames is None:
            raise VideoDecodeError(self.name, "no frame could be decoded.")
        for row in range(1, self.count):
            if shown[row] == shown[row - 1]:
                self.frames[row] = self.frames[row - 1]
        return self.frames


class _Decoder:
    """Feeds packets and puts the wanted pictures into their rows, in display order."""

    def __init__(self, clip: _Clip, rows: _Rows):
        self.clip, self.rows = clip, rows
        self.can_skip = clip.skips_unreferenced()
        self.wanted = deque()  # (time, row) still to come out
        self.frames = deque()  # the last one at or before the next wanted time, and those after it
        self.count = 0
        self.missing = 0

    def feed(self, packet: Any, skippable: bool = False) -> None:
        import av

        self.clip.codec.skip_frame = "NONREF" if skippable and self.can_skip else "DEFAULT"
        try:
            frames = self.clip.codec.decode(packet)
        except av.FFmpegError:  # a damaged packet; a picture that does not come is counted when its turn is over
            return
        for frame in frames:
            if self.clip.untimed:
                frame.pts = self.count
            self.count += 1
            if frame.pts is not None:
                self.frames.append(frame)
        self._settle()

    def drain(self) -> None:
        """Takes what the decoder still holds and makes it ready for a keyframe."""
        if self.clip.codec.is_open:
            self.feed(None)
            self.clip.codec.flush_buffers()
            self._settle(last=True)
            while len(self.frames) > 1:  # the first may have to stand in for a damaged one
                self.frames.pop()

    def forget_before(self, pts: float) -> None:
        while len(self.frames) > 1 and self.frames[1].pts <= pts:
            self.frames.popleft()

    def want(self, pts: int, row: int) -> None:
        self.wanted.append((pts, row))
        self._settle()

    def _settle(self, last: bool = False) -> None:
        while self.wanted and self.frames:
            pts, row = self.wanted[0]
            self.forget_before(pts)
            found = self.frames[0].pts == pts
            if not (found or last or self.frames[-1].pts > pts):
                return
            self.rows.put(row, self.frames[0])
            self.missing += not found
            self.wanted.popleft()


def _decode_in_order(clip: _Clip, shown: list[int], rows: _Rows) -> int:
    """Decodes from the beginning until all of `shown` have come out; returns how many did not."""
    clip.open()
    decoder = _Decoder(clip, rows)
    for row, pts in enumerate(shown):
        if row == 0 or pts != shown[row - 1]:
            decoder.want(pts, row)
    for packet in clip.packets():
        decoder.feed(packet)
        if not decoder.wanted:
            return decoder.missing
    decoder.drain()
    return decoder.missing


def _decode_sparsely(clip: _Clip, ticks: list[int], rows: _Rows) -> tuple[list[int], int]:
    """Decodes what is on screen at `ticks` and little else; returns the frames' times and how many are damaged."""
    decoder = _Decoder(clip, rows)
    reader = _SparseReader(clip, decoder)
    shown = []
    for row, tick in enumerate(ticks):
        pts = reader.find(tick)
        if not shown or pts != shown[-1]:
            reader.fetch(pts, row)
        shown.append(pts)
    decoder.drain()
    return shown, decoder.missing


class _SparseReader:
    """Finds the packet on screen at a time by reading on, or seeking, and decodes from its keyframe up to it."""

    def __init__(self, clip: _Clip, decoder: _Decoder):
        self.clip, self.decoder = clip, decoder
        self._begin(iter(()) if clip.indexed else None)  # with an index, the first search seeks

    def _begin(self, packets: Iterator[Any] | None = None) -> None:
        """Starts again from the beginning of the file, or with the packets after a seek."""
        if packets is None:
            self.decoder.drain()
            self.clip.open()
            packets = self.clip.packets()
        self.packets = packets
        self.group = deque()  # packets from the last useful keyframe on, not yet decoded
        self.group_bytes = 0
        self.fresh = True  # the decoder must not connect the group to what it had before
        self.known = []  # times of the pictures read that may be on screen from now on
        self.newest_key = None
        self.decoded_to = -math.inf  # decode time of the last packet read

    def find(self, tick: int) -> int:
        """Gives the time of the picture on screen at `tick`: the largest one not after it."""
        self._seek_towards(tick)
        self._forget_before_keyframe(tick)
        while self.decoded_to <= tick:  # a picture shown at or before `tick` is decoded before it
            packet = next(self.packets, None)
            if packet is None:
                break
            self._append(packet)
            if packet.is_keyframe:
                self._forget_before_keyframe(tick)
            if self.group_bytes > MAX_HELD_BYTES:
                self._decode_passed(tick)
        if not self.known:
            raise VideoDecodeError(
                self.clip.name, f"it cannot be read {float(tick * self.clip.stream.time_base):.1f} s in."
            )
        on_screen = max((pts for pts in self.known if pts <= tick), default=min(self.known))
        self.known = [pts for pts in self.known if pts >= on_screen]
        return on_screen

    def fetch(self, pts: int, row: int) -> None:
        """Decodes up to the picture at `pts`, unless another one has needed it already."""
        waits = any(packet.pts == pts for packet in self.group)
        if waits:
            self._part_from_the_past()
        self.decoder.want(pts, row)
        while waits and self._feed_next(pts) != pts:
            pass

    def _part_from_the_past(self) -> None:
        """Empties the decoder where the group does not follow what it had; what is wanted comes out here or never."""
        if self.fresh:
            self.decoder.drain()
            self.fresh = False

    def _feed_next(self, pts: int) -> int | None:
        packet = self.group.popleft()
        self.group_bytes -= packet.size
        self.decoder.feed(packet, skippable=packet.pts is not None and packet.pts < pts)
        return packet.pts

    def _append(self, packet: Any) -> None:
        if self.newest_key is None and not packet.is_keyframe:
            return  # nothing can be decoded before the first keyframe
        if packet.dts is not None:
            self.decoded_to = packet.dts
        if packet.is_keyframe and packet.pts is not None:
            self.newest_key = packet.pts
        if packet.pts is not None and not packet.is_discard:
            self.known.append(packet.pts)
        self.group.append(packet)
        self.group_bytes += packet.size

    def _forget_before_keyframe(self, tick: int) -> None:
        """Drops, undecoded, what lies before the last keyframe shown at or before `tick`."""
        keys = [i for i, p in enumerate(self.group) if p.is_keyframe and p.pts is not None and p.pts <= tick]
        if not keys:
            return
        for _ in range(keys[-1]):
            self.group_bytes -= self.group.popleft().size
        self.fresh = True
        key = self.group[0]
        if not key.is_discard:
            self.known = [pts for pts in self.known if pts >= key.pts]

    def _decode_passed(self, tick: int) -> None:
        """Bounds the memory of a very long group of pictures: decodes the part that is certainly over at `tick`."""
        on_screen = max((pts for pts in self.known if pts <= tick), default=-math.inf)
        self._part_from_the_past()
        while self.group_bytes > MAX_HELD_BYTES and self.group[0].pts is not None and self.group[0].pts < on_screen:
            self._feed_next(on_screen)
            self.decoder.forget_before(on_screen)

    def _seek_towards(self, tick: int) -> None:
        """Goes to the last keyframe shown at or before `tick`, where the index knows one that has not been read."""
        if not self.clip.indexed:
            return
        entries = self.clip.stream.index_entries
        index = entries.search_timestamp(tick - self.clip.delay)
        if self.newest_key is not None and (
            index < 0 or entries[index].timestamp + self.clip.delay <= self.newest_key
        ):
            return
        self.decoder.drain()
        for _ in range(2):  # where the landing is shown after `tick`, the keyframe before it
            packets = self.clip.seek(entries[index].timestamp) if index >= 0 else iter(())
            landing = next(packets, None)
            if landing is not None and landing.is_keyframe and landing.pts is not None and landing.pts <= tick:
                return self._begin(itertools.chain([landing], packets))
            index = entries.search_timestamp(entries[index].timestamp - 1) if index >= 0 else -1
        self.clip.indexed = False  # its index is wrong: read everything
        self._begin()
