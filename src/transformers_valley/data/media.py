# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Where the clips and images of records lie: named folders, the other names that published sets give their files, and
what is missing.

In go paths as records write them; out come paths from the root, and a report of those that lead nowhere.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


Folders = Mapping[str, str]  # name to folder; "" is the one for all other paths

# WebVid's clips are named by page and number in the original records, whose code looked below `webvid`.
_WEBVID = re.compile(r"\d{6}_\d{6}/\d+\.mp4")
_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")  # where a record gives a clip's id alone

# Names of one file in copies of a set: what the end of a path looks like, and the ends that it may have instead.
_OTHER_NAMES = (
    (r"(\d{12}\.jpg)", (r"COCO_train2014_\1",)),  # COCO's train2017 and train2014; LLaVA-Instruct names the former
    (r"(\d{6}_\d{6}/\d+\.mp4)", (r"webvid/\1", r"valley/\1")),  # the original Valley repository, Video-LLaVA's copy
    (r"jukinmedia_(v_\d+\.mp4)", (r"\1",)),  # Valley's paper, its crawler
    (r"(v_\d+\.mp4)", (r"jukinmedia_\1",)),
    (r"v_([\w-]{11}\.mp4)", (r"\1",)),  # VATEX by Valley's crawler, and by YouTube's id alone
)


def as_folders(media: str | os.PathLike | Mapping[str, str | os.PathLike] | None) -> dict[str, str]:
    """
    The folders of media by name.

    Args:
        media (`str` or `Mapping`, *optional*):
            One folder that all relative paths start from, or folders by name: `{"jukinmedia": "/a", "": "/b"}` looks
            for `jukinmedia/x.mp4` in `/a` and for all others in `/b`.
    """
    if media is None:
        return {}
    if isinstance(media, str | os.PathLike):
        media = {"": media}
    return {name.strip("/"): os.fspath(folder) for name, folder in media.items()}


def parse_media(options: Iterable[str]) -> dict[str, str]:
    """
    Folders of media from what a command was given: `FOLDER`, or `NAME=FOLDER`, each once.

    Raises:
        ValueError: if a name comes twice, or a folder does not exist.
    """
    folders = {}
    for option in options:
        name, equals, folder = option.partition("=")
        name, folder = (name, folder) if equals and not os.path.isdir(option) else ("", option)
        if not os.path.isdir(folder):
            raise ValueError(f"There is no folder {folder!r} for media: give FOLDER or NAME=FOLDER.")
        if name in folders:
            raise ValueError(
                f"The media folder {name or 'for all paths'} is given twice, {folders[name]} and {folder}."
            )
        folders[name] = folder
    return folders


def place(path: str, folders: Folders) -> str:
    """A path of a record from the root: below the folder with the longest name that it begins with."""
    if is_address(path) or os.path.isabs(path):
        return path
    if "webvid" in folders and _WEBVID.fullmatch(path):
        path = f"webvid/{path}"
    names = [name for name in folders if not name or path == name or path.startswith(f"{name}/")]
    if not names:
        return path
    name = max(names, key=len)
    return os.path.join(folders[name], path[len(name) :].lstrip("/") if name else path)


def find(path: str) -> str:
    """The path itself if something is there, else the same file under the name of another copy of its set, else the
    path again."""
    if is_address(path) or os.path.exists(path):
        return path
    for other in _other_names(path):
        if os.path.exists(other):
            return other
    return path


def _other_names(path: str) -> Iterable[str]:
    for pattern, others in _OTHER_NAMES:
        if match := re.search(rf"(?:(?<=/)|^){pattern}$", path):
            for other in others:
                yield path[: match.start()] + match.expand(other)
    if not os.path.splitext(path)[1]:
        for suffix in _SUFFIXES:
            yield path + suffix


def is_address(path: str) -> bool:
    """Whether it is a URL, of whatever kind, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", path, re.IGNORECASE) is not None


@dataclass
class MissingMedia:
    """Clips and images that are not there: how many rows of which source miss some, and the first of their paths."""

    rows: Counter = field(default_factory=Counter)
    paths: list[str] = field(default_factory=list)  # the first ten, each once

    def add(self, source: str, paths: Iterable[str]) -> None:
        """Count a row of a source that misses these."""
        self.rows[source] += 1
        self.paths = list(dict.fromkeys([*self.paths, *paths]))[:10]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} of {source}" for source, count in sorted(self.rows.items()))
        return f"{self.rows.total()} rows show clips or images that are not there ({counts}), among them " + ", ".join(
            self.paths
        )


__all__ = ["Folders", "MissingMedia", "as_folders", "find", "is_address", "parse_media", "place"]
