# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import json
import os

import pytest

from transformers_valley.data import load_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def record(index, **extra):
    conversations = [{"from": "human", "value": f"Question {index}"}, {"from": "gpt", "value": "Answer"}]
    return {"id": index, "conversations": conversations, **extra}


def test_json_lists_and_lines_of_both_forms(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([record(0, video="a.mp4"), record("one", image="b.jpg")]))
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(record(2)) + "\n")
    rows = load_rows([tmp_path / "a.json", tmp_path / "b.jsonl"], tmp_path)
    assert rows.column_names == ["messages", "images", "id", "source"]
    assert len(rows) == 4
    assert rows["id"][:] == ["0", "one", "b:0", "2"] and rows["source"][:] == ["a", "a", "b", "b"]
    assert rows[0]["messages"][0]["content"][0]["path"] == str(tmp_path / "a.mp4")
    assert rows[1]["images"] == [str(tmp_path / "b.jpg")] and rows[0]["images"] == []
    assert rows[2]["messages"][1]["content"][0]["text"] == "Hello"


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([record(0)]))
    assert len(load_rows([file])) == 1
    file.write_text(json.dumps([record(0), record(1)]))
    assert len(load_rows([file])) == 2


def test_a_broken_record_is_named_with_its_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([record(0), {"id": "x9"}]))
    with pytest.raises(ValueError, match=rf"{os.path.basename(file)}, record 1: Record 'x9' is no training row"):
        load_rows([file])


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record(0)) + "\n{broken\n")
    with pytest.raises(ValueError, match="a.jsonl, line 2 is not JSON"):
        load_rows([tmp_path / "a.jsonl"])


def test_a_broken_list_is_named_and_leading_space_is_not(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff\n [" + json.dumps(record(0)) + "]", encoding="utf-8")
    assert len(load_rows([tmp_path / "a.json"])) == 1
    (tmp_path / "b.json").write_text("[{]")
    with pytest.raises(ValueError, match="b.json is not JSON"):
        load_rows([tmp_path / "b.json"])


def test_no_rows(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="There are no rows in"):
        load_rows([tmp_path / "a.json"])


@pytest.mark.parametrize("files", [[], "a.json"])
def test_files_must_be_a_list(files):
    with pytest.raises(ValueError, match="non-empty list"):
        load_rows(files)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_rows([tmp_path / "nowhere.json"])


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"id": "Ä"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="a.jsonl is not UTF-8"):
        load_rows([tmp_path / "a.jsonl"])


# --- streaming ---


def test_streamed_rows_are_those_of_the_cache(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([record(0, video="a.mp4"), record(1)]))
    (tmp_path / "b.jsonl").write_text(json.dumps(record(2)) + "\n")
    files = [tmp_path / "a.json", tmp_path / "b.jsonl"]
    rows = load_rows(files, tmp_path, streaming=True)
    assert list(rows) == list(load_rows(files, tmp_path)) == list(rows)
    assert rows.num_shards == 2


def test_a_streamed_record_that_is_none_stops_at_its_place(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([record(0), {"id": "x9"}]))
    rows = iter(load_rows([tmp_path / "a.json"], streaming=True))
    assert next(rows)["id"] == "0"
    with pytest.raises(ValueError, match="a.json, record 1: Record 'x9' is no training row"):
        next(rows)


def test_no_rows_to_stream(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="There are no rows in"):
        load_rows([tmp_path / "a.json"], streaming=True)
