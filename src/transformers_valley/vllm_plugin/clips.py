# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""From the bytes of a clip to the frames that vLLM passes on: sampled as the checkpoint says, or as a request does."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..video_decoding import SamplingRule
from ..video_interrupts import MAX_READ_SECONDS, interrupted_by, time_limit
from ..video_processing_valley import ValleyVideoProcessor


__all__ = ["CLIP_OPTIONS", "describe", "read_clip", "split_segment", "with_options"]

CLIP_OPTIONS = ("fps", "num_frames", "max_frames", "start", "end", "on_error")
_FRAGMENT = re.compile(r"#t=(?:npt:)?(\d+(?:\.\d+)?)?(?:,(\d+(?:\.\d+)?))?$")


def read_clip(
    source: bytes | str, processor: ValleyVideoProcessor, options: Mapping[str, Any], most_frames: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Decode a clip, resized for the vision tower.

    Args:
        source (`bytes` or `str`):
            The file, or a `data:video/jpeg` URL, whose pictures have commas between them.
        processor ([`ValleyVideoProcessor`]):
            The checkpoint's, whose sampling holds where `options` say nothing.
        options (`Mapping`):
            `fps` or `num_frames`, `max_frames`, `start` and `end` in seconds, `on_error`. `None` is as good as left
            out, and so is `num_frames=-1`, vLLM's word for it.
        most_frames (`int`, *optional*):
            How many fit into the context at all: no client shall have more decoded than can be shown.

    Returns:
        `tuple`: uint8 frames of shape `(T, height, width, 3)`, and what is known of them. Of two ways to sample one
        clip no two descriptions are equal unless their frames are: vLLM caches by them.

    Raises:
        VideoDecodeError: if the clip cannot be read.
        ValueError, TypeError: if an option is unknown or makes no sense.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(options.keys() - set(CLIP_OPTIONS)):
        raise ValueError(f"Unknown options of clips: {', '.join(unknown)}. There are {', '.join(CLIP_OPTIONS)}.")
    if options.get("num_frames") == -1:
        del options["num_frames"]
    if most_frames is not None:
        if isinstance(options.get("num_frames"), str) or (options.get("num_frames") or 0) > most_frames:
            raise ValueError(
                f"num_frames={options['num_frames']} is not a number of up to {most_frames}, the context."
            )
        # One more than fits, so that a clip that is too long is refused for the length of its prompt.
        given = options.get("max_frames") or processor.max_frames
        options["max_frames"] = min(given or most_frames + 1, most_frames + 1)
    segment = {name: options.pop(name) for name in ("start", "end") if name in options}
    with interrupted_by(time_limit(MAX_READ_SECONDS)):
        sampled = processor.sample({"video": source, **segment}, **options)
    about = {name: sampled.metadata.get(name) for name in ("total_num_frames", "fps", "duration", "frames_indices")}
    # A server's frames are those that the model sees: nothing samples them again.
    about |= {"timestamps": sampled.timestamps, "video_backend": "valley", "do_sample_frames": False}
    return sampled.frames.permute(0, 2, 3, 1).contiguous().numpy(), about


def with_options(processor: ValleyVideoProcessor, options: Mapping[str, Any]) -> ValleyVideoProcessor:
    """A processor whose `fps` or `num_frames`, and `max_frames`, are those of `options`."""
    rule = SamplingRule(processor.fps, processor.num_frames, processor.max_frames)
    rule = rule.override(**{name: options.get(name) for name in ("fps", "num_frames", "max_frames")})
    changed = copy.copy(processor)
    changed.fps, changed.num_frames, changed.max_frames = rule.fps, rule.num_frames, rule.max_frames
    return changed


def describe(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the video processor has to know of frames that vLLM hands it: which were taken of how many, how fast."""
    known = ("total_num_frames", "fps", "duration", "frames_indices")
    about = {name: metadata[name] for name in known if metadata and metadata.get(name) is not None}
    if not metadata or "total_num_frames" not in about:
        return None  # frames of a caller: all of them are meant
    if metadata.get("do_sample_frames") is False:
        about.setdefault("frames_indices", list(range(about["total_num_frames"])))
    return about


def split_segment(url: str) -> tuple[str, dict[str, float]]:
    """
    Take the part of a clip off its address: `clip.mp4#t=60,90` (W3C's Media Fragments) is from second 60 to 90.

    OpenAI's content blocks have no place for it, and vLLM drops what they do not have.
    """
    if (match := _FRAGMENT.search(url[-80:])) is None or match[1] is match[2]:
        return url, {}
    times = zip(("start", "end"), match.groups(), strict=True)
    return url[: len(url) - len(match[0])], {name: float(time) for name, time in times if time is not None}
