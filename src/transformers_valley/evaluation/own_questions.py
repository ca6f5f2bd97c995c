# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Questions of one's own: records of a file to samples. The one place here that knows what a record may look like.

A record is a training row, of which every turn of the assistant is a reference; or it has these fields:

    video or image   path, from the media folder or absolute
    question         what is asked
    answer           the reference, or a list of several; of a choice its text, letter or number from 0
    choices          optional: a list, or an object from letter to text; in CSV separated by " | "
    type, source     optional: rows of the table; `source` is the file's name by default
    id, start, end   optional; the last two in seconds
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.formats import to_row
from .benchmark import Sample, chat_about
from .string_match import is_exact


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_questions(file: Path, media_root: Path) -> Iterator[Sample]:
    """
    The samples of a JSON, JSONL or CSV file.

    Raises:
        ValueError: if a record is none; it names file, position and reason.
    """
    for position, record in enumerate(_read_records(file)):
        try:
            if not isinstance(record, Mapping):
                raise ValueError(f"it is {str(record)[:80]!r}, expected an object")
            name = str(record["id"]) if record.get("id") not in (None, "") else f"{file.stem}:{position}"
            about = {"source": str(record.get("source") or file.stem), "type": str(record.get("type") or "")}
            if "question" in record:
                yield _from_question(record, name, media_root, about)
            else:
                yield from _from_row(to_row(dict(record), media_root), name, about)
        except ValueError as error:
            raise ValueError(f"{file}, record {position}: {error}") from None


def _from_question(record: Mapping, name: str, media_root: Path, about: dict) -> Sample:
    known = {"id", "video", "image", "question", "answer", "choices", "type", "source", "start", "end"}
    given = {key: value for key, value in record.items() if value not in (None, "")}
    if not given.get("question") or "answer" not in given:
        raise ValueError(f"a question needs `question` and `answer`, found {sorted(given)}")
    if ("video" in given) == ("image" in given):
        raise ValueError(f"a question is about one `video` or one `image`, found {sorted(given)}")
    if unknown := sorted(given.keys() - known):
        about = {**about, "facts": {key: given[key] for key in unknown}}
    choices = _read_choices(given.get("choices"))
    question, answers = str(given["question"]), given["answer"]
    answers = tuple(map(str, answers)) if isinstance(answers, list) else (str(answers),)
    if choices:
        listed = "\n".join(f"({letter}) {choice}" for letter, choice in choices.items())
        question = f"{question}\n{listed}\nAnswer with the letter of the right choice."
        answers = tuple(_letter_of(answer, choices) for answer in answers)
    medium = {key: _resolve(str(given[key]), media_root) for key in ("video", "image") if key in given}
    times = {key: float(given[key]) for key in ("start", "end") if key in given}
    return Sample(name, chat_about(question, **medium, **times), answers, choices, **about)


def _from_row(row: dict, name: str, about: dict) -> Iterator[Sample]:
    """Each turn of the assistant is asked for, with the turns before it as they stand in the row."""
    images = iter(row["images"])
    messages = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "path": next(images)} if block["type"] == "image" else block
                for block in message["content"]
            ],
        }
        for message in row["messages"]
    ]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index in turns:
        if not index or messages[index - 1]["content"][-1]["type"] != "text":
            raise ValueError(f"before turn {index}, an answer, there is no question in words")
        answer = "\n".join(block["text"] for block in messages[index]["content"])
        turn = name if len(turns) == 1 else f"{name}#{index}"
        yield Sample(turn, messages[:index], (answer,), **about)


def _read_choices(given: Any) -> dict[str, str]:
    if isinstance(given, str):
        given = json.loads(given) if given.lstrip().startswith("[") else given.split(" | ")
    if not given:
        return {}
    if isinstance(given, Mapping):
        return {str(letter): str(choice) for letter, choice in given.items()}
    if not 2 <= len(given) <= len(LETTERS):
        raise ValueError(f"there are {len(given)} `choices`, expected 2 to {len(LETTERS)}")
    return dict(zip(LETTERS, map(str, given), strict=False))


def _letter_of(answer: str, choices: dict[str, str]) -> str:
    """The letter of a reference that is a choice's text, letter or number."""
    if fitting := [letter for letter, choice in choices.items() if answer == choice]:
        return fitting[0]
    if answer in choices:
        return answer
    if answer.isdecimal() and int(answer) < len(choices):
        return list(choices)[int(answer)]
    fitting = [letter for letter, choice in choices.items() if is_exact(answer, [choice])]
    if len(fitting) != 1:
        raise ValueError(f"the answer {answer!r} is none of the choices {list(choices.values())}, nor a letter of one")
    return fitting[0]


def _resolve(path: str, media_root: Path) -> str:
    return path if "://" in path or path.startswith("data:") else str(media_root / path)


def _read_records(file: Path) -> Iterator[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from None
    if file.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text))
    elif text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is no JSON: {error}. Was it cut off?") from None
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}, line {number} is no JSON: {error}. Was it cut off?") from None


__all__ = ["read_questions"]
