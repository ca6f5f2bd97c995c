# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`ValleyVideoProcessor`: clips in any form to `pixel_values_videos` (videos, T max, 3, H, W) and their lengths."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, is_valid_image
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType, auto_docstring
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, is_valid_video, make_batched_metadata

from .video_decoding import VideoSegment, sample_video, uniform_indices


_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ValleyVideoProcessorKwargs(VideosKwargs, total=False):
    """
    max_frames (`int`, *optional*):
        Most frames taken of one clip when sampling by `fps`; a longer clip is sampled evenly over its whole length.
    """

    max_frames: int | None


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
            rate is not known (no `video_metadata`) are kept as they are, unless `num_frames` is given.

        Returns:
            `pixel_values_videos`, `(videos, T max, 3, H, W)` float32, zero padded at the end of time, and
            `video_num_frames`, `(videos,)` int64, the frames of each clip.

        Raises:
            VideoDecodeError: if a file cannot be decoded; it names the file and the reason.
            ValueError: if `fps` and `num_frames` are both given, or a value makes no sense.
        """
        kwargs = _one_sampling_rule(kwargs)
        rule = {
            name: kwargs[name] if name in kwargs else getattr(self, name)
            for name in ("fps", "num_frames", "max_frames", "do_sample_frames", "do_rescale")
        }
        clips = flatten_clips(videos)
        if not clips:
            raise ValueError("There is no clip in the videos given: pass at least one.")
        given = kwargs.pop("video_metadata", None)
        given = [None] * len(clips) if given is None else make_batched_metadata(clips, given)
        loaded = [
            self._load_clip(clip, metadata, self._decoded_size(kwargs), **rule)
            for clip, metadata in zip(clips, given, strict=True)
        ]
        frames, metadata = map(list, zip(*loaded, strict=True))
        return super().preprocess(frames, **{**kwargs, "video_metadata": metadata, "do_sample_frames": False})

    def _load_clip(
        self,
        clip: Any,
        metadata: VideoMetadata | None,
        size: int | None,
        do_sample_frames: bool,
        do_rescale: bool,
        **rule: Any,
    ) -> tuple[Any, VideoMetadata]:
        """One clip of any form to its sampled frames (a 4-D array or tensor) and their description."""
        if isinstance(clip, VideoSegment) and (clip.start, clip.end) == (None, None):
            clip = clip.source
        if isinstance(clip, list | tuple) and clip and not isinstance(clip[0], str | os.PathLike):
            clip = _stack_frames(clip)
        if isinstance(clip, (np.ndarray, torch.Tensor)):
            if do_rescale and clip.dtype not in (np.uint8, torch.uint8):
                raise ValueError(
                    f"The frames of a clip are {clip.dtype}, expected uint8 from 0 to 255. Convert them, or pass "
                    "do_rescale=False for frames that are floats from 0 to 1 already."
                )
            return _sample_array(clip, metadata, rule if do_sample_frames else {})
        sampled = sample_video(clip, size=size, **(rule if do_sample_frames else {"num_frames": "all"}))
        return sampled.frames, ValleyVideoMetadata(**sampled.metadata, frame_timestamps=sampled.timestamps)

    def _decoded_size(self, kwargs: dict) -> int | None:
        """Short side at which frames may leave the decoder, so that large frames never pile up.

        Only where the decoder resizes as this processor would; else frames come in their own size.
        """
        do_resize, size, resample = (
            kwargs[name] if kwargs.get(name) is not None else getattr(self, name)
            for name in ("do_resize", "size", "resample")
        )
        if do_resize and resample == PILImageResampling.BICUBIC and isinstance(size, dict | type(self.size)):
            return size.get("shortest_edge") if size.get("longest_edge") is None else None
        return None

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


def _one_sampling_rule(kwargs: dict) -> dict:
    """A given `num_frames` replaces the default `fps` and the other way round; both at once is a contradiction."""
    for name in ("fps", "num_frames", "max_frames"):
        value = kwargs.get(name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value}.")
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
    if rule.get("num_frames") is not None:
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


__all__ = ["ValleyVideoMetadata", "ValleyVideoProcessor", "flatten_clips"]
