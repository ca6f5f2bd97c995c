# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The card of a data set that a command wrote, and its way to the Hub.

In go what is in it and the command that made it; out comes `README.md` in a folder of packed rows, or `FILE.card.md`
beside a file of rows, from `card_template.md`. It says what is known of licences, and whether clips may be passed on:
`push_data` goes by it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi
from transformers.utils import logging

from ..paper_data import KNOWN_DATA, TrainingData
from ..whole_files import GENERATED, is_generated, write_whole
from .frames import is_packed, list_shards, read_description
from .load import iter_records


logger = logging.get_logger(__name__)

_TEMPLATE = Path(__file__).with_name("card_template.md")
_FACTS = re.compile(r"^<!-- Facts: (.*) -->$", re.MULTILINE)
# What files of the paper's sets are called beside their names, in letters and digits: see docs/how-to/get_the_data.md.
_CALLED = {
    "valleywebvid2mpretrain703k": "Valley-702k",
    "llavapretrain595k": "LLaVA-CC3M-Pretrain-595K",
    "videochat11k": "VideoChat-instruct-11K",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
# Of the clips and images that are stored in a data set. What is stored nowhere can be passed on with no harm.
NO_MEDIA, UNKNOWN, FORBIDDEN = "none", "not known", "cannot be passed on"


def count_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Counter]:
    """Rows, clips and images of each source."""
    counts: dict[str, Counter] = {}
    for row in rows:
        kinds = Counter(block["type"] for turn in row["messages"] for block in turn["content"])
        counts.setdefault(row["source"], Counter()).update(rows=1, clips=kinds["video"], images=kinds["image"])
    return counts


