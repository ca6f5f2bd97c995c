# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files to data sets, in a cache and streamed, whole and in mixtures."""

import json
import logging
import os
import resource

import pytest
from torch.utils.data import DataLoader

from transformers_valley.data import Source, load_rows
from transformers_valley.data.check import check_data


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
    with pytest.raises(ValueError, match=rf"{os.path.basename(file)}, record 1: Record 'x9' is not a training row"):
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


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"There is no file here.json. The path begins in {tmp_path}"):
        load_rows(["here.json"])
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_rows([tmp_path / "nowhere.json"])


@pytest.mark.parametrize("read", [load_rows, check_data])
def test_all_missing_files_of_a_mixture_are_named_at_once(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("[]")
    (tmp_path / "m.yaml").write_text("sources: [{path: a.json}, {path: there.json}, {path: b.json}, {path: a.json}]")
    with pytest.raises(FileNotFoundError, match=f"^2 files are missing: a.json, b.json. .* begin in {tmp_path}.$"):
        read(["m.yaml"])


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"id": "Ä"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="a.jsonl is not UTF-8"):
        load_rows([tmp_path / "a.jsonl"])


def test_formats_may_be_mixed_in_one_file(tmp_path):
    lines = [record(0), {"question": "?", "answer": "A."}, {"QA": [{"q": "?", "a": "A."}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len(load_rows([tmp_path / "a.jsonl"])) == 3


def test_a_table_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("id,video,question,answer,start\n1,a.mp4,What?,A dog.,1.5\n2,,Hi,Hello,\n")
    first, second = load_rows([tmp_path / "a.csv"], "/m")
    clip = first["messages"][0]["content"][0]
    assert (clip["path"], clip["start"], clip["end"]) == ("/m/a.mp4", 1.5, None)
    assert first["id"] == "1" and len(second["messages"][0]["content"]) == 1


def test_folders_of_media_have_names(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([record(0, video="x/a.mp4"), record(1, video="y/a.mp4")]))
    rows = load_rows([tmp_path / "a.json"], {"x": "/x", "": "/m"})
    assert [row["messages"][0]["content"][0]["path"] for row in rows] == ["/x/a.mp4", "/m/y/a.mp4"]


# --- what cannot be read, told alike in every way ---


@pytest.fixture(params=["load", "stream", "check"])
def reason(request):
    """What is told of a file that cannot be read."""

    def read(file):
        if request.param == "check":
            return str(check_data([file], num_proc=1).bad[0])
        with pytest.raises(ValueError) as error:
            list(load_rows([file], streaming=request.param == "stream"))
        return str(error.value)

    return read


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "bad \ud83d"}]},
            "lone surrogate",
        ),
        ({"video": "a\udce4.mp4"}, "the path of a clip holds a lone surrogate"),
        ({"id": "a\ud83d", "weight": 0}, "`weight`"),
        ({"conversations": None}, "expected those of a known format"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path, reason, fields, words):
    (tmp_path / "a.jsonl").write_text(json.dumps(record(7) | fields) + "\n")
    told = reason(tmp_path / "a.jsonl")
    assert f"{tmp_path / 'a.jsonl'}, record 0: Record " in told and words in told


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_number_of_5000_digits_is_named(tmp_path, reason, name):
    text = json.dumps(record(0))[:-1] + ', "n": ' + "9" * 5000 + "}"
    (tmp_path / name).write_text(f"[{text}]" if name == "a.json" else text)
    assert "a whole number in it has more than 4300 digits" in reason(tmp_path / name)


def test_a_list_that_is_nested_too_deep_is_named(tmp_path, reason):
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert "record 0: it is nested too deep" in reason(tmp_path / "a.json")


@pytest.mark.parametrize("read", [load_rows, check_data])
def test_a_folder_is_no_file(tmp_path, read):
    with pytest.raises(ValueError, match="is a folder, expected a file of records"):
        read([tmp_path])


