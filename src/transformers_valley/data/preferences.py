# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Preferences: what is asked about clips and images, an answer that is better and one that is worse.

In go records of any format of rows, with `chosen` and `rejected` in the place of the last answer; out come training
rows whose last turn is the better answer, with the worse one beside it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Value

from .formats import to_row
from .load import Media, load_converted
from .rows import FEATURES, check_text, describe, fill_features


PREFERENCE_FEATURES = Features({**FEATURES, "rejected": Value("string")})


def load_preferences(files: Sequence[str | os.PathLike], media_root: Media = None) -> Dataset:
    """
    Read preferences.

    Args:
        files (`list[str]`):
            JSON, JSONL and CSV files of records. Each ends with a turn of the user: `messages`, `prompt` (TRL's name
            of these) or `conversations` (LLaMA-Factory), or is a `question`. `chosen` and `rejected` are texts, or
            messages of the assistant.
        media_root (`str` or `Mapping`, *optional*):
            As for [`load_rows`].

    Returns:
        `datasets.Dataset` with the columns of [`load_rows`], where the chosen answer is the last turn, and `rejected`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no records, or one is not a preference; it names file, position and reason.
    """
    return load_converted(files, media_root, PREFERENCE_FEATURES, _filled_preference)


def to_preference(record: Mapping[str, Any], media_root: Media = None) -> dict[str, Any]:
    """
    A record as a training row with `rejected`.

    Raises:
        ValueError: if it is not a preference; it says why.
    """
    if not isinstance(record, Mapping) or not {"chosen", "rejected"} <= record.keys():
        found = sorted(record) if isinstance(record, Mapping) else describe(record)
        raise ValueError(f"it is {found}, expected `chosen` and `rejected` beside what was asked")
    rest = {name: value for name, value in record.items() if name not in ("chosen", "rejected")}
    answers = {name: _answer(record[name], name) for name in ("chosen", "rejected")}
    if answers["chosen"].strip() == answers["rejected"].strip():
        raise ValueError("`chosen` and `rejected` are equal: nothing can be learnt")
    if "prompt" in rest and "messages" not in rest:
        rest["messages"] = rest.pop("prompt")
    if isinstance(rest.get("messages"), str):
        rest["messages"] = [{"role": "user", "content": rest["messages"]}]
    rows = []
    for answer in answers.values():  # both are checked as answers are
        if "messages" in rest:
            whole = rest | {"messages": [*rest["messages"], {"role": "assistant", "content": answer}]}
        elif "conversations" in rest:
            whole = rest | {"conversations": [*rest["conversations"], {"from": "gpt", "value": answer}]}
        else:
            whole = rest | {"answer": answer}
        rows.append(to_row(whole, media_root))
    turns = [message["role"] for message in rows[0]["messages"][-2:]]
    if turns != ["user", "assistant"]:
        raise ValueError("what was asked ends with an answer: take it out, or write it as `chosen`")
    return rows[0] | {"rejected": rows[1]["messages"][-1]["content"][0]["text"]}


def _answer(value: Any, name: str) -> str:
    if isinstance(value, list) and len(value) == 1:  # TRL's messages
        value = value[0]
    if isinstance(value, Mapping):  # LLaMA-Factory's turn, or a message
        value = value.get("value", value.get("content"))
    return check_text(value, f"`{name}`")


def _filled_preference(record: Mapping[str, Any], folders: Media) -> dict[str, Any]:
    return fill_features(to_preference(record, folders))


__all__ = ["PREFERENCE_FEATURES", "load_preferences", "to_preference"]
