# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`ValleyVideoProcessor`: clips in any form to `pixel_values_videos` (videos, T max, 3, H, W) and their lengths."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BaseVideoProcessor, BatchFeature
from transformers.video_utils import VideoMetadata

from .video_decoding import (
    SampledVideo,
    SamplingRule,
    available_threads,
    check_count,
    count_sampled_frames,
    sample_video,
    use_one_thread_in_forks,
)
from .video_interrupts import CHECK
from .video_sources import check_picture_size, is_frame, unwrap_segment


class ValleyVideoProcessorKwargs(BaseVideoProcessor.valid_kwargs, total=False):
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
    array, or a list of frames. Frames are images or 3-D arrays, paths of picture files or `datasets.Image` values; a
    list of any other paths is a list of clips. Columns of `datasets`, pandas series and arrays of paths are lists.
    """
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        return list(videos)
    if isinstance(videos, np.ndarray) and videos.dtype.kind in "OU" or hasattr(videos, "to_list"):
        videos = videos.tolist()
    if not isinstance(videos, Sequence) or isinstance(videos, str | bytes | bytearray | memoryview):
        return [videos]
    videos = list(videos)
    if len(videos) == 1 and isinstance(videos[0], str):
        return videos  # an animated picture is a clip
    if videos and all(map(is_frame, videos)):
        return [videos]
    return [clip for item in videos for clip in flatten_clips(item)]


class ValleyVideoProcessor(BaseVideoProcessor):
    """
    Clips in any form to the pixels that Valley sees: sampled, resized, cropped and normalised as CLIP's images are.

    Args:
        fps (`float`, *optional*, defaults to 0.5):
            Frames taken per second (paper, Section 4.1).
        num_frames (`int`, *optional*):
            Frames taken of a clip, evenly spaced, instead; 8 in the original Valley repository.
        max_frames (`int`, *optional*, defaults to 256):
            Most frames taken of one clip when sampling by `fps`; a longer clip is sampled evenly over its length.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What a corrupt clip leads to: `"raise"`, an error, or `"partial"`, a warning and its good frames alone.
        num_threads (`int`, *optional*):
            Decoders that work side by side, on several clips or within one. By default as many as torch has threads,
            and one in a worker of a `DataLoader`.
        **kwargs:
            Those of transformers' video processors: `do_resize`, `size`, `resample`, `do_center_crop`, `crop_size`,
            `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std`, `do_sample_frames`, …

    Raises:
        ValueError, TypeError: if `fps` and `num_frames` are both given, or a value makes no sense.
    """

    resample = Image.Resampling.BICUBIC
    image_mean = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    image_std = (0.26862954, 0.26130258, 0.27577711)
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    # One frame every two seconds (paper, Section 4.1). The original repository took `num_frames=8` and no `fps`.
    do_sample_frames = True
    fps = 0.5
    num_frames = None
    max_frames = 256
    on_error = "raise"
    num_threads = None
    valid_kwargs = ValleyVideoProcessorKwargs
    model_input_names = ["pixel_values_videos", "video_num_frames"]

    def __init__(self, **kwargs: Any):
        rule = SamplingRule(*(kwargs.get(name) for name in _SAMPLING))
        if rule.num_frames is not None:
            kwargs["fps"] = None
        elif rule.fps is not None:
            kwargs["num_frames"] = None
        super().__init__(**kwargs)
        use_one_thread_in_forks()

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs: Any) -> "ValleyVideoProcessor":
        """See [`~transformers.BaseVideoProcessor.from_dict`]. An `fps` given here replaces a stored `num_frames`, and
        the reverse."""
        for name, other in (("fps", "num_frames"), ("num_frames", "fps")):
            if kwargs.get(name) is not None and kwargs.get(other) is None:
                video_processor_dict = {**video_processor_dict, other: None}
        return super().from_dict(video_processor_dict, **kwargs)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """
        Args:
            videos:
                One clip, a list, or a list of lists (one per sample). A clip is a path, `pathlib.Path`, http(s) URL,
                bytes, binary file object, folder of frames, torchcodec decoder, `datasets.Video` value, list of
                frames, or an array or tensor of shape `(T, 3, H, W)` or `(T, H, W, 3)`; or a [`VideoSegment`] or dict
                of these with `start`, `end`, `fps`, `num_frames` or `max_frames` of its own. Frames that are decoded
                already and whose rate is not known (no `video_metadata`), or that their metadata calls sampled
                (`frames_indices`), are kept as they are, unless `num_frames` is given; those of a [`SampledVideo`]
                always are.
            **kwargs:
                Arguments of this class, for this call; `video_metadata` (`transformers.video_utils.VideoMetadata`, or
                a list with one per clip) of clips that are given as frames; `return_metadata`; `return_tensors`.

        Returns:
            `BatchFeature` with `pixel_values_videos`, `(videos, T max, 3, H, W)` float32, zero padded at the end of
            time, and `video_num_frames`, `(videos,)` int64, the frames of each clip.

        Raises:
            VideoDecodeError: if a file cannot be decoded or is corrupt; it names the file and the reason.
            ValueError, TypeError: if `fps` and `num_frames` are both given, or a value makes no sense.
        """
        frames, metadata = self.load(videos, **kwargs)
        return_tensors = kwargs.pop("return_tensors", None)
        kwargs = {name: value for name, value in kwargs.items() if name not in _SAMPLING}
        outputs = super().preprocess(frames, **{**kwargs, "video_metadata": metadata, "do_sample_frames": False})
        clips = outputs.pop("pixel_values_videos")
        if len(sizes := {tuple(clip.shape[1:]) for clip in clips}) > 1:
            raise ValueError(
                "Clips of one batch must end up in one size to be stacked, got (channels, height, width) "
                f"{sorted(sizes)}. Set do_center_crop=True, or a `size` with height and width."
            )
        data = {
            "pixel_values_videos": pad_sequence(clips, batch_first=True),
            "video_num_frames": torch.tensor([len(clip) for clip in clips]),
            **outputs,
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def load(self, videos: Any, **kwargs: Any) -> tuple[list[Any], list[VideoMetadata]]:
        """
        The frames that `preprocess` takes of clips, uint8 and not normalised yet.

        Args:
            videos, **kwargs:
                As for `preprocess`.

        Returns:
            `tuple`: for each clip its frames, an array or tensor of four dimensions, and what is known about it.

        Raises:
            VideoDecodeError, ValueError, TypeError: as of `preprocess`.
        """
        clips = flatten_clips(videos)
        if not clips:
            raise ValueError("There is no clip in the videos given: pass at least one.")
        metadata = _list_metadata(kwargs.get("video_metadata"), len(clips))
        threads = self._count_threads(kwargs)
        options = self._loading_options(kwargs) | {"num_threads": max(1, threads // len(clips))}
        load = partial(self._load_clip, rule=self._sampling_rule(kwargs), options=options, kwargs=kwargs)
        interrupts = {"initializer": CHECK.set, "initargs": (CHECK.get(),)}
        with ThreadPoolExecutor(min(threads, len(clips)), **interrupts) as pool:  # decoders work outside Python's lock
            try:
                loaded = list(pool.map(load, clips, metadata))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # the first bad clip is enough
                raise
        frames, metadata = map(list, zip(*loaded, strict=True))
        return frames, metadata

    def sample(self, clip: Any, **kwargs: Any) -> SampledVideo:
        """
        Decode a clip once, to give it again and again: the frames that `preprocess` takes, in the size it gives them.

        Args:
            clip:
                Whatever `sample_video` reads. A [`SampledVideo`] comes back as it is.
            **kwargs:
                As for `preprocess`: `fps`, `num_frames`, `max_frames`, `on_error`, `num_threads`, `size`, …

        Raises:
            VideoDecodeError: if the clip cannot be decoded or is corrupt; it names the file and the reason.
            ValueError, TypeError: if `fps` and `num_frames` are both given, or a value makes no sense.
        """
        if (sampled := _sampled_before(clip)) is not None:
            return sampled
        clip, rule = self._sampling_rule(kwargs).unwrap(clip)
        options = self._loading_options(kwargs) | {"num_threads": self._count_threads(kwargs)}
        return sample_video(clip, **asdict(rule), **options)

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
        clip, rule = self._sampling_rule(kwargs).unwrap(clip)
        return count_sampled_frames(clip, **asdict(rule))

    def _given(self, kwargs: dict, name: str) -> Any:
        return kwargs[name] if kwargs.get(name) is not None else getattr(self, name)

    def _sampling_rule(self, kwargs: dict) -> SamplingRule:
        if not self._given(kwargs, "do_sample_frames"):
            return SamplingRule(num_frames="all")
        return SamplingRule(self.fps, self.num_frames, self.max_frames).override(**_pick(kwargs, _SAMPLING))

    def _count_threads(self, kwargs: dict) -> int:
        return check_count("num_threads", self._given(kwargs, "num_threads")) or available_threads()

    def _loading_options(self, kwargs: dict) -> dict[str, Any]:
        return {"transform": self._frame_resizer(kwargs), "on_error": self._given(kwargs, "on_error")}

    def _frame_resizer(self, kwargs: dict) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What resizes frames as they leave the decoder, so that large ones never pile up.

        It is this processor's own resizing, which then finds nothing left to do; `None` where it might.
        """
        if not self._given(kwargs, "do_resize"):
            return None
        names = ("size", "resample", "default_to_square")
        own = self
        if _pick(kwargs, names):  # the class knows the forms that sizes come in
            own = ValleyVideoProcessor(**{name: self._given(kwargs, name) for name in names})
        if own.size is None or own.size.max_height:
            return None
        return partial(own.resize, size=own.size, resample=own.resample)

    def _load_clip(
        self, clip: Any, metadata: VideoMetadata | None, rule: SamplingRule, options: dict, kwargs: dict
    ) -> tuple[Any, VideoMetadata]:
        """One clip of any form to its frames (a 4-D array or tensor) and their description."""
        sampled = _sampled_before(clip)
        clip, rule = rule.unwrap(clip)
        if isinstance(clip, list | tuple) and len(clip) and getattr(clip[0], "ndim", None) == 3:
            clip = _stack_frames(clip)
        if isinstance(clip, np.ndarray | torch.Tensor | list | tuple):
            frames, metadata = self._choose_frames(clip, metadata, rule, options, kwargs)
        elif metadata is not None:
            raise ValueError(
                f"video_metadata describes frames, but the clip is of type {type(clip).__name__}, which has times of "
                "its own: leave it out (None)."
            )
        elif sampled is not None:
            frames, metadata = sampled.frames, _describe(sampled)
        else:
            sampled = sample_video(clip, **asdict(rule), **options)
            frames, metadata = sampled.frames, _describe(sampled)
        if self._given(kwargs, "do_resize"):
            height, width = frames.shape[2:] if frames.shape[1] in (1, 3) else frames.shape[1:3]
            check_picture_size(width, height, "<frames>")
        return frames, metadata

    def _choose_frames(
        self, given: Any, metadata: VideoMetadata | None, rule: SamplingRule, options: dict, kwargs: dict
    ) -> tuple[Any, VideoMetadata]:
        """Some of the frames that are given as an array or a list of pictures, by the rule that holds for files."""
        is_array = isinstance(given, np.ndarray | torch.Tensor)
        if is_array and (given.ndim != 4 or len(given) == 0 or not {given.shape[1], given.shape[3]} & {1, 3}):
            raise ValueError(
                "A clip given as an array must have shape (T, 3, H, W) or (T, H, W, 3) with T >= 1, got "
                f"{tuple(given.shape)}."
            )
        if is_array and self._given(kwargs, "do_rescale") and given.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"The frames of a clip are {given.dtype}, expected uint8 from 0 to 255. Convert them, or pass "
                "do_rescale=False for frames that are floats from 0 to 1 already."
            )
        count = len(given)
        about = {} if metadata is None else dict(vars(metadata))
        # Metadata of the clip that the frames were taken from before: they are not sampled again.
        origin = about.get("frames_indices")
        if origin is not None and len(origin) != count:
            raise ValueError(f"video_metadata has {len(origin)} frames_indices for {count} frames: give one for each.")
        is_sampled = origin is not None or about.get("total_num_frames") not in (None, count)
        rate = None if is_sampled else about.get("fps")
        begins = None if rate is None else [index / rate for index in range(count)]
        indices = rule.picture_indices(count, begins, rate and count / rate, "<frames>").tolist()
        if is_array:
            frames = given if len(indices) == count else given[indices]
            frames = np.ascontiguousarray(frames) if isinstance(frames, np.ndarray) else frames
        else:
            sampled = sample_video([given[index] for index in indices], num_frames="all", **options)
            frames, indices = sampled.frames, [indices[index] for index in sampled.metadata["frames_indices"]]
        about |= {"frames_indices": indices if origin is None else [int(origin[index]) for index in indices]}
        return frames, ValleyVideoMetadata(**{"total_num_frames": count, **about})


