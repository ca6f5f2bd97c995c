# Copyright 2026 The transformers_valley authors. Apache-2.0 license.

import base64
import contextlib
import http.server
import io
import os
import pickle
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from transformers_valley import video_sources
from transformers_valley.video_decoding import (
    VideoDecodeError,
    VideoSegment,
    download_video,
    sample_video,
)


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
