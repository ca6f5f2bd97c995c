# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""When frames are shown: indexes, edit lists, gaps, clocks and ends, in files in order and files that are not."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import numbered_frame, pictures_of_ffmpeg, read_number, remux, run_ffmpeg, write_clip
from PIL import Image

from transformers_valley import video_files, video_packets
from transformers_valley.video_decoding import VideoDecodeError, sample_video, uniform_indices


def test_frames_of_a_constant_rate_are_counted_in_the_index(folder, monkeypatch):
    path = write_clip(folder / "constant.mp4", 500, gop=20)
    expected = uniform_indices(500, 3).tolist()
    read, packets = [], video_packets.Clip.packets
    monkeypatch.setattr(video_packets.Clip, "packets", lambda self: map(lambda p: read.append(p) or p, packets(self)))
    sampled = sample_video(path, num_frames=3)
    assert sampled.metadata["frames_indices"] == [read_number(frame) for frame in sampled.frames] == expected
    assert len(read) < 120


def test_a_rate_that_only_looks_constant_is_noticed(folder, monkeypatch):
    path = write_clip(folder / "steady.mp4", 91, gop=91, bframes=0)
    uneven = str(folder / "uneven.mp4")  # decode times are even, and so is the way from the first frame to the last
    with av.open(path) as source, av.open(uneven, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream = stream
            packet.pts = packet.dts + (100 if number % 90 and number % 2 else 0)
            target.mux(packet)
    with av.open(uneven) as container:
        times = np.array([float(frame.pts * frame.time_base) for frame in container.decode(video=0)])
    assert len(set(np.diff(times).round(4))) > 1
    sampled = sample_video(uneven, num_frames=46)
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 91, 2))
    sampled = sample_video(uneven, num_frames=7)
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 91, 15))
    assert sampled.timestamps == pytest.approx(times[::15] - times[0])


@pytest.mark.parametrize("rule", [{"fps": 25}, {"num_frames": "all"}])
def test_recordings_glued_together_are_read_to_the_end(rule, folder, tmp_path):
    parts = [write_clip(folder / f"part{i}.ts", map(numbered_frame, range(i, i + 30)), gop=10) for i in (0, 100)]
    (tmp_path / "joined.ts").write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    sampled = sample_video(tmp_path / "joined.ts", **rule)
    assert [read_number(frame) for frame in sampled.frames] == [*range(30), *range(100, 130)]
    assert sampled.timestamps == pytest.approx([number / 25 for number in range(60)])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("rule", [{"fps": 25}, {"num_frames": "all"}, {"fps": 10, "start": 0.4, "end": 1.5}])
def test_times_that_go_back_and_forth_are_not_trusted(rule, num_threads, folder, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 40, (60, 48, 80, 3), dtype=np.uint8)  # clusters hold 4 KB and more
    pictures = [np.maximum(numbered_frame(i), 40) - noise[i] for i in range(60)]
    path = write_clip(folder / "clusters.mkv", pictures, gop=12, bframes=0)
    mark = b"\x1f\x43\xb6\x75"  # a cluster, which begins with a keyframe
    head, *clusters = Path(path).read_bytes().split(mark)
    assert len(clusters) > 3
    clusters[1], clusters[2] = clusters[2], clusters[1]
    (tmp_path / "swapped.mkv").write_bytes(mark.join([head, *clusters]))
    monkeypatch.setattr(video_files, "MIN_WORTH_SPLITTING", 0)
    sampled = sample_video(tmp_path / "swapped.mkv", num_threads=num_threads, **rule)
    assert sampled.timestamps == sorted(sampled.timestamps)
    order = [*range(12), *range(24, 36), *range(12, 24), *range(36, 60)]  # as the file has them
    assert [read_number(frame) for frame in sampled.frames] == [
        order[index] for index in sampled.metadata["frames_indices"]
    ]


