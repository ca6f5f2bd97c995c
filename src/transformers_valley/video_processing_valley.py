# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`ValleyVideoProcessor`: clips in any form to `pixel_values_videos` (videos, T max, 3, H, W) and their lengths."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, is_valid_image
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType, auto_docstring
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, is_valid_video, make_batched_metadata

from .video_decoding import SampledVideo, available_threads, count_sampled_frames, sample_video, uniform_indices
from .video_sources import unwrap_segment


_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ValleyVideoProcessorKwargs(VideosKwargs, total=False):
    """
    max_frames (`int`, *optional*):
        Most frames taken of one clip when sampling by `fps`; a longer clip is sampled evenly over its whole length.
    on_error (`str`, *optional*, defaults to `"raise"`):
        What a damaged clip leads to: `"raise"`, an error, or `"partial"`, a warning and its good frames alone.
    num_threads (`int`, *optional*):
        Decoders that work side by side, on several clips or within one. By default as many as torch has threads, and
        one in a worker of a `DataLoader`.
    """

    max_frames: int | None
    on_error: Literal["raise", "partial"] | None
    num_threads: int | None


@dataclass
class ValleyVideoMetadata(VideoMetadata):
    """`VideoMetadata` whose `timestamps` are those of the frames themselves, right with a variable frame rate too."""

    frame_timestamps: list[float] | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds of the sampled frames, from the start of the file."""
        return super().timestamps if self.frame_timestamps is None else self.frame_timestamps


def flatten_clips(videos: Any) -> list[Any]:
    """Nested lists of clips to a flat list with one entry per clip.

    A clip is a path or URL, bytes, a binary file, a folder of frames, a decoder, a `datasets.Video` value, a 4-D
    array, or a list of frames. Frames are images or 3-D arrays, or paths of image files; a list of any other paths is
    a list of clips.
    """
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if len(videos) == 1 and isinstance(videos[0], str | os.PathLike):
        return list(videos)  # an animated picture is a clip
    if videos and all(_is_frame(item) for item in videos):
        return [videos]
    return [clip for item in videos for clip in flatten_clips(item)]


def _is_frame(item: Any) -> bool:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item).lower().endswith(_IMAGE_SUFFIXES)
    return is_valid_image(item) and getattr(item, "ndim", 3) == 3


@auto_docstring
class ValleyVideoProcessor(BaseVideoProcessor):
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    # One frame every two seconds (paper, Section 4.1). `num_frames=8` and no `fps` is how the code of 2023 sampled.
    do_sample_frames = True
    fps = 0.5
    num_frames = None
    max_frames = 256
    on_error = "raise"
    num_threads = None
    valid_kwargs = ValleyVideoProcessorKwargs
    model_input_names = ["pixel_values_videos", "video_num_frames"]

    def __init__(self, **kwargs: Unpack[ValleyVideoProcessorKwargs]):
        super().__init__(**_one_sampling_rule(kwargs))

    @auto_docstring
    def preprocess(self, videos: Any, **kwargs: Unpack[ValleyVideoProcessorKwargs]) -> BatchFeature:
        r"""
        videos:
            One clip, a list, or a list of lists (one per sample). A clip is a path, `pathlib.Path`, http(s) URL,
            bytes, binary file object, folder of frames, torchcodec decoder, `datasets.Video` value, list of frames, or
            an array or tensor of shape `(T, 3, H, W)` or `(T, H, W, 3)`. Frames that are already decoded and whose
            rate is not known (no `video_metadata`) are kept as they are, unless `num_frames` is given; those of a
            `SampledVideo` always are.

        Returns:
            `pixel_values_videos`, `(videos, T max, 3, H, W)` float32, zero padded at the end of time, and
            `video_num_frames`, `(videos,)` int64, the frames of each clip.

        Raises:
            VideoDecodeError: if a file cannot be decoded or is damaged; it names the file and the reason.
            ValueError: if `fps` and `num_frames` are both given, or a value makes no sense.
        """
        kwargs = _one_sampling_rule(kwargs)
        clips = flatten_clips(videos)
        if not clips:
            raise ValueError("There is no clip in the videos given: pass at least one.")
        given = kwargs.pop("video_metadata", None)
        given = [None] * len(clips) if given is None else make_batched_metadata(clips, given)
        threads = self._given(kwargs, "num_threads") or available_threads()
        load = partial(
            self._load_clip,
            do_rescale=self._given(kwargs, "do_rescale"),
            rule=self._sampling_rule(kwargs),
            transform=self._frame_resizer(kwargs),
            on_error=self._given(kwargs, "on_error"),
            num_threads=max(1, threads // len(clips)),
        )
        with ThreadPoolExecutor(min(threads, len(clips))) as pool:  # decoders work outside Python's lock
            try:
                loaded = list(pool.map(load, clips, given))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # the first bad clip is enough
                raise
        frames, metadata = map(list, zip(*loaded, strict=True))
        return super().preprocess(frames, **{**kwargs, "video_metadata": metadata, "do_sample_frames": False})

    def sample(self, clip: Any, **kwargs: Any) -> SampledVideo:
        """
        Decode a clip once, to give it again and again: the frames that `preprocess` takes, in the size it gives them.

        Args:
            clip:
                Whatever `sample_video` reads. A `SampledVideo` comes back as it is.
            **kwargs:
                As for `preprocess`: `fps`, `num_frames`, `max_frames`, `on_error`, `num_threads`, `size`, …

        Raises:
            VideoDecodeError: if the clip cannot be decoded or is damaged; it names the file and the reason.
            ValueError: if `fps` and `num_frames` are both given, or a value makes no sense.
        """
        if isinstance(clip, SampledVideo):
            return clip
        kwargs = _one_sampling_rule(kwargs)
        options = {name: self._given(kwargs, name) for name in ("on_error", "num_threads")}
        return sample_video(clip, **self._sampling_rule(kwargs), transform=self._frame_resizer(kwargs), **options)

    def count_frames(self, clip: Any, **kwargs: Any) -> int:
        """
        How many frames `sample` takes of a clip, without decoding any where the file's index tells. With `num_frames`
        that is the answer, and the clip is not opened.

        Args:
            clip:
                As for `sample`.
            **kwargs:
                `fps`, `num_frames`, `max_frames`, `do_sample_frames`.

        Raises:
            VideoDecodeError: if the clip has to be opened and cannot be.
        """
        if isinstance(clip, SampledVideo):
            return len(clip.frames)
        return count_sampled_frames(clip, **self._sampling_rule(_one_sampling_rule(kwargs)))

    def _sampling_rule(self, kwargs: dict) -> dict:
        if not self._given(kwargs, "do_sample_frames"):
            return {"num_frames": "all"}
        return {name: kwargs[name] if name in kwargs else getattr(self, name) for name in _SAMPLING}

    def _given(self, kwargs: dict, name: str) -> Any:
        return kwargs[name] if kwargs.get(name) is not None else getattr(self, name)

    def _load_clip(
        self,
        clip: Any,
        metadata: VideoMetadata | None,
        do_rescale: bool,
        rule: dict,
        **options: Any,
    ) -> tuple[Any, VideoMetadata]:
        """One clip of any form to its sampled frames (a 4-D array or tensor) and their description."""
        source, start, end = unwrap_segment(clip, None, None)
        if (start, end) == (None, None):
            clip = source
        if isinstance(clip, list | tuple) and clip and not isinstance(clip[0], str | os.PathLike):
            clip = _stack_frames(clip)
        if isinstance(clip, (np.ndarray, torch.Tensor)):
            if do_rescale and clip.dtype not in (np.uint8, torch.uint8):
                raise ValueError(
                    f"The frames of a clip are {clip.dtype}, expected uint8 from 0 to 255. Convert them, or pass "
                    "do_rescale=False for frames that are floats from 0 to 1 already."
                )
            return _sample_array(clip, metadata, rule)
        sampled = clip if isinstance(clip, SampledVideo) else sample_video(clip, **rule, **options)
        return sampled.frames, ValleyVideoMetadata(**sampled.metadata, frame_timestamps=sampled.timestamps)

    def _frame_resizer(self, kwargs: dict) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What resizes frames as they leave the decoder, so that large ones never pile up.

        It is this processor's own resizing, which then finds nothing left to do; `None` where it might.
        """
        names = ("size", "resample", "default_to_square", "crop_size")
        settings = self._standardize_kwargs(**{name: self._given(kwargs, name) for name in names})
        size = settings["size"]
        if not self._given(kwargs, "do_resize") or size is None or size.max_height:
            return None
        return partial(self.resize, size=size, resample=settings["resample"])

    def _preprocess(
        self, videos: list[torch.Tensor], return_tensors: str | TensorType | None = None, **kwargs: Any
    ) -> BatchFeature:
        clips = super()._preprocess(videos, return_tensors=None, **kwargs)["pixel_values_videos"]
        sizes = {tuple(clip.shape[1:]) for clip in clips}
        if len(sizes) > 1:
            raise ValueError(
                "Clips of one batch must end up in one size to be stacked, got (channels, height, width) "
                f"{sorted(sizes)}. Set do_center_crop=True, or a `size` with height and width."
            )
        data = {
            "pixel_values_videos": pad_sequence(clips, batch_first=True),
            "video_num_frames": torch.tensor([len(clip) for clip in clips]),
        }
        return BatchFeature(data, tensor_type=return_tensors)


