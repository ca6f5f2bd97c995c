# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Data sets of `datasets` in folders, which are read as those on the Hub are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from clips import write_clip
from datasets import Dataset, DatasetDict, Features, Image, Json, List, Value, Video
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

from transformers_valley.data import Source, load_rows
from transformers_valley.data.decode import visuals_of
from transformers_valley.data.frames import PackSettings
from transformers_valley.data.hub import home_of
from transformers_valley.data.mixtures import as_sources, name_data_sets
from transformers_valley.data.packing import pack
from transformers_valley.evaluation import load_benchmark
from transformers_valley.whole_files import claim_folder
from valley_cli.app import app


PICTURE = (Path(__file__).parents[2] / "examples" / "picture.png").read_bytes()


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


@pytest.fixture
def chats(clips):
    """`messages` as people write them for `datasets`: a clip and a picture in the middle of a block."""
    block = {"type": Value("string"), "text": Value("string"), "video": Video(), "image": Image()}
    features = Features({"messages": List({"role": Value("string"), "content": List(block)}), "notes": Json()})
    (clips / "picture.png").write_bytes(PICTURE)

    def message(role, **content):
        return {
            "role": role,
            "content": [dict.fromkeys(block) | {"type": kind, kind: content[kind]} for kind in content],
        }

    video = {"bytes": (clips / "0.mp4").read_bytes(), "path": None}
    messages = [
        message("user", video=video, image=str(clips / "picture.png"), text="What?"),
        message("assistant", text="Bars."),
    ]
    return Dataset.from_list([{"messages": messages, "notes": {"a": [1, "b"]}}], features=features)


@pytest.mark.parametrize("kept", ["parquet", "saved", "saved splits"])
def test_clips_inside_of_messages(chats, clips, tmp_path, kept):
    folder = tmp_path / "chats"
    if kept == "parquet":
        folder.mkdir()
        chats.to_parquet(folder / "train.parquet")
    else:
        (chats if kept == "saved" else DatasetDict({"train": chats, "test": chats})).save_to_disk(str(folder))
    for streaming in (False, True):
        (row,) = load_rows([Source(dataset=str(folder))], streaming=streaming)
        video, image = visuals_of(row)
        assert Path(video.source["video"]).read_bytes() == (clips / "0.mp4").read_bytes()
        assert Path(image.source).read_bytes() == PICTURE
    if kept == "saved splits":
        with pytest.raises(ValueError, match="has no split 'dev', it has train, test"):
            load_rows([Source(dataset=str(folder), split="dev")])


def test_a_folder_that_is_saved_again_is_read_again(chats, tmp_path):
    for count in (1, 2):
        Dataset.from_list([{"question": "?", "answer": "A."}] * count).save_to_disk(str(tmp_path / "saved"))
        assert len(load_rows([Source(dataset=str(tmp_path / "saved"))])) == count


@pytest.mark.parametrize("stored", ["bytes", "struct"])
def test_files_that_are_not_said_to_be_clips(clips, tmp_path, stored):
    """Bytes alone, and what `decode=False` gives, written by other tools."""
    content = (clips / "0.mp4").read_bytes()
    video = content if stored == "bytes" else {"bytes": content, "path": "beach.mov"}
    (tmp_path / "plain").mkdir()
    Dataset.from_list([{"video": video, "question": "?", "answer": "A."}]).to_parquet(tmp_path / "plain/train.parquet")
    (row,) = load_rows([Source(dataset=str(tmp_path / "plain"))])
    path = Path(row["messages"][0]["content"][0]["path"])
    assert path.read_bytes() == content and path.suffix == (".mp4" if stored == "bytes" else ".mov")


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


# --- by name ---


def test_names_with_a_revision(tmp_path):
    (tmp_path / "a@b").mkdir()
    sources = name_data_sets(["o/n", "o/n.v2@main", str(tmp_path / "a@b")], "en", "test")
    assert [(str(source), source.name, source.revision) for source in sources] == [
        ("o/n", "n", None),
        ("o/n.v2", "n.v2", "main"),
        (str(tmp_path / "a@b"), "a@b", None),
    ]
    assert {(source.config, source.split) for source in sources} == {("en", "test")}
    with pytest.raises(ValueError, match="expected NAME or NAME@REVISION"):
        name_data_sets(["o/n@"])


