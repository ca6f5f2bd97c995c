# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Where rows come from, and how many are taken of each: sources, and mixtures of them in YAML.

In goes a YAML file, or names of files; out come sources, and the positions of the rows that an epoch shows of each.
"""

import dataclasses
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import hf_hub_download, snapshot_download

from .frames import DESCRIPTION, is_packed, read_description
from .rows import describe


_TAKE = re.compile(r"(?:(first|end|random):)?(\d+(?:\.\d+)?)(%?)")
# How LLaVA-NeXT's lists of sources call these.
_CALLED = {"json_path": "path", "sampling_strategy": "take", "datasets": "sources"}


@dataclass(frozen=True)
class Source:
    """
    Where rows come from.

    Args:
        path (`str`, *optional*):
            A file of records.
        dataset (`str`, *optional*):
            In its place: a data set on the Hub, or a folder of one.
        config, split, revision (`str`, *optional*):
            Of that data set; its split "train" by default.
        media (`str` or `Mapping`, *optional*):
            Folder that relative paths start from, or folders by name, see [`as_folders`].
        take (`str`, *optional*, defaults to `"all"`):
            Which of its rows: `first:N`, `end:N` or `random:N`, where N is a whole number or a share such as `10%`; a
            share alone is drawn.
        weight (`float`, *optional*, defaults to 1):
            How often an epoch shows each row: twice with 2, half of them with 0.5.
        name (`str`, *optional*):
            What it is called in the rows and in reports; by default the stem of its file, or the last part of the
            data set's name.
        seed (`int`, *optional*, defaults to 42):
            Of what is drawn.

    Raises:
        ValueError: if a value makes no sense; it says what was expected.
    """

    path: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    media: str | Mapping[str, str] | None = None
    take: str = "all"
    weight: float = 1
    name: str | None = None
    seed: int = 42

    def __post_init__(self):
        if (self.path is None) == (self.dataset is None):
            raise ValueError("A source has either a `path`, a file, or a `dataset`, a name on the Hub or a folder.")
        match = _TAKE.fullmatch(str(self.take))
        number = float(match[2]) if match else 0
        is_whole = match and (match[3] or (match[1] and match[2].isdecimal()))
        if self.take != "all" and (not is_whole or number == 0 or (match[3] and number > 100)):
            raise ValueError(
                f"take is {describe(self.take)}, expected all, first:N, end:N or random:N, where N is a whole number "
                "or a share such as 10%, or a share alone."
            )
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight <= 1000:
            raise ValueError(f"weight is {describe(self.weight)}, expected a number above 0 and at most 1000.")
        if self.name is None:
            name = Path(self.path).stem if self.dataset is None else os.path.basename(os.path.abspath(self.dataset))
            object.__setattr__(self, "name", name)

    def __str__(self) -> str:
        return self.path or self.dataset

    @property
    def limit(self) -> int | None:
        """How many of its records have to be read, where it begins with those that are taken."""
        return int(self.take[len("first:") :]) if re.fullmatch(r"first:\d+", self.take) else None

    @property
    def must_count(self) -> bool:
        """Whether only their number tells which rows are taken."""
        return (self.take != "all" and self.limit is None) or self.weight != int(self.weight)

    def choose(self, count: int) -> list[np.ndarray]:
        """
        The positions that an epoch shows, of `count` rows, in ascending order: an array for each time that it goes
        through them.

        Raises:
            ValueError: if there are not as many rows as are to be taken.
        """
        generator = np.random.default_rng([self.seed, zlib.crc32(self.name.encode())])

        def draw(positions: np.ndarray, number: int) -> np.ndarray:
            return np.sort(generator.choice(positions, number, replace=False))

        chosen = np.arange(count)
        if self.take != "all":
            way, number, is_share = _TAKE.fullmatch(self.take).groups()
            number = math.ceil(count * float(number) / 100) if is_share else int(number)
            if number > count:
                raise ValueError(f"{self}: take is {self.take!r}, and it has {count} rows.")
            if way == "first":
                chosen = chosen[:number]
            else:
                chosen = chosen[count - number :] if way == "end" else draw(chosen, number)
        times, rest = divmod(self.weight, 1)
        return [chosen] * int(times) + ([draw(chosen, round(rest * len(chosen)))] if rest else [])


def read_mixture(file: str | os.PathLike) -> list[Source]:
    """
    The sources that a YAML file lists.

    Args:
        file (`str`):
            With `sources`, a list of the fields of [`Source`], and perhaps one `seed` for all.

    Raises:
        ValueError: if something in it is unknown or makes no sense; it names the file and the source.
    """
    try:
        mixture = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    _check_keys(file, "it", mixture, ("sources", "seed"))
    entries = mixture.get("sources")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: `sources` is {describe(entries)}, expected a list with at least one source.")
    if not isinstance(seed := mixture.get("seed", 42), int) or seed < 0:
        raise ValueError(f"{file}: `seed` is {describe(seed)}, expected a whole number from 0.")
    names = [field.name for field in dataclasses.fields(Source) if field.name != "seed"]
    sources = []
    for number, entry in enumerate(entries):
        _check_keys(file, f"source {number}", entry, names)
        try:
            sources.append(Source(**entry, seed=seed))
        except ValueError as error:
            raise ValueError(f"{file}, source {number}: {error}") from error
    return sources


def _check_keys(file: Any, what: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {what} is {describe(value)}, expected keys out of {', '.join(known)}.")
    for key in value:
        if key not in known:
            own = _CALLED.get(key)
            cure = f"it is called `{own}` here" if own in known else f"expected {', '.join(known)}"
            raise ValueError(f"{file}: {what} has the unknown key `{key}`: {cure}.")


def is_mixture(file: str | os.PathLike) -> bool:
    """Whether a file is a mixture, by its name."""
    return os.fspath(file).lower().endswith((".yaml", ".yml"))


def as_sources(files: Sequence[str | os.PathLike | Source], media: Any = None) -> list[Source]:
    """
    Files of records, mixtures and sources as sources.

    Args:
        files (`list`):
            Paths of records, of mixtures, which end in `.yaml` or `.yml`, and of folders of packed rows; and sources.
        media (`str` or `Mapping`, *optional*):
            Of those that have none of their own.

    Raises:
        ValueError: if this is not a list, or empty, or of packed rows another split than "train" is asked for.
    """
    if isinstance(files, str | os.PathLike | Source) or not files:
        raise ValueError(f"`files` must be a non-empty list of files of rows, mixtures or sources, got {files!r}.")
    sources = []
    for file in files:
        if isinstance(file, Source):
            sources.append(file)
        elif is_mixture(file):
            sources += read_mixture(file)
        elif is_packed(file):
            sources.append(Source(dataset=os.fspath(file)))
        else:
            sources.append(Source(path=os.fspath(file)))
    sources = [_settle_packed(source) for source in sources]
    return [source if source.media is not None else dataclasses.replace(source, media=media) for source in sources]


def name_data_sets(names: Iterable[str], config: str | None = None, split: str = "train") -> list[Source]:
    """
    Data sets as sources.

    Args:
        names (`list[str]`):
            Names on the Hub, also as `name@revision`, and folders.
        config, split (`str`, *optional*):
            Of each.
    """
    sources = []
    for name in names:
        dataset, at, revision = (name, "", "") if os.path.isdir(name) else name.partition("@")
        if at and not (dataset and revision):
            raise ValueError(f"The data set is {name!r}, expected NAME or NAME@REVISION.")
        sources.append(Source(dataset=dataset, config=config, split=split, revision=revision or None))
    return sources


def find_description(source: Source) -> str | None:
    """The file that describes packed rows, from the Hub if need be; `None` for a source of other rows."""
    if source.dataset is None or os.path.isdir(source.dataset):
        return os.path.join(source.dataset, DESCRIPTION) if is_packed(source.dataset) else None
    try:
        return hf_hub_download(source.dataset, DESCRIPTION, repo_type="dataset", revision=source.revision)
    except (OSError, ValueError):
        return None  # not packed; or nothing of it can be had, as `datasets` then says


def _settle_packed(source: Source) -> Source:
    """A source of packed rows on the Hub as one of the folder that they are downloaded to; others stay."""
    description = find_description(source)
    if description is None:
        return source
    if source.split != "train" or source.config is not None:
        asked = f"split {source.split!r}" if source.config is None else f"config {source.config!r}"
        raise ValueError(
            f"{source} holds packed rows, and {asked} of it is asked for: packed rows have one split, train; pack the "
            "validation rows into a folder of their own."
        )
    if os.path.isdir(source.dataset):
        return source
    read_description(os.path.dirname(description))  # before much is downloaded
    folder = snapshot_download(
        source.dataset,
        repo_type="dataset",
        revision=source.revision,
        allow_patterns=["train-*.parquet", DESCRIPTION],
    )
    return dataclasses.replace(source, dataset=folder, revision=None)


def packed_folders(files: Sequence[str | os.PathLike | Source]) -> list[str]:
    """The folders of packed rows among some files, mixtures and sources."""
    sources = as_sources(files) if files else []
    return [source.dataset for source in sources if is_packed(source.dataset)]


__all__ = [
    "Source",
    "as_sources",
    "find_description",
    "is_mixture",
    "name_data_sets",
    "packed_folders",
    "read_mixture",
]
