# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Reads your own questions: records of a file or a data set become samples.

All that training reads is read, and asked in the same words.

Every turn of the assistant is a reference. Where a record has `question` and `answer`, `answer` may be a list of
several references, and `choices` make them letters. `type` and `source` become rows of the table; `source` is the
file's name by default.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.fields import given
from ..data.files import read_records
from ..data.formats import to_row
from ..data.formats.question_answer import by_letter, chosen_letter
from ..data.hub import home_of, read_data_set, with_paths
from ..data.mixtures import Source
from .benchmark import Sample


def read_questions(file: Path | Source, media_root: Path | Mapping | None) -> Iterator[Sample]:
    """
    The samples of a JSON, JSONL or CSV file, or of a data set of `datasets`.

    Raises:
        ValueError: if a record is none; it names file, position and reason.
    """
    if isinstance(file, Source):
        name, records, media_root = file.name, map(with_paths, read_data_set(file)), media_root or home_of(file)
    else:
        name, records = file.stem, read_records(file)
    for position, record in enumerate(records):
        if isinstance(record, ValueError):  # of a damaged file, which names it
            raise record
        try:
            yield from _read(record, f"{name}:{position}", name, media_root, position)
        except ValueError as error:
            raise ValueError(f"{file}, record {position}: {error}") from None


def _read(record: Any, name: str, source: str, media_root: Path, position: int) -> Iterator[Sample]:
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {str(record)[:80]!r}, expected an object")
    fields = given(record)
    name = str(fields.get("id", name))
    about = {"source": str(fields.get("source", source)), "type": str(fields.get("type", ""))}
    if "question" not in fields:
        yield from _ask_each_turn(_chat(to_row(record, media_root, position)), name, about)
        return
    if "answer" not in fields:
        raise ValueError(f"a question needs an `answer`, found {sorted(fields)}")
    answers = fields["answer"] if isinstance(fields["answer"], list) else [fields["answer"]]
    choices = by_letter(fields["choices"]) if "choices" in fields else {}
    if choices:
        references = [chosen_letter(_number(answer, choices), choices) for answer in answers]
    else:
        references = [str(answer).strip() for answer in answers]
    *asked, _ = _chat(to_row({**record, "answer": references[0]}, media_root, position))
    yield Sample(name, asked, tuple(references), choices, **about)


def _number(answer: Any, choices: Mapping[str, str]) -> Any:
    """A position that CSV, which knows no numbers, gives as text."""
    is_position = isinstance(answer, str) and answer.isdecimal() and answer not in {*choices, *choices.values()}
    return int(answer) if is_position else answer


def _chat(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a training row, with the path of each image in its block."""
    images = iter(row["images"])
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "path": next(images)} if block["type"] == "image" else block
                for block in message["content"]
            ],
        }
        for message in row["messages"]
    ]


def _ask_each_turn(messages: list[dict[str, Any]], name: str, about: dict[str, str]) -> Iterator[Sample]:
    """Each turn of the assistant is asked for, with the turns before it as they stand in the row."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index in turns:
        if not index or messages[index - 1]["content"][-1]["type"] != "text":
            raise ValueError(f"before turn {index}, an answer, there is no question in words")
        answer = "\n".join(block["text"] for block in messages[index]["content"])
        yield Sample(name if len(turns) == 1 else f"{name}#{index}", messages[:index], (answer,), **about)


__all__ = ["read_questions"]
