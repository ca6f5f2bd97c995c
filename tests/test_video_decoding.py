# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sampling is compared with a full decode: every frame out of the file in order, then chosen by its time."""

import base64
import functools
import http.server
import io
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from clips import numbered_frame, read_number, write_clip
from PIL import Image

from transformers_valley import video_decoding
from transformers_valley.video_decoding import (
    VideoDecodeError,
    VideoSegment,
    download_video,
    sample_video,
    uniform_indices,
)


CLIPS = Path(__file__).parents[2] / "shared" / "videos"
UNREADABLE = ("audio_only.mp4", "garbage.mp4", "moov_missing.mp4", "text.mp4", "zero.mp4")
DAMAGED = ("corrupt_middle.mp4", "truncated_60pct.mp4")
PILLOW = ("anim.webp", "still.jpg")

RECIPES = {
    "bframes.mp4": {"gop": 50, "bframes": 3},
    "short_gop.mp4": {"gop": 5},
    "intra.mkv": {"gop": 1, "bframes": 0},
    "pyramid.mp4": {"gop": 48, "bframes": 7, "options": {"preset": "medium", "b-pyramid": "normal"}},
    "open_gop.mp4": {"bframes": 3, "options": {"x264-params": "open-gop=1"}},
    "refresh.mp4": {"bframes": 0, "options": {"x264-params": "intra-refresh=1"}},
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "odd_size.mp4": {"pix_fmt": "yuv444p", "width": 81, "height": 49},
    "ntsc.mp4": {"fps": 30000 / 1001},
    "late.mp4": {"times": [5 + i / 25 for i in range(90)]},
    "late.mkv": {"times": [5 + i / 25 for i in range(90)]},
    "late.ts": {"times": [5 + i / 25 for i in range(90)]},
    "variable.mp4": {"times": [i * i / 500 for i in range(90)]},
    "variable.mkv": {"times": [i * i / 500 for i in range(90)]},
    "hevc.mp4": {"codec": "libx265"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "vp9.webm": {"codec": "libvpx-vp9", "bframes": 0},
    "h264.avi": {},
    "raw.h264": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    """90 frames at 25 per second: 3.6 seconds."""
    return write_clip(folder / "clip.mp4", 90)


@functools.cache
def decode_all(path: str) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Gives every picture of a file in order, when each appears, and the length, all from a plain decode."""
    flags = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    reformatter, pictures, times = VideoReformatter(), [], []
    with av.open(path) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        stream = max(streams, key=lambda s: (s is container.streams.best("video"), -s.index))
        stream.thread_count = 1
        raw = container.format.name == "h264" or (container.format.name == "avi" and stream.codec.name == "h264")
        for packet in container.demux(stream):
            for frame in stream.codec_context.decode(packet if packet.size else None):
                rgb = reformatter.reformat(
                    frame, format="rgb24", interpolation=flags | Interpolation.ACCURATE_RND, threads=1
                ).to_ndarray()
                pictures.append(np.rot90(rgb, round(frame.rotation / 90)).transpose(2, 0, 1))
                time = len(times) / stream.guessed_rate if raw else frame.pts * stream.time_base
                times.append(float(time))
                lasts = float((frame.duration or 0) * stream.time_base) or 1 / float(stream.guessed_rate)
    times = np.array(times) - times[0]
    return pictures, times, times[-1] + lasts


def on_screen(times: np.ndarray, seconds: np.ndarray) -> list[int]:
    return (np.searchsorted(times, seconds + 1e-5, side="right") - 1).tolist()


def assert_same_frames(sampled, pictures, indices):
    assert len(sampled.frames) == len(indices)
    for frame, index in zip(sampled.frames, indices, strict=True):
        assert np.array_equal(frame.numpy(), pictures[index]), f"frame {index} differs"


def assert_like_full_decode(path, rates, counts):
    pictures, times, length = decode_all(str(path))
    for fps in rates:
        sampled = sample_video(path, fps=fps)
        indices = on_screen(times, np.arange(max(1, np.ceil(length * fps - 1e-6))) / fps)
        assert_same_frames(sampled, pictures, indices)
        assert np.allclose(sampled.timestamps, times[indices], atol=1e-6)
    for count in counts:
        sampled = sample_video(path, num_frames=count)
        assert_same_frames(sampled, pictures, uniform_indices(len(pictures), count))
        assert sampled.metadata["frames_indices"] == uniform_indices(len(pictures), count).tolist()
        assert sampled.metadata["total_num_frames"] == len(pictures)


# Which frames


@pytest.mark.parametrize("name", RECIPES)
def test_written_clips_give_the_frames_of_a_full_decode(name, folder, monkeypatch):
    if name not in ("refresh.mp4", "h264.avi", "raw.h264"):
        monkeypatch.setattr(video_decoding, "_decode_in_order", lambda *args: pytest.fail("decodes everything"))
    path = write_clip(folder / name, 90, **RECIPES[name])
    assert_like_full_decode(path, rates=(0.5, 3.7, 25), counts=(8,))
    assert [read_number(frame) for frame in sample_video(path, num_frames=90).frames] == list(range(90))


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder with clips of other encoders is not here")
@pytest.mark.parametrize("name", sorted(p.name for p in CLIPS.glob("*.*")) if CLIPS.is_dir() else [])
def test_found_clips_give_the_frames_of_a_full_decode(name, monkeypatch):
    if name != "h264_raw.h264":
        monkeypatch.setattr(video_decoding, "_decode_in_order", lambda *args: pytest.fail("decodes everything"))
    if name in (*UNREADABLE, *DAMAGED, *PILLOW, "README.md"):
        pytest.skip("no full decode to compare with")
    assert_like_full_decode(CLIPS / name, rates=(1, 3.7), counts=(8,))
    decode_all.cache_clear()


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder with clips of other encoders is not here")
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_clips_are_named(name):
    with pytest.raises(VideoDecodeError, match=name):
        sample_video(CLIPS / name)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder with clips of other encoders is not here")
@pytest.mark.parametrize("name", [*DAMAGED, *PILLOW])
def test_damaged_and_still_clips_give_frames(name):
    sampled = sample_video(CLIPS / name, fps=2)
    assert 1 <= len(sampled.frames) == len(sampled.metadata["frames_indices"])


def test_default_is_a_frame_every_two_seconds(clip):
    sampled = sample_video(clip)
    assert [read_number(frame) for frame in sampled.frames] == [0, 50]
    assert sampled.timestamps == [0.0, 2.0]
    assert sampled.frames.dtype == torch.uint8 and sampled.frames.shape == (2, 3, 48, 80)
    assert sampled.metadata == {
        "total_num_frames": 90,
        "fps": 25.0,
        "width": 80,
        "height": 48,
        "duration": 3.6,
        "video_backend": "pyav",
        "frames_indices": [0, 50],
    }


def test_max_frames_spreads_over_the_clip_and_keeps_both_ends(clip):
    assert sample_video(clip, fps=25, max_frames=4).metadata["frames_indices"] == [0, 29, 59, 89]
    assert sample_video(clip, fps=25, max_frames=1).metadata["frames_indices"] == [0]
    assert sample_video(clip, fps=0.5, max_frames=2).metadata["frames_indices"] == [0, 50]


def test_num_frames_repeats_frames_of_short_clips(folder):
    path = write_clip(folder / "three.mp4", 3)
    assert [read_number(f) for f in sample_video(path, num_frames=8).frames] == [0, 0, 0, 0, 1, 1, 1, 2]
    assert len(sample_video(path, fps=0.01).frames) == 1


def test_start_and_end_cut_the_clip(clip):
    assert sample_video(clip, fps=2, start=1, end=2.5).metadata["frames_indices"] == [25, 37, 50]
    assert sample_video(clip, fps=1, start=3).timestamps == [3.0]
    assert sample_video(clip, num_frames=3, start=1, end=2).metadata["frames_indices"] == [25, 37, 49]
    assert sample_video(clip, fps=1, end=1000).metadata["frames_indices"] == [0, 25, 50, 75]
    assert sample_video(clip, fps=1, start=3.59, end=3.6).metadata["frames_indices"] == [89]
    with pytest.raises(VideoDecodeError, match="start=3.6 is past its end; it lasts 3.600"):
        sample_video(clip, start=3.6)


def test_a_long_clip_costs_what_its_wanted_frames_cost(folder):
    path = write_clip(folder / "long.mp4", 1000, gop=25)
    decoded = count_decoded(lambda: sample_video(path, fps=25, max_frames=3))
    assert decoded <= 60  # three groups of pictures at most, of forty
    assert count_decoded(lambda: sample_video(path, num_frames=2)) <= 60


def count_decoded(action) -> int:
    feed, fed = video_decoding._Decoder.feed, []

    def counting(self, packet, skippable=False):
        fed.append(packet)
        feed(self, packet, skippable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_decoding._Decoder, "feed", counting)
        action()
    return len(fed)


def test_one_endless_group_of_pictures_is_not_held_in_memory(folder, monkeypatch):
    path = write_clip(folder / "endless.mp4", 200, gop=1000)
    expected = sample_video(path, fps=0.5)
    monkeypatch.setattr(video_decoding, "MAX_HELD_BYTES", 2000)
    sampled = sample_video(path, fps=0.5)
    assert torch.equal(sampled.frames, expected.frames)
    assert [read_number(frame) for frame in sampled.frames] == [0, 50, 100, 150]


def test_a_wrong_index_is_noticed(clip, monkeypatch):
    expected = sample_video(clip, fps=5)
    seek = video_decoding._Clip.seek
    monkeypatch.setattr(video_decoding._Clip, "seek", lambda self, timestamp: seek(self, timestamp + 12800))
    assert torch.equal(sample_video(clip, fps=5).frames, expected.frames)


def test_sampling_twice_gives_the_same(clip):
    first, second = sample_video(clip, fps=7, size=32), sample_video(clip, fps=7, size=32)
    assert torch.equal(first.frames, second.frames)
    assert first.timestamps == second.timestamps and first.metadata == second.metadata


# Pictures


def test_size_is_the_short_side(clip, folder):
    assert sample_video(clip, size=24).frames.shape[1:] == (3, 24, 40)
    assert sample_video(clip, size=96).frames.shape[1:] == (3, 96, 160)
    tall = write_clip(folder / "tall.mp4", 3, width=48, height=100)
    assert sample_video(tall, size=24).frames.shape[1:] == (3, 50, 24)
    assert sample_video(clip, size=24).metadata["width"] == 80


def test_resizing_is_close_to_pillow(folder):
    y, x = np.mgrid[0:240, 0:320]
    picture = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 11), 127 + 90 * np.sin((x + y) / 15)], -1)
    path = write_clip(folder / "waves.mp4", [picture.astype(np.uint8)], options={"crf": "1"})
    stored = Image.fromarray(sample_video(path).frames[0].permute(1, 2, 0).numpy())
    expected = np.array(stored.resize((112, 84), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(sample_video(path, size=84).frames[0].permute(1, 2, 0).numpy() - expected).mean() < 0.6


def test_unknown_colour_spaces_are_read(folder):
    path = write_clip(folder / "ycgco.mp4", 3, options={"x264-params": "colormatrix=YCgCo"})
    assert sample_video(path, num_frames=3).metadata["frames_indices"] == [0, 1, 2]


def test_stored_rotation_is_applied(folder):
    path = write_clip(folder / "upright.mp4", 3)
    turned = folder / "turned.mp4"
    with av.open(path) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    upright, sampled = sample_video(path), sample_video(turned)
    with av.open(str(turned)) as container:
        quarter_turns = round(next(container.decode(video=0)).rotation / 90)
    assert quarter_turns % 2 == 1
    assert torch.equal(sampled.frames, torch.rot90(upright.frames, quarter_turns, dims=(2, 3)))
    assert (sampled.metadata["width"], sampled.metadata["height"]) == (48, 80)


# Sources


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


def test_frames_that_are_already_decoded(folder):
    pictures = np.stack([numbered_frame(i) for i in range(12)])
    images = folder / "frames"
    images.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(images / f"frame{i}.png")
    paths = [images / f"frame{i}.png" for i in range(12)]
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    pil = [Image.fromarray(picture) for picture in pictures]
    for source in (images, paths, pil, list(pictures), pictures, tensor, tensor[:, :1], pictures[..., :1]):
        assert sample_video(source).metadata["frames_indices"] == list(range(12))  # no rate: already sampled
        sampled = sample_video(source, num_frames=4)
        assert [read_number(frame) for frame in sampled.frames] == [0, 3, 7, 11]
        assert sampled.timestamps is None and sampled.metadata["duration"] is None
        assert sample_video(source, max_frames=3, size=24).frames.shape == (3, 3, 24, 40)
        timed = sample_video(source, fps=1, frame_rate=4, start=1)
        assert timed.metadata["frames_indices"] == [4, 8] and timed.timestamps == [1.0, 2.0]
        assert sample_video(source, num_frames=2, frame_rate=4, start=1, end=2).metadata["frames_indices"] == [4, 7]
    assert sample_video(pil[5]).frames.shape == (1, 3, 48, 80)
    assert read_number(sample_video(paths[5]).frames[0]) == 5


def test_animated_images_have_times(folder):
    frames = [Image.fromarray(numbered_frame(i)) for i in range(6)]
    for suffix in ("webp", "gif", "png"):
        path = folder / f"animated.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
        assert [read_number(frame) for frame in sample_video(path, fps=1).frames] == [0, 2, 4], suffix


class FakeTorchcodec:
    """Behaves like torchcodec's VideoDecoder for 100 frames at 10 per second."""

    metadata = SimpleNamespace(
        begin_stream_seconds=0.5, end_stream_seconds=10.5, num_frames=100, average_fps=10.0, width=80, height=48
    )

    def get_frames_at(self, indices):
        frames = torch.stack([torch.from_numpy(numbered_frame(i)).permute(2, 0, 1) for i in indices])
        return SimpleNamespace(data=frames, pts_seconds=torch.tensor([0.5 + i / 10 for i in indices]).double())

    def get_frames_played_at(self, seconds):
        return self.get_frames_at([int((second - 0.5) * 10 + 1e-6) for second in seconds])


def test_torchcodec_decoders():
    sampled = sample_video(FakeTorchcodec(), fps=1, size=24)
    assert sampled.metadata["frames_indices"] == list(range(0, 100, 10))
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 100, 10))
    assert sampled.frames.shape == (10, 3, 24, 40) and sampled.timestamps[1] == pytest.approx(1.0)
    assert sample_video(FakeTorchcodec(), num_frames=3, start=5).metadata["frames_indices"] == [50, 74, 99]