@pytest.mark.parametrize("claim", [2**62, 2**63 - 20_000, 2**63, 2**64 - 1])
@pytest.mark.parametrize("which", [0, 1])
def test_times_beyond_all_bounds(which, claim, folder, tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov"}
    data = bytearray(Path(remux(write_clip(folder / "whole.mp4", 30), folder / "pieces.mp4", options)).read_bytes())
    at = data.index(b"tfdt")
    for _ in range(which):
        at = data.index(b"tfdt", at + 1)
    data[at + 4] = 1  # times of eight bytes
    data[at + 8 : at + 16] = claim.to_bytes(8, "big")
    (tmp_path / "far.mp4").write_bytes(data)
    for rule in ({"fps": 10, "max_frames": 8}, {"num_frames": 8}, {"fps": 1, "start": 0.5, "max_frames": 3}):
        try:
            assert len(sample_video(tmp_path / "far.mp4", on_error="partial", **rule).frames) >= 1
        except VideoDecodeError as error:
            assert error.path.endswith("far.mp4")


@pytest.mark.parametrize("field, value", [(b"stsz", 0xFFFFFFFF), (b"stts", 0xFFFFFFFF), (b"elst", 0xFFFFFFFF)])
def test_headers_that_claim_four_billion_entries(field, value, clip, tmp_path):
    data = bytearray(Path(clip).read_bytes())
    count = data.index(field) + (12 if field == b"stsz" else 8)
    data[count : count + 4] = value.to_bytes(4, "big")
    (tmp_path / "lies.mp4").write_bytes(data)
    try:
        assert 1 <= len(sample_video(tmp_path / "lies.mp4", fps=5).frames) <= 18
    except VideoDecodeError as error:
        assert error.path.endswith("lies.mp4")


def test_headers_that_claim_enormous_pictures(tmp_path):
    path = write_clip(tmp_path / "honest.avi", 10, codec="rawvideo", pix_fmt="bgr24")
    data = bytearray(Path(path).read_bytes())
    header = data.index(b"strf") + 12  # the size of a picture follows that of its header
    data[header : header + 8] = (100_000).to_bytes(4, "little") * 2
    (tmp_path / "lies.avi").write_bytes(data)
    (tmp_path / "lies.y4m").write_bytes(b"YUV4MPEG2 W100000 H100000 F25:1 Ip C420jpeg\nFRAME\n" + bytes(100_000))
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "png")
    data = bytearray(image.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "lies.png").write_bytes(data)
    for name in ("lies.avi", "lies.y4m", "lies.png"):
        with pytest.raises(VideoDecodeError, match=name):
            sample_video(tmp_path / name)


def test_a_wrong_index_is_noticed(clip, monkeypatch):
    expected = sample_video(clip, fps=5)
    seek = video_packets.Clip.seek
    monkeypatch.setattr(video_packets.Clip, "seek", lambda self, timestamp: seek(self, timestamp + 12800))
    assert torch.equal(sample_video(clip, fps=5).frames, expected.frames)


def test_pictures_before_the_first_keyframe_are_shown_where_they_stand_alone(folder, tmp_path):
    source = write_clip(folder / "numbers.mkv", (numbered_frame(i, 160, 96) for i in range(60)), options={"crf": "1"})
    parameters = "log-level=none:radl=2:open-gop=0:keyint=30:bframes=3:qp=15:pools=1"
    whole = str(folder / "radl.mp4")
    run_ffmpeg("-i", source, "-c:v", "libx265", "-x265-params", parameters, whole)
    path = str(tmp_path / "cut.ts")
    run_ffmpeg("-ss", "1.3", "-i", whole, "-c", "copy", path)
    pictures = pictures_of_ffmpeg(path, "0:v:0", 160, 96)
    sampled = sample_video(path, num_frames="all")
    assert list(map(read_number, sampled.frames)) == list(map(read_number, pictures))
    assert read_number(sample_video(path, fps=1).frames[0]) == read_number(pictures[0])


def test_gaps_of_an_avi_are_kept(folder, tmp_path):
    times = [i / 25 if i < 45 else 1 + i / 25 for i in range(85)]
    source = write_clip(folder / "gap.mkv", 85, times=times)
    path = str(tmp_path / "gap.avi")
    run_ffmpeg("-i", source, "-c", "copy", "-bsf:v", "h264_mp4toannexb", "-r", "25", path)
    sampled = sample_video(path, fps=2)
    assert sampled.metadata["duration"] == pytest.approx(4.4, abs=0.1)
    expected = [int(np.searchsorted(times, second + 1e-6, side="right")) - 1 for second in np.arange(0, 4.4, 0.5)]
    assert np.abs(np.subtract(list(map(read_number, sampled.frames)), expected)).max() <= 1


EDITS = [
    [(0.08, 1.0), (2.48, 1.0)],
    [(2.5, 1.0), (0.6, 1.0)],
    [(0.08, 1.0), (0.08, 1.0)],
    [(-1, 1.0), (0.08, 2.0)],
    [(0.08, 0.4), (0.58, 0.4), (1.68, 0.4), (2.78, 0.4)],
]


