# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What addresses in a request may open: files of some folders, public hosts, data URLs, and nothing else."""

import base64
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chats import QUESTION, chat, data_address, image, parse, read, video
from clips import write_clip
from PIL import Image

from transformers_valley.serving import media
from transformers_valley.serving.media import MediaAccess
from transformers_valley.serving.requests import RequestError


@pytest.fixture
def access(tmp_path):
    """Opens files in `tmp_path / "open"`, and below."""
    (tmp_path / "open" / "deep").mkdir(parents=True)
    write_clip(tmp_path / "secret.mp4", 10)
    return MediaAccess([tmp_path / "open"])


@pytest.fixture
def count_frames(processor, access, tmp_path):
    """Reads a clip and gives the number of frames that were taken."""

    def count(block, **sampling) -> int:
        return len(read(processor, access, tmp_path / "scratch", chat([block]), **sampling).visuals["video"][0][1])

    return count


@pytest.fixture
def refused(processor, access, tmp_path):
    """The error with which reading ends."""

    def read_error(*blocks, **sampling) -> RequestError:
        with pytest.raises(RequestError) as caught:
            read(processor, access, tmp_path / "scratch", chat([*blocks, QUESTION]), **sampling)
        return caught.value

    return read_error


@pytest.mark.parametrize(
    "path",
    ["clip.mp4", "./deep/../clip.mp4", "deep/clip.mp4", "inside.mp4", "file://{open}/clip.mp4", "{open}/clip.mp4"],
)
def test_files_of_a_folder_are_opened(count_frames, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path / "open")
    write_clip("clip.mp4", 10)
    write_clip("deep/clip.mp4", 10)
    Path("inside.mp4").symlink_to("deep/clip.mp4")
    assert count_frames(video(path.format(open=tmp_path / "open"))) == 1


@pytest.mark.parametrize(
    "path",
    [
        "{root}/secret.mp4",
        "{root}/open/../secret.mp4",
        "{root}/open/link.mp4",
        "{root}/open/folder/secret.mp4",
        "{root}/open-too/secret.mp4",
        "file://{root}/secret.mp4",
        "file://{root}/open/%2e%2e/secret.mp4",
        "file://elsewhere{root}/open/clip.mp4",
        "FILE://{root}/secret.mp4",
        "../secret.mp4",
        "",
        "a\0b",
        "/" + "x" * 5000,
    ],
)
@pytest.mark.parametrize("block", [video, image])
def test_no_other_file_is_opened(refused, tmp_path, monkeypatch, path, block):
    monkeypatch.chdir(tmp_path / "open")
    Path("link.mp4").symlink_to("../secret.mp4")
    Path("folder").symlink_to("..")
    (tmp_path / "open-too").mkdir()
    write_clip(tmp_path / "open-too" / "secret.mp4", 2)
    error = refused(block(path.format(root=tmp_path)))
    assert (error.status, error.code) == (403, "path_not_allowed")
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/clip.mp4",
        "concat:/etc/passwd",
        "rtsp://host/x",
        "zip://clip.mp4::http://127.0.0.1/clips.zip",
        "http://[::1/x",
        "da\nta:clip.mp4",
        "\0data:clip.mp4",
        "data\t:clip.mp4",
    ],
)
@pytest.mark.parametrize("block", [video, image])
def test_other_addresses_are_not_opened(refused, tmp_path, monkeypatch, block, address):
    monkeypatch.chdir(tmp_path)
    if "data" in address.replace("\n", "") and "\0" not in address:
        shutil.copy("secret.mp4", address)
    error = refused(block(address))
    assert error.status == 400
    assert re.search("it is not an http, https or data address|is not a valid address", str(error))


@pytest.mark.parametrize("begin", [" data:", "DATA:", "\r\n Data:"])
def test_data_address_is_known_however_it_is_written(count_frames, tmp_path, begin):
    assert count_frames(video(data_address(tmp_path / "secret.mp4").replace("data:", begin))) == 1