# Downloads


@pytest.fixture
def server(clip):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            places = {"/file": "file:///etc/hosts", "/ring": "/ring", "/to": "/clip"}
            if self.path in places:
                self.send_response(302)
                self.send_header("Location", places[self.path])
                self.end_headers()
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


LOCAL_HOSTS = ["127.0.0.1", "localhost", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"]


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_local_addresses_are_refused(host, tmp_path):
    with pytest.raises(VideoDecodeError, match="local address"):
        download_video(f"http://{host}/clip.mp4", tmp_path / "video")


def test_redirects_to_local_addresses_are_refused(server, tmp_path, monkeypatch):
    def only_the_first_is_public(host, port, **kwargs):
        return [(2, 1, 6, "", ("93.184.216.34" if host == "example.org" else host, port))]

    monkeypatch.setattr(video_decoding.socket, "getaddrinfo", only_the_first_is_public)
    import httpx2

    reply = httpx2.MockTransport(lambda request: httpx2.Response(302, headers={"location": "http://192.168.0.1/"}))
    client = httpx2.Client
    monkeypatch.setattr(httpx2, "Client", lambda **kwargs: client(transport=reply, **kwargs))
    with pytest.raises(VideoDecodeError, match="192.168.0.1 is the local address"):
        download_video("https://example.org/clip.mp4", tmp_path / "video")


# Errors


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


@pytest.mark.parametrize("source", ["rtsp://example.org/a", "concat:a,b", "data:video/mp4,a", "data:v;base64,***"])
def test_addresses_that_are_not_read(source):
    with pytest.raises(VideoDecodeError):
        sample_video(source)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoDecodeError, match="no video stream"):
        sample_video(tmp_path / "sound.mp4")


