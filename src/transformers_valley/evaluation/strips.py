# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the model was shown, kept for people: some frames of a clip side by side in a small JPEG."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..whole_files import whole_file


FRAMES = "frames"  # folder in that of a run
HEIGHT, MOST = 72, 8  # pixels of a strip, and frames in it


def keep_strip(run: str | os.PathLike, name: str, frames: Any, size: tuple[int, int]) -> dict[str, Any]:
    """
    Write the strip of a clip or image, unless it is there.

    Args:
        run (path):
            The folder of the run.
        name (`str`):
            What tells the clip from others.
        frames (`torch.Tensor` or `PIL.Image.Image`):
            uint8 of shape (T, 3, h, w), or one picture.
        size (`tuple[int, int]`):
            Height and width of what the model sees, cut out of the middle.

    Returns:
        `dict` with `strip`, its path from the run's folder, and `strip_frames`, the numbers of the frames in it.
    """
    count = len(frames) if isinstance(frames, torch.Tensor) else 1
    chosen = sorted(set(np.linspace(0, count - 1, min(count, MOST)).round().astype(int).tolist()))
    path = f"{FRAMES}/{hashlib.sha256(f'{name} {count}'.encode()).hexdigest()[:16]}.jpg"
    file = Path(run, path)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        pictures = [_picture(frames[i]) for i in chosen] if isinstance(frames, torch.Tensor) else [_picture(frames)]
        width = max(1, round(HEIGHT * size[1] / size[0]))
        strip = Image.new("RGB", (width * len(pictures), HEIGHT))
        for i, picture in enumerate(pictures):
            # Resized to cover, then cut: what a processor does with the short side and a centre crop.
            strip.paste(ImageOps.fit(picture, (width, HEIGHT)), (i * width, 0))
        with whole_file(file) as part:  # several processes may show one clip
            strip.save(part, "JPEG", quality=75)
    return {"strip": path, "strip_frames": chosen}


def _picture(frame: Any) -> Image.Image:
    if isinstance(frame, torch.Tensor):
        frame = Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
    return frame.convert("RGB")


__all__ = ["FRAMES", "keep_strip"]
