# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Packed rows are those that were packed: the same tokens, and pixels within the error of JPEG."""

import io
import json
import os
import signal

import pyarrow.parquet
import pytest
import sft
import torch
from clips import write_clip
from launching import arguments
from PIL import Image
from typer.testing import CliRunner

from transformers_valley.data import load_rows, packing
from transformers_valley.data.check import check_data
from transformers_valley.data.decode import BadSampleError, visuals_of
from transformers_valley.data.export import write_llava
from transformers_valley.data.frames import PackSettings, check_packed, iter_packed, list_shards, read_clip
from transformers_valley.data.lengths import add_lengths
from transformers_valley.data.packing import pack
from transformers_valley.training import ValleyDataCollator
from transformers_valley.video_sources import VideoDecodeError
from valley_cli.app import app


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for seconds in (2, 5):
        write_clip(folder / f"{seconds}.mp4", seconds * 10, fps=10)
    Image.linear_gradient("L").resize((50, 40)).convert("RGB").save(folder / "picture.png")
    clip = {"type": "video", "path": "5.mp4"}
    contents = [
        [{"type": "video", "path": "2.mp4"}],
        [{"type": "image", "path": "picture.png"}],
        "What is a clip?",
        [
            clip | {"start": 1, "end": 3, "fps": 2},
            {"type": "text", "text": "and"},
            {"type": "image", "path": "picture.png"},
        ],
        [clip | {"num_frames": 3}],
        [clip],
    ]
    rows = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": f"Answer {number}."}]}
        for number, content in enumerate(contents)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def rows(media):
    return load_rows([media / "rows.jsonl"], media)


@pytest.fixture
def settings(processor):
    return PackSettings.of(processor.video_processor, quality=95)


def files_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["jpeg", "webp"])
@pytest.mark.parametrize("streaming", [False, True])
def test_training_reads_packed_rows_as_the_rows_themselves(rows, processor, tmp_path, form, streaming):
    settings = PackSettings.of(processor.video_processor, format=form, quality=95)
    assert pack(rows, tmp_path / "packed", settings, num_shards=2, workers=1) == (2, [])
    packed = load_rows([tmp_path / "packed"], streaming=streaming)
    collator = ValleyDataCollator(processor)
    for row, unpacked in zip(packed, rows, strict=True):
        assert (row["id"], row["source"]) == (unpacked["id"], unpacked["source"])
        batch, expected = collator([row]), collator([unpacked])
        assert batch.keys() == expected.keys()
        assert batch["input_ids"].equal(expected["input_ids"]) and batch["labels"].equal(expected["labels"])
        for name in batch.keys() & {"pixel_values", "pixel_values_videos"}:
            error = (batch[name] - expected[name]).abs()  # frames of other numbers differ by 0.4 or more
            assert batch[name].shape == expected[name].shape and error.mean() < 0.1, name


def test_nothing_but_the_folder_is_needed(rows, media, processor, settings, tmp_path, monkeypatch):
    """Neither to count tokens nor to train nor to check."""
    pack(rows, tmp_path / "packed", settings, workers=1)
    expected = add_lengths(rows, processor)["length"][:]
    monkeypatch.setattr("transformers_valley.video_decoding.resolve", None)
    monkeypatch.setattr("transformers_valley.video_sources._locate", None)
    packed = load_rows([tmp_path / "packed"], on_missing="raise")
    assert add_lengths(packed, processor)["length"][:] == expected
    assert ValleyDataCollator(processor)(list(packed))["attention_mask"].sum(1).tolist() == expected
    report = check_data([tmp_path / "packed"], num_proc=1)
    assert report.rows.total() == len(rows) and not report.bad


def test_times_are_those_that_were_sampled(rows, settings, tmp_path):
    pack(rows, tmp_path / "packed", settings, workers=1)
    packed = load_rows([tmp_path / "packed"])
    assert [[clip["times"] for clip in row["clips"]] for row in packed] == [
        [[0.0]],
        [],
        [],
        [[1.0, 1.5, 2.0, 2.5]],
        [[0.0, 2.4, 4.9]],
        [[0.0, 2.0, 4.0]],
    ]
    (visual,) = visuals_of(packed[4])
    assert visual.source.timestamps == [0.0, 2.4, 4.9] and visual.source.frames.dtype == torch.uint8


