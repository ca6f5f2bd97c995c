# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files that survive a kill, and folders that keep to one run."""

import json

import pytest

from transformers_valley.evaluation.records import RecordWriter, read_json, read_records, write_records
from transformers_valley.whole_files import claim_folder


@pytest.fixture
def file(tmp_path):
    return tmp_path / "records.jsonl"


def test_records_are_read_back_whatever_they_hold(file):
    records = [{"text": 'a "quote"\n\u2028 and ü'}, {"number": 1.5, "none": None}]
    with RecordWriter(file) as writer:
        writer.write(records)
    assert read_records(file) == records


def test_half_of_a_character_does_not_stop_a_run(file):
    with RecordWriter(file) as writer:
        writer.write([{"text": "\ud83d"}])
    write_records(file.with_suffix(".2"), [{"text": "\ud83d"}])
    assert len(read_records(file)) == 1 and len(read_records(file.with_suffix(".2"))) == 1


def test_torn_last_line_is_dropped_and_written_over(file):
    file.write_text('{"a": 1}\n{"a": 2')
    assert read_records(file) == [{"a": 1}]
    with RecordWriter(file) as writer:
        writer.write([{"a": 3}])
    assert file.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_last_line_of_zeros_is_dropped(file):
    """What a file system may leave after a power cut."""
    file.write_bytes(b'{"a": 1}\n\0\0\0\0\n')
    assert read_records(file) == [{"a": 1}]


def test_damage_in_the_middle_is_an_error_that_names_the_line(file):
    file.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is damaged.*Delete this line"):
        read_records(file)


def test_missing_file_has_no_records(file):
    assert read_records(file) == []


def test_json_that_is_cut_off_is_an_error_that_says_so(tmp_path):
    (tmp_path / "half.json").write_text(json.dumps([{"question": "q"}] * 100)[:500])
    with pytest.raises(ValueError, match=r"half.json is not valid JSON .*; 500 bytes.*truncated"):
        read_json(tmp_path / "half.json")


def test_folder_keeps_to_one_run(tmp_path):
    file = tmp_path / "run" / "run.json"
    settings = {"created": "today", "batch_size": 8, "generation": {"max_new_tokens": 8}, "files": [1]}
    claim_folder(file, settings, ("created",))
    claim_folder(file, {**settings, "created": "tomorrow"}, ("created",))
    with pytest.raises(ValueError) as caught:
        claim_folder(
            file, {**settings, "batch_size": 4, "generation": {"max_new_tokens": 9, "top_p": 1}}, ("created",)
        )
    text = str(caught.value)
    for told in ("another run", "batch_size was 8, now 4", "max_new_tokens was 8, now 9", "top_p was None"):
        assert told in text
    assert read_json(file)["created"] == "today"


def test_another_run_is_told_in_few_words(file):
    claim_folder(file, {f"s{i}": i for i in range(8)})
    with pytest.raises(ValueError, match="s0 was 0, now None; .*; s4 was 4, now None; and 3 more. Choose"):
        claim_folder(file, {})


def test_setting_that_decides_stands_for_its_neighbours(tmp_path):
    file = tmp_path / "run.json"
    claim_folder(file, {"a": 1, "model": {"dtype": "auto", "weights": "x"}})
    with pytest.raises(ValueError, match="run: model.weights was 'x', now 'y'; a was 1, now 2. Choose"):
        claim_folder(file, {"a": 2, "model": {"dtype": "half", "weights": "y"}}, deciding=["model.weights"])
    with pytest.raises(ValueError, match="run: model.dtype was 'auto', now 'half'. Choose"):
        claim_folder(file, {"a": 1, "model": {"dtype": "half", "weights": "x"}}, deciding=["model.weights"])
