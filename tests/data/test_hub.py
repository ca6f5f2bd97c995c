# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Data sets of `datasets` in folders, which are read as those on the Hub are."""

import json
from pathlib import Path

import pytest
from clips import write_clip
from datasets import Dataset, Features, List, Value, Video

from transformers_valley.data import Source, load_rows
from transformers_valley.data.decode import visuals_of
from transformers_valley.data.hub import home_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def clips(tmp_path):
    """A folder of clips with their questions, as `datasets` makes a `Video` column of."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(2):
        write_clip(folder / f"{i}.mp4", 5)
    lines = [{"file_name": f"{i}.mp4", "question": f"What {i}?", "answer": "Bars."} for i in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_videos_is_one_of_paths(clips, streaming):
    rows = list(load_rows([Source(dataset=str(clips))], streaming=streaming))
    assert {row["messages"][0]["content"][0]["path"] for row in rows} == {str(clips / "0.mp4"), str(clips / "1.mp4")}
    assert {row["id"] for row in rows} == {"clips:0", "clips:1"} and rows[0]["source"] == "clips"


def test_videos_inside_of_the_data_set_become_files_once(clips, tmp_path):
    content = (clips / "0.mp4").read_bytes()
    features = Features({"videos": List(Video(decode=False)), "question": Value("string"), "answer": Value("string")})
    row = {"videos": [{"path": None, "bytes": content}], "question": "What?", "answer": "Bars."}
    (tmp_path / "inside").mkdir()
    Dataset.from_list([row, row], features=features).to_parquet(tmp_path / "inside" / "train.parquet")
    rows = load_rows([Source(dataset=str(tmp_path / "inside"))])
    paths = {visual.source["video"] for row in rows for visual in visuals_of(row)}
    (path,) = map(Path, paths)
    assert path.read_bytes() == content and path.suffix == ".mp4"
    assert len(list((tmp_path / "cache" / "valley_media").rglob("*.mp4"))) == 1


def test_texts_in_a_column_are_paths_in_the_folder(tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"video": "clips/a.mp4", "question": "?", "answer": "A."}))
    (row,) = load_rows([Source(dataset=str(folder))])
    assert row["messages"][0]["content"][0]["path"] == str(folder / "clips" / "a.mp4")
    (row,) = load_rows([Source(dataset=str(folder), media="/m")])
    assert row["messages"][0]["content"][0]["path"] == "/m/clips/a.mp4"


def test_on_the_hub_they_are_paths_in_the_repository():
    assert home_of(Source(dataset="o/n")) == "hf://datasets/o/n"
    assert home_of(Source(dataset="o/n", revision="v1")) == "hf://datasets/o/n@v1"


def test_a_changed_folder_is_read_again(tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    line = json.dumps({"question": "?", "answer": "A."}) + "\n"
    (folder / "train.jsonl").write_text(line)
    assert len(load_rows([Source(dataset=str(folder))])) == 1
    (folder / "train.jsonl").write_text(line * 2)
    assert len(load_rows([Source(dataset=str(folder))])) == 2


def test_a_split_that_is_not_there_is_named(clips):
    with pytest.raises(ValueError, match='Unknown split "tst"'):
        load_rows([Source(dataset=str(clips), split="tst")])