def test_packed_rows_mix_with_others(rows, media, settings, tmp_path):
    pack(rows, tmp_path / "packed", settings, num_shards=3, workers=1)
    (tmp_path / "m.yaml").write_text(
        f"sources:\n- {{dataset: {tmp_path}/packed, take: first:4}}\n- {{path: {media}/rows.jsonl, media: {media}}}\n"
    )
    together = load_rows([tmp_path / "m.yaml"])
    assert len(together) == 10 and [row["clips"] is None for row in together] == [False] * 4 + [True] * 6
    streamed = list(load_rows([tmp_path / "m.yaml"], streaming=True))
    assert sorted(row["id"] for row in streamed) == sorted(together["id"][:])
    assert sum(row["clips"] is None for row in streamed) == 6


@pytest.fixture
def packed_texts(settings, tmp_path):
    """160 packed rows of text in one folder, in so many files."""
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}] for n in range(160)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))

    def make(files):
        rows = load_rows([tmp_path / "texts.jsonl"])
        pack(rows, tmp_path / f"{files}_files", settings, num_shards=files, workers=1)
        return tmp_path / f"{files}_files"

    return make


@pytest.mark.parametrize("files", [1, 3, 8, 16])
@pytest.mark.parametrize("take", ["all", "first:80", "end:80", "random:80"])
def test_a_packed_source_is_mixed_in_proportion_for_every_reader(packed_texts, tmp_path, files, take):
    """However many files hold it, and whichever rows are taken."""
    rows = [{"question": "?", "answer": "A."} for _ in range(160 if take == "all" else 80)]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "m.yaml").write_text(
        f"sources:\n- {{dataset: {packed_texts(files)}, take: '{take}'}}\n- {{path: {tmp_path}/other.jsonl}}\n"
    )
    expected = sorted(load_rows([tmp_path / "m.yaml"])["id"][:])
    stream = load_rows([tmp_path / "m.yaml"], streaming=True)
    for readers in (1, 2, 4, 8):
        parts = [list(stream.shard(readers, reader)) for reader in range(readers)]
        assert sorted(row["id"] for part in parts for row in part) == expected
        assert all(2 * sum(row["clips"] is not None for row in part) == len(part) > 0 for part in parts)


def test_packed_rows_that_are_taken_are_read_alone(packed_texts, monkeypatch):
    """Of a folder of millions of rows the first are there at once."""
    folder, opened, open_file = packed_texts(4), [], pyarrow.parquet.ParquetFile
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", lambda path: opened.append(path) or open_file(path))
    assert [row["id"] for row in iter_packed(folder, positions=range(3))] == ["texts:0", "texts:1", "texts:2"]
    assert len(opened) == 1
    places = [2, 38, 39, 40, 159]
    assert [row["id"] for row in iter_packed(folder, positions=places)] == [f"texts:{place}" for place in places]


def test_a_model_trains_on_packed_rows(rows, checkpoint, processor, tmp_path):
    """The loss of the first step is that of the rows themselves, and a pack for another rule is refused."""
    losses = {}
    pack(rows, tmp_path / "packed", PackSettings.of(processor.video_processor, quality=100), workers=1)
    for name, place in (("packed", tmp_path / "packed"), ("rows", tmp_path / "rows.json")):
        if name == "rows":
            write_llava(rows, place)
        options = {"max_steps": 1, "per_device_train_batch_size": 6, "preview_steps": 0}
        trainer = sft.main(arguments("stage2_instruct.yaml", checkpoint, place, tmp_path / name, **options))
        losses[name] = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert losses["packed"] == pytest.approx(losses["rows"], rel=2e-3)
    pack(
        rows,
        tmp_path / "other",
        PackSettings(num_frames=2, size=processor.video_processor.size.shortest_edge),
        workers=1,
    )
    with pytest.raises(ValueError, match="was packed with fps=None and not 0.5"):
        sft.main(arguments("stage2_instruct.yaml", checkpoint, tmp_path / "other", tmp_path / "refused"))