def build_data_card(
    place: str | os.PathLike,
    counts: Mapping[str, Mapping[str, int]],
    *,
    command: str | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> DatasetCard:
    """
    The card of a data set.

    Args:
        place (`str`):
            The folder of packed rows, or the file of rows.
        counts (`Mapping`):
            Of each source its `rows`, `clips` and `images`, see [`count_rows`]. The names of the paper's sets, and of
            their files, bring licence and origin with them; of others nothing is known.
        command (`str`, *optional*):
            That made it.
        settings (`Mapping`, *optional*):
            Rows of the table of how it was made.
        notes (`list[str]`, *optional*):
            Sentences of Markdown that a user has to know.

    Returns:
        `huggingface_hub.DatasetCard`.
    """
    place, packed = Path(place), is_packed(place)
    known = {source: _known(source) for source in counts}
    media = NO_MEDIA
    if packed and any(count["clips"] or count["images"] for count in counts.values()):
        media = FORBIDDEN if any(known.values()) else UNKNOWN
    rows = sum(count["rows"] for count in counts.values())
    metadata = DatasetCardData(
        pretty_name=_name(place),
        license=_license(known.values()),
        task_categories=["video-text-to-text"],
        size_categories=next((size for limit, size in _SIZES if rows < limit), "n>10M"),
        source_datasets=[entry.hub_id for entry in known.values() if entry and entry.hub_id] or None,
        tags=["valley", "video"],
        configs=[{"config_name": "default", "data_files": "train-*.parquet" if packed else place.name}],
    )
    return DatasetCard.from_template(
        metadata,
        str(_TEMPLATE),
        title=_name(place),
        mark=GENERATED,
        packed=packed,
        file=place.name,
        counts=counts,
        total=Counter({name: sum(count[name] for count in counts.values()) for name in ("rows", "clips", "images")}),
        known=known,
        media=media,
        command=command,
        settings=settings or {},
        notes=notes,
        facts=json.dumps({"media": media}),
    )


def write_data_card(place: str | os.PathLike, counts: Mapping[str, Mapping[str, int]], **facts: Any) -> Path | None:
    """
    Write the card of a data set, as [`build_data_card`] makes it. A card that a person wrote is kept, with a warning.

    Returns:
        `Path` of the card, or `None` where another was kept.
    """
    path = card_path(place)
    if path.exists() and not is_generated(path.read_text(encoding="utf-8", errors="replace")):
        logger.warning(f"{path} is kept: a person may have written in it. Move it away to have a card written.")
        return None
    write_whole(path, str(build_data_card(place, counts, **facts)).encode())
    return path


def write_packed_card(folder: str | os.PathLike, command: str | None = None) -> Path | None:
    """The card of packed rows, as soon as all their files are there; `None` before."""
    try:
        shards = list_shards(folder)
    except ValueError:
        return None  # other parts are at work
    about = read_description(folder)
    counts = count_rows(_messages(shards))
    left_out = about["rows"] - sum(count["rows"] for count in counts.values())
    sampled = {name: about["settings"][name] for name in ("fps", "num_frames", "max_frames")}
    settings = {
        "frames of a clip": ", ".join(f"{name} {value:g}" for name, value in sampled.items() if value is not None),
        "short side": f"{about['settings']['size']} pixels",
        "format": f"{about['settings']['format']}, quality {about['settings']['quality']}",
        "files": len(shards),
        "rows that could not be read, and are left out": left_out,
    }
    return write_data_card(folder, counts, command=command, settings=settings)


def _messages(shards: list[str]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        with pyarrow.parquet.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=256, columns=["source", "messages"]):
                yield from batch.to_pylist()


def write_rows_card(file: str | os.PathLike, source: str | os.PathLike, **facts: Any) -> Path | None:
    """The card of a file of rows that were made of another file, whose name tells the source."""
    rows = (row for _, _, row in iter_records([file]) if not isinstance(row, ValueError))
    counts = count_rows(row | {"source": Path(source).stem} for row in rows)
    return write_data_card(file, counts, **facts)


def card_path(place: str | os.PathLike) -> Path:
    """Where the card of a folder of packed rows, or of a file of rows, is."""
    place = Path(place)
    return place / "README.md" if place.is_dir() else place.with_name(f"{place.name}.card.md")


def push_data(
    place: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    license: str | None = None,
    share_media: bool = False,
    api: HfApi | None = None,
) -> str:
    """
    Put a data set with its card on the Hub.

    Args:
        place (`str`):
            A folder of packed rows, or a file of rows, of which a command wrote the card.
        repo_id (`str`):
            Of the data set on the Hub, `owner/name`; made if need be.
        private (`bool`, *optional*, defaults to `False`):
            Whether it is seen by its owner only. One that is public already is refused.
        license (`str`, *optional*):
            Of the texts, as the Hub spells it, such as `cc-by-4.0`; by default what the card says.
        share_media (`bool`, *optional*, defaults to `False`):
            Pass on frames and pictures though the card says that they cannot be, or does not know.
        api (`HfApi`, *optional*):
            By default one with the token of this machine.

    Returns:
        `str`: the page.

    Raises:
        FileNotFoundError: if there is no such data set, or no card.
        ValueError: if packed rows are not complete, or hold what may not be passed on, or the repository is public
            and `private` is set.
    """
    place, packed = Path(place), is_packed(place)
    if not packed and not place.is_file():
        raise FileNotFoundError(f"{place} is neither a folder of packed rows nor a file of rows.")
    if packed:
        list_shards(place)
    path = card_path(place)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no card {path}, which says where the data come from: the command that wrote them writes it at "
            "its end; run it again, or write one yourself."
        )
    card = DatasetCard.load(path)
    found = _FACTS.search(card.text)
    media = json.loads(found[1])["media"] if found else UNKNOWN if packed else NO_MEDIA
    if media != NO_MEDIA and not share_media:
        why = "which the card says cannot be passed on" if media == FORBIDDEN else "and no card says whose they are"
        raise ValueError(
            f"{place} holds frames and pictures, {why}. Push the rows without them (`valley data export`); or, if you "
            "have the right to pass them on, say so with share_media=True, on the command line --share-media."
        )
    if license is not None:
        card.data.license = license
    api = api or HfApi()
    page = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type="dataset").private:  # one that was there stays as it was
        raise ValueError(
            f"{repo_id} is a public data set, and nothing was pushed: make it private on its page, name another one, "
            "or push without private=True, on the command line --private."
        )
    message = f"Upload {_name(place)} with transformers_valley"
    operations = [CommitOperationAdd("README.md", str(card).encode())]
    if packed:
        # The card comes first: a repository never holds the data without it. What could not be read names local files.
        api.create_commit(repo_id, operations, commit_message="Add the card", repo_type="dataset")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=place,
            repo_type="dataset",
            commit_message=message,
            allow_patterns=["train-*.parquet", "pack.json"],
        )
    else:
        operations.append(CommitOperationAdd(place.name, place))
        api.create_commit(repo_id, operations, commit_message=message, repo_type="dataset")
    return str(page)


def _known(source: str) -> TrainingData | None:
    """The set of the paper that a source is, by the set's name or that of its file."""
    name = _plain(_CALLED.get(_plain(source), source))
    return next((entry for entry in KNOWN_DATA if _plain(entry.name) == name), None)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _license(known: Iterable[TrainingData | None]) -> str | None:
    """Of all, as the Hub spells it, where all have one and the same."""
    licenses = {entry.license if entry else None for entry in known}
    return "cc-by-nc-4.0" if licenses == {"CC BY-NC 4.0"} else None


def _name(place: Path) -> str:
    return place.resolve().name if place.is_dir() else place.stem


__all__ = [
    "build_data_card",
    "card_path",
    "count_rows",
    "push_data",
    "write_data_card",
    "write_packed_card",
    "write_rows_card",
]
