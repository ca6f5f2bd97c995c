# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows to look at in a browser: what training sees and learns of them, in one file that loads nothing else.

In go rows; out comes a page with strips of frames and their times, conversations, and a filter.
"""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment
from PIL import Image
from tqdm.auto import tqdm

from ..video_processing_valley import ValleyVideoProcessor
from ..video_sources import VideoDecodeError, load_image
from ..whole_files import write_whole
from .decode import visuals_of


HEIGHT = 96  # pixels of a frame
MOST_FRAMES = 12  # of a clip


def write_page(
    rows: Dataset, file: str | os.PathLike, video_processor: ValleyVideoProcessor, num_rows: int = 100
) -> int:
    """
    Write rows as a page, evenly spread over all.

    Args:
        rows (`datasets.Dataset`):
            Of [`load_rows`].
        file (`str`):
            The page, HTML.
        video_processor ([`ValleyVideoProcessor`]):
            Says which frames are taken of a clip. Of more than twelve every so many are shown.
        num_rows (`int`, *optional*, defaults to 100):
            At most.

    Returns:
        `int`: how many rows are on it. A clip or image that cannot be read stands there with the reason.
    """
    chosen = sorted({int(place) for place in np.linspace(0, len(rows) - 1, min(num_rows, len(rows)))})
    shown = [_describe(rows[place], place, video_processor) for place in tqdm(chosen, desc="Rows", disable=None)]
    template = Environment(autoescape=True).from_string(Path(__file__).with_name("show.html.jinja").read_text())
    page = template.render(rows=shown, total=len(rows), sources=sorted({row["source"] for row in shown}))
    write_whole(file, page.encode())
    return len(shown)


def _describe(row: dict[str, Any], place: int, video_processor: ValleyVideoProcessor) -> dict[str, Any]:
    blocks = [block for message in row["messages"] for block in message["content"] if block["type"] != "text"]
    try:
        visuals = [_describe_visual(visual, video_processor) for visual in visuals_of(row)]
    except VideoDecodeError as error:  # of a packed row
        visuals = [{"error": str(error)}] * len(blocks)
    images, found = iter(row["images"]), iter(visuals)
    turns = []
    for message in row["messages"]:
        content = []
        for block in message["content"]:
            if block["type"] == "text":
                content.append({"text": block["text"]})
            else:
                path = block["path"] if block["type"] == "video" else next(images, None)
                content.append(next(found) | {"path": path, "part": _part(block)})
        turns.append({"role": message["role"], "content": content})
    return {"id": row["id"], "source": row["source"], "place": place, "turns": turns}


def _describe_visual(visual: Any, video_processor: ValleyVideoProcessor) -> dict[str, Any]:
    try:
        if visual.modality == "image":
            return {"frames": [{"picture": _encode(load_image(visual.source))}]}
        sampled = video_processor.sample(visual.source)
    except (VideoDecodeError, ValueError) as error:
        return {"error": str(error)}
    count = len(sampled.frames)
    places = sorted({int(place) for place in np.linspace(0, count - 1, min(count, MOST_FRAMES))})
    frames = []
    for place in places:
        time = "" if sampled.timestamps is None else f"{sampled.timestamps[place]:.1f} s"
        picture = Image.fromarray(sampled.frames[place].permute(1, 2, 0).numpy())
        frames.append({"picture": _encode(picture), "time": time})
    return {"frames": frames, "count": count}


def _part(block: dict[str, Any]) -> str:
    names = [name for name in ("start", "end") if block.get(name) is not None]
    return ", ".join(f"{name} {block[name]:g} s" for name in names)


def _encode(picture: Image.Image) -> str:
    width = max(1, round(picture.width * HEIGHT / picture.height))
    data = io.BytesIO()
    picture.resize((min(width, 8 * HEIGHT), HEIGHT)).save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


__all__ = ["write_page"]