# --- shards ---


def test_bytes_do_not_depend_on_who_makes_which_shard(rows, settings, tmp_path):
    pack(rows, tmp_path / "one", settings, num_shards=3, workers=1)
    for index in (1, 0):
        pack(rows, tmp_path / "parts", settings, num_shards=3, part=(index, 2), workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "parts")
    assert sorted(files_of(tmp_path / "one")) == ["pack.json", *(f"train-0000{i}-of-00003.parquet" for i in range(3))]


def test_two_parts_may_begin_at_one_moment(rows, settings, tmp_path, monkeypatch):
    """The second sees an empty folder, and by then the first has said what it is to hold."""
    pack(rows, tmp_path / "packed", settings, num_shards=2, part=(0, 2), workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "listdir", lambda folder: [])
        pack(rows, tmp_path / "packed", settings, num_shards=2, part=(1, 2), workers=1)
    assert len(load_rows([tmp_path / "packed"])) == len(rows)


def test_a_killed_run_goes_on(rows, settings, tmp_path, monkeypatch):
    """What is whole stays; what was begun is made anew; two runs at once do no harm."""
    pack(rows, tmp_path / "whole", settings, num_shards=3, workers=1)
    write, made = packing._Reader.pack, []

    def die(reader, row):
        if row["id"] == "rows:3":
            raise KeyboardInterrupt
        return write(reader, row)

    monkeypatch.setattr(packing._Reader, "pack", die)
    with pytest.raises(KeyboardInterrupt):
        pack(rows, tmp_path / "packed", settings, num_shards=3, workers=1)
    monkeypatch.setattr(packing._Reader, "pack", lambda reader, row: made.append(row["id"]) or write(reader, row))
    with pytest.raises(ValueError, match="lacks 2 of 3 shards, the first is train-00001.*pack` again"):
        list_shards(tmp_path / "packed")
    assert pack(rows, tmp_path / "packed", settings, num_shards=3, workers=1)[0] == 2
    assert made == ["rows:2", "rows:3", "rows:4", "rows:5"]
    assert files_of(tmp_path / "packed") == files_of(tmp_path / "whole")


