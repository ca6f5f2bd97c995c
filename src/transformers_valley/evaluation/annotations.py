# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Annotation files and clips as benchmarks publish them: found, read, and compared with the published bytes.

`AnnotationFiles` gives the content of JSON files and notes what they were; `Clips` gives the path of a clip by its
name; `read_open_ended` reads the layouts that several benchmarks share.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..data.mixtures import Source
from .records import read_json


logger = logging.get_logger(__name__)

# Repository, commit, bytes, sha256 and items of files as they are published.
OFFICIAL_FILES = json.loads(Path(__file__).with_name("official_files.json").read_text(encoding="utf-8"))
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")  # in the order in which the field's loaders try them
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_SPLITS = ("train", "val", "test")


class AnnotationFiles:
    """
    The files of one benchmark.

    Args:
        benchmark (`str`):
            Its name, as in `official_files.json`.
        data (path, [`Source`] or `list`):
            A folder, a file, or several files; or data sets of `datasets`, in [`Source`]s.
        split (`str`):
            Which part of the benchmark they are meant to be.

    Attributes:
        used (`list[dict]`): `name`, `sha256`, `bytes` and `is_published` of what was read; the last is `None` where
            the published file is not known. Of a data set also `config`, `split` and `revision`, see [`version_of`].

    Raises:
        FileNotFoundError: if there is nothing.
    """

    def __init__(self, benchmark: str, data: str | os.PathLike | list, split: str):
        self.benchmark, self.split, self.used = benchmark, split, []
        data = data if isinstance(data, list | tuple) else [data]
        self.data_sets = [source for source in data if isinstance(source, Source)]
        self.paths = [Path(path) for path in data if not isinstance(path, Source)]
        for path in self.paths:
            if not path.exists():
                raise FileNotFoundError(f"There is no {path}, where the questions of {benchmark} were looked for.")
        self.path = self.paths[0] if self.paths else self.data_sets[0]
        self.folder = None
        if self.paths:
            self.folder = self.path if self.path.is_dir() else self.path.parent

    def find(self, *names: str) -> Path | None:
        """The first of these that exists; if files were given, among those."""
        files = [self.path / name for name in names] if self.path.is_dir() else self.paths
        return next((file for name in names for file in files if file.name == name and file.is_file()), None)

    def read(self, *names: str) -> Any:
        """
        The content of the first of these files that exists. A warning names one that differs from the published file.

        Raises:
            FileNotFoundError: if none exists.
            ValueError: if it is not valid JSON, or another split's.
        """
        file = self.find(*names)
        if file is None:
            found = sorted(os.listdir(self.path)) if self.path.is_dir() else [path.name for path in self.paths]
            splits = [split for split in _SPLITS if any(name.startswith(f"{split}_") for name in found)]
            others = (
                f" Is another split meant? Give --split {splits[0]}." if splits and self.split not in splits else ""
            )
            raise FileNotFoundError(
                f"{self.benchmark} needs {' or '.join(names)}; in {self.folder} there is "
                f"{', '.join(found[:20]) or 'nothing'}.{others}"
            )
        self.note(file)
        return read_json(file)

    def note(self, file: Path) -> None:
        """Remember what a file is, and tell if it is not as published, or stop if it is another split's."""
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        official = [entry for entry in OFFICIAL_FILES if entry["benchmark"] == self.benchmark]
        same = next((entry for entry in official if entry["sha256"] == digest), None)
        named = next((entry for entry in official if entry["file"] == file.name), None)
        name = same["file"] if same else file.name
        of = next((split for split in _SPLITS if name.startswith(f"{split}_")), self.split)
        if self.split in _SPLITS and of != self.split:
            raise ValueError(
                f"{file} is of the {of} split, and {self.split} was asked for. Give split={of!r}, which then stands "
                "beside every number, or the other files."
            )
        if named and not same:
            logger.warning(
                f"{file} is not the published file: it has {len(data)} bytes, that of {named['repository']} "
                f"{named['bytes']} ({named['items']} items). Its numbers cannot be compared with published ones."
            )
        is_published = same is not None if same or named else None
        self.used.append({"name": file.name, "sha256": digest, "bytes": len(data), "is_published": is_published})


