# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Clips and images as they are typed, opened for a question."""

from typing import Any

from .options import check_sampling


def set_sampling(processor: Any, num_frames: int | None, fps: float | None, on_error: str) -> None:
    """Set how clips are sampled, where the options say so."""
    check_sampling(num_frames, fps)
    processor.video_processor.on_error = on_error
    if num_frames is not None or fps is not None:
        processor.video_processor.num_frames, processor.video_processor.fps = num_frames, fps


def open_visual(processor: Any, path: str) -> tuple[str, Any, str]:
    """Open a clip or an image.

    Returns:
        `tuple`: `"video"` or `"image"`, the `SampledVideo` or the image, and in words what is seen of it.
    """
    from transformers_valley.contact_sheet import clock

    sampled = processor.video_processor.sample(path)
    times, count = sampled.timestamps, len(sampled.frames)
    if sampled.is_still:
        return "image", sampled.frames[0], "an image"
    span = "" if times is None else f" from {clock(times[0], 2)} to {clock(times[-1], 2)}"
    return "video", sampled, f"{count} frame{'s' * (count > 1)}{span}"
