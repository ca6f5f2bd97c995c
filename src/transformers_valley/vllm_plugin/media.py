# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How vLLM opens what a request shows: where it may look, and which frames it takes.

Without this, vLLM fetches any address, the local network's too, and takes 32 frames of a clip, whatever the checkpoint
was trained with.
"""

import asyncio
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaConnector, MediaIO, MediaWithBytes
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from ..video_processing_valley import ValleyVideoProcessor
from ..video_sources import MAX_DOWNLOAD_BYTES, VideoDecodeError, download_video, load_image
from .clips import read_clip, split_segment


_DOWNLOADS = ThreadPoolExecutor(64, thread_name_prefix="valley-download")
_JPEGS = re.compile("data:video/jpeg[;,]", re.IGNORECASE)
_DEFAULT_NUM_FRAMES = 32  # what vLLM fills in where nobody said a number


class ValleyVideoLoader(VideoLoader):
    """Decodes in vLLM's media threads; all that follows has a single one.

    A loader is a class that does not know the checkpoint, so the checkpoint's rule is left here by `serve_checkpoint`.
    vLLM's Transformers backend does not do that: there the library's default holds, 0.5 frames per second.
    """

    processor: ValleyVideoProcessor | None = None
    most_frames: int | None = None

    @classmethod
    def load_bytes(cls, data: bytes | str, num_frames: int = -1, **kwargs: Any):
        if cls.processor is not None:
            return read_clip(data, cls.processor, {"num_frames": num_frames, **kwargs}, cls.most_frames)
        num_frames = -1 if num_frames == _DEFAULT_NUM_FRAMES else num_frames
        whole = ValleyVideoProcessor(do_resize=False)  # nobody knows yet what size the checkpoint wants
        frames, about = read_clip(data, whole, {"num_frames": num_frames, **kwargs})
        del about["timestamps"]  # that backend makes a `VideoMetadata` of it, which knows no others
        return frames, about


class FramesIO(MediaIO):
    """Hands JPEGs with commas between them (`data:video/jpeg`) to the loader of clips.

    vLLM decodes them itself: all of them, or the first `num_frames`, in their full size, and ignores other options.
    """

    def __init__(self, clips: VideoMediaIO):
        self.clips = clips

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes:
        options = {"num_frames": self.clips.num_frames, **self.clips.kwargs}
        clip = self.clips.video_loader.load_bytes(f"data:{media_type};base64,{data}", **options)
        return MediaWithBytes(clip, data.encode())

    def load_bytes(self, data: bytes) -> MediaWithBytes:
        return self.clips.load_bytes(data)

    def load_file(self, filepath: Path) -> MediaWithBytes:
        return self.clips.load_file(filepath)


class ValleyImageIO(ImageMediaIO):
    """Opens pictures as everywhere in Valley: the same formats, the same colours, the same limits."""

    def load_bytes(self, data: bytes) -> MediaWithBytes:
        image = load_image(data)
        if (budget := getattr(self, "decoded_budget", None)) is not None:  # vLLM 0.33 counts what a request decodes
            budget.charge(3 * image.width * image.height)
        return MediaWithBytes(image, data)


class CheckedConnection(HTTPConnection):
    """Downloads as `download_video` does: local addresses are closed, behind names and redirects as well."""

    def get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,
        allow_redirects: bool = True,
        max_bytes: int | None = None,
        request_budget: Any = None,
    ) -> bytes:
        limits = {"max_bytes": max_bytes or envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB * 2**20 or MAX_DOWNLOAD_BYTES}
        if timeout is not None:
            limits["timeout"] = timeout  # for each piece: a long clip may take longer
        if not allow_redirects:
            limits["max_redirects"] = 0
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            try:
                download_video(url, path, **limits)
            except VideoDecodeError as error:
                raise VLLMValidationError(str(error)) from error
            if request_budget is not None:
                request_budget.charge(os.path.getsize(path))
            with open(path, "rb") as file:
                return file.read()

    async def async_get_bytes(self, url: str, **kwargs: Any) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(_DOWNLOADS, lambda: self.get_bytes(url, **kwargs))


class ValleyMediaConnector(MediaConnector):
    """vLLM's connector with Valley's addresses, pictures and parts of clips."""

    def __init__(self, media_io_kwargs: dict[str, dict[str, Any]] | None = None, **kwargs: Any):
        media_io_kwargs = dict(media_io_kwargs or {})
        # -1, or nobody could tell 32 frames that are asked for from vLLM's default.
        clips = media_io_kwargs["video"] = {"num_frames": -1, **media_io_kwargs.get("video", {})}
        if unknown := sorted(media_io_kwargs.keys() - {"video"}):
            raise VLLMValidationError(f"media_io_kwargs may have 'video', found {', '.join(unknown)}.")
        if named := sorted({"video_backend", "backend"} & clips.keys()):
            raise VLLMValidationError(f"Clips are decoded by Valley: leave {', '.join(named)} out of media_io_kwargs.")
        super().__init__(media_io_kwargs, CheckedConnection(), **kwargs)

    def load_from_url(self, url: str, media_io: MediaIO, **kwargs: Any):
        url, media_io = self._prepare(url, media_io)
        try:
            return super().load_from_url(url, media_io, **kwargs)
        except OSError as error:
            raise self._unreadable(url, error) from error

    async def load_from_url_async(self, url: str, media_io: MediaIO, **kwargs: Any):
        url, media_io = self._prepare(url, media_io)
        try:
            return await super().load_from_url_async(url, media_io, **kwargs)
        except OSError as error:
            raise self._unreadable(url, error) from error

    def _prepare(self, url: str, media_io: MediaIO) -> tuple[str, MediaIO]:
        if url[:5].lower() == "file:" and self.allowed_local_media_path is None:
            raise VLLMValidationError(
                f"Not allowed to open {url[:200]!r}: this server opens no local files (--allowed-local-media-path). "
                "Give an http, https or data address."
            )
        if isinstance(media_io, ImageMediaIO):
            own = ValleyImageIO()
            own.decoded_budget = getattr(media_io, "decoded_budget", None)
            return url, own
        url, segment = split_segment(url)
        media_io.kwargs = {**media_io.kwargs, **segment}
        return url, FramesIO(media_io) if _JPEGS.match(url) else media_io

    def _unreadable(self, url: str, error: OSError) -> VLLMValidationError:
        return VLLMValidationError(f"Cannot read {url[:200]!r}: {error.strerror or error}")


def register_loader() -> None:
    """Have vLLM choose `ValleyVideoLoader` for checkpoints of Valley, in its Transformers backend, too."""
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    # vLLM reads the class of the video processor from a file that transformers 5 no longer writes, or else here.
    VIDEO_PROCESSOR_MAPPING_NAMES.setdefault("valley", {"torchvision": "ValleyVideoProcessor"})
    VIDEO_LOADER_REGISTRY.register("valley", video_processor="ValleyVideoProcessor")(ValleyVideoLoader)


def serve_checkpoint(processor: ValleyVideoProcessor, most_frames: int) -> None:
    """Sample clips by this rule, and open what requests show as Valley does.

    A process serves one model: it is called where vLLM prepares Valley's, and other models are left alone.
    """
    ValleyVideoLoader.processor, ValleyVideoLoader.most_frames = processor, most_frames
    MEDIA_CONNECTOR_REGISTRY.register("http")(ValleyMediaConnector)
