# Copyright 2026 The transformers_valley authors. Apache-2.0 license.

import base64
import contextlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_valley import ValleyVideoProcessor, video_sources
from transformers_valley.video_decoding import (
    VideoDecodeError,
    VideoSegment,
    download_video,
    sample_video,
)
from transformers_valley.video_sources import load_image


def test_every_form_of_a_file_gives_the_same_frames(clip, folder):
    expected = sample_video(clip, fps=2).frames
    data = Path(clip).read_bytes()
    piped = io.BytesIO(data)
    piped.seekable = lambda: False
    sources = [
        Path(clip),
        f"file://{clip}",
        "data:video/mp4;base64," + base64.b64encode(data).decode(),
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        piped,
        {"path": clip, "bytes": None},
        {"path": "gone.mp4", "bytes": data},
        {"type": "video", "url": clip},
        VideoSegment(clip),
    ]
    for source in sources:
        assert torch.equal(sample_video(source, fps=2).frames, expected), type(source)
    with open(clip, "rb") as file:
        file.read(100)
        assert torch.equal(sample_video(file, fps=2).frames, expected)
        assert torch.equal(sample_video(file, fps=2).frames, expected)


def test_a_segment_carries_its_cut(clip):
    expected = [25, 50]
    assert sample_video(VideoSegment(clip, start=1, end=3), fps=1).metadata["frames_indices"] == expected
    assert sample_video({"path": clip, "start": 1, "end": 3}, fps=1).metadata["frames_indices"] == expected
    with pytest.raises(ValueError, match="give them once"):
        sample_video(VideoSegment(clip, start=1), start=1)


@pytest.fixture
def asked():
    """What the server has been asked for."""
    return []


@pytest.fixture
def server(clip, asked):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            places = {"/file": "file:///etc/hosts", "/ring": "/ring", "/to": "/clip"}
            if self.path in places:
                self.send_response(302)
                self.send_header("Location", places[self.path])
                self.end_headers()
            elif self.path == "/drip":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b"0")
                        time.sleep(0.05)
            elif self.path == "/clip":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(Path(clip).read_bytes())
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_urls_are_downloaded(server, clip, tmp_path, monkeypatch):
    download_video(f"{server}/to", tmp_path / "video", allow_local_addresses=True)
    assert (tmp_path / "video").read_bytes() == Path(clip).read_bytes()
    monkeypatch.setenv("VALLEY_ALLOW_LOCAL_ADDRESSES", "1")
    assert sample_video(f"{server}/clip", fps=1).metadata["frames_indices"] == [0, 25, 50, 75]


@pytest.mark.parametrize(
    "place, reason", [("/none", "404"), ("/file", "'file' address"), ("/ring", "more than 5 redirects")]
)
def test_failed_downloads_are_explained(place, reason, server, tmp_path):
    with pytest.raises(VideoDecodeError, match=reason):
        download_video(server + place, tmp_path / "video", allow_local_addresses=True)


def test_downloads_have_a_size_limit(server, tmp_path):
    with pytest.raises(VideoDecodeError, match="larger than 100 bytes"):
        download_video(f"{server}/clip", tmp_path / "video", allow_local_addresses=True, max_bytes=100)


def test_downloads_have_a_time_limit(server, tmp_path):
    with pytest.raises(VideoDecodeError, match="it takes longer than 0.3 seconds"):
        download_video(f"{server}/drip", tmp_path / "video", allow_local_addresses=True, max_seconds=0.3)