def test_packed_rows_on_the_hub_are_downloaded(clips, tmp_path, monkeypatch):
    pack(load_rows([Source(dataset=str(clips))]), tmp_path / "packed", PackSettings(num_frames=1), workers=1)
    asked = []

    def download(name, *file, **options):
        asked.append((name, options["revision"], *options.get("allow_patterns", ())))
        if name != "o/packed":
            raise LocalEntryNotFoundError("not there")
        return str(tmp_path.joinpath("packed", *file))

    monkeypatch.setattr("transformers_valley.data.mixtures.hf_hub_download", download)
    monkeypatch.setattr("transformers_valley.data.mixtures.snapshot_download", download)
    rows = load_rows(name_data_sets(["o/packed@v1"]))
    assert len(rows) == 2 and rows[0]["clips"][0]["times"] == [0.0]
    assert asked == [("o/packed", "v1"), ("o/packed", "v1", "train-*.parquet", "pack.json")]
    (source,) = as_sources(name_data_sets(["o/other"]))
    assert source.dataset == "o/other"
    del asked[:]
    (tmp_path / "packed" / "pack.json").write_text('{"name": "a pack of another tool", "num_shards": "2"}')
    with pytest.raises(ValueError, match="pack.json does not describe packed rows: expected the numbers `num_shards`"):
        as_sources(name_data_sets(["o/packed"]))
    for packed in ("o/packed", str(tmp_path / "packed")):
        for config, split in ((None, "validation"), (None, "train[:100]"), ("en", "train")):
            with pytest.raises(ValueError, match="packed rows have one split, train; pack the validation rows"):
                load_rows(name_data_sets([packed], config, split))
        with pytest.raises(ValueError, match="holds packed rows, of which no questions are made"):
            load_benchmark("own", name_data_sets([packed]))
    assert not any(patterns for _, _, *patterns in asked)  # nothing but the description was fetched


def test_a_run_is_of_one_commit(monkeypatch, tmp_path):
    """Another revision of the questions does not go on in the folder of a run."""
    questions = [{"video": "https://host/a.mp4", "question": "?", "answer": "A."}]

    def builder(name, config, revision):
        return SimpleNamespace(hash={"v1": "1" * 40, "v2": "2" * 40}[revision])

    monkeypatch.setattr("transformers_valley.data.hub.load_dataset_builder", builder)
    monkeypatch.setattr("transformers_valley.evaluation.own_questions.read_data_set", lambda source: iter(questions))
    for name in ("o/n@v1", "o/n@v1", "o/n@v2"):
        settings = load_benchmark("own", name_data_sets([name])).describe()
        if name == "o/n@v2":
            with pytest.raises(ValueError, match="'revision': '1111.*now .*'revision': '2222"):
                claim_folder(tmp_path / "run.json", settings)
        else:
            claim_folder(tmp_path / "run.json", settings)


@pytest.mark.parametrize(
    "words", [["check"], ["stats"], ["pack", "-o", "out"], ["show", "-o", "out"], ["export", "-o", "out"]]
)
def test_commands_read_data_sets(clips, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["data", *words, "--dataset", str(clips)])
    assert result.exit_code == 0, result.output
    assert "2" in result.stdout
    missing = CliRunner().invoke(app, ["data", *words])
    assert missing.exit_code == 1 and "give files of rows, or --dataset NAME" in missing.stderr


def test_questions_of_an_evaluation(clips):
    found = load_benchmark("own", name_data_sets([str(clips)]))
    assert [sample.answers for sample in found.samples] == [("Bars.",)] * 2
    assert {sample.source for sample in found.samples} == {"clips"}
    assert found.samples[1].messages[0]["content"][0]["path"] == str(clips / "1.mp4")
    (used,) = found.files
    assert (used["name"], used["config"], used["split"]) == (str(clips), None, "train")
    write_clip(clips / "2.mp4", 5)
    (changed,) = load_benchmark("own", name_data_sets([str(clips)])).files
    assert used["revision"] != changed["revision"] and used.keys() == changed.keys()
    with pytest.raises(ValueError, match="not from data sets"):
        load_benchmark("msvd_qa", name_data_sets([str(clips)]))
