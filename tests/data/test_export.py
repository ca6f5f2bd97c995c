# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows as records of LLaVA; that published records of each format come back is tested beside their readers."""

import json

import pytest
from typer.testing import CliRunner

from transformers_valley.data import load_rows, to_row
from transformers_valley.data.export import to_llava, write_llava
from valley_cli.app import app


def chat(content, answer="Yes."):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


EVERYTHING = chat(
    [
        {"type": "video", "path": "m/a.mp4", "start": 1, "end": 2, "num_frames": 4},
        {"type": "text", "text": "Is this"},
        {"type": "image", "path": "m/b.jpg"},
        {"type": "text", "text": "also in"},
        {"type": "video", "path": "/x/c.mp4", "fps": 2},
    ]
) | {"system": "Be brief."}


def test_clips_images_their_order_and_settings_are_kept():
    row = to_row(EVERYTHING)
    record = to_llava(row)
    assert record == {
        "image": "m/b.jpg",
        "video": ["m/a.mp4", "/x/c.mp4"],
        "start": [1.0, None],
        "end": [2.0, None],
        "fps": [None, 2.0],
        "num_frames": [4, None],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<video>\nIs this\n<image>\nalso in\n<video>"},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    assert to_row(record) == row


def test_paths_below_the_root_become_relative():
    assert to_llava(to_row(EVERYTHING, "m"), "m")["video"] == ["m/a.mp4", "/x/c.mp4"]
    assert to_llava(to_row(EVERYTHING), "m")["video"] == ["a.mp4", "/x/c.mp4"]


@pytest.mark.parametrize(
    "record",
    [
        chat("What does <video> mean?"),
        chat([{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "Is <image> a tag?"}]),
        chat("What? "),
        chat("What?", [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "This."}]),
    ],
)
def test_what_a_record_cannot_say_is_refused(record):
    with pytest.raises(ValueError):
        to_llava(to_row(record))


def test_a_data_set_is_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text(json.dumps(EVERYTHING) + "\n" + json.dumps(chat("Hi") | {"id": "7"}))
    rows = load_rows([tmp_path / "rows.jsonl"], tmp_path)
    assert write_llava(rows, tmp_path / "out.json", tmp_path) == 2
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["id"] for record in records] == ["rows:0", "7"] and records[0]["data_source"] == "rows"
    again = load_rows([tmp_path / "out.json"], tmp_path)
    assert [{**row, "source": "rows"} for row in again] == list(rows)


def test_nothing_is_left_of_a_file_that_cannot_be_written_whole(tmp_path):
    with pytest.raises(ValueError):
        write_llava([to_row(chat("Hi")), to_row(chat("What? "))], tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_an_empty_list(tmp_path):
    assert write_llava([], tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_the_command_writes_records(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "table.csv").write_text("video,question,answer\na.mp4,What?,Bars.\n")
    words = ["data", "export", "table.csv", "--media-root", "clips", "-o", "llava.json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "llava.json: 1 records" in result.stdout
    (record,) = json.loads((tmp_path / "llava.json").read_text())
    assert record["video"] == "a.mp4" and record["conversations"][0]["value"] == "<video>\nWhat?"
    refused = CliRunner().invoke(app, [*words[:-1], "nowhere/llava.json"])
    assert refused.exit_code == 1 and "there is no folder 'nowhere'" in refused.stderr
