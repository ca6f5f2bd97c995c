# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A question and its answer in a line: JSON, JSONL or CSV with `video` (or `image`), `question` and `answer`.

`choices`, a list or an object by letter, are written below the question; the answer may be one of them, its letter, or
its index from 0, and is learnt as `B. a dog`.
"""

import string
from typing import Any

from ..rows import check_text, describe, text_block
from .base import MEDIA, Format, read_clips, read_images


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of a record: the visual, then the question."""
    question, answer = check_text(record["question"], "`question`").strip(), record["answer"]
    if "choices" in record:
        choices = by_letter(record["choices"])
        question += "".join(f"\n{letter}. {choice}" for letter, choice in choices.items())
        letter = chosen_letter(answer, choices)
        answer = f"{letter}. {choices[letter]}"
    visuals = [*read_images(record), *read_clips(record)]
    return [
        {"role": "user", "content": [*visuals, text_block(question)]},
        {"role": "assistant", "content": [text_block(check_text(answer, "`answer`").strip())]},
    ]


def by_letter(choices: Any) -> dict[str, str]:
    """Choices, a list or an object by letter, to texts by letter."""
    if isinstance(choices, list) and len(choices) <= len(string.ascii_uppercase):
        choices = dict(zip(string.ascii_uppercase, choices, strict=False))
    if not isinstance(choices, dict):
        raise ValueError(f"`choices` is {describe(choices)}, expected a list of at most 26, or an object by letter")
    return {letter: check_text(str(choice), "a choice").strip() for letter, choice in sorted(choices.items())}


def chosen_letter(answer: Any, choices: dict[str, str]) -> str:
    """The letter of the choice that is the answer."""
    letters = list(choices)
    if isinstance(answer, int) and not isinstance(answer, bool):
        found = {letters[answer]} if 0 <= answer < len(letters) else set()
    else:
        wanted = check_text(answer, "`answer`").strip()
        found = {letter for letter, choice in choices.items() if wanted in (letter, choice, f"{letter}. {choice}")}
    if len(found) != 1:
        raise ValueError(f"its answer {answer!r} is {len(found)} of its choices {choices}, expected one")
    return found.pop()


FORMAT = Format("question_answer", ("question", "answer"), read, (*MEDIA, "choices"))
