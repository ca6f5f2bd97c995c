# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Judged answers to preferences: what the caption supports is better than what it does not.

In go the two files of [`check_hallucinations`]; out come pairs that [`load_preferences`] reads. In the worse answer
something was marked. The better one is not written by anybody else: it is another answer to the same question about
the same clip, in which nothing was marked, or the worse one without the sentences that name what was.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ...whole_files import whole_file
from ..files import check_file, read_records
from ..rows import CLIP_SETTINGS


@dataclass
class Pairs:
    """How many pairs have a clean answer, and how many a shortened one; how many marked rows gave none, since nothing
    was left without the sentences (`empty`) or the same pair is there already (`equal`)."""

    clean: int = 0
    shortened: int = 0
    empty: int = 0
    equal: int = 0


def write_pairs(judged: str | os.PathLike, output: str | os.PathLike, shorten: bool = True) -> Pairs:
    """
    Make pairs of rows that a judge has read.

    A dialogue is cut at the first answer that names something marked: what comes before is asked, that answer is the
    worse one. Of several clean answers to one question the one most like it is taken, so that the two differ in little
    else, and no other habit, such as to be short, is learnt instead. Only what may be paired is held in memory: the
    marked rows, and the clean answers to their questions.

    Args:
        judged (`str`):
            The clean rows that [`check_hallucinations`] wrote; `JUDGED.marked.jsonl` stands beside it.
        output (`str`):
            The JSONL file of pairs, which appears whole.
        shorten (`bool`, *optional*, defaults to `True`):
            Where there is no clean answer, take the worse one without the sentences that name what was marked. These
            pairs teach to say less: `False` leaves them out.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are not of `check_hallucinations`, or there is no pair.
        DiskFullError: if the disk is full.
    """
    marked_file = f"{judged}.marked.jsonl"
    for file in (judged, marked_file):
        check_file(file)
    marked = [_worse(record, f"{marked_file}, record {number}") for number, record in _records(marked_file)]
    better = _clean_answers(judged, {_key(record, place) for record, place in filter(None, marked)})
    output, found, seen = Path(output), Pairs(), set()
    with whole_file(output) as part:
        with part.open("w", encoding="utf-8") as lines:
            for record, place in filter(None, marked):
                turns, rejected = record["conversations"][:place], record["conversations"][place]["value"]
                key = _key(record, place)
                if (key, rejected) in seen:
                    found.equal += 1
                    continue
                seen.add((key, rejected))
                if chosen := _nearest(better[key], rejected):
                    found.clean += 1
                elif shorten and (chosen := _without(rejected, _matcher(record))):
                    found.shortened += 1
                else:
                    found.empty += 1
                    continue
                kept = {name: value for name, value in record.items() if name not in ("objects", "conversations")}
                pair = kept | {"conversations": turns, "chosen": chosen, "rejected": rejected}
                lines.write(json.dumps(pair, ensure_ascii=False) + "\n")
        if not found.clean + found.shortened:
            raise ValueError(
                f"{judged} gives no pair: {len(marked)} rows are marked, {found.empty} of them without a better "
                "answer. Let the model answer each question several times, and judge all of it."
            )
    return found


def _records(file: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, record in enumerate(read_records(file)):
        if isinstance(record, ValueError):
            raise record
        turns = record.get("conversations") if isinstance(record, dict) else None
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
            for turn in turns
        ):
            raise ValueError(
                f"{file}, record {number} has no `conversations` whose turns have texts as `from` and `value`, "
                "expected what `valley data judge` wrote."
            )
        yield number, record


def _worse(record: dict[str, Any], name: str) -> tuple[dict[str, Any], int] | None:
    """A marked row and the place of the first answer that names something marked; `None` if nothing was decided."""
    if "reason" in record:
        return None
    objects = record.get("objects")
    if not isinstance(objects, list) or not objects or not all(isinstance(words, str) for words in objects):
        raise ValueError(f"{name} has no `objects`, expected what `valley data judge` wrote.")
    names_marked = _matcher(record)
    for place, turn in enumerate(record["conversations"]):
        if turn["from"] == "gpt" and names_marked(turn["value"]):
            return record, place
    raise ValueError(f"{name}: no answer has the words {objects} that are marked, expected what the judge read.")


def _clean_answers(file: str | os.PathLike, wanted: set[str]) -> dict[str, list[str]]:
    found = {key: [] for key in wanted}
    for _, record in _records(file):
        for place, turn in enumerate(record["conversations"]):
            if turn["from"] == "gpt" and (key := _key(record, place)) in found:
                if turn["value"] not in found[key]:
                    found[key].append(turn["value"])
    return found


def _key(record: dict[str, Any], place: int) -> str:
    """What was asked: what is shown, and the turns before an answer."""
    shown = {name: record.get(name) for name in ("video", "image", *CLIP_SETTINGS)}
    asked = [[turn["from"], turn["value"]] for turn in record["conversations"][:place]]
    return json.dumps([shown, asked], sort_keys=True)


def _nearest(answers: list[str], rejected: str) -> str | None:
    """The answer most like the worse one; never the same, which a judge marked another time."""
    others = [answer for answer in answers if answer.strip() != rejected.strip()]
    likeness = SequenceMatcher(b=rejected.split())

    def like(answer: str) -> float:
        likeness.set_seq1(answer.split())
        return likeness.ratio()

    return max(others, key=like, default=None)


def _without(answer: str, names_marked: Callable[[str], Any]) -> str:
    """An answer without the sentences that name something marked; nothing if every sentence does."""
    sentences = re.split(r"(?<=[.!?])\s+", answer.strip())
    return " ".join(sentence for sentence in sentences if not names_marked(sentence))


def _matcher(record: dict[str, Any]) -> Callable[[str], Any]:
    """Whether a text names something marked: as whole words, since no car is in a scarf, or as part of others, such as
    "cars", where no answer of the record has them whole."""
    answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    patterns = []
    for words in map(re.escape, record["objects"]):
        whole = rf"(?<!\w){words}(?!\w)"
        patterns.append(whole if any(re.search(whole, text, re.IGNORECASE) for text in answers) else words)
    return re.compile("|".join(patterns), re.IGNORECASE).search


__all__ = ["Pairs", "write_pairs"]