@pytest.mark.parametrize("edits", EDITS, ids=str)
def test_clips_trimmed_and_joined_by_edit_lists(edits, folder, tmp_path):
    path = edit(write_clip(folder / "unedited.mp4", 100, gop=25), tmp_path / "edited.mp4", edits)
    numbers = list(map(read_number, pictures_of_ffmpeg(path, "0:v:0", 80, 48)))
    sampled = sample_video(path, num_frames="all")
    assert list(map(read_number, sampled.frames)) == numbers
    for second in np.arange(0.05, sampled.metadata["duration"], 0.13):
        shown = max(i for i, time in enumerate(sampled.timestamps) if time <= second + 1e-6)
        assert read_number(sample_video(path, fps=0.01, start=float(second)).frames[0]) == numbers[shown], second


def edit(path: str, target: Path, edits: list[tuple[float, float]]) -> str:
    """Writes a copy of an MP4 that shows the parts (begin, length), in seconds; a begin of -1 is a pause."""
    data = bytearray(Path(path).read_bytes())
    movie, media = (
        int.from_bytes(data[(at := data.index(name)) + 16 : at + 20], "big") for name in (b"mvhd", b"mdhd")
    )
    body = b"".join(
        struct.pack(">IiI", int(length * movie), int(begin * media) if begin >= 0 else -1, 0x10000)
        for begin, length in edits
    )
    new = struct.pack(">I4sII", 16 + len(body), b"elst", 0, len(edits)) + body
    at = data.index(b"elst") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    data[at : at + old] = new
    for name in (b"edts", b"trak", b"moov"):  # what it lies in grows with it
        box = data.rindex(name, 0, at + 8) - 4
        data[box : box + 4] = struct.pack(">I", int.from_bytes(data[box : box + 4], "big") + len(new) - old)
    target.write_bytes(data)
    return str(target)


def test_two_frames_at_one_time_are_two_frames(folder, tmp_path):
    times = [0.0, 0.5, 1.0, 1.0, 4.0, 4.5, 5.0, 7.0]
    path = str(tmp_path / "double.mkv")
    with av.open(write_clip(folder / "eight.mkv", 8, bframes=0)) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for time, packet in zip(times, source.demux(video=0), strict=False):
            packet.pts = packet.dts = round(time * 1000)
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            target.mux(packet)
    sampled = sample_video(path, num_frames="all")
    assert list(map(read_number, sampled.frames)) == list(range(8))
    assert sampled.timestamps == pytest.approx(times, abs=0.05)
    assert list(map(read_number, sample_video(path, num_frames=2, start=3.9, end=6).frames)) == [3, 6]


def test_times_since_1970_are_exact(folder, tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov", "video_track_timescale": "10000000"}
    data = bytearray(Path(remux(write_clip(folder / "whole.mp4", 50), folder / "live.mp4", options)).read_bytes())
    at = -1
    while (at := data.find(b"tfdt", at + 1)) >= 0:
        assert data[at + 4] == 1
        begin = int.from_bytes(data[at + 8 : at + 16], "big") + 17_000_000_000_000_001
        data[at + 8 : at + 16] = begin.to_bytes(8, "big")
    (tmp_path / "since_1970.mp4").write_bytes(data)
    assert list(map(read_number, sample_video(tmp_path / "since_1970.mp4", fps=25).frames)) == list(range(50))


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoDecodeError, match="no video stream"):
        sample_video(tmp_path / "sound.mp4")


def test_an_encrypted_clip_says_so(clip, tmp_path):
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    remux(clip, tmp_path / "locked.mp4", options=keys)
    with pytest.raises(VideoDecodeError, match="it is encrypted"):
        sample_video(tmp_path / "locked.mp4")


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_a_clip_that_is_cut_off(suffix, folder, tmp_path):
    whole = write_clip(folder / f"whole.{suffix}", 90, **({"codec": "mpeg4", "bframes": 0} if suffix == "avi" else {}))
    if suffix == "mp4":  # its index has to come first, or nothing can be read
        whole = remux(whole, folder / "fast.mp4", options={"movflags": "faststart"})
    data = Path(whole).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoDecodeError, match=r"truncated: \d.\d of its 3.6 seconds are there. on_error='partial'"):
        sample_video(path, fps=5)
    sampled = sample_video(path, fps=5, on_error="partial")
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 90, 5))[: len(sampled.frames)]
    assert 3 < len(sampled.frames) < 18
    assert len(sample_video(path, fps=5, end=0.7).frames) == 4  # what is asked for is there


def test_pictures_beyond_the_limit_are_not_decoded(clip, monkeypatch):
    monkeypatch.setattr(video_packets, "MAX_PIXELS", 1000)
    with pytest.raises(VideoDecodeError, match="80x48 pixels; the limit is 1000"):
        sample_video(clip)


def test_packets_beyond_the_limit_are_not_read(clip, monkeypatch):
    monkeypatch.setattr(video_packets, "MAX_PACKETS", 10)
    with pytest.raises(VideoDecodeError, match="more than 10 packets"):
        sample_video(clip)
