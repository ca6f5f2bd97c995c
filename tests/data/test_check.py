# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley data check` on good, damaged and missing files, and on records of both forms."""

import json
import math
import os
import signal

import pytest
from clips import write_clip
from PIL import Image
from typer.testing import CliRunner

from transformers_valley.data import check as module
from transformers_valley.data.check import check_data
from valley_cli.app import app


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "good.mp4", 60, fps=10)
    Image.new("RGB", (40, 40), "blue").save(folder / "good.png")
    whole = (folder / "good.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    middle = bytearray(whole)  # FFmpeg can open it, and notices when it gets there
    middle[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
    (folder / "middle.mp4").write_bytes(middle)
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:-20])
    return folder


def record(name, answer="Yes.", **visual):
    return {
        "id": name,
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}],
        **visual,
    }


def segment(start):
    chat = [{"role": "user", "content": [{"type": "video", "path": "good.mp4", "start": start}]}]
    return {"messages": [*chat, {"role": "assistant", "content": "Yes."}]}


@pytest.fixture
def files(media, tmp_path):
    old = [record("a", video="good.mp4"), record("b", video="torn.mp4"), record("c", image="good.png"), {"id": "d"}]
    (tmp_path / "old.json").write_text(json.dumps(old))
    lines = [segment(1), segment(60), record("e", image=["good.png", "torn.png"]), record("f", video="gone.mp4")]
    lines.append(record("long", "A red circle. " * 50))
    lines.append(record("g", video="middle.mp4"))
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    return [str(tmp_path / "old.json"), str(tmp_path / "new.jsonl")]


QUICK = {
    "b": "torn.mp4: ",
    "d": "record 3: Record 'd' is not a training row",
    "new:1": "good.mp4: start=60.0 is past its end",
    "e": "torn.png: not a readable image",
    "f": "gone.mp4: there is no such file",
    "new:6": "line 7 is not JSON",
}


@pytest.mark.parametrize("num_proc", [1, 2])
def test_every_bad_row_is_found(files, media, num_proc):
    report = check_data(files, media, num_proc=num_proc)
    assert {error.id for error in report.bad} == set(QUICK)
    for error in report.bad:
        assert QUICK[error.id] in str(error)
        assert error.source == ("old" if error.id in "bd" else "new")
    assert report.rows == {"old": 4, "new": 7} and report.clips == {"old": 2, "new": 4}
    assert report.images == {"old": 1, "new": 2} and not report.too_long.total()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "part", [{"start": 2, "end": 1}, {"start": -1}, {"end": 0}, {"start": math.nan}, {"end": math.inf}, {"fps": 0}]
)
def test_a_part_that_no_clip_has_is_a_bad_row(media, tmp_path, part, full):
    clip = {"type": "video", "path": "good.mp4", **part}
    rows = [segment(1), segment(1)]
    rows[1]["messages"][0]["content"] = [clip]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (error,) = check_data([tmp_path / "rows.jsonl"], media, full=full, num_proc=1).bad
    assert error.id == "rows:1" and error.file.endswith("good.mp4") and str(list(part.values())[-1]) in error.reason


def test_a_glance_at_a_clip_takes_one_frame_whatever_it_asks_for(media, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([record("a", video="good.mp4", num_frames=5000)]))
    assert not check_data([tmp_path / "rows.json"], media, num_proc=1).bad


def test_control_tokens_in_texts_are_no_fault(tmp_path, processor):
    rows = [record("a", "It is </s>, <vi_end> or <video>.")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert not check_data([tmp_path / "rows.json"], processor=processor, max_length=2048, num_proc=1).bad


def test_damage_inside_a_clip_shows_when_all_of_it_is_decoded(files, media, processor):
    processor.video_processor.fps = 10.0
    report = check_data(files, media, processor, full=True, num_proc=1)
    (error,) = (error for error in report.bad if error.id not in QUICK)
    assert error.id == "g" and error.file.endswith("middle.mp4") and "damaged" in error.reason


@pytest.mark.parametrize("full", [False, True])
def test_a_truncated_clip_is_bad_unless_the_model_takes_its_good_frames(tmp_path, processor, full):
    write_clip(tmp_path / "whole.mkv", 60, fps=10)  # its index is at its beginning
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "torn.mkv").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "rows.json").write_text(json.dumps([record("a", video="torn.mkv")]))
    (error,) = check_data([tmp_path / "rows.json"], tmp_path, processor, full=full, num_proc=1).bad
    assert "it is truncated" in error.reason and str(error).endswith("seconds are there.")  # and no argument of Python
    processor.video_processor.on_error = "partial"
    assert not check_data([tmp_path / "rows.json"], tmp_path, processor, full=full, num_proc=1).bad


