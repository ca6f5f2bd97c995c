# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Where clips and pictures come from: paths, URLs, bytes, files, folders of pictures, arrays, and parts of these.

Input: what people have. Output: for a clip a file that FFmpeg may open, or `Pictures` that need no video decoder; for
an image one RGB picture. What a file is, its content says, not its name.
A source may come from an untrusted client: what it can reach and how much it can take is limited here.
"""

import base64
import contextlib
import io
import ipaddress
import os
import re
import socket
import string
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, BinaryIO

import numpy as np
import torch

from .video_interrupts import CHECK


__all__ = [
    "MAX_PIXELS",
    "NO_SUCH_FILE",
    "PICTURE_FORMATS",
    "ReadInterrupted",
    "Pictures",
    "SharedFile",
    "VideoDecodeError",
    "VideoSegment",
    "check_animation",
    "check_picture_size",
    "download_video",
    "is_frame",
    "load_image",
    "lock_of",
    "pillow_errors",
    "resolve",
    "to_rgb",
    "unwrap_segment",
]

MAX_DOWNLOAD_BYTES = 2 * 1024**3
MAX_DOWNLOAD_SECONDS = 600.0
MAX_REDIRECTS = 5
LOCAL_ADDRESSES_VARIABLE = "VALLEY_ALLOW_LOCAL_ADDRESSES"
MAX_PIXELS = 8192 * 8192  # of one picture; a header may claim more than any memory holds
MAX_SIDES_RATIO = 100  # of a picture's longer side to its shorter one, which is scaled to that of the model
MAX_PICTURES = 10_000  # of an animated picture, or in one address
MAX_ANIMATION_PIXELS = 2**33  # of all its pictures: each is made from the one before, however few bytes it has
NO_SUCH_FILE = "there is no such file."
MAX_NAME = 200  # characters of a source in a message: base64 has no end

# What counts as a picture, by Pillow's names. No others are opened: some start programs, such as EPS.
PICTURE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Those of which FFmpeg makes frames itself where they are clips.
_VIDEO_FORMATS = ("GIF",)


class VideoDecodeError(ValueError):
    """A clip or picture that cannot be read: which one, and why.

    Args:
        path (`str`): the file or URL, or a short description of a source that has neither.
        reason (`str`): what is wrong with it, in words.
        hint (`str`, *optional*): which argument would take it all the same, for those who can give it.
    """

    def __init__(self, path: str, reason: str, hint: str = ""):
        path = path if len(path) <= MAX_NAME else f"{path[:MAX_NAME]}… ({len(path)} characters)"
        super().__init__(path, reason, hint)  # all in `args`, so that it crosses process borders
        self.path = path
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"Cannot read video {self.path!r}: {self.reason} {self.hint}".rstrip()


class ReadInterrupted(VideoDecodeError):
    """Reading was ended from outside, see [`interrupted_by`]: that is no damage, and nothing of the clip is taken."""


@dataclass(frozen=True)
class VideoSegment:
    """A clip with settings of its own: any `source` of `sample_video`, from `start` to `end` seconds.

    `fps` or `num_frames`, and `max_frames`, say which frames are taken of this clip.
    """

    source: Any
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments except the source."""
        values = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {name: value for name, value in values.items() if value is not None}