_SAMPLING = ("fps", "num_frames", "max_frames")


def _one_sampling_rule(kwargs: dict) -> dict:
    """A given `num_frames` replaces the default `fps` and the other way round; both at once is a contradiction."""
    for name in (*_SAMPLING, "num_threads"):
        value = kwargs.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
            hint = " To take every frame, pass do_sample_frames=False." if value == "all" else ""
            raise ValueError(f"{name} must be a positive number, got {value!r}.{hint}")
    if not isinstance(kwargs.get("num_threads") or 1, int):
        raise ValueError(f"num_threads must be a whole number, got {kwargs['num_threads']}.")
    fps, num_frames = kwargs.get("fps"), kwargs.get("num_frames")
    if fps is not None and num_frames is not None:
        raise ValueError(f"Give either fps or num_frames, not both: got fps={fps} and num_frames={num_frames}.")
    if num_frames is not None:
        return {**kwargs, "fps": None}
    if fps is not None:
        return {**kwargs, "num_frames": None}
    return kwargs


def _stack_frames(frames: list | tuple) -> np.ndarray | torch.Tensor:
    """Images or 3-D arrays of one size to one array."""
    if isinstance(frames[0], torch.Tensor):
        return torch.stack(tuple(frames))
    arrays = [np.asarray(frame.convert("RGB") if hasattr(frame, "convert") else frame) for frame in frames]
    if len(shapes := {array.shape for array in arrays}) > 1:
        raise ValueError(f"The frames of one clip must have one size, got {sorted(shapes)}: resize them to one.")
    return np.stack(arrays)


