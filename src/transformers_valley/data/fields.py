# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Fields of a record that no format reads: which of them only describe it, and which are refused.

A record may say more of itself than a training needs, such as `task` or `v_id`. But a field whose name tells of what
is shown, when, by whom or how much it counts would change the training, and must not get lost.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Set
from functools import lru_cache
from typing import Any

from .rows import CLIP_SETTINGS


# Words in the name of a field, and what such a field is about.
_TELLING = {
    "a clip or an image": "video videos image images img imgs picture pictures photo photos frame frames clip clips "
    "audio audios media visual visuals gif path paths file files filename url urls",
    "a time": "start begin end stop time times timestamp timestamps segment segments span interval fps nframes",
    "how much it counts": "weight weights loss mask chosen rejected kto",
    "a role or a system prompt": "role roles system prompt instruction persona",
    "tools": "tool tools function functions",
    "turns": "messages conversation conversations dialog dialogue history turns qa",
}
_ABOUT = {word: about for about, words in _TELLING.items() for word in words.split()}
_VISUAL = "a clip or an image"

# Names that end in these describe what the rest of the name tells of: `video_id`, `image_width`, `start_date`.
_DESCRIBING = set(
    "id ids source type kind category class title tags license date count length duration size width height "
    "format url urls model version index hash md5 sha256 caption captions description".split()
)

# Names of other tools for what is read here.
_CALLED = {
    **dict.fromkeys(("video_path", "video_file", "video_name", "video_id", "clip", "file_name", "path"), "video"),
    **dict.fromkeys(("image_path", "image_file", "image_name", "img"), "image"),
    **dict.fromkeys(("start_time", "video_start", "start_sec", "start_second", "begin"), "start"),
    **dict.fromkeys(("end_time", "video_end", "end_sec", "end_second", "stop"), "end"),
    "nframes": "num_frames",
    "video_fps": "fps",
    "system_prompt": "system",
}


def given(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that hold something: null, empty text and empty lists are as if they were not there."""
    return {name: value for name, value in record.items() if value is not None and value not in ("", [], {})}


def check_fields(names: Iterable[str], known: Collection[str], shows_visual: bool) -> None:
    """
    Refuse fields that would have to be read.

    Args:
        names (`Iterable[str]`):
            Of the fields that a record has.
        known (`Collection[str]`):
            Those that its format reads.
        shows_visual (`bool`):
            Whether the row shows a clip or an image: then `video_id` describes it, and otherwise alone names one.

    Raises:
        ValueError: names the field, and what to do.
    """
    for name in names:
        if name in known:
            continue
        about, describes = _read_name(str(name))
        if about is None or (describes and (about != _VISUAL or shows_visual)):
            continue
        own = _CALLED.get(str(name).lower(), name)
        cure = f"this format reads {', '.join(f'`{one}`' for one in sorted(known))}"
        if own in known:
            cure = f"call it `{own}`"
        elif own in CLIP_SETTINGS:
            cure = f"write `{own}` into the block of the clip that it is about"
        raise ValueError(
            f"it has the field `{name}`, which tells of {about} and would not be read: {cure}, or take it out"
        )


@lru_cache
def _read_name(name: str) -> tuple[str | None, bool]:
    """What a field is about by its name, if that is something to be read, and whether it only describes that."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return next((_ABOUT[word] for word in words if word in _ABOUT), None), not _DESCRIBING.isdisjoint(words[-1:])


def check_closed(value: Mapping[str, Any], known: Set[str], what: str) -> None:
    """Refuse any field of a turn or a block that is not read. Raises a `ValueError` that names it."""
    if not value.keys() <= known and (unknown := sorted(map(str, given(value).keys() - known))):
        raise ValueError(
            f"{what} has the fields {', '.join(f'`{name}`' for name in unknown)}, which would not be read: it may "
            f"have {', '.join(f'`{name}`' for name in sorted(known))}; take the others out"
        )


__all__ = ["check_closed", "check_fields", "given"]
