# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Objects that answers speak of and captions do not support, marked by a judge: why the paper made data of its own.

In go rows that were written from captions, and the captions; out come the rows of which the judge marks nothing,
beside them the others with what it marked, and how many there are.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...endpoint import Endpoint, Reply
from ...whole_files import whole_file
from ..files import check_file, read_records
from .captions import Caption, read_captions


BATCH = 1000  # rows whose verdicts are held in memory
SYSTEM = (
    "You get what people know of a video, its title and caption, and answers that somebody gave about it without "
    "more knowledge. List every object, person, animal or piece of clothing that the answers say is in the video and "
    "that neither the title nor the caption names or implies. Leave out what is only suggested, asked or general "
    "knowledge. Copy the words as the answers have them. Reply with one JSON object and nothing else: "
    '{"objects": ["...", ...]}, with an empty list if there is none.'
)


@dataclass
class Verdicts:
    """How many rows are clean, marked and undecided, and the objects that were marked, by how often."""

    clean: int = 0
    marked: int = 0
    undecided: int = 0
    objects: Counter = field(default_factory=Counter)


def check_hallucinations(
    file: str | os.PathLike,
    captions: str | os.PathLike,
    output: str | os.PathLike,
    endpoint: Endpoint,
    progress: bool = True,
) -> Verdicts:
    """
    Let a judge read the answers of rows beside the captions that they were written from.

    Args:
        file (`str`):
            Records of LLaVA, such as `valley data build` writes.
        captions (`str`):
            See [`read_captions`]. A row belongs to all captions of the same clip or image: any of them may support it.
        output (`str`):
            The JSONL file of clean rows, which appears whole; `OUTPUT.marked.jsonl` stands beside it, with `objects`
            of each, or the `reason` why nothing was decided.
        endpoint ([`Endpoint`]):
            The judge. With a `cache` no verdict is paid for twice; what failed is asked again in the next run.
        progress (`bool`, *optional*, defaults to `True`):
            Whether there is a bar.

    Raises:
        ValueError: if a row has no caption, or is not a record.
        EndpointError: if the server answers nobody.
        DiskFullError: if the disk is full.
    """
    check_file(file)
    known: dict[str, list[Caption]] = {}
    for one in read_captions(captions):
        if isinstance(one, Caption):
            known.setdefault(one.path, []).append(one)
    output, found = Path(output), Verdicts()
    rows = _rows(file, known)
    with whole_file(output.with_name(f"{output.name}.marked.jsonl")) as marked_part, whole_file(output) as part:
        with part.open("w", encoding="utf-8") as clean, marked_part.open("w", encoding="utf-8") as marked:
            while batch := list(itertools.islice(rows, BATCH)):
                requests = [_request(record, told) for record, told in batch]
                replies = endpoint.ask(requests, retry_failed=True, desc="Verdicts", progress=progress)
                for (record, _), reply in zip(batch, replies, strict=True):
                    about = _judge(record, reply, found)
                    line = json.dumps(record | about, ensure_ascii=False) + "\n"
                    (marked if about else clean).write(line)
    return found


def _rows(file: str | os.PathLike, known: dict[str, list[Caption]]) -> Iterator[tuple[dict[str, Any], list[Caption]]]:
    for position, record in enumerate(read_records(file)):
        if isinstance(record, ValueError):
            raise record
        if not isinstance(record, dict) or "conversations" not in record:
            raise ValueError(f"{file}, record {position} has no `conversations`, expected a record of LLaVA.")
        path = record.get("video") or record.get("image")
        if not isinstance(path, str) or path not in known:
            raise ValueError(f"{file}, record {position} shows {path!r}, of which there is no caption.")
        yield record, known[path]


def _answers(record: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]


def _request(record: dict[str, Any], captions: list[Caption]) -> dict[str, Any]:
    titles = [f"Title: {caption.title}" for caption in captions if caption.title]
    texts = [f"Caption: {caption.text}" for caption in captions]
    known, answers = "\n".join(dict.fromkeys(titles + texts)), "\n".join(_answers(record))
    user = f"{known}\n\nAnswers:\n{answers}"
    return {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}], "temperature": 0}


def _judge(record: dict[str, Any], reply: Reply, found: Verdicts) -> dict[str, Any]:
    """What stands beside a row that is not clean."""
    try:
        objects = read_verdict(reply, "\n".join(_answers(record)))
    except ValueError as error:
        found.undecided += 1
        return {"reason": str(error)}
    if not objects:
        found.clean += 1
        return {}
    found.marked += 1
    found.objects.update(word.lower() for word in objects)
    return {"objects": objects}


def read_verdict(reply: Reply, answers: str) -> list[str]:
    """
    The objects that a judge marks.

    Raises:
        ValueError: if there is no verdict, or it marks words that the answers do not have.
    """
    if reply.text is None:
        raise ValueError(f"the judge did not answer: {reply.error}")
    start = reply.text.find("{")
    try:
        objects = json.JSONDecoder(strict=False).raw_decode(reply.text, max(start, 0))[0]["objects"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"the judge gave no verdict: {reply.text[:200]!r}") from None
    if not isinstance(objects, list) or not all(isinstance(word, str) for word in objects):
        raise ValueError(f"the judge gave no list of objects: {reply.text[:200]!r}")
    objects = [word.strip() for word in objects if word.strip()]
    if made_up := [word for word in objects if word.lower() not in answers.lower()]:
        raise ValueError(f"the judge marks words that the answers do not have: {made_up}")
    return objects


__all__ = ["Verdicts", "check_hallucinations", "read_verdict"]
