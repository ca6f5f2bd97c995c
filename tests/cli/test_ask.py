# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley ask` as it is typed."""

import json
import shutil
import sys
import time

import pytest
from clips import write_clip
from PIL import Image
from typer.testing import CliRunner

from transformers_valley.chat import VideoChat
from valley_cli.app import app


@pytest.fixture
def media(tmp_path):
    """A clip of six seconds and a picture."""
    write_clip(tmp_path / "clip.mp4", 60, fps=10)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    return str(tmp_path / "clip.mp4"), str(tmp_path / "picture.png")


def ask(*words):
    return CliRunner().invoke(app, ["ask", *map(str, words), "--max-new-tokens", "6"])


def answer(model, processor, *blocks):
    chat = VideoChat(model, processor, max_new_tokens=6, do_sample=False)
    return chat.ask([*blocks, {"type": "text", "text": "What happens?"}])


def test_the_answer_is_all_that_is_printed(checkpoint, model, processor, media):
    result = ask(checkpoint, media[0], "What happens?")
    assert result.exit_code == 0
    assert result.stdout == answer(model, processor, {"type": "video", "path": media[0]}) + "\n"


def test_clips_and_images_are_shown_in_their_order(checkpoint, model, processor, media):
    clip, picture = media
    blocks = [{"type": "image", "path": picture}, {"type": "video", "path": clip}]
    for paths, shown in ((media, blocks[::-1]), (media[::-1], blocks)):
        result = ask(checkpoint, *paths, "What happens?", "--json")
        assert json.loads(result.stdout)["answer"] == answer(model, processor, *shown)


def test_json_tells_which_frames_the_answer_is_about(checkpoint, media):
    found = json.loads(ask(checkpoint, *media, "What happens?", "--json", "--fps", "1").stdout)
    assert set(found) == {"answer", "question", "clips", "checkpoint"}
    assert found["question"] == "What happens?" and found["checkpoint"] == checkpoint
    assert found["clips"] == [{"clip": media[0], "timestamps": [0, 1, 2, 3, 4, 5]}, {"clip": media[1]}]


def test_a_question_needs_no_clip(checkpoint, model, processor):
    assert ask(checkpoint, "What happens?").stdout == answer(model, processor) + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all", "Hi"], "Error: Cannot load 'nowhere/at/all': there is no such folder."),
        ([__file__, "Hi"], "it is a file, and a checkpoint is a folder"),
        (["CKPT/..", "Hi"], "it has no config.json, and '"),
        (["CKPT", __file__], "test_ask.py' is a file, and the question comes last"),
        (["CKPT", "What happens?", __file__], "test_ask.py' is a file, and the question comes last"),
        (["CKPT", "none.mp4", "Hi"], "Cannot read video 'none.mp4': there is no such file."),
        (["CKPT", "Hi", "--num-frames", "2", "--fps", "1"], "--num-frames and --fps exclude each other"),
        (["CKPT", "Hi", "--dtype", "int7"], "There is no dtype 'int7'"),
        (["CKPT", "Hi", "--device", "cuda:77"], "The device 'cuda:77' cannot be used"),
    ],
)
def test_what_cannot_be_asked_gives_one_line(checkpoint, words, message):
    result = ask(*[word.replace("CKPT", checkpoint) for word in words])
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_without_a_network_one_attempt_is_enough(no_network):
    started = time.monotonic()
    result = ask("outputs/nothing", "Hi")
    assert result.exit_code == 1 and time.monotonic() - started < 10  # transformers alone tries for 23 seconds
    expected = "Error: Cannot load 'outputs/nothing': there is no such folder here, and the Hub cannot be reached ("
    assert result.stderr.startswith(expected) and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{", "checkpoint-5/config.json": "{}"}, "not a valid JSON"),
        ({"adapter_config.json": '{"peft_type": "LORA"}', "x/config.json": "{}"}, "names no base_model_name_or_path"),
        ({"x/config.json": "{}"}, "it has no config.json, and '"),
    ],
)
def test_what_is_wrong_in_a_folder_is_said(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    result = ask(tmp_path, "Hi")
    assert result.exit_code == 1 and message in result.stderr, result.stderr


def test_a_word_that_names_a_folder_is_a_question(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "colours").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ask(checkpoint, "colours").exit_code == 0


def test_an_adapter_needs_peft(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "peft", None)
    result = ask(tmp_path, "Hi")
    assert result.exit_code == 1 and "is a LoRA adapter, which needs peft: pip install peft." in result.stderr


def test_template_that_reaches_for_python_gives_one_line(checkpoint, tmp_path):
    hostile = shutil.copytree(checkpoint, tmp_path / "hostile")
    (hostile / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    result = ask(hostile, "Hi")
    assert result.exit_code == 1 and "access to attribute '__class__' of 'str' object is unsafe" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_question_is_needed(checkpoint):
    result = ask()
    assert result.exit_code == 2 and "Missing argument" in result.stderr