@pytest.mark.parametrize(
    "encode",
    [
        base64.encodebytes,
        base64.urlsafe_b64encode,
        lambda content: base64.b64encode(content).rstrip(b"="),
        lambda content: base64.b64encode(content).replace(b"+", b"%2B"),
    ],
    ids=["line breaks", "url-safe", "unpadded", "percent"],
)
@pytest.mark.parametrize("marker", ["base64", "BASE64"])
def test_data_addresses_come_as_encoders_write_them(processor, access, tmp_path, encode, marker):
    Image.radial_gradient("L").save(tmp_path / "a.png")
    payload = encode((tmp_path / "a.png").read_bytes()).decode()
    prompt = read(processor, access, tmp_path / "s", chat([image(f"data:image/png;{marker},{payload}")]))
    assert len(prompt.visuals["image"]) == 1


@pytest.mark.parametrize("begin", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n", b"SIMPLE  =", b"\0\0\1\0"])
def test_formats_that_are_not_of_the_web_are_not_opened(refused, tmp_path, begin):
    """EPS would start Ghostscript on a stranger's program; FITS and ICO have been bombs."""
    (tmp_path / "open" / "a.png").write_bytes(begin + b" " * 1000)
    assert "its content is not that of an image" in str(refused(image(tmp_path / "open" / "a.png")))


def test_errors_do_not_tell_where_a_link_leads(refused, tmp_path):
    (tmp_path / "open" / "deep" / "real.mp4").write_text("no video" * 100)
    (tmp_path / "open" / "link.mp4").symlink_to("deep/real.mp4")
    message = str(refused(video(tmp_path / "open" / "link.mp4")))
    assert f"'{tmp_path}/open/link.mp4'" in message and "real" not in message


def test_folder_of_pictures_is_not_opened(refused, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "open" / "deep" / "1.png")
    assert "there is no such file" in str(refused(video(tmp_path / "open" / "deep")))


def test_name_that_no_file_can_have_is_no_file(refused, tmp_path):
    assert "there is no such file" in str(refused(video(f"{tmp_path}/open/{'x' * 5000}")))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0x7f000001", "[fec0::1]", "[::127.0.0.1]"],
)
@pytest.mark.parametrize("block", [video, image])
def test_private_addresses_are_refused(refused, monkeypatch, host, block):
    monkeypatch.delenv("VALLEY_ALLOW_LOCAL_ADDRESSES", raising=False)
    assert "local address" in str(refused(block(f"http://{host}:1/clip.mp4")))


def test_downloads_are_limited_in_number_and_time(access, refused, tmp_path, monkeypatch):
    arrived, released = threading.Event(), threading.Event()

    def download(address, path, max_bytes, max_seconds):
        arrived.set()
        released.wait(10)
        Image.new("RGB", (40, 30)).save(path, "PNG")

    monkeypatch.setattr(media, "download_video", download)
    monkeypatch.setattr(access, "_downloads", threading.Semaphore(1))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(access.fetch, parse(chat([image("http://host/1.png")])), str(tmp_path))
        arrived.wait(10)
        error = refused(image("http://host/2.png"))
        released.set()
        assert (error.status, error.code) == (503, "too_many_downloads") and first.result()

    monkeypatch.setattr(media, "MAX_DOWNLOAD_SECONDS", 0.1)
    monkeypatch.setattr(media, "download_video", lambda *args, **kwargs: (time.sleep(0.06), download(*args, **kwargs)))
    assert "may take 0.1 seconds together" in str(refused(*[image("http://host/1.png")] * 3))


def test_damaged_clip_is_read_in_part_where_asked(refused, count_frames, tmp_path):
    whole = Path(write_clip(tmp_path / "whole.mkv", 90)).read_bytes()
    (tmp_path / "open" / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    block = video(tmp_path / "open" / "cut.mkv")
    assert "it is truncated" in str(refused(block, fps=5))
    assert count_frames(block, fps=5, on_error="partial") > 1


def test_each_clip_may_have_settings_of_its_own(count_frames, tmp_path):
    path = write_clip(tmp_path / "open" / "long.mp4", 100, fps=10)
    assert count_frames(video(path), num_frames=7) == 7
    assert count_frames(video(path, num_frames=3), num_frames=7) == 3
    assert count_frames(video(path, fps=1, start=2, end=6), num_frames=7) == 4
    assert count_frames(video(path, fps=10, max_frames=5)) == 5