def test_a_damaged_frame_is_replaced_by_the_one_before(folder, tmp_path, caplog):
    path = write_clip(folder / "to_damage.mp4", 50, gop=10, bframes=0)
    damaged = damage(path, tmp_path / "damaged.mp4", range(20, 30))
    with caplog.at_level(logging.WARNING, logger=video_decoding.__name__):
        sampled = sample_video(damaged, fps=25)
    assert len(caplog.records) == 1 and "10 damaged frames" in caplog.text
    expected = [*range(20), *[19] * 10, *range(30, 50)]
    assert [read_number(frame) for frame in sampled.frames] == expected


def test_a_clip_without_one_good_frame_is_an_error(clip, tmp_path):
    with pytest.raises(VideoDecodeError, match="no frame could be decoded"):
        sample_video(damage(clip, tmp_path / "all_damaged.mp4", range(90)))


def damage(path, target, numbers):
    """Writes a copy of a clip in which the packets with these numbers hold nothing that makes sense."""
    data = bytearray(Path(path).read_bytes())
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        data[packets[number].pos : packets[number].pos + packets[number].size] = b"\xff" * packets[number].size
    target.write_bytes(data)
    return target


def test_a_truncated_clip_gives_the_frames_it_has(folder, tmp_path):
    whole = Path(write_clip(folder / "whole.mkv", 90)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    sampled = sample_video(tmp_path / "cut.mkv", fps=5)
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 90, 5))[: len(sampled.frames)]
    assert 5 < len(sampled.frames) < 18