_SAMPLING = ("fps", "num_frames", "max_frames")


def _pick(kwargs: dict, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of some arguments that are given."""
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def _describe(sampled: SampledVideo) -> VideoMetadata:
    about = {"total_num_frames": len(sampled.frames), **sampled.metadata}
    return ValleyVideoMetadata(**about, frame_timestamps=sampled.timestamps)


def _list_metadata(metadata: Any, count: int) -> list[VideoMetadata | None]:
    """One description for each clip, as the caller gave them; the caller's own objects stay as they are."""
    while isinstance(metadata, list | tuple) and any(isinstance(item, list | tuple) for item in metadata):
        metadata = [inner for item in metadata for inner in (item if isinstance(item, list | tuple) else [item])]
    metadata = metadata if isinstance(metadata, list | tuple) else [metadata] * count
    if len(metadata) != count:
        raise ValueError(f"video_metadata describes {len(metadata)} clips, but {count} are given.")
    return [VideoMetadata(**item) if isinstance(item, dict) else item for item in metadata]


def _sampled_before(clip: Any) -> SampledVideo | None:
    """The frames of a clip that was sampled before, also where it is the `video` of a content block."""
    segment = unwrap_segment(clip)
    if not isinstance(segment.source, SampledVideo):
        return None
    if segment.settings:
        settings = ", ".join(segment.settings)
        raise ValueError(f"A SampledVideo has its frames already: {settings} cannot be given with it.")
    return segment.source


def _stack_frames(frames: Sequence) -> np.ndarray | torch.Tensor:
    """3-D arrays of one size to one array."""
    if len(shapes := {tuple(frame.shape) for frame in frames}) > 1:
        raise ValueError(f"The frames of one clip must have one size, got {sorted(shapes)}: resize them to one.")
    return torch.stack(tuple(frames)) if isinstance(frames[0], torch.Tensor) else np.stack(frames)


ValleyVideoProcessor.register_for_auto_class()

__all__ = ["ValleyVideoMetadata", "ValleyVideoProcessor", "flatten_clips"]
