# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files of records, whole and broken, larger than what is held of them."""

import bz2
import gzip
import json
import lzma

import pytest

from transformers_valley.data import files
from transformers_valley.data.files import check_file, read_records


RECORDS = [{"id": i, "text": f'a "quoted" \\ ü🐶 {i} [1, {{2'} for i in range(50)]


def read(tmp_path, content, name="a.json"):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(file))


def reasons(found):
    return [str(record) for record in found if isinstance(record, ValueError)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii", [True, False])
def test_a_list_is_read_in_chunks_of_any_size(tmp_path, monkeypatch, chunk, indent, ascii):
    monkeypatch.setattr(files, "CHUNK", chunk)
    assert read(tmp_path, json.dumps(RECORDS, indent=indent, ensure_ascii=ascii)) == RECORDS


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_items_that_are_no_records_are_whole(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    assert read(tmp_path, ' [1234, null, "a]", -1.5e3, [1], true ] \n') == [1234, None, "a]", -1500.0, [1], True]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n\n \n"])
def test_lines_may_end_and_begin_in_any_way(tmp_path, end, begin):
    text = begin + "".join(json.dumps(record) + end for record in RECORDS)
    assert read(tmp_path, text, "a.jsonl") == RECORDS


def test_line_separators_inside_of_a_text_end_no_line(tmp_path):
    assert read(tmp_path, json.dumps({"a": "x\u2028y\u0085z"}, ensure_ascii=False), "a.jsonl") == [
        {"a": "x\u2028y\u0085z"}
    ]


@pytest.mark.parametrize("text", ["[]", " [ ] ", "\ufeff[]\n"])
def test_a_list_may_be_empty(tmp_path, text):
    assert read(tmp_path, text) == []


@pytest.mark.parametrize("chunk", [1, 5, 2**20])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1}, {"a": "torn', "record 1: it ends too early"),
        ('[{"a": 1}', "record 0: it ends too early"),
        ('[{"a": 1},', "record 1: it ends too early"),
        ('[{"a": 1},]', "record 1: Expecting value"),
        ("[{]", "record 0: Expecting property name"),
        ('[{"a": 1} {"a": 2}, 3, 4, 5, 6, 7, 8]', "record 0: Expecting ',' delimiter"),
        ("[1] [2]", "continues after the end of its list"),
        ("[] x", "continues after the end of its list"),
        ("[" * 100_000, "record 0: it is nested too deep"),
        ('[{"a": 1}, {"a": ' + "9" * 5000 + "}]", "record 1: a whole number in it has more than 4300 digits"),
    ],
)
def test_a_broken_list_is_named_with_its_record(tmp_path, monkeypatch, chunk, text, reason):
    if chunk == 1 and len(text) > 1000:
        pytest.skip("slow")
    monkeypatch.setattr(files, "CHUNK", chunk)
    (found,) = reasons(read(tmp_path, text))
    assert "a.json" in found and reason in found


def test_what_stands_before_a_fault_is_read(tmp_path):
    assert read(tmp_path, '[{"a": 1}, {"a": 2}, {torn')[:2] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("bad", ["{broken", "9" * 5000, "[" * 100_000, "\x00" * 64])
def test_a_broken_line_is_named_and_the_next_one_read(tmp_path, bad):
    found = read(tmp_path, f'{{"a": 1}}\n{bad}\n{{"a": 2}}\n', "a.jsonl")
    assert found[0] == {"a": 1} and found[2] == {"a": 2}
    assert "a.jsonl, line 2 is not JSON" in str(found[1])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git lfs pull"),
        (gzip.compress(b"[]", mtime=0), "gunzip"),
        (bz2.compress(b"[]"), "bunzip2"),
        (lzma.compress(b"[]"), "unxz"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"PAR1....", "Parquet"),
        ("[]".encode("utf-16"), "UTF-16, expected UTF-8"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        ('{"id": "Ä"}'.encode("latin-1"), "is not UTF-8"),
        ('[{"id": "Ä"}]'.encode("latin-1"), "is not UTF-8"),
        (b"video,question,answer\na.mp4,What?,A dog.\n", "looks like CSV, expected JSON"),
        (b'{\n "data": []\n}\n', "holds one object over several lines"),
    ],
)
def test_another_kind_of_file_is_told(tmp_path, content, what):
    (found,) = reasons(read(tmp_path, content, "a.jsonl"))
    assert "a.jsonl" in found and what in found


# --- tables ---


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_a_record_per_line(tmp_path, delimiter):
    text = 'video,question,answer,start\na.mp4,"Who\nis, it?",A dog.,1.5\nb.mp4,What?,A cat.,\n'
    text = text if delimiter == "," else text.replace("Who\nis, it", "Who\nis it").replace(",", delimiter)
    first, second = read(tmp_path, "\ufeff" + text, "a.csv")
    assert first["video"] == "a.mp4" and first["start"] == 1.5 and "\n" in first["question"]
    assert second["start"] is None


def test_a_table_may_hold_choices(tmp_path):
    (record,) = read(tmp_path, 'question,choices,answer\n?,"[""a"", ""b""]",a\n', "a.csv")
    assert record["choices"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1,2,3\n", "line 2 has not as many cells"),
        ("a,b\n1\n", "line 2 has not as many cells"),
        ("a,b\n1," + "x" * 200_000 + "\n", "line 2 is not CSV: field larger"),
    ],
)
def test_a_broken_table_is_named(tmp_path, text, reason):
    (found,) = reasons(read(tmp_path, text, "a.csv"))
    assert reason in found


# --- what is not a file ---


def test_a_folder_is_no_file_of_records(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a file of records"):
        check_file(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        check_file(tmp_path / "nowhere.json")