class SharedFile(io.BufferedIOBase):
    """
    A view of a file object, with a position of its own: clips of one batch, in threads, may come from one object.

    Args:
        file (binary file object): can seek, and stays open.

    Attributes:
        error (`BaseException`, *optional*): the last one that the file object raised.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.position, self.error = file, 0, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @contextlib.contextmanager
    def _file(self) -> Iterator[BinaryIO]:
        with lock_of(self.file):
            try:
                yield self.file
            except BaseException as error:
                self.error = error
                raise

    def read(self, size: int = -1) -> bytes:
        with self._file() as file:
            if file.tell() != self.position:
                file.seek(self.position)
            data = file.read(size)
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            with self._file() as file:
                file.seek(offset, whence)
                self.position = file.tell()
        else:
            self.position = offset + (self.position if whence == io.SEEK_CUR else 0)
        return self.position

    def tell(self) -> int:
        return self.position


_LOCKS = [threading.RLock() for _ in range(64)]


def lock_of(shared: Any) -> threading.RLock:
    """The lock to hold while one object, which knows no threads, is read; now and then two objects share one."""
    return _LOCKS[id(shared) // 16 % len(_LOCKS)]


_SOURCE_KEYS = ("bytes", "path", "url", "video")
_SETTINGS = tuple(field.name for field in fields(VideoSegment)[1:])


def unwrap_segment(source: Any) -> VideoSegment:
    """Any source as a segment: a dict, such as a value of `datasets.Video(decode=False)`, or a segment taken apart.

    Raises:
        ValueError: if a dict has no source or an unknown key, or a setting is given twice.
    """
    if isinstance(source, Mapping):
        if unknown := sorted(str(key) for key in source.keys() - {*_SOURCE_KEYS, *_SETTINGS, "type"}):
            raise ValueError(
                f"A video dict has the unknown keys {unknown}; it may have {', '.join(_SOURCE_KEYS)} and "
                f"{', '.join(_SETTINGS)}."
            )
        inner = next((source[key] for key in _SOURCE_KEYS if source.get(key) is not None), None)
        if inner is None:
            raise ValueError(f"A video dict needs one of 'bytes', 'path', 'url', 'video'; found keys {list(source)}.")
        source = VideoSegment(inner, **{name: source.get(name) for name in _SETTINGS})
    if not isinstance(source, VideoSegment):
        return VideoSegment(source)
    if not isinstance(source.source, Mapping | VideoSegment):
        return source
    inner = unwrap_segment(source.source)
    if twice := sorted(inner.settings.keys() & source.settings.keys()):
        raise ValueError(
            f"A clip has {', '.join(twice)} twice, in a segment and in a segment inside it: give it once."
        )
    return replace(inner, **source.settings)


def resolve(source: Any, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """Turns the source of a clip into a path, file object, torchcodec decoder or `Pictures`, and a name for messages.

    Raises:
        VideoDecodeError: if it cannot be read.
        TypeError: if it is nothing that a video can be read from.
    """
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return _pictures_from_sequence(source), f"<{type(source).__name__} of frames>"
    if hasattr(source, "get_frames_played_at") and hasattr(source, "metadata"):
        return source, "<torchcodec decoder>"
    if _is_pil(source):
        name = getattr(source, "filename", "") or "<image>"
        return _pictures_from_image(source, name), name
    if isinstance(source, str) and re.match("data:video/jpeg", source, re.IGNORECASE):  # the frames, with commas
        header, _, frames = source.partition(",")
        if (count := frames.count(",") + 1) > MAX_PICTURES:
            raise VideoDecodeError(header, f"it has {count} pictures; the limit is {MAX_PICTURES}.")
        files = [_decode_data_url(f"{header},{frame}") for frame in frames.split(",")]
        return Pictures(len(files), files.__getitem__, "images"), header
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        folder = os.fsdecode(source)
        return _pictures_from_folder(folder), folder
    file, name = _locate(source, stack)
    return _pictures_in(file, name, stack) or file, name


def load_image(image: Any) -> Any:
    """
    One picture in any form, as people see it: upright, with 8 bits a colour, on white where it is transparent. Of an
    animated picture the first one.

    Args:
        image:
            A path, an http(s), file, data or fsspec URL, bytes, a binary file object, a PIL image, a
            `{"path": …, "bytes": …}` of `datasets.Image(decode=False)`, or an array, which is kept as it is.

    Returns:
        `PIL.Image.Image` in mode RGB; of an array the array.

    Raises:
        VideoDecodeError: if it cannot be read.
        TypeError: if it is nothing that an image can be read from.
    """
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(image)  # torch knows no negative strides
    if isinstance(image, torch.Tensor):
        return image
    if isinstance(image, Mapping):
        image = next((image[key] for key in ("bytes", "path") if image.get(key) is not None), None)
    if _is_pil(image):
        with lock_of(image), pillow_errors(name := getattr(image, "filename", "") or "<image>"):
            return to_rgb(image, name)
    with contextlib.ExitStack() as stack:
        file, name = _locate(image, stack)
        with pillow_errors(name):
            return to_rgb(_open_picture(file, stack), name)


def _locate(source: Any, stack: contextlib.ExitStack) -> tuple[str | SharedFile, str]:
    """Turns what leads to one file into its path or an open file, and a name for messages."""
    file, name = _find(source, stack)
    return file if isinstance(file, str) else SharedFile(file), name


def _find(source: Any, stack: contextlib.ExitStack) -> tuple[str | BinaryIO, str]:
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", source, re.IGNORECASE):
        return _locate_url(source, stack)
    if isinstance(source, str | os.PathLike):
        return _check_path(path := os.fsdecode(source)), path
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), f"<{memoryview(source).nbytes} bytes>"
    if hasattr(source, "read"):
        return _seekable(source), str(getattr(source, "name", f"<{type(source).__name__}>"))
    raise TypeError(
        f"Cannot read a clip or an image: expected a path, URL, bytes or binary file, found {type(source).__name__}. "
        "A clip may also be a folder or list of images, a uint8 array (T, 3, H, W), a torchcodec decoder, a dict with "
        "'path' or 'bytes', or a VideoSegment; an image a PIL image or an array."
    )


def _locate_url(url: str, stack: contextlib.ExitStack) -> tuple[str | BinaryIO, str]:
    if url[:5].lower() == "data:":
        return _decode_data_url(url), url.partition(",")[0][:64]
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise VideoDecodeError(url, f"it is not a valid address ({error}).") from error
    if parts.scheme in ("http", "https"):
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "file")
        download_video(url, path)
        return path, url
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise VideoDecodeError(url, "a file address has three slashes before its path: file:///folder/clip.mp4.")
        decoded, raw = urllib.parse.unquote(parts.path), url[len("file://") :].removeprefix("localhost")
        # Many write a path behind file:// as it is, though %, ? and # mean something there.
        return _check_path(raw if os.path.exists(raw) and not os.path.exists(decoded) else decoded), url
    return _open_remote(url, parts.scheme, stack), url


def _open_remote(url: str, scheme: str, stack: contextlib.ExitStack) -> BinaryIO:
    """Opens addresses of archives, the Hub and object stores with fsspec, as `datasets` does, for instance
    `zip://clip.mp4::clips.zip` or `hf://datasets/…`."""
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise VideoDecodeError(url, f"cannot open {scheme!r} addresses; use http, https, file, data or a path.")
    for link in url.split("::"):  # one may lead into another
        if link.startswith(("http://", "https://")):
            _check_host(urllib.parse.urlsplit(link).hostname or "", None, url, _allows_local())
    try:
        return stack.enter_context(fsspec.open(url, "rb"))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise VideoDecodeError(url, f"it cannot be opened ({str(error) or type(error).__name__}).") from error


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _decode_data_url(url: str) -> BinaryIO:
    header, _, payload = url.partition(",")
    if not header.lower().endswith(";base64"):
        raise VideoDecodeError(header[:64], "a data URL must be base64 encoded.")
    try:
        # Encoders break lines, write - and _ for + and /, and leave out the padding.
        content = urllib.parse.unquote(payload).encode("ascii").translate(_URL_SAFE, string.whitespace.encode())
        content += b"=" * (-len(content) % 4)
        # In pieces, since no other thread of a server runs within one.
        pieces = (content[begin : begin + 2**20] for begin in range(0, len(content), 2**20))
        return io.BytesIO(b"".join(base64.b64decode(piece, validate=True) for piece in pieces))
    except ValueError as error:
        raise VideoDecodeError(header[:64], f"its base64 is corrupt ({error}).") from error


def _check_path(path: str) -> str:
    if not os.path.exists(path):
        raise VideoDecodeError(path, NO_SUCH_FILE)
    if not os.path.isfile(path):
        raise VideoDecodeError(path, "it is not a regular file.")
    if not os.access(path, os.R_OK):
        raise VideoDecodeError(path, "permission denied: this user may not read it.")
    return path


def _seekable(file: BinaryIO) -> BinaryIO:
    """Gives a file object that can go back; one that cannot is read into memory."""
    if isinstance(file, io.TextIOBase):
        raise TypeError("The file is open in text mode; open it with mode 'rb'.")
    if hasattr(file, "seekable") and file.seekable():
        return file
    content = io.BytesIO()
    while piece := file.read(2**20):  # a raw stream gives less than it is asked for
        content.write(piece)
        if content.tell() > MAX_DOWNLOAD_BYTES:
            raise VideoDecodeError(str(file), f"the stream is larger than {MAX_DOWNLOAD_BYTES} bytes.")
    return content


# ---------------------------------------------------------------------------------------------------------------
# Downloads
# ---------------------------------------------------------------------------------------------------------------


def download_video(
    url: str,
    path: str | os.PathLike,
    allow_local_addresses: bool | None = None,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout: float = 30.0,
    max_seconds: float = MAX_DOWNLOAD_SECONDS,
    max_redirects: int = MAX_REDIRECTS,
) -> None:
    """Downloads an http(s) URL to `path`.

    A URL may come from an untrusted client, so that neither it nor a redirect may point into the local network: each
    host is resolved once, its addresses are checked, and the connection goes to one of the checked addresses. Where
    the environment names a proxy, the proxy resolves the host, and what it may reach is its business.

    Args:
        url (`str`): where the file is.
        path (`str` or `os.PathLike`): the file to write.
        allow_local_addresses (`bool`, *optional*): also read from private, loopback and link-local addresses.
            By default what the environment variable `VALLEY_ALLOW_LOCAL_ADDRESSES` says ("1" allows).
        max_bytes (`int`, *optional*, defaults to 2 GiB): larger files are refused.
        timeout (`float`, *optional*, defaults to 30): seconds to wait for the connection and for each piece.
        max_seconds (`float`, *optional*, defaults to 600): seconds for the whole download, redirects included.
        max_redirects (`int`, *optional*, defaults to 5): how often an address may lead to another one.

    Raises:
        `VideoDecodeError`: the address is refused, or the server, the network or the size is in the way.
    """
    import httpx2  # what huggingface_hub itself downloads with

    allow_local = _allows_local() if allow_local_addresses is None else allow_local_addresses
    late = threading.Event()
    with httpx2.Client(timeout=timeout, follow_redirects=False) as client:
        # A server that sends a byte now and then would keep every single read within its `timeout`.
        deadline = threading.Timer(max_seconds, lambda: (late.set(), client.close()))
        deadline.daemon = True
        deadline.start()
        try:
            address = httpx2.URL(url)
            for _ in range(max_redirects + 1):
                with contextlib.ExitStack() as stack:
                    response = _get(client, address, url, allow_local, stack)
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


def _get(client: Any, address: Any, url: str, allow_local: bool, stack: contextlib.ExitStack) -> Any:
    """Asks the first of a host's addresses that answers, under the host's name (a second look-up could differ)."""
    import httpx2

    if address.scheme not in ("http", "https"):
        raise VideoDecodeError(url, f"it redirects to a {address.scheme!r} address; only http and https are read.")
    if urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.host):
        return stack.enter_context(client.stream("GET", address))
    request = {
        "headers": {"Host": address.netloc.decode("ascii")},
        "extensions": {"sni_hostname": address.host},
    }
    found = _check_host(address.host, address.port or (443 if address.scheme == "https" else 80), url, allow_local)
    for place in found:
        try:
            return stack.enter_context(client.stream("GET", address.copy_with(host=place), **request))
        except (httpx2.ConnectError, httpx2.ConnectTimeout):  # such as an IPv6 address in a network without IPv6
            if place == found[-1]:
                raise


def _allows_local() -> bool:
    return os.environ.get(LOCAL_ADDRESSES_VARIABLE) == "1"


def _check_host(host: str, port: int | None, url: str, allow_local: bool) -> list[str]:
    """Gives the addresses of a host; refuses it if one of them, or the port, is that of an inner service."""
    try:
        found = list(dict.fromkeys(info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    except OSError as error:
        raise VideoDecodeError(url, f"the download failed: {error}") from error
    for ip in map(ipaddress.ip_address, found):
        if not (allow_local or _is_public(ip)):
            reason = f"{host} is the local address {ip}; set {LOCAL_ADDRESSES_VARIABLE}=1 to allow those."
            raise VideoDecodeError(url, reason)
    if port is not None and port < 1024 and port not in (80, 443) and not allow_local:
        raise VideoDecodeError(url, f"port {port} is that of another service; 80, 443 and those from 1024 are read.")
    return found


# Where an IPv6 address stands for the IPv4 address in its last 32 bits: compatible, mapped, translated, NAT64.
_IPV4_INSIDE = [
    ipaddress.ip_network(net)
    for net in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
]
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_AZURE_HOST = ipaddress.ip_address("168.63.129.16")  # a public address that leads to the machine's own host


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if ip.version == 6:
        inside = ip.sixtofour or (ip.teredo and ip.teredo[1])
        if any(ip in net for net in _IPV4_INSIDE):
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_IPV6:
            return False
        if inside:
            return _is_public(inside)
    return ip.is_global and not ip.is_multicast and ip != _AZURE_HOST


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


@cache
def _picture_suffixes() -> tuple[str, ...]:
    from PIL import Image

    kinds = (*PICTURE_FORMATS, "MPO")  # a JPEG with more behind it
    return tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


def _open_picture(file: str | BinaryIO, stack: contextlib.ExitStack) -> Any:
    from PIL import Image

    Image.init()  # Pillow may have been built without some
    return stack.enter_context(Image.open(file, formats=[name for name in PICTURE_FORMATS if name in Image.OPEN]))


def is_frame(item: Any) -> bool:
    """Whether a member of a list is one frame of a clip, and not a clip: a PIL image, a 3-D array, or a file or value
    of `datasets.Image(decode=False)` that is a picture and by its name no animation."""
    if isinstance(item, Mapping):
        if item.get("bytes") is not None:
            with contextlib.ExitStack() as stack, contextlib.suppress(VideoDecodeError):
                pictures = _pictures_in(io.BytesIO(item["bytes"]), "<bytes>", stack)
                return pictures is not None and pictures.count == 1
            return False
        item = item.get("path")
    if isinstance(item, str | os.PathLike):
        return os.fsdecode(item).lower().endswith(_picture_suffixes()) and not os.fsdecode(item).lower().endswith(
            (".gif", ".apng")
        )
    return _is_pil(item) or getattr(item, "ndim", None) == 3


def _pictures_from_folder(folder: str) -> Pictures:
    def natural(name: str) -> list:  # frame2 before frame10, 0.5 before 0.25 is not: they are decimals
        parts = re.split(r"(\d+(?:\.\d+)?)", os.path.splitext(name.lower())[0])
        return [(0, float(part), "") if part[:1].isdecimal() else (1, 0.0, part) for part in parts] + [(1, 0.0, name)]

    try:
        names = os.listdir(folder)
    except OSError as error:
        raise VideoDecodeError(folder, f"the folder cannot be listed ({error.strerror}).") from error
    # Hidden files are not pictures: a Mac leaves one beside each.
    names = [name for name in names if name.lower().endswith(_picture_suffixes()) and not name.startswith(".")]
    if not names:
        raise VideoDecodeError(folder, f"the folder has no images ({', '.join(sorted(_picture_suffixes()))}).")
    names.sort(key=natural)
    return Pictures(len(names), lambda i: os.path.join(folder, names[i]), "images")


def _pictures_in(file: str | BinaryIO, name: str, stack: contextlib.ExitStack) -> Pictures | None:
    """The pictures in a file that holds a still or an animated picture; `None` for a video."""
    from PIL import UnidentifiedImageError

    try:
        with pillow_errors(name):
            image = _open_picture(file, stack)
    except VideoDecodeError as error:
        if isinstance(file, SharedFile) and file.error is not None:  # that says nothing about the picture
            raise file.error from None
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        image = None
    if image is not None:
        check_picture_size(*image.size, name)
    if image is None or image.format in _VIDEO_FORMATS:
        if not isinstance(file, str):
            file.seek(0)
        return None
    return _pictures_from_image(image, name)


def _pictures_from_image(image: Any, name: str) -> Pictures:
    """A still, or an animation: each of its pictures builds on the one before, so the image stays open."""
    seconds = []
    with lock_of(image), pillow_errors(name):
        first, end = _find_animation(image, name)
        for index in range(first, end) if end - first > 1 else ():
            _stop_if_told(name)
            _go_to(image, index)
            image.load()
            seconds.append((image.info.get("duration") or 100) / 1000)

    def load(i: int) -> Any:
        with lock_of(image), pillow_errors(name):
            _stop_if_told(name)
            if seconds:
                _go_to(image, first + i)
            return to_rgb(image, name)

    if not seconds:
        return Pictures(1, load, "images")
    ends = np.cumsum(seconds).tolist()
    return Pictures(len(seconds), load, "images", [0.0, *ends[:-1]], ends[-1])


def _go_to(image: Any, index: int) -> None:
    if image.format == "PNG" and index < image.tell():  # Pillow goes back in an APNG only from its last picture
        image.seek(image.n_frames - 1)
        image.load()
    image.seek(index)


def _find_animation(image: Any, name: str) -> tuple[int, int]:
    """The first picture of an animation, and where they end; (0, 1) for a still, whatever else is in its file.

    A phone's JPEG has a second lens or a gain map behind it, a TIFF a thumbnail, an APNG perhaps a picture for those
    who do not know animations before it.
    """
    if image.format == "TIFF":
        sizes = []
        with contextlib.suppress(EOFError):
            while len(sizes) <= MAX_PICTURES:  # their number is known once all have been looked at
                image.seek(len(sizes))
                sizes.append(image.size)
        image.seek(0)
        count = len(sizes) if len(set(sizes)) == 1 else 1
    else:
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count == 1:
        return 0, 1
    if count > MAX_PICTURES:
        raise VideoDecodeError(name, f"it has more than {MAX_PICTURES} pictures.")
    check_animation(count, *image.size, name)
    return int(bool(getattr(image, "default_image", False))), count


def _stop_if_told(name: str) -> None:
    if reason := CHECK.get()():
        raise ReadInterrupted(name, reason)


def _is_pil(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "size") and hasattr(value, "getbands")


def to_rgb(image: Any, name: str = "<image>") -> Any:
    """
    A PIL image as people see it: upright, RGB with 8 bits a colour, on white where it is transparent.

    Raises:
        VideoDecodeError: if it is too large or too thin, or its grey levels have no known range.
    """
    from PIL import Image, ImageOps

    check_picture_size(*image.size, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        darkest, brightest = image.getextrema()
        if image.mode == "F" or darkest < 0 or brightest > 65535:
            raise VideoDecodeError(
                name, f"the range of its grey levels is unknown ({image.mode}); convert it to 8 bits."
            )
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits, which Pillow would clip to 8
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def check_picture_size(width: int, height: int, name: str) -> None:
    """Refuses pictures that are too large, or so thin that scaling their short side to the model's takes gigabytes.

    Raises:
        VideoDecodeError: says how large it is, and the limit.
    """
    if width * height > MAX_PIXELS:
        raise VideoDecodeError(name, f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}.")
    if max(width, height) > MAX_SIDES_RATIO * min(width, height):
        raise VideoDecodeError(name, f"of {width}x{height} pixels one side is over {MAX_SIDES_RATIO} times the other.")


def check_animation(count: int, width: int, height: int, name: str) -> None:
    """Refuses animated pictures that take minutes: all of their pictures are decoded, whichever are wanted.

    Raises:
        VideoDecodeError: says how many pictures of which size there are, and the limit.
    """
    check_picture_size(width, height, name)
    if count * width * height > MAX_ANIMATION_PIXELS:
        reason = f"{count} pictures of {width}x{height} pixels are more than the limit of {MAX_ANIMATION_PIXELS}."
        raise VideoDecodeError(name, reason)


@contextlib.contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Turns all that Pillow raises for corrupt files into a `VideoDecodeError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except VideoDecodeError:
        raise
    except UnidentifiedImageError as error:  # its message is about Python's object
        raise VideoDecodeError(name, f"not a readable image: none of {', '.join(PICTURE_FORMATS)}.") from error
    except (OSError, SyntaxError, TypeError, ValueError, MemoryError, EOFError, Image.DecompressionBombError) as error:
        raise VideoDecodeError(name, f"not a readable image ({error or type(error).__name__}).") from error