def test_pictures_beyond_the_limit_are_not_decoded(clip, monkeypatch):
    monkeypatch.setattr(video_decoding, "MAX_PIXELS", 1000)
    with pytest.raises(VideoDecodeError, match="80x48 pixels; the limit is 1000"):
        sample_video(clip)


def test_packets_beyond_the_limit_are_not_read(clip, monkeypatch):
    monkeypatch.setattr(video_decoding, "MAX_PACKETS", 10)
    with pytest.raises(VideoDecodeError, match="more than 10 packets"):
        sample_video(clip)


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(VideoDecodeError("a.mp4", "it is empty.")))
    assert (error.path, error.reason) == ("a.mp4", "it is empty.")
    assert str(error) == "Cannot read video 'a.mp4': it is empty." and isinstance(error, ValueError)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"fps": 1, "num_frames": 8}, ValueError, "choose one"),
        ({"fps": 0}, ValueError, "fps must be finite and above 0, found 0"),
        ({"fps": float("nan")}, ValueError, "fps"),
        ({"fps": "1"}, TypeError, "fps must be a number"),
        ({"fps": True}, TypeError, "fps"),
        ({"fps": 1e9}, VideoDecodeError, "set max_frames"),
        ({"num_frames": 0}, ValueError, "num_frames must be at least 1, found 0"),
        ({"num_frames": 2.0}, TypeError, "num_frames must be a whole number"),
        ({"max_frames": 0}, ValueError, "max_frames"),
        ({"max_frames": True}, TypeError, "max_frames"),
        ({"size": -224}, ValueError, "size"),
        ({"size": True}, TypeError, "size"),
        ({"size": float("nan")}, TypeError, "size"),
        ({"size": 100_000}, VideoDecodeError, "pixels"),
        ({"start": -1}, ValueError, "start"),
        ({"start": float("inf")}, ValueError, "start"),
        ({"start": 2, "end": 1}, ValueError, "start=2.0 and end=1.0"),
        ({"end": 0}, ValueError, "end"),
        ({"frame_rate": 5}, ValueError, "its own times"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, message, clip):
    with pytest.raises(error, match=message):
        sample_video(clip, **arguments)


