# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Counts by source."""

import json

import pytest

from transformers_valley.data import load_rows
from transformers_valley.data.lengths import count_tokens
from transformers_valley.data.statistics import count_sources


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_clips_images_and_tokens_are_counted(clip, processor, tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [
        {"video": clip, "question": "What?", "answer": "Bars."},
        {"image": "a.jpg", "question": "What?", "answer": "A square, and it does not turn."},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "Hi", "answer": "Hello."}))
    rows = load_rows([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], streaming=streaming)
    counts = count_sources(rows, processor)
    lengths = count_tokens([row["messages"] for row in rows], processor)
    assert counts["a"].summary(max_length=lengths[0]) == {
        "rows": 2,
        "clips": 1,
        "images": 1,
        "turns": 2,
        "mean tokens": sum(lengths[:2]) / 2,
        "median tokens": sum(lengths[:2]) / 2,
        "most tokens": max(lengths[:2]),
        "too long": sum(length > lengths[0] for length in lengths[:2]),
    }
    assert counts["b"].lengths == lengths[2:]
    assert count_sources(rows)["b"].summary() == {"rows": 1, "clips": 0, "images": 0, "turns": 1}