LOCAL_HOSTS = ["127.0.0.1", "localhost", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"]


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_local_addresses_are_refused(host, tmp_path):
    with pytest.raises(VideoDecodeError, match="local address"):
        download_video(f"http://{host}/clip.mp4", tmp_path / "video")


def test_redirects_to_local_addresses_are_refused(server, tmp_path, monkeypatch):
    def only_the_first_is_public(host, port, **kwargs):
        return [(2, 1, 6, "", ("93.184.216.34" if host == "example.org" else host, port))]

    monkeypatch.setattr(video_sources.socket, "getaddrinfo", only_the_first_is_public)
    import httpx2

    reply = httpx2.MockTransport(lambda request: httpx2.Response(302, headers={"location": "http://192.168.0.1/"}))
    client = httpx2.Client
    monkeypatch.setattr(httpx2, "Client", lambda **kwargs: client(transport=reply, **kwargs))
    with pytest.raises(VideoDecodeError, match="192.168.0.1 is the local address"):
        download_video("https://example.org/clip.mp4", tmp_path / "video")


def test_files_that_are_no_videos(folder, clip, tmp_path):
    data = Path(clip).read_bytes()
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n" + clip + "\n#EXT-X-ENDLIST\n"
    (tmp_path / "empty_folder").mkdir()
    contents = {
        "empty.mp4": b"",
        "words.mp4": b"This is not a video. " * 100,
        "no_moov.mp4": data[: len(data) // 2],
        "playlist.mp4": playlist.encode(),
        "playlist.m3u8": playlist.encode(),
        "concat.txt": f"ffconcat version 1.0\nfile {clip}\n".encode(),
        "broken.jpg": b"\xff\xd8\xff\xe0 no more",
        "zeros.mp4": bytes(10_000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "empty_folder", "not_there.mp4"]:
        with pytest.raises(VideoDecodeError) as caught:
            sample_video(tmp_path / name)
        assert caught.value.path == str(tmp_path / name) and name in str(caught.value)
    for content in (b"", b"words " * 100, playlist.encode()):
        with pytest.raises(VideoDecodeError, match="bytes>"):
            sample_video(content)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{place}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{place}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration='
    '"PT4S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{place}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "reference": "[Reference]\nRef1={place}\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("where", ["address", "file"])
def test_a_playlist_named_mp4_opens_nothing_else(kind, where, server, asked, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("VALLEY_ALLOW_LOCAL_ADDRESSES", "1")
    text = PLAYLISTS[kind].format(place=f"{server}/clip" if where == "address" else clip)
    (tmp_path / "list.mp4").write_text(text)
    for source in (tmp_path / "list.mp4", text.encode()):
        with pytest.raises(VideoDecodeError, match="not a video"):
            sample_video(source)
    assert asked == []


def test_a_file_that_may_not_be_read_says_so(clip, monkeypatch):
    monkeypatch.setattr(video_sources.os, "access", lambda path, mode: False)
    with pytest.raises(VideoDecodeError, match="permission denied"):
        sample_video(clip)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoDecodeError, match="not a regular file"):
        sample_video(tmp_path / "pipe.mp4")


def test_a_stream_that_gives_little_at_a_time_is_read_whole(clip):
    class Slow:
        def __init__(self):
            self.file = open(clip, "rb")

        def read(self, size):
            return self.file.read(min(size, 1000))

    assert torch.equal(sample_video(Slow(), fps=1).frames, sample_video(clip, fps=1).frames)


def test_names_with_colons_and_commas_are_files(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("take2:intro,final.mp4", "http:clip,a.mp4"):
        Path(name).write_bytes(Path(clip).read_bytes())
        assert len(sample_video(name, fps=1).frames) == 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells what it skips
def test_images_of_any_kind_that_are_damaged(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "tiff")
    for position in range(len(data.getvalue())):
        damaged = bytearray(data.getvalue())
        damaged[position] ^= 0xFF
        (tmp_path / "damaged.tif").write_bytes(damaged)
        try:
            assert len(sample_video(tmp_path / "damaged.tif").frames) == 1
        except VideoDecodeError as error:
            assert error.path.endswith("damaged.tif")


def test_an_endless_stream_is_not_read_to_its_end(monkeypatch):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = bytes(len(buffer))
            return len(buffer)

    monkeypatch.setattr(video_sources, "MAX_DOWNLOAD_BYTES", 100_000)
    with pytest.raises(VideoDecodeError, match="larger than 100000 bytes"):
        sample_video(io.BufferedReader(Endless()))


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://example.org/a",
        "concat:a,b",
        "data:video/mp4,a",
        "data:v;base64,***",
        "data:v;base64,é",
        "http://[::1/clip.mp4",
        "http://example.org:port/clip.mp4",
        "http://example.org/\0",
        f"http://{'a' * 64}.com/clip.mp4",
        "http://a..b/clip.mp4",
    ],
)
def test_addresses_that_are_not_read(source):
    with pytest.raises(VideoDecodeError):
        sample_video(source)


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(VideoDecodeError("a.mp4", "it is empty.")))
    assert (error.path, error.reason) == ("a.mp4", "it is empty.")
    assert str(error) == "Cannot read video 'a.mp4': it is empty." and isinstance(error, ValueError)
    error = pickle.loads(pickle.dumps(VideoDecodeError("a.mp4", "it is truncated.", "Take less.")))
    assert error.reason == "it is truncated." and str(error).endswith("it is truncated. Take less.")


def test_every_address_of_a_host_is_tried(server, clip, tmp_path, monkeypatch):
    """As a network without IPv6 needs, where the first address of a name is one of IPv6."""
    look_up = socket.getaddrinfo
    port = server.rpartition(":")[2]

    def two(host, *args, **kwargs):
        if host != "two.example":
            return look_up(host, *args, **kwargs)
        return look_up("::1", *args, **kwargs) + look_up("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    download_video(f"http://two.example:{port}/clip", tmp_path / "video", allow_local_addresses=True)
    assert (tmp_path / "video").read_bytes() == Path(clip).read_bytes()


# --- pictures, by their content ---


def turned(size=(40, 20)) -> Image.Image:
    """Left half red, right half blue, stored sideways and turned by EXIF."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image.rotate(90, expand=True)


def forms_of(path: Path):
    """One file as everything that people have of it, under names that say nothing."""
    data = path.read_bytes()
    bare = path.with_name(f"{path.stem}-bare")
    bare.write_bytes(data)
    wrong = path.with_suffix(".mp4")
    wrong.write_bytes(data)
    encoded = base64.encodebytes(data).decode()
    return {
        "path": path,
        "string": str(path),
        "file URL": path.as_uri(),
        "raw file URL": f"file://{path}",
        "no suffix": bare,
        "wrong suffix": wrong,
        "bytes": data,
        "file": io.BytesIO(data),
        "dict": {"path": None, "bytes": data},
        "data URL": f"data:image/x;base64,{encoded}",
        "DATA URL": f"DATA:;BASE64,{base64.urlsafe_b64encode(data).decode().rstrip('=')}",
    }


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif", "ppm", "jp2", "avif"])
def test_an_image_is_the_same_in_every_form(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    turned().save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for name, form in forms_of(path).items():
        assert np.array_equal(np.asarray(load_image(form)), expected), name
    assert np.array_equal(np.asarray(load_image(Image.open(path))), expected)
    if suffix != "gif":  # FFmpeg's, as a clip
        for name, form in forms_of(path).items():
            frames = sample_video(form, num_frames="all").frames
            assert np.array_equal(frames[0].permute(1, 2, 0), expected) and len(frames) == 1, name


@pytest.mark.parametrize("suffix", ["webp", "png", "gif"])
def test_an_animated_picture_is_a_clip_in_every_form(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (16, 16), (60 * index, 0, 0)) for index in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    for name, form in (forms_of(path) | {"PIL": Image.open(path)}).items():
        sampled = sample_video(form, num_frames="all")
        assert sampled.timestamps == [0, 0.5, 1, 1.5], name
        assert len(load_image(form).getbands()) == 3, name  # as an image the first


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_images_stand_upright_in_every_form(tmp_path, suffix):
    path = tmp_path / f"phone.{suffix}"
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    turned().save(path, exif=exif)
    for name, form in (forms_of(path) | {"PIL": Image.open(path)}).items():
        assert load_image(form).size == (40, 20), name
        assert sample_video([form] * 2, num_frames="all").frames.shape == (2, 3, 20, 40), name


def test_sixteen_bits_are_scaled_and_ranges_that_nobody_knows_refused(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    for suffix in ("png", "tiff", "pgm"):
        path = tmp_path / f"deep.{suffix}"
        Image.fromarray(ramp).save(path)
        for form in (path, path.read_bytes(), Image.open(path)):
            levels = np.asarray(load_image(form))[0, :, 0].astype(int)
            assert abs(levels - np.arange(256)).max() <= 1, suffix
    for kind in (np.float32, np.int32):
        path = tmp_path / "depth.tiff"
        Image.fromarray(ramp.astype(kind) * (1 if kind is np.float32 else 1000)).save(path)
        with pytest.raises(VideoDecodeError, match="range of its grey levels is unknown"):
            load_image(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_transparent_pictures_lie_on_white(tmp_path, suffix):
    path = tmp_path / f"clear.{suffix}"
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    image.save(path, **({"exact": True, "lossless": True} if suffix == "webp" else {}))
    for form in (path, path.read_bytes(), Image.open(path)):
        colours = np.asarray(load_image(form))[0, [0, 7]].tolist()
        assert colours == [[0, 0, 255], [255, 255, 255]]
        assert sample_video([form], num_frames="all").frames[0, :, 0, 7].tolist() == [255, 255, 255]


def test_formats_that_nobody_asked_for_are_not_opened(tmp_path, monkeypatch):
    """An EPS would start a program; a FITS or ICO unpacks whatever it holds while it is opened."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for data in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"SIMPLE  =" + b" " * 3000,
        b"\0\0\1\0\1\0" * 99,
    ):
        path = tmp_path / "image.png"
        path.write_bytes(data)
        for form in (path, data):
            with pytest.raises(VideoDecodeError, match="not a readable image"):
                load_image(form)


def test_a_picture_behind_a_picture_is_no_animation(tmp_path):
    """A phone's second lens or gain map, a TIFF's thumbnail, the still of an APNG for those who do not know it."""
    first, second = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 10), "blue")
    first.save(tmp_path / "lens.jpg", format="MPO", save_all=True, append_images=[first])
    first.save(tmp_path / "thumbnail.tiff", save_all=True, append_images=[second])
    for path in (tmp_path / "lens.jpg", tmp_path / "thumbnail.tiff"):
        assert len(sample_video(path, num_frames="all").frames) == 1
    still, *moving = (Image.new("RGB", (8, 8), (index * 50, 0, 0)) for index in range(4))
    still.save(tmp_path / "a.png", save_all=True, append_images=moving, default_image=True, duration=500)
    sampled = sample_video(tmp_path / "a.png", num_frames="all")
    assert sampled.timestamps == [0, 0.5, 1] and sampled.frames[0, 0, 0, 0] == 50


