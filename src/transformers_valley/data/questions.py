# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Questions with choices, for a reward that anybody can verify: did the answer choose the right letter?

In go records of `video` (or `image`), `question`, `choices` and `answer`; out come the rows that TRL's `GRPOTrainer`
reads, with what is shown in its column `images`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from .decode import visuals_of
from .formats import to_row
from .formats.question_answer import by_letter, chosen_letter
from .load import Media, load_converted
from .rows import CLIP_SETTINGS, FEATURES, describe


_BLOCK = FEATURES["messages"].feature["content"].feature
QUESTION_FEATURES = Features(
    {
        "prompt": List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}),
        # Content blocks of clips and images, for each of which a block of type `image` stands in the prompt.
        "images": List({name: feature for name, feature in _BLOCK.items() if name != "text"}),
        "choices": List({"letter": Value("string"), "text": Value("string")}),
        "answer": Value("string"),
        "id": Value("string"),
        "source": Value("string"),
    }
)


def load_questions(files: Sequence[str | os.PathLike], media_root: Media = None) -> Dataset:
    """
    Read questions with choices.

    Args:
        files (`list[str]`):
            JSON, JSONL and CSV files of records with `question`, `choices` (a list, or an object by letter), `answer`
            (a letter, a choice, or its index from 0) and a `video` or an `image`, if one is shown.
        media_root (`str` or `Mapping`, *optional*):
            As for [`load_rows`].

    Returns:
        `datasets.Dataset` with `prompt`, `images`, `choices`, `answer` (the letter), `id` and `source`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no records, or one is not a question with choices; it names file, position and reason.
    """
    return load_converted(files, media_root, QUESTION_FEATURES, to_question)


def to_question(record: Mapping[str, Any], media_root: Media = None) -> dict[str, Any]:
    """
    A record as a row of [`load_questions`], without `id` and `source`.

    Raises:
        ValueError: if it is not a question with choices; it says why.
    """
    if not isinstance(record, Mapping) or not {"question", "choices", "answer"} <= record.keys():
        found = sorted(record) if isinstance(record, Mapping) else describe(record)
        raise ValueError(
            f"it is {found}, expected `question`, `choices` and `answer`: without choices nothing is sure"
        )
    choices = by_letter(record["choices"])
    row = to_row(record, media_root)
    shown = [
        {"type": visual.modality, "path": visual.source}
        if visual.modality == "image"
        else {"type": "video", "path": visual.source["video"], **{k: visual.source.get(k) for k in CLIP_SETTINGS}}
        for visual in visuals_of(row)
    ]

    def block_of(block: dict[str, Any]) -> dict[str, Any]:
        is_text = block["type"] == "text"
        return {"type": "text" if is_text else "image", "text": block["text"] if is_text else None}

    prompt = [
        {"role": message["role"], "content": list(map(block_of, message["content"]))}
        for message in row["messages"][:-1]
    ]
    return {
        "prompt": prompt,
        "images": [{name: block.get(name) for name in QUESTION_FEATURES["images"].feature} for block in shown],
        "choices": [{"letter": letter, "text": text} for letter, text in choices.items()],
        "answer": chosen_letter(record["answer"], choices),
    }


__all__ = ["QUESTION_FEATURES", "load_questions", "to_question"]
