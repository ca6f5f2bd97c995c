# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley-Instruct, 73k and 65k: LLaVA's records about clips of JukinMedia and VATEX, in a folder for each.

A clip of VATEX is a part of a longer file, and only `v_id` tells which: YouTube's eleven characters, start and end in
seconds, `zkbnKBewRLA_000069_000079` (RupertLuo/Valley, issue 20). A file of JukinMedia has one name in the paper and
another from the crawler; [`find`](media.py) tries both.
"""

import re
from typing import Any

from . import llava
from .base import MEDIA, Format


_PART = re.compile(r".+_(\d{6})_(\d{6})")  # from the right: YouTube's characters may be _ and -


def read(record: dict[str, Any], position: int = 0) -> list[dict[str, Any]]:
    """Messages of a record, its clip cut to the part that `v_id` names, unless `start` or `end` do."""
    part = re.fullmatch(_PART, str(record["v_id"]))
    if {"start", "end"} & record.keys():
        return llava.read(record)
    if part:
        return llava.read(record | {"start": int(part[1]), "end": int(part[2])})
    if record.get("source") == "VATEX":
        raise ValueError(
            f"its `v_id` {record['v_id']!r} should end in _START_END, the seconds of its part of the clip"
        )
    return llava.read(record)


FORMAT = Format("valley_instruct", ("conversations", "v_id"), read, MEDIA)