@pytest.mark.parametrize(("width", "height"), [(6000, 2), (2, 6000), (9000, 9000)])
def test_pictures_that_would_take_gigabytes_are_refused(tmp_path, width, height):
    path = tmp_path / "thin.png"
    Image.new("1", (width, height)).save(path)
    for read in (load_image, sample_video, ValleyVideoProcessor()):
        with pytest.raises(VideoDecodeError, match=f"{width}x{height} pixels"):
            read(path)


def test_a_folder_of_frames_in_the_order_people_mean(tmp_path):
    for name, level in (("0.5.png", 0), ("1.25.png", 60), ("1.5.gif", 120), ("10.PNG", 180)):
        Image.new("L", (4, 4), level).save(tmp_path / name)
    (tmp_path / "._0.5.png").write_bytes(b"a Mac's companion")
    (tmp_path / "notes.txt").write_text("no frame")
    assert sample_video(tmp_path, num_frames="all").frames[:, 0, 0, 0].tolist() == [0, 60, 120, 180]


def test_archives_and_object_stores_are_read_through_fsspec(clip, tmp_path):
    archive = tmp_path / "clips.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.write(clip, "a.mp4")
    expected = sample_video(clip, fps=1).frames
    assert torch.equal(sample_video(f"zip://a.mp4::{archive}", fps=1).frames, expected)
    with pytest.raises(VideoDecodeError, match="cannot be opened"):
        sample_video(f"zip://b.mp4::{archive}")
    with pytest.raises(VideoDecodeError, match="local address 127.0.0.1"):
        sample_video("zip://a.mp4::http://127.0.0.1:9/clips.zip")


@pytest.mark.parametrize(
    "address",
    ["[fec0::1]", "[64:ff9b:1::7f00:1]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "168.63.129.16", "[3fff::1]:22"],
)
def test_inner_addresses_in_every_spelling_are_refused(address, tmp_path):
    with pytest.raises(VideoDecodeError, match="local address|port 22"):
        download_video(f"http://{address}/x", tmp_path / "x")


def test_a_proxy_resolves_names_itself(server, clip, tmp_path, monkeypatch):
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{running.server_port}")
        download_video("http://only.the.proxy.knows/clip.mp4", tmp_path / "got")
        running.shutdown()
    assert (tmp_path / "got").read_text() == "http://only.the.proxy.knows/clip.mp4"


def test_messages_do_not_hold_whole_files():
    with pytest.raises(VideoDecodeError) as error:
        sample_video("QUJD" * 100_000)
    assert len(str(error.value)) < 500