@pytest.mark.parametrize(
    "source, error, message",
    [
        (None, TypeError, "NoneType"),
        (42, TypeError, "int; expected a path"),
        ({}, ValueError, "needs one of 'bytes'"),
        ([], ValueError, "zero frames"),
        ([1], TypeError, "found int"),
        (np.zeros((0, 3, 8, 8), np.uint8), ValueError, "zero frames"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"found \(3, 8, 8\)"),
        (np.zeros((2, 4, 8, 8), np.uint8), ValueError, r"found \(4, 8, 8\)"),
        (np.zeros((2, 3, 0, 8), np.uint8), ValueError, r"found \(3, 0, 8\)"),
        (np.zeros((2, 3, 8, 8), np.float32), ValueError, "float32.*255"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], ValueError, "frame 1 is 9x8, the first 8x8"),
        (io.StringIO("words"), TypeError, "mode 'rb'"),
    ],
)
def test_sources_that_make_no_sense(source, error, message):
    with pytest.raises(error, match=message):
        sample_video(source)


def test_frames_without_times_cannot_be_cut_in_seconds():
    with pytest.raises(ValueError, match="give frame_rate"):
        sample_video(np.zeros((4, 3, 8, 8), np.uint8), start=1)


def test_the_file_stands_alone_and_imports_no_decoder():
    code = "import sys, video_decoding; sys.exit('av' in sys.modules or 'PIL' in sys.modules)"
    folder = Path(video_decoding.__file__).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0