def _sample_array(frames: Any, metadata: VideoMetadata | None, rule: dict) -> tuple[Any, VideoMetadata]:
    """Sample decoded frames (T, ...); without a known rate `fps` takes them for sampled already."""
    if not is_valid_video(frames) or len(frames) == 0:
        raise ValueError(
            "A clip given as an array must have shape (T, 3, H, W) or (T, H, W, 3) with T >= 1, got "
            f"{tuple(frames.shape)}."
        )
    indices = np.arange(len(frames))
    rate = metadata.fps if metadata is not None else None
    if rule.get("num_frames") not in (None, "all"):
        indices = uniform_indices(len(frames), rule["num_frames"])
    elif rule.get("fps") is not None and rate:
        times = np.arange(0, len(frames) / rate, 1 / rule["fps"])
        indices = np.floor(times * rate + 1e-6).astype(int)
    max_frames = rule.get("max_frames")
    if rule.get("fps") is not None and max_frames is not None and len(indices) > max_frames:
        indices = indices[uniform_indices(len(indices), max_frames)]
    if metadata is None:
        (metadata,) = make_batched_metadata([frames], None)
    metadata.frames_indices = indices.tolist()
    return (frames if len(indices) == len(frames) else frames[indices]), metadata


ValleyVideoProcessor.register_for_auto_class()

__all__ = ["ValleyVideoMetadata", "ValleyVideoProcessor", "flatten_clips"]
