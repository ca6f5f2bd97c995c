# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley chat` as it is typed."""

from pathlib import Path

import pytest
from clips import write_clip
from PIL import Image
from typer.testing import CliRunner

from transformers_valley.chat import VideoChat
from valley_cli.app import app


NEW = {"max_new_tokens": 6, "do_sample": False}


def talk(checkpoint, *arguments, text):
    return CliRunner().invoke(app, ["chat", checkpoint, *arguments, "--max-new-tokens", "6"], input=text)


def test_command_answers_line_by_line(checkpoint, model, processor, clip):
    result = talk(checkpoint, clip, text="What happens?\n\nAnd then?\n")
    chat = VideoChat(model, processor, **NEW)
    answers = [chat.ask("What happens?", videos=[clip]), chat.ask("And then?")]
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{answer}\n" for answer in answers)
    assert "2 frames from 0:00.00 to 0:02.00" in result.stderr


def test_command_goes_on_after_bad_input(checkpoint, clip, tmp_path):
    result = talk(
        checkpoint,
        text=f"/help\n/show {tmp_path}/none.mp4\n/dance\n/show {clip}\nWhat happens?\n/reset\nHi\n/quit\nnot read\n",
    )
    assert result.exit_code == 0
    assert "/show CLIP  show another clip" in result.stdout
    assert "there is no such file" in result.stderr
    assert "There is no command /dance; /help lists them." in result.stderr
    assert "2 frames" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["CKPT", "none.mp4"], "there is no such file"),
        (["CKPT", "--num-frames", "4", "--fps", "1"], "exclude each other"),
    ],
)
def test_command_that_cannot_begin_says_why(checkpoint, arguments, message):
    result = CliRunner().invoke(app, ["chat", *[checkpoint if a == "CKPT" else a for a in arguments]], input="Hi\n")
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.strip().count("\n") == 0


def test_sampling_of_the_command(checkpoint, clip, tmp_path):
    result = talk(checkpoint, clip, "--num-frames", "5", text="What?\n")
    assert "5 frames" in result.stderr
    write_clip(tmp_path / "long.mp4", 20, fps=10)
    assert "8 frames" in talk(checkpoint, str(tmp_path / "long.mp4"), "--fps", "4", text="What?\n").stderr


def test_an_image_is_shown_as_an_image(checkpoint, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    assert "an image" in talk(checkpoint, str(tmp_path / "picture.png"), text="What?\n").stderr


def test_a_clip_that_is_cut_off_is_taken_as_far_as_it_goes_where_asked(checkpoint, tmp_path):
    whole = Path(write_clip(tmp_path / "clip.mkv", 60, fps=10)).read_bytes()
    (tmp_path / "clip.mkv").write_bytes(whole[: len(whole) // 2])
    show = f"/show {tmp_path}/clip.mkv\nWhat?\n"
    said = talk(checkpoint, text=show).stderr
    assert "it is truncated" in said and "--on-error partial takes what is there" in said
    assert "frames from 0:00" in talk(checkpoint, "--on-error", "partial", text=show).stderr
