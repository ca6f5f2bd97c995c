# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Counts by source."""

import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from transformers_valley.data import load_rows
from transformers_valley.data.lengths import count_tokens
from transformers_valley.data.statistics import count_sources
from valley_cli.app import app


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
        "missing": 1,
        "turns": 2,
        "words an answer": 4.0,
        "mean tokens": sum(lengths[:2]) / 2,
        "median tokens": sum(lengths[:2]) / 2,
        "most tokens": max(lengths[:2]),
        "unknown": "0.00%",
        "too long": sum(length > lengths[0] for length in lengths[:2]),
    }
    assert counts["b"].lengths == lengths[2:]
    assert count_sources(rows)["b"].summary() == {
        "rows": 1,
        "clips": 0,
        "images": 0,
        "missing": 0,
        "turns": 1,
        "words an answer": 1,
    }


def test_the_command_prints_a_table(clip, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.jsonl").write_text(json.dumps({"video": "clip.mp4", "question": "What?", "answer": "Bars. " * 9}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "Hi", "answer": "Hello."}))
    shutil.copy(clip, tmp_path / "clip.mp4")
    words = ["data", "stats", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--media-root", str(tmp_path)]
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == 0, plain.stderr
    assert [line.split() for line in plain.stdout.splitlines()] == [
        ["source", "rows", "clips", "images", "missing", "turns", "words", "an", "answer"],
        ["a", "1", "1", "0", "0", "1", "9.0"],
        ["b", "1", "0", "0", "0", "1", "1.0"],
        ["all", "2", "1", "0", "0", "2", "5.0"],
    ]
    options = ["--model", checkpoint, "--max-length", "50", "--plot", str(tmp_path / "stats.png")]
    measured = CliRunner().invoke(app, [*words, *options])
    with Image.open(tmp_path / "stats.png") as picture:
        assert picture.width > 2 * picture.height
    header, *lines = measured.stdout.splitlines()
    assert header.endswith("too long") and [line.split()[-1] for line in lines] == ["1", "0", "1"]
    refused = CliRunner().invoke(app, [*words, "--max-length", "50"])
    assert refused.exit_code == 1 and "give --model, too" in refused.stderr