def test_a_cache_that_cannot_be_written_says_why(tmp_path):
    lines = "\n".join(json.dumps(record(i, note=os.urandom(9).hex())) for i in range(2000))
    (tmp_path / "a.jsonl").write_text(lines)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # as a full disk or a quota: writing stops
    try:
        with pytest.raises(OSError, match="File too large"):
            load_rows([tmp_path / "a.jsonl"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- what is missing ---


@pytest.fixture
def half(tmp_path):
    """A file of twelve rows with a clip, of which one is there, and one without."""
    (tmp_path / "0.mp4").touch()
    rows = [record(i, video=f"{i}.mp4") for i in range(12)] + [record("url", video="https://x.org/a.mp4")]
    (tmp_path / "half.json").write_text(json.dumps([*rows, record("text")]))
    return tmp_path / "half.json"


def test_missing_media_are_kept_for_the_reader_by_default(half):
    assert len(load_rows([half], half.parent)) == 14


def test_missing_media_are_counted_by_source_and_the_first_ten_named(half):
    with pytest.raises(ValueError, match=r"11 rows show .* \(11 of half\), among them .*/1.mp4, .*/10.mp4\. Is the"):
        load_rows([half], half.parent, on_missing="raise")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_with_missing_media_are_left_out_and_told(half, caplog, streaming):
    with caplog.at_level(logging.WARNING):
        rows = list(load_rows([half], half.parent, streaming=streaming, on_missing="skip"))
    assert [row["id"] for row in rows] == ["0", "url", "text"]
    assert "11 rows show clips or images that are not there (11 of half)" in caplog.text


def test_a_stream_stops_at_missing_media(half):
    rows = iter(load_rows([half], half.parent, streaming=True, on_missing="raise"))
    assert next(rows)["id"] == "0"
    with pytest.raises(ValueError, match="Row '1' of 'half' shows .*/1.mp4, which is not there"):
        next(rows)


def test_a_clip_that_arrives_is_found_without_a_change_of_the_file(half):
    assert len(load_rows([half], half.parent, on_missing="skip")) == 3
    (half.parent / "1.mp4").touch()
    assert len(load_rows([half], half.parent, on_missing="skip")) == 4


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
    with pytest.raises(ValueError, match="a.json, record 1: Record 'x9' is not a training row"):
        next(rows)


def test_no_rows_to_stream(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="There are no rows in"):
        load_rows([tmp_path / "a.json"], streaming=True)


# --- mixtures ---


@pytest.fixture
def mixture(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([record(f"a{i}") for i in range(40)]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(record(f"b{i}")) for i in range(10)))
    (tmp_path / "m.yaml").write_text(
        f"sources:\n- {{path: {tmp_path}/a.json, take: '50%', weight: 1.5}}\n"
        f"- {{path: {tmp_path}/b.jsonl, take: end:5, name: bees}}\n"
    )
    return tmp_path / "m.yaml"


def test_a_mixture_is_its_sources_one_after_the_other(mixture):
    rows = load_rows([mixture])
    assert rows["source"][:] == ["a"] * 30 + ["bees"] * 5
    assert rows["id"][-5:] == [f"b{i}" for i in range(5, 10)]
    assert rows["id"][:] == load_rows([mixture])["id"][:]


def test_a_streamed_mixture_has_the_same_rows_mixed(mixture):
    ids = [row["id"] for row in load_rows([mixture], streaming=True)]
    assert sorted(ids) == sorted(load_rows([mixture])["id"][:])
    assert ids == [row["id"] for row in load_rows([mixture], streaming=True)]
    positions = [i for i, name in enumerate(ids) if name.startswith("b")]
    assert positions != list(range(min(positions), min(positions) + 5))


def test_workers_share_a_streamed_mixture(mixture):
    rows = load_rows([mixture], streaming=True)
    shared = [row["id"] for row in DataLoader(rows, batch_size=None, num_workers=2)]
    assert sorted(shared) == sorted(row["id"] for row in rows)


@pytest.mark.parametrize("seen", [1, 13, 34])
def test_a_streamed_mixture_goes_on_in_the_middle_of_an_epoch(mixture, seen):
    rows = load_rows([mixture], streaming=True)
    ids = [row["id"] for row in rows]
    stream = iter(rows)
    for _ in range(seen):
        next(stream)
    state = json.loads(json.dumps(rows.state_dict()))
    resumed = load_rows([mixture], streaming=True)
    resumed.load_state_dict(state)
    assert [row["id"] for row in resumed] == ids[seen:]


def test_the_first_rows_are_read_alone(tmp_path):
    """A file of millions of records begins at once, and what is broken behind them is nobody's business."""
    (tmp_path / "a.json").write_text(json.dumps([record(0), record(1)])[:-1] + ", {broken")
    source = Source(path=str(tmp_path / "a.json"), take="first:2")
    assert len(load_rows([source])) == 2 == len(list(load_rows([source], streaming=True)))


def test_a_mixture_is_checked_by_its_sources(mixture):
    assert check_data([mixture], num_proc=1).rows == {"a": 40, "bees": 10}