def test_rows_that_are_too_long_are_counted_and_not_bad(files, media, processor):
    report = check_data(files, media, processor, max_length=150, num_proc=1)
    assert report.too_long["new"] == 1 and {error.id for error in report.bad} == set(QUICK)
    with pytest.raises(ValueError, match="give the model, too"):
        check_data(files, media, max_length=150)


def test_preferences_are_checked_with_both_answers(media, tmp_path, processor):
    def pair(name, clip="good.mp4", rejected="No."):
        return {"id": name, "video": clip, "question": "What?", "chosen": "Yes.", "rejected": rejected}

    pairs = [pair("good"), pair("torn", "torn.mp4"), pair("long", rejected="A red circle. " * 50), pair("equal")]
    pairs[3]["rejected"] = pairs[3]["chosen"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    report = check_data([tmp_path / "pairs.jsonl"], media, processor, max_length=150, num_proc=1)
    assert sorted(error.id for error in report.bad) == ["equal", "torn"]
    assert any("`chosen` and `rejected` are equal" in error.reason for error in report.bad)
    assert report.rows == {"pairs": 4} and report.too_long == {"pairs": 1} and report.preferences == {"pairs": 3}

    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, [pairs[0], record("row")])))
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "mixed.jsonl"), "--media-root", str(media)])
    assert result.exit_code == 1 and "it is a row among preferences: use two files." in result.stdout
    assert "1 of these are preferences, from which DPO learns" in result.stdout


def test_a_row_that_kills_its_process_is_named(media, tmp_path, monkeypatch):
    """Decoders crash; the other rows are still told."""
    rows = [record(f"{i}", image="good.png") for i in range(40)]
    rows[20] = record("killer", image="torn.png")
    rows[35] = record("gone", image="gone.png")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    whole = module.load_image

    def crash(path):
        if path.endswith("torn.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(path)

    monkeypatch.setattr(module, "load_image", crash)
    report = check_data([tmp_path / "rows.json"], media, num_proc=2)
    assert [error.id for error in report.bad] == ["killer", "gone"] and "died" in report.bad[0].reason
    assert report.rows.total() == 40


# --- the command ---


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_the_command_prints_bad_rows_and_a_table(files, media, checkpoint, tmp_path):
    options = ["--media-root", media, "--model", checkpoint, "--max-length", 150, "--num-proc", 1]
    result = run(*files, *options, "--output", tmp_path / "bad.jsonl")
    assert result.exit_code == 1
    *reasons, header, old, new, total = result.stdout.splitlines()
    assert len(reasons) == 6 and any("Row 'f' of 'new' cannot be trained on: " in line for line in reasons)
    assert header.split() == ["source", "rows", "clips", "images", "bad", "too", "long"]
    assert old.split() == ["old", "4", "2", "1", "2", "0"] and new.split() == ["new", "7", "4", "2", "4", "1"]
    assert total.split() == ["all", "11", "6", "3", "6", "1"]
    entries = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries if entry["file"] is None] == ["d", "new:6"]
    assert set(entries[0]) == {"id", "source", "file", "reason"} and len(entries) == 6


def test_the_command_is_content_with_good_data(media, tmp_path):
    (tmp_path / "good.json").write_text(json.dumps([record("a", video="good.mp4")]))
    result = run(tmp_path / "good.json", "--media-root", media, "--full", "--num-proc", 1)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1].split() == ["good", "1", "1", "0", "0", "0"]


def test_the_command_ends_with_a_hint_where_all_clips_of_a_source_are_missing(media, tmp_path):
    gone = [record("a", video="1.mp4"), record("b", image=["1.png", "good.png"]), record("c"), {"id": "d"}]
    (tmp_path / "gone.json").write_text(json.dumps(gone))
    (tmp_path / "some.json").write_text(json.dumps([record("a", video="1.mp4"), record("b", video="good.mp4")]))
    (tmp_path / "texts.json").write_text(json.dumps([record("a")]))
    files = [tmp_path / name for name in ("gone.json", "some.json", "texts.json")]
    last = run(*files, "--media-root", media, "--num-proc", 1).stdout.splitlines()[-1]
    assert last.startswith(f"None of the clips and images of gone is there: {media / '1.mp4'} was looked for")
    assert "--media-root" in last
    assert run(*files[1:], "--media-root", media, "--num-proc", 1).stdout.splitlines()[-1].split()[0] == "all"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.json"], "gone.json"),
        (["FILE", "--max-length", 9], "give the model, too"),
        (["FILE", "-o", "nowhere/bad.jsonl"], "there is no folder 'nowhere'"),
        (["EMPTY"], "There are no rows"),
    ],
)
def test_the_command_ends_with_one_line(files, tmp_path, arguments, message):
    (tmp_path / "empty.json").write_text("[]")
    named = {"FILE": files[0], "EMPTY": tmp_path / "empty.json"}
    result = run(*(named.get(argument, argument) for argument in arguments))
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
