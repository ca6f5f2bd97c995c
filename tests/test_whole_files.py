# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files and folders appear whole or not at all; a full disk and corrupt JSON are explained."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from transformers_valley.whole_files import (
    DiskFullError,
    disk_full_errors,
    read_json,
    whole_file,
    whole_folder,
    write_whole,
)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        Exception("No space left on device (os error 28)"),  # tokenizers
        RuntimeError("basic_ios::clear: iostream error"),  # torch
    ],
    ids=repr,
)
def test_every_way_to_say_that_a_disk_is_full_is_explained(error):
    words = r"Cannot write a checkpoint of 1,200.0 MB to '/data': the disk or your quota is full .* Delete old ones\."
    with pytest.raises(DiskFullError, match=words):
        with disk_full_errors("a checkpoint", "/data", 1_200_000_000, advice=lambda: "Delete old ones."):
            raise error


def test_other_errors_stay_and_the_first_explanation_wins():
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        with disk_full_errors("a checkpoint", "/data"):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(DiskFullError, match="Cannot write features to '/cache'"):
        with disk_full_errors("a checkpoint", "/data"), disk_full_errors("features", "/cache"):
            raise FULL


def test_a_file_appears_whole_with_the_usual_mode(tmp_path):
    write_whole(tmp_path / "new" / "file", b"old")
    write_whole(tmp_path / "new" / "file", b"new")
    (tmp_path / "usual").touch()
    assert (tmp_path / "new" / "file").read_bytes() == b"new"
    assert (tmp_path / "new" / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert os.listdir(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=repr)
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, error):
    (tmp_path / "file").write_bytes(b"old")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DiskFullError if error is FULL else KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("broken")], ids=repr)
def test_a_file_appears_at_the_end_of_its_block_or_not_at_all(tmp_path, error):
    file = tmp_path / "rows.jsonl"
    with whole_file(file) as part:
        part.write_text("first")
        assert not file.exists()
    with pytest.raises(DiskFullError if error is FULL else type(error)), whole_file(file) as part:
        part.write_text("half")
        raise error
    assert file.read_text() == "first" and os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_folder_appears_at_the_end_of_the_block_with_its_name_and_the_usual_modes(tmp_path):
    with whole_folder(tmp_path / "a" / "new") as folder:
        assert folder.name == "new" and not (tmp_path / "a" / "new").exists()
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch(mode=0o600)
    (tmp_path / "usual").touch()
    assert os.listdir(tmp_path / "a") == ["new"]
    assert (tmp_path / "a" / "new").stat().st_mode == (tmp_path / "a").stat().st_mode
    assert (tmp_path / "a" / "new" / "sub" / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("broken")], ids=repr)
def test_nothing_is_left_after_an_error(tmp_path, error):
    with pytest.raises(DiskFullError if error is FULL else type(error)):
        with whole_folder(tmp_path / "a" / "new") as folder:
            (folder / "file").touch()
            raise error
    assert not os.listdir(tmp_path)


def test_a_complete_folder_stays_when_the_program_is_interrupted(tmp_path, monkeypatch):
    rename = os.rename

    def rename_and_interrupt(*paths):
        rename(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename_and_interrupt)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a" / "new") as folder:
        (folder / "file").touch()
    assert os.listdir(tmp_path / "a") == ["new"] and os.listdir(tmp_path / "a" / "new") == ["file"]


@pytest.mark.parametrize("leads_to", ["empty", "missing"])
def test_a_link_is_followed(tmp_path, leads_to):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(leads_to)
    with whole_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / leads_to / "file").exists()


def test_what_cannot_be_replaced_is_refused_before_the_block(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    for place in ("full", "full/file", "loop", "mount"):
        with pytest.raises(ValueError, match=f"Cannot write '{tmp_path / place}': it exists already"):
            with whole_folder(tmp_path / place):
                pytest.fail("the block was entered")
    with pytest.raises(OSError, match=f"{tmp_path / 'full' / 'file'}"), whole_folder(tmp_path / "full/file/new"):
        pytest.fail("the block was entered")


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    name = "n" * 255
    with whole_folder(tmp_path / name) as folder:
        write_whole(folder / name, b"")
    assert (tmp_path / name / name).exists()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"{", "Expecting"), (b"\xff", "utf-8"), (b"[1]", "JSON object")]
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"Cannot read '{path}': .*{words}"):
        read_json(path)


def test_json_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "Välley"}', encoding="utf-8")
    assert read_json(tmp_path / "config.json") == {"name": "Välley"}
