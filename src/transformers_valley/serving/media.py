# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the addresses in a request may open, whichever engine answers it.

Input: a checked request of an untrusted client. Output: its chat for `ValleyProcessor`, whose visuals are files of
this machine, downloaded if need be, or `data:` URLs.
"""

import contextlib
import math
import os
import threading
import time
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from ..video_sources import MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS, VideoDecodeError, download_video
from .requests import Block, ChatRequest, ImageBlock, RequestError, TextBlock, shorten


__all__ = ["MediaAccess"]

MAX_IMAGE_BYTES = 128 * 1024**2  # of one image that is downloaded
MAX_DOWNLOADS = 64  # at once


class MediaAccess:
    """
    What the addresses of requests may open.

    Args:
        folders (`Iterable` of paths): where files may be opened, and below. Symbolic links are followed first.
    """

    def __init__(self, folders: Iterable[str | os.PathLike] = ()):
        self.folders = [Path(folder).resolve(strict=True) for folder in folders]
        self._downloads = threading.Semaphore(MAX_DOWNLOADS)

    def fetch(self, request: ChatRequest, scratch: str) -> tuple[list[dict], dict[str, str]]:
        """
        Checks the addresses of a request, and downloads what has to be.

        Args:
            request ([`ChatRequest`]): a checked one.
            scratch (`str`): an empty folder for downloads.

        Returns:
            `tuple`: the messages as [`ValleyProcessor`] reads them, and what the client calls each file in them.

        Raises:
            RequestError: an address may not be opened, or a download fails.
        """
        deadline, names = time.monotonic() + MAX_DOWNLOAD_SECONDS, {}

        def read(block: Block) -> dict:
            if isinstance(block, TextBlock):
                return {"type": "text", "text": block.text}
            if isinstance(block, ImageBlock):
                return {"type": "image", "image": locate(block.image_url.url, MAX_IMAGE_BYTES)}
            settings = block.video_url.model_dump(exclude_none=True, exclude={"url"})
            return {"type": "video", "video": locate(block.video_url.url, MAX_DOWNLOAD_BYTES), **settings}

        def locate(url: str, max_bytes: int) -> str:
            if (data := url.strip())[:5].lower() == "data:":
                return f"data:{data[5:]}"
            try:
                scheme = urllib.parse.urlsplit(url).scheme
            except ValueError as error:
                raise RequestError(f"{shorten(url)!r} is not a valid address ({error}).", "messages") from error
            if scheme in ("http", "https"):
                path = os.path.join(scratch, str(len(names)))
                self._download(url, path, max_bytes, deadline)
            elif scheme in ("", "file"):
                path = self._allowed_path(url)
            else:
                reason = "it is not an http, https or data address."
                raise RequestError(f"Cannot open {shorten(url)!r}: {reason}", "messages")
            names[path] = shorten(url)
            return path

        return [
            # OpenAI's newer name for a system message
            {"role": m.role.replace("developer", "system"), "content": [read(block) for block in m.content]}
            for m in request.messages
        ], names

    def _download(self, url: str, path: str, max_bytes: int, deadline: float) -> None:
        if not self._downloads.acquire(blocking=False):
            reason = f"The server downloads {MAX_DOWNLOADS} images and clips already. Try again later."
            raise RequestError(reason, "messages", 503, "too_many_downloads")
        try:
            if (seconds := deadline - time.monotonic()) <= 0:
                limit = f"the downloads of a request may take {MAX_DOWNLOAD_SECONDS:g} seconds together."
                raise VideoDecodeError(url, limit)
            download_video(url, path, max_bytes=max_bytes, max_seconds=math.ceil(seconds))
        except VideoDecodeError as error:
            raise RequestError(f"Cannot open {shorten(url)!r}: {error.reason}", "messages") from error
        finally:
            self._downloads.release()

    def _allowed_path(self, url: str) -> str:
        """The file behind a path or `file:` URL, if it lies in one of the folders."""
        address = url
        if url[:5].lower() == "file:":
            parts = urllib.parse.urlsplit(url)
            address = urllib.parse.unquote(parts.path) if parts.netloc in ("", "localhost") else ""
        path = None
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            path = Path(address).resolve()
        if address and path and any(path.is_relative_to(folder) for folder in self.folders):
            if os.path.isfile(path):
                return str(path)
            raise RequestError(f"Cannot read {shorten(url)!r}: there is no such file.", "messages")
        reason = "it is in no folder that this server opens" if self.folders else "this server opens no local files"
        raise RequestError(
            f"Not allowed to open {shorten(url)!r}: {reason} (--allow-local-files). Give an http, https or data URL.",
            "messages",
            status=403,
            code="path_not_allowed",
        )
