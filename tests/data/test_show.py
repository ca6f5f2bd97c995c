# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The page of rows holds what training sees, and harms nobody."""

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from transformers_valley.data import load_rows
from transformers_valley.data.show import write_page
from valley_cli.app import app


@pytest.fixture
def rows(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    lines = [
        {"video": clip, "question": "What <b>happens</b>?", "answer": "</script><script>alert(1)</script>"},
        {"image": str(tmp_path / "a.png"), "question": "What is this?", "answer": "A red thing."},
        {"video": "gone.mp4", "question": "What?", "answer": "Nobody knows."},
        {"question": "Hi", "answer": "Hello."},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return load_rows([tmp_path / "rows.jsonl"])


def test_frames_times_texts_and_faults_are_on_the_page(rows, processor, tmp_path):
    assert write_page(rows, tmp_path / "rows.html", processor.video_processor) == 4
    page = (tmp_path / "rows.html").read_text()
    frames = processor.video_processor.count_frames(rows[0]["messages"][0]["content"][0]["path"])
    assert page.count("<img") == frames + 1 and page.count("<article") == 4
    assert "0.0 s" in page and "A red thing." in page and "gone.mp4" in page and "there is no such file" in page


def test_texts_are_escaped_and_nothing_is_loaded(rows, processor, tmp_path):
    write_page(rows, tmp_path / "rows.html", processor.video_processor)
    page = (tmp_path / "rows.html").read_text()
    assert page.count("<script>") == 1 and "alert(1)" in page and "<b>" not in page
    assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:)", page)


def test_few_of_many_rows_are_spread_over_all(rows, processor, tmp_path):
    assert write_page(rows, tmp_path / "rows.html", processor.video_processor, num_rows=2) == 2
    assert re.findall(r"row (\d+) ·", (tmp_path / "rows.html").read_text()) == ["0", "3"]


def test_the_command_writes_the_page(rows, tmp_path):
    result = CliRunner().invoke(app, ["data", "show", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "rows.html")])
    assert result.exit_code == 0 and "rows.html: 4 rows" in result.stdout
    refused = CliRunner().invoke(app, ["data", "show", str(tmp_path / "rows.jsonl"), "-o", "nowhere/rows.html"])
    assert refused.exit_code == 1 and "there is no folder 'nowhere'" in refused.stderr
