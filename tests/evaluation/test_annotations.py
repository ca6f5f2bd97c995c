# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Annotation files as published, and clips by their names."""

import hashlib
import logging

import pytest
from evaluating import empty_clips, write_json

from transformers_valley.evaluation.annotations import OFFICIAL_FILES, AnnotationFiles, Clips


def test_fingerprints_are_those_of_files():
    assert {entry["benchmark"] for entry in OFFICIAL_FILES} >= {"activitynet_qa", "video_bench", "meme_cap"}
    for entry in OFFICIAL_FILES:
        assert len(entry["sha256"]) == 64 and entry["bytes"] > 0 and entry["items"] > 0, entry


def test_other_bytes_than_the_published_ones_are_told(tmp_path, caplog):
    write_json(tmp_path / "test_q.json", [])
    files = AnnotationFiles("activitynet_qa", tmp_path, "test")
    with caplog.at_level(logging.WARNING, logger="transformers_valley"):
        assert files.read("test_q.json") == []
    assert "2 bytes, that of MILVLG/activitynet-qa 999298 (8000 items)" in caplog.text
    assert files.used == [
        {
            "name": "test_q.json",
            "sha256": hashlib.sha256(b"[]").hexdigest(),
            "bytes": 2,
            "is_published": False,
        }
    ]


def test_published_bytes_are_silent(tmp_path, caplog, monkeypatch):
    write_json(tmp_path / "memes-test.json", [])
    known = {"sha256": hashlib.sha256(b"[]").hexdigest(), "benchmark": "meme_cap", "file": "memes-test.json"}
    monkeypatch.setattr("transformers_valley.evaluation.annotations.OFFICIAL_FILES", [known])
    files = AnnotationFiles("meme_cap", tmp_path, "test")
    files.read("memes-test.json")
    assert files.used[0]["is_published"] is True and not caplog.text


def test_file_that_nobody_published_is_neither(tmp_path):
    write_json(tmp_path / "test_qa.json", [])
    files = AnnotationFiles("msrvtt_qa", tmp_path, "test")
    files.read("test_qa.json")
    assert files.used[0]["is_published"] is None


def test_another_split_is_an_error(tmp_path):
    write_json(tmp_path / "val_qa.json", [])
    with pytest.raises(ValueError, match="is of the val split, and test was asked for. Give split='val'"):
        AnnotationFiles("msvd_qa", tmp_path / "val_qa.json", "test").read("val_qa.json")


def test_renamed_file_of_another_split_is_an_error(tmp_path, monkeypatch):
    write_json(tmp_path / "test_q.json", [])
    known = {"sha256": hashlib.sha256(b"[]").hexdigest(), "benchmark": "activitynet_qa", "file": "val_q.json"}
    monkeypatch.setattr("transformers_valley.evaluation.annotations.OFFICIAL_FILES", [known])
    with pytest.raises(ValueError, match="of the val split"):
        AnnotationFiles("activitynet_qa", tmp_path, "test").read("test_q.json")


def test_missing_file_is_an_error_that_tells_what_is_there(tmp_path):
    write_json(tmp_path / "notes.json", [])
    with pytest.raises(FileNotFoundError, match="needs test_q.json or test_qa.json.*there is notes.json"):
        AnnotationFiles("msvd_qa", tmp_path, "test").read("test_q.json", "test_qa.json")
    with pytest.raises(FileNotFoundError, match="There is no .*elsewhere"):
        AnnotationFiles("msvd_qa", tmp_path / "elsewhere", "test")


def test_clip_is_found_by_name_in_any_container_and_folder(tmp_path):
    clips = Clips(empty_clips(tmp_path, "all/video7.mp4", "v_abc.mkv", "V_UP.MP4", "vid3.avi", "other.txt"))
    assert clips.find("video7") == str(tmp_path / "all/video7.mp4")
    assert clips.find("v_abc") == str(tmp_path / "v_abc.mkv")
    assert clips.find("V_UP") == str(tmp_path / "V_UP.MP4")
    assert clips.find("long_name_1_2", "vid3") == str(tmp_path / "vid3.avi")
    assert clips.find("missing", "gone") == str(tmp_path / "missing.mp4")
    assert clips.find("other") == str(tmp_path / "other.mp4")


def test_containers_are_tried_in_order(tmp_path):
    assert Clips(empty_clips(tmp_path, "a.webm", "a.avi")).find("a").endswith("a.avi")


def test_two_clips_of_one_name_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="have one name"):
        Clips(empty_clips(tmp_path, "x/a.mp4", "y/a.mp4")).find("a")


def test_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        Clips(tmp_path / "gone")
