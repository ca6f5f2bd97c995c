# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Where clips come from: paths, URLs, bytes, folders of images, arrays, and segments of these.

In goes what people have; out comes a file that FFmpeg may open, or `Pictures` that need no video decoder.
A source may come from a stranger: what it can reach and how much it can take is limited here.
"""

import base64
import contextlib
import io
import ipaddress
import os
import re
import socket
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch


__all__ = [
    "Pictures",
    "VideoDecodeError",
    "VideoSegment",
    "download_video",
    "pillow_errors",
    "resolve",
    "unwrap_segment",
]

MAX_DOWNLOAD_BYTES = 2 * 1024**3
MAX_DOWNLOAD_SECONDS = 600.0
MAX_REDIRECTS = 5
LOCAL_ADDRESSES_VARIABLE = "VALLEY_ALLOW_LOCAL_ADDRESSES"
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


def unwrap_segment(source: Any, start: float | None, end: float | None) -> tuple[Any, float | None, float | None]:
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
    return unwrap_segment(source.source, start, end)


def resolve(source: Any, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """Turns a source into a path, file object, torchcodec decoder or `Pictures`, and a name for messages."""
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", source):
        return _resolve_url(source, stack)
    if isinstance(source, str | os.PathLike):
        return _resolve_path(os.fsdecode(source), stack)
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
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise VideoDecodeError(url, f"it is no address ({error}).") from error
    if parts.scheme in ("http", "https"):
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "video")
        download_video(url, path)
        return path, url
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _resolve_path(urllib.parse.unquote(parts.path), stack)
    if parts.scheme == "data":
        header, _, payload = url.partition(",")
        if not header.endswith(";base64"):
            raise VideoDecodeError(header[:64], "a data URL of a video must be base64 encoded.")
        try:
            return io.BytesIO(base64.b64decode(urllib.parse.unquote(payload), validate=True)), header[:64]
        except ValueError as error:
            raise VideoDecodeError(header[:64], f"its base64 is damaged ({error}).") from error
    raise VideoDecodeError(url, f"cannot open {parts.scheme!r} addresses; use http, https, file, data or a path.")


def _resolve_path(path: str, stack: contextlib.ExitStack) -> tuple[Any, str]:
    if os.path.isdir(path):
        return _pictures_from_folder(path), path
    if not os.path.exists(path):
        raise VideoDecodeError(path, "there is no such file.")
    if not os.path.isfile(path):
        raise VideoDecodeError(path, "it is not a regular file.")
    if not os.access(path, os.R_OK):
        raise VideoDecodeError(path, "permission denied: this user may not read it.")
    if path.lower().endswith(IMAGE_SUFFIXES):
        return _pictures_from_image(path, stack), path
    return path, path


def _seekable(file: BinaryIO) -> BinaryIO:
    """Gives a file object at its beginning; one that cannot go back is read into memory."""
    if isinstance(file, io.TextIOBase):
        raise TypeError("The video file is open in text mode; open it with mode 'rb'.")
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
        return file
    content = io.BytesIO()
    while piece := file.read(2**20):  # a raw stream gives less than it is asked for
        content.write(piece)
        if content.tell() > MAX_DOWNLOAD_BYTES:
            raise VideoDecodeError(str(file), f"the stream is larger than {MAX_DOWNLOAD_BYTES} bytes.")
    return content


def download_video(
    url: str,
    path: str | os.PathLike,
    allow_local_addresses: bool | None = None,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout: float = 30.0,
    max_seconds: float = MAX_DOWNLOAD_SECONDS,
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
        max_seconds (`float`, *optional*, defaults to 600): seconds for the whole download, redirects included.

    Raises:
        `VideoDecodeError`: the address is refused, or the server, the network or the size is in the way.
    """
    import httpx2  # what huggingface_hub itself downloads with

    if allow_local_addresses is None:
        allow_local_addresses = os.environ.get(LOCAL_ADDRESSES_VARIABLE) == "1"
    late = threading.Event()
    with httpx2.Client(timeout=timeout, follow_redirects=False) as client:
        # A server that sends a byte now and then would keep every single read within its `timeout`.
        deadline = threading.Timer(max_seconds, lambda: (late.set(), client.close()))
        deadline.daemon = True
        deadline.start()
        try:
            address = httpx2.URL(url)
            for _ in range(MAX_REDIRECTS + 1):
                with client.stream("GET", **_pinned(address, url, allow_local_addresses)) as response:
                    if response.has_redirect_location:
                        address = address.join(response.headers["location"])
                        continue
                    response.raise_for_status()
                    return _write_limited(response.iter_bytes(), path, url, max_bytes)
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, OSError, RuntimeError) as error:
            reason = (
                f"it takes longer than {max_seconds:g} seconds" if late.is_set() else error or type(error).__name__
            )
            raise VideoDecodeError(url, f"the download failed: {reason}") from error
        finally:
            deadline.cancel()
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
class Pictures:
    """Frames that need no video decoder; `load(i)` gives frame i, and `begins` when each appears, if known."""

    count: int
    load: Callable[[int], Any]
    backend: str
    begins: list[float] | None = None
    length: float | None = None


def _pictures_from_sequence(frames: Any) -> Pictures:
    if isinstance(frames, np.ndarray | torch.Tensor) and frames.ndim != 4:
        raise ValueError(f"Frames must have shape (T, 3, H, W) or (T, H, W, 3), found {tuple(frames.shape)}.")
    if len(frames) == 0:
        raise ValueError("The clip has zero frames; expected at least one.")
    return Pictures(len(frames), frames.__getitem__, "array" if hasattr(frames, "ndim") else "images")


def _pictures_from_folder(folder: str) -> Pictures:
    def natural(name: str) -> list:  # frame2 before frame10
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.lower())]

    try:
        names = os.listdir(folder)
    except OSError as error:
        raise VideoDecodeError(folder, f"the folder cannot be listed ({error.strerror}).") from error
    names = sorted((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), key=natural)
    if not names:
        raise VideoDecodeError(folder, f"the folder has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return Pictures(len(names), lambda i: os.path.join(folder, names[i]), "images")


def _pictures_from_image(path: str, stack: contextlib.ExitStack) -> Pictures:
    """Opens a still image or an animated one (PNG, WebP; FFmpeg decodes GIF and not all of the others)."""
    with pillow_errors(path):
        from PIL import Image

        image = stack.enter_context(Image.open(path))  # once: each frame builds on the one before
        count = getattr(image, "n_frames", 1)
        if count == 1:
            return Pictures(1, lambda i: path, "images")
        seconds = []
        for i in range(count):
            image.seek(i)
            image.load()
            seconds.append((image.info.get("duration") or 100) / 1000)

    def load(i: int) -> Any:
        with pillow_errors(path):
            image.seek(i)
            return image.convert("RGB")

    ends = np.cumsum(seconds).tolist()
    return Pictures(count, load, "images", [0.0, *ends[:-1]], ends[-1])


@contextlib.contextmanager
def pillow_errors(path: str) -> Iterator[None]:
    from PIL import Image

    try:
        yield
    # All that Pillow raises for damaged files.
    except (OSError, SyntaxError, TypeError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        raise VideoDecodeError(path, f"not a readable image ({error or type(error).__name__}).") from error