def test_a_worker_that_is_killed_is_told(rows, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(packing._Reader, "pack", lambda reader, row: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match="was killed.*run the same command again"):
        pack(rows, tmp_path / "packed", settings, num_shards=2, workers=2)


@pytest.mark.parametrize("change", ["settings", "rows", "num_shards"])
def test_a_folder_of_another_pack_is_refused(rows, settings, tmp_path, change):
    pack(rows, tmp_path / "packed", settings, num_shards=2, workers=1)
    before = files_of(tmp_path / "packed")
    other = {
        "settings": (rows, PackSettings(num_frames=2), 2),
        "rows": (rows.select([1, 0, 2, 3, 4, 5]), settings, 2),
        "num_shards": (rows, settings, 3),
    }[change]
    with pytest.raises(ValueError, match="holds another run: .*was .*, now "):
        pack(other[0], tmp_path / "packed", *other[1:], workers=1)
    assert files_of(tmp_path / "packed") == before


def test_a_folder_of_other_files_is_refused(rows, settings, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        pack(rows, tmp_path / "packed", settings)


def test_a_full_disk_leaves_nothing_half_made(rows, settings, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="the disk or your quota is full"):
        pack(rows, tmp_path / "packed", settings, workers=1)
    assert os.listdir(tmp_path / "packed") == ["pack.json"]


# --- what cannot be packed ---


@pytest.fixture
def spoilt(media, tmp_path):
    lines = (media / "rows.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace("picture.png", "gone.png")
    (tmp_path / "spoilt.jsonl").write_text("\n".join(lines))
    return load_rows([tmp_path / "spoilt.jsonl"], media)


def test_bad_rows_end_a_pack_or_are_listed(spoilt, settings, tmp_path):
    with pytest.raises(BadSampleError, match="spoilt:1.*gone.png: there is no such file"):
        pack(spoilt, tmp_path / "packed", settings, workers=1)
    count, bad = pack(spoilt, tmp_path / "skipped", settings, num_shards=2, workers=1, skip_bad=True)
    assert count == 2 and [entry["id"] for entry in bad] == ["spoilt:1"]
    again = pack(spoilt, tmp_path / "skipped", settings, num_shards=2, workers=1, skip_bad=True)
    assert again == (0, bad)  # told again by a run that finds all made
    assert load_rows([tmp_path / "skipped"])["id"][:] == [f"spoilt:{i}" for i in (0, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "png"}, "expected jpeg or webp"),
        ({"quality": 0}, "expected 1 to 100"),
        ({"fps": 1, "num_frames": 2}, "either fps or num_frames"),
        ({"size": 0}, "size of packed frames is 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        PackSettings(**settings)


@pytest.mark.parametrize("arguments", [{"part": (2, 2)}, {"part": (-1, 2)}, {"num_shards": 7}, {"num_shards": 0}])
def test_parts_that_make_no_sense(rows, settings, tmp_path, arguments):
    with pytest.raises(ValueError, match="expected"):
        pack(rows, tmp_path / "packed", settings, **arguments)


def test_rows_packed_for_another_way_to_sample_are_refused(rows, processor, settings, tmp_path):
    pack(rows, tmp_path / "packed", settings, workers=1)
    check_packed([tmp_path / "packed"], processor.video_processor)
    processor.video_processor.fps = 2.0
    with pytest.raises(ValueError, match="was packed with fps=0.5 and not 2.0.*--model"):
        check_packed([tmp_path / "packed"], processor.video_processor)


def test_a_damaged_frame_is_a_bad_row(rows, processor, settings, tmp_path):
    pack(rows, tmp_path / "packed", settings, workers=1)
    row = load_rows([tmp_path / "packed"])[0]
    row["clips"][0]["frames"][0] = row["clips"][0]["frames"][0][:50]
    with pytest.raises(BadSampleError, match="rows:0.*2.mp4.*damaged.*pack it again"):
        ValleyDataCollator(processor).encode(row)


def test_frames_that_no_pack_wrote_are_bad_rows():
    """Packed rows may come from anybody."""

    def picture(width, height):
        data = io.BytesIO()
        Image.new("RGB", (width, height)).save(data, "jpeg")
        return data.getvalue()

    small = picture(8, 8)
    place = small.index(b"\xff\xc0") + 5  # of height and width
    bomb = small[:place] + b"\xff" * 4 + small[place + 4 :]
    for frames, message in (
        ([picture(8, 8), picture(8, 6)], "a.mp4.*several sizes, 8x6, 8x8"),
        ([bomb], "a.mp4.*its packed picture is damaged"),
        ([picture(4000, 2)], "a.mp4.*one side is over"),
        ([None], "a.mp4.*its packed picture is damaged"),
    ):
        with pytest.raises(VideoDecodeError, match=message):
            read_clip({"frames": frames, "times": None}, "a.mp4")


# --- the command ---


def test_the_command_packs_and_goes_on(media, checkpoint, tmp_path):
    words = ["data", "pack", str(media / "rows.jsonl"), "--media-root", str(media), "-o", str(tmp_path / "packed")]
    words += ["--model", checkpoint, "--num-shards", "2", "--workers", "1"]
    result = CliRunner().invoke(app, [*words, "--shard", "1/2"])
    assert result.exit_code == 0 and "1 files were made of part 1/2, 0 of 6 rows are left out" in result.stdout
    assert CliRunner().invoke(app, words).exit_code == 0 and len(load_rows([tmp_path / "packed"])) == 6
    refused = CliRunner().invoke(app, [*words, "--shard", "2"])
    assert refused.exit_code == 1 and "expected I/N" in refused.stderr
