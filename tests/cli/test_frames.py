# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley frames` as it is typed: what it prints, what it writes, what it refuses."""

from pathlib import Path

import av
import pytest
from clips import numbered_frame, read_number, write_clip
from PIL import Image
from test_contact_sheet import read_sheet
from typer.testing import CliRunner

from valley_cli.app import app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with `clip.mp4`: 60 numbered frames, 10 a second."""
    monkeypatch.chdir(tmp_path)
    write_clip("clip.mp4", 60, fps=10)
    return tmp_path


def valley(*words: str):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def numbers(path: str = "clip_frames.png") -> list[list[int]]:
    """The numbers of the frames on a sheet, row by row."""
    with Image.open(path) as sheet:
        pictures, captions = read_sheet(sheet.convert("RGB"))
    assert all(caption.any() for row in captions for caption in row)
    return [[read_number(picture.transpose(2, 0, 1)) for picture in row] for row in pictures]


def refused(*words: str) -> str:
    """The one line on stderr with which a command that must fail ends."""
    result = valley(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr.strip()


# --- What it draws and prints --------------------------------------------------------------------------------------


def test_frames_writes_a_sheet_and_one_line(folder):
    result = valley("frames", "clip.mp4")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "clip_frames.png: 3 frames from 0:00.00 to 0:04.00, of a clip 0:06.00 long\n"
    assert numbers() == [[0, 20, 40]]


def test_output_is_in_the_current_folder_whatever_the_folder_of_the_clip(folder, monkeypatch):
    other = folder / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert valley("frames", "../clip.mp4").exit_code == 0
    assert [path.name for path in other.iterdir()] == ["clip_frames.png"]


@pytest.mark.parametrize("name", ["sheet.png", "sheet.JPG", "sheet.webp", "sheet.bmp"])
def test_suffix_chooses_the_format(folder, name):
    assert valley("frames", "clip.mp4", "-o", name).stdout.startswith(f"{name}: 3 frames")
    with Image.open(name) as sheet:
        assert sheet.format == {"JPG": "JPEG"}.get(name[6:], name[6:].upper())


def test_options_choose_the_frames(folder):
    result = valley("frames", "clip.mp4", "--fps", "5", "--start", "1", "--end", "2.2", "--columns", "4")
    assert result.stdout == "clip_frames.png: 6 frames from 0:01.00 to 0:02.00, of a clip 0:06.00 long\n"
    assert numbers() == [[10, 12, 14, 16], [18, 20]]

    valley("frames", "clip.mp4", "--num-frames", "4", "--columns", "4")
    assert numbers() == [[0, 19, 39, 59]]

    valley("frames", "clip.mp4", "--fps", "10", "--max-frames", "3", "--columns", "3")
    assert numbers() == [[0, 29, 59]]


def test_long_clips_are_limited_to_64_frames(folder):
    write_clip("long.mp4", 150, fps=1)
    result = valley("frames", "long.mp4")
    assert result.stdout == "long_frames.png: 64 frames from 0:00.00 to 2:28.00, of a clip 2:30.00 long\n"
    assert sum(map(len, numbers("long_frames.png"))) == 64


def test_fps_is_not_limited_to_64_frames(folder):
    assert ": 180 frames (60 without repeats) from" in valley("frames", "clip.mp4", "--fps", "30").stdout
    assert sum(map(len, numbers())) == 180


def test_repeated_frames_are_told(folder):
    write_clip("short.mp4", 3, fps=10)
    result = valley("frames", "short.mp4", "--num-frames", "8")
    assert ": 8 frames (3 without repeats) from 0:00.00 to 0:00.20, of a clip 0:00.30 long" in result.stdout


def test_one_frame_has_one_time(folder):
    assert valley("frames", "clip.mp4", "--end", "1").stdout.endswith(": 1 frame at 0:00.00, of a clip 0:06.00 long\n")


def test_pictures_have_no_times(folder):
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in (1, 2, 3):
        Image.fromarray(numbered_frame(i)).save(pictures / f"{i}.png")
    result = valley("frames", "pictures", "--columns", "3")
    assert result.stdout == "pictures_frames.png: 3 frames of 3, without times\n"
    assert numbers("pictures_frames.png") == [[1, 2, 3]]


def test_partial_tells_how_many_frames_are_lost(folder):
    data = bytearray(Path("clip.mp4").read_bytes())
    with av.open("clip.mp4") as clip:
        packet = list(clip.demux(video=0))[30]
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    Path("damaged.mp4").write_bytes(data)
    said = refused("frames", "damaged.mp4", "--fps", "10")
    assert "frames wanted are damaged" in said and said.endswith(" s. --on-error partial leaves them out.")

    result = valley("frames", "damaged.mp4", "--fps", "10", "--on-error", "partial")
    drawn = sum(map(len, numbers("damaged_frames.png")))
    assert result.exit_code == 0 and 0 < drawn < 60
    assert f": {drawn} frames from " in result.stdout
    assert result.stdout.endswith(f"; {60 - drawn} damaged and left out\n")


# --- What it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-frames", "0"], "num_frames must be at least 1, found 0"),
        (["--fps", "0"], "fps must be finite and above 0, found 0.0"),
        (["--start", "4", "--end", "2"], "The clip must start before it ends"),
        (["--start", "9"], "Cannot read video 'clip.mp4': start=9.0 is past its end"),
        (["--columns", "0"], "columns must be at least 1, found 0"),
        (["--fps", "1", "--num-frames", "2"], "--num-frames and --fps exclude each other"),
        (["--num-frames", "2", "--max-frames", "2"], "--num-frames and --max-frames exclude each other"),
        (["--num-frames", "2000"], "--num-frames 2000 is more than the 1000 frames that a sheet shows"),
        (["--max-frames", "2000"], "--max-frames 2000 is more than the 1000 frames that a sheet shows"),
        (["--fps", "500"], "--fps 500 takes more than 1000 frames"),
    ],
)
def test_wrong_values_give_one_line(folder, words, message):
    assert message in refused("frames", "clip.mp4", *words)
    assert not Path("clip_frames.png").exists()


def test_clips_that_cannot_be_read_give_one_line(folder):
    Path("text.mp4").write_text("This is not a video.\n" * 50)
    Path("empty.mp4").touch()
    assert refused("frames", "missing.mp4") == "Error: Cannot read video 'missing.mp4': there is no such file."
    assert "Cannot read video 'text.mp4': " in refused("frames", "text.mp4")
    assert "Cannot read video 'empty.mp4': " in refused("frames", "empty.mp4")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("sheet.mp4", "Cannot write 'sheet.mp4': '.mp4' is not a format that Pillow writes"),
        ("sheet", "Cannot write 'sheet': no suffix names a format that Pillow writes"),
        ("sheet.xbm", "Cannot write 'sheet.xbm': '.xbm' is not a format that Pillow writes"),
        ("none/sheet.png", "Cannot write 'none/sheet.png': there is no folder 'none'"),
        ("folder.png", "Cannot write 'folder.png': it is a folder"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_decoding(folder, monkeypatch, output, message):
    (folder / "folder.png").mkdir()
    monkeypatch.setattr("transformers_valley.video_decoding.sample_video", None)
    assert message in refused("frames", "clip.mp4", "-o", output)


@pytest.mark.parametrize(
    "clip", ["still.png", "./still.png", "link.png", "file:{folder}/still.png", "file://{folder}/still.png"]
)
def test_the_clip_itself_is_not_overwritten(folder, clip):
    Image.new("RGB", (40, 30), "red").save("still.png")
    Path("link.png").symlink_to("still.png")
    before = Path("still.png").read_bytes()
    assert "it is the clip itself" in refused("frames", clip.format(folder=folder), "-o", "still.png")
    assert Path("still.png").read_bytes() == before


def test_no_sheet_among_the_pictures_it_shows(folder):
    Image.new("RGB", (40, 30), "red").save("still.png")
    assert "it would become one of the clip's pictures" in refused("frames", ".", "-o", "sheet.png")


def test_a_disk_that_fails_gives_one_line(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers_valley.contact_sheet.draw_contact_sheet", fail)
    assert "No space left on device" in refused("frames", "clip.mp4")


@pytest.mark.parametrize(
    "words", [[], ["clip.mp4", "--fps", "fast"], ["clip.mp4", "--on-error", "skip"], ["clip.mp4", "-x"]]
)
def test_wrong_usage_exits_with_2(folder, words):
    assert valley("frames", *words).exit_code == 2