class Clips:
    """
    Clips and images by their names, anywhere below a folder.

    Args:
        folder (path, *optional*):
            Where they are, if somebody said so.
        default (path, *optional*):
            Where they are otherwise; the current folder by default.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike | None, default: str | os.PathLike | None = None):
        self.given = Path(folder) if folder else None
        self.folder = self.given or Path(default or ".")
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder}, where clips were looked for.")

    def find(self, *stems: str, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> str:
        """
        The file with one of these names (without suffix); where there is none, the first that was looked for.

        Raises:
            ValueError: if two files are called so.
        """
        for stem in stems:
            files = self._files.get(stem, [])
            for suffix in suffixes:
                fitting = [file for file in files if file.lower().endswith(suffix)]
                if len(fitting) > 1:
                    raise ValueError(f"{fitting[0]} and {fitting[1]} have one name: which is meant? Move one away.")
                if fitting:
                    return fitting[0]
        return str(self.folder / f"{stems[0]}{suffixes[0]}")

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """Paths of all files, by their name without its suffix."""
        files = {}
        for path in _walk(self.folder):
            files.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)
        return files


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (os.path.join(root, file) for file in sorted(files))


def read_open_ended(files: AnnotationFiles) -> Iterator[dict[str, Any]]:
    """
    Open-ended questions about videos, from any of the three layouts in which they are published.

    {split}_qa.json                  authors of MSVD-QA and MSRVTT-QA: answer, id, question, video_id (a number)
    {split}_q.json, {split}_a.json   ActivityNet-QA, and Video-LLaVA's repackaging of all three: video_name,
                                     question, question_id; and answer, type, question_id
    {name}.json                      Chat-UniVi, test splits: question, video_name, answer, without an id

    Returns:
        Records with `id`, `video` (a name or a number), `question`, `answer` and `type` (a number or
        `None`).

    Raises:
        FileNotFoundError: if no layout is there.
        ValueError: if questions and answers do not belong together, or a field is missing.
    """
    split = files.split
    if files.find(f"{split}_q.json", f"{split}_a.json"):
        yield from _join(files.read(f"{split}_q.json"), files.read(f"{split}_a.json"), files)
        return
    names = [f"{split}_qa.json"] + ([f"{files.benchmark}.json"] if split == "test" else [])
    rows = files.read(*names, f"{split}_q.json")
    for position, row in enumerate(rows):
        try:
            video = row["video_id"] if "video_id" in row else row["video_name"]
            name = row.get("id", f"{video}_{position}")
            yield {"id": str(name), "video": video, "question": row["question"], "answer": row["answer"], "type": None}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{files.used[-1]['name']}, record {position} is not a question: {error!r}. Expected question, answer "
                "and video_id or video_name."
            ) from None


def _join(questions: list[dict], answers: list[dict], files: AnnotationFiles) -> Iterator[dict[str, Any]]:
    """Questions with the answers of the same id: neither their order nor their texts tell which belong together."""
    try:
        by_id = {answer["question_id"]: answer for answer in answers}
        asked = {question["question_id"]: question for question in questions}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{files.path}: a question or an answer has no question_id ({error!r}).") from None
    if missing := [name for name in asked if name not in by_id]:
        raise ValueError(
            f"{files.path}: {len(missing)} of {len(questions)} questions have no answer, such as {missing[0]!r}; the "
            f"answers are for {len(by_id)} others, such as {next(iter(by_id), None)!r}. Is a file truncated, or of "
            "another benchmark or split?"
        )
    if left := [name for name in by_id if name not in asked]:
        raise ValueError(
            f"{files.path}: {len(left)} of {len(answers)} answers have no question, such as {left[0]!r}. Is the file "
            "of questions truncated, or of another split?"
        )
    for question in questions:
        answer = by_id[question["question_id"]]
        yield {
            "id": question["question_id"],
            "video": question["video_name"],
            "question": question["question"],
            "answer": answer["answer"],
            "type": answer.get("type"),
        }


__all__ = ["IMAGE_SUFFIXES", "OFFICIAL_FILES", "VIDEO_SUFFIXES", "AnnotationFiles", "Clips", "read_open_ended"]
