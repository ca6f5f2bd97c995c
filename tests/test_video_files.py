# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sampling is compared with the ffmpeg program: every picture of the file in order, then chosen by its time."""

import functools
import io
import logging
import struct
import subprocess
import zlib
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from av.stream import Disposition
from clips import numbered_frame, read_number, write_clip
from PIL import Image

from transformers_valley import video_files
from transformers_valley.video_decoding import (
    VideoDecodeError,
    sample_video,
    uniform_indices,
)


CLIPS = Path(__file__).parents[2] / "shared" / "videos"
UNREADABLE = ("audio_only.mp4", "garbage.mp4", "moov_missing.mp4", "text.mp4", "zero.mp4")
DAMAGED = ("corrupt_middle.mp4", "truncated_60pct.mp4", "truncated_60pct.mkv")
PILLOW = ("anim.webp", "still.jpg")
FLAGS = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd"  # colours are interpolated, as on a screen

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


def run_ffmpeg(*arguments: str) -> bytes:
    program = imageio_ffmpeg.get_ffmpeg_exe()
    return subprocess.run([program, "-v", "error", "-y", *arguments], capture_output=True, check=True).stdout


def pictures_of_ffmpeg(path: str, stream: str, width: int, height: int, *options: str) -> np.ndarray:
    """Gives every picture of a file in order, (N, 3, height, width), as the ffmpeg program writes them."""
    scale = f"scale={width}:{height}:flags={FLAGS},format=rgb24"
    data = run_ffmpeg(
        *options, "-i", path, "-map", stream, *"-fps_mode passthrough -f rawvideo -vf".split(), scale, "-"
    )
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, height, width, 3).transpose(0, 3, 1, 2)


@functools.cache
def decode_all(path: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Gives every picture of a file, when each appears, and the length: nothing is left out, nothing sought."""
    times = []
    with av.open(path) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        stream = max(streams, key=lambda s: (s is container.streams.best("video"), -s.index))
        raw = container.format.name == "h264" or (container.format.name == "avi" and stream.codec.name == "h264")
        for frame in container.decode(stream):
            times.append(float(len(times) / stream.guessed_rate if raw else frame.pts * stream.time_base))
        lasts = float((frame.duration or 0) * stream.time_base) or 1 / float(stream.guessed_rate)
        width, number = round(stream.width * (stream.sample_aspect_ratio or 1)), f"0:{stream.index}"
        pictures = pictures_of_ffmpeg(path, number, width, stream.height, "-noautorotate")
        pictures = np.rot90(pictures, round(frame.rotation / 90), axes=(2, 3))
    assert len(pictures) == len(times)
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


@pytest.mark.parametrize("name", RECIPES)
def test_written_clips_give_the_frames_of_a_full_decode(name, folder, monkeypatch):
    if name not in ("h264.avi", "raw.h264"):
        monkeypatch.setattr(video_files, "_decode_in_order", lambda *args: pytest.fail("decodes everything"))
    path = write_clip(folder / name, 90, **RECIPES[name])
    assert_like_full_decode(path, rates=(0.5, 3.7, 25), counts=(8,))
    assert [read_number(frame) for frame in sample_video(path, num_frames=90).frames] == list(range(90))


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder with clips of other encoders is not here")
@pytest.mark.parametrize("name", sorted(p.name for p in CLIPS.glob("*.*")) if CLIPS.is_dir() else [])
def test_found_clips_give_the_frames_of_a_full_decode(name, monkeypatch):
    if name != "h264_raw.h264":
        monkeypatch.setattr(video_files, "_decode_in_order", lambda *args: pytest.fail("decodes everything"))
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
@pytest.mark.parametrize("name", PILLOW)
def test_still_and_animated_pictures_give_frames(name):
    sampled = sample_video(CLIPS / name, fps=2)
    assert 1 <= len(sampled.frames) == len(sampled.metadata["frames_indices"])


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder with clips of other encoders is not here")
@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_left_of_damaged_clips_is_right(name):
    whole = sample_video(CLIPS / f"h264_gop48.{name[-3:].replace('mkv', 'mp4')}", fps=30)
    with pytest.raises(VideoDecodeError, match="on_error='partial'"):
        sample_video(CLIPS / name, fps=30)
    sampled = sample_video(CLIPS / name, fps=30, on_error="partial")
    assert 200 < len(sampled.frames) < 360
    assert torch.equal(sampled.frames, whole.frames[sampled.metadata["frames_indices"]])


def test_a_long_clip_costs_what_its_wanted_frames_cost(folder):
    path = write_clip(folder / "long.mp4", 1000, gop=25)
    decoded = count_decoded(lambda: sample_video(path, fps=25, max_frames=3))
    assert decoded <= 60  # three groups of pictures at most, of forty
    assert count_decoded(lambda: sample_video(path, num_frames=2)) <= 60


def count_decoded(action) -> int:
    feed, fed = video_files._Decoder.feed, []

    def counting(self, packet, skippable=False):
        fed.append(packet)
        feed(self, packet, skippable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_files._Decoder, "feed", counting)
        action()
    return len(fed)


def test_one_endless_group_of_pictures_is_not_held_in_memory(folder, monkeypatch):
    path = write_clip(folder / "endless.mp4", 200, gop=1000)
    expected = sample_video(path, fps=0.5)
    monkeypatch.setattr(video_files, "MAX_HELD_BYTES", 2000)
    sampled = sample_video(path, fps=0.5)
    assert torch.equal(sampled.frames, expected.frames)
    assert [read_number(frame) for frame in sampled.frames] == [0, 50, 100, 150]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("num_threads", [2, 3, 16])
def test_decoders_side_by_side_give_the_same(num_threads, suffix, folder, monkeypatch):
    path = write_clip(folder / f"parts.{suffix}", 200, gop=20)
    expected = sample_video(path, fps=5, num_threads=1)
    monkeypatch.setattr(video_files, "MIN_WORTH_SPLITTING", 0)
    opened = []
    another = video_files.Clip.another
    monkeypatch.setattr(video_files.Clip, "another", lambda self: opened.append(self) or another(self))
    for source in (path, Path(path).read_bytes()):
        sampled = sample_video(source, fps=5, num_threads=num_threads)
        assert torch.equal(sampled.frames, expected.frames) and sampled.timestamps == expected.timestamps
    assert 2 * 2 <= len(opened) <= 2 * min(num_threads, 10)  # ten groups of pictures
    assert sample_video(path, num_frames=2, num_threads=num_threads).metadata["frames_indices"] == [0, 199]


def test_large_pictures_are_not_decoded_side_by_side(folder, monkeypatch):
    path = write_clip(folder / "parts.mp4", 60, gop=20)
    monkeypatch.setattr(video_files, "MIN_WORTH_SPLITTING", 0)
    monkeypatch.setattr(video_files, "MAX_DECODERS_BYTES", 30 * 80 * 48)
    monkeypatch.setattr(video_files.Clip, "another", lambda self: pytest.fail("opens the file again"))
    assert len(sample_video(path, fps=5, num_threads=8).frames) == 12


def test_frames_of_a_constant_rate_are_counted_in_the_index(folder, monkeypatch):
    path = write_clip(folder / "constant.mp4", 500, gop=20)
    expected = uniform_indices(500, 3).tolist()
    read, packets = [], video_files.Clip.packets
    monkeypatch.setattr(video_files.Clip, "packets", lambda self: map(lambda p: read.append(p) or p, packets(self)))
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


def test_frames_beyond_the_limit_are_not_held(clip, monkeypatch):
    monkeypatch.setattr(video_files, "MAX_FRAMES_BYTES", 80 * 48 * 3 * 10)
    assert len(sample_video(clip, num_frames=10).frames) == 10
    with pytest.raises(VideoDecodeError, match="more than 115200 bytes; lower fps or size"):
        sample_video(clip, num_frames=11)


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
    seek = video_files.Clip.seek
    monkeypatch.setattr(video_files.Clip, "seek", lambda self, timestamp: seek(self, timestamp + 12800))
    assert torch.equal(sample_video(clip, fps=5).frames, expected.frames)


def test_unknown_colour_spaces_are_read(folder):
    path = write_clip(folder / "ycgco.mp4", 3, options={"x264-params": "colormatrix=YCgCo"})
    assert sample_video(path, num_frames=3).metadata["frames_indices"] == [0, 1, 2]


def remux(path, target, options=None, change=lambda stream: None):
    """Writes a clip's packets into another file, with the muxer's options."""
    with av.open(str(path)) as source, av.open(str(target), "w", options=options or {}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        change(stream)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return str(target)


@pytest.mark.parametrize("mirror", [(), ("-display_hflip",), ("-display_vflip",)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_clips_are_turned_and_mirrored_as_ffmpeg_does(degrees, mirror, folder, tmp_path):
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:24, :40], picture[24:, :40], picture[:24, 40:] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    upright = write_clip(folder / "corners.mp4", [picture] * 3)
    turned = str(tmp_path / "turned.mp4")
    run_ffmpeg("-display_rotation", str(degrees), *mirror, "-i", upright, "-c", "copy", turned)
    sampled = sample_video(turned)
    width, height = (48, 80) if degrees % 180 else (80, 48)
    assert (sampled.metadata["width"], sampled.metadata["height"]) == (width, height)
    expected = pictures_of_ffmpeg(turned, "0:v:0", width, height)[0]
    assert np.abs(sampled.frames[0].numpy().astype(int) - expected).mean() < 1  # it turns before it converts


@pytest.mark.parametrize(
    "name, options",
    [
        ("full_range", "-pix_fmt yuvj420p"),
        ("bt709", "-vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709"),
        ("ten_bit", "-pix_fmt yuv420p10le"),
        ("hdr", "-pix_fmt yuv420p10le -colorspace bt2020nc -color_primaries bt2020 -color_trc smpte2084"),
        ("interlaced", "-flags +ilme+ildct -x264-params tff=1"),
        ("anamorphic", "-vf setsar=16/11"),
        ("narrow_pixels", "-vf setsar=8/9"),
        ("odd", "-vf scale=75:45 -pix_fmt yuv444p"),
        ("4:2:2", "-pix_fmt yuv422p"),
        ("grey", "-pix_fmt gray"),
        ("alpha.webm", "-c:v libvpx-vp9 -pix_fmt yuva420p"),
        ("alpha.mov", "-c:v qtrle -pix_fmt argb"),
        ("vp8.webm", "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -b:v 300k"),
        ("edit_list", "-c copy"),
        ("rgb.avi", "-c:v rawvideo -pix_fmt bgr24"),
        ("prores.mov", "-c:v prores_ks"),
        ("jpeg.avi", "-c:v mjpeg -pix_fmt yuvj422p"),
    ],
)
def test_every_kind_of_pixel_is_what_ffmpeg_shows(name, options, folder, tmp_path):
    source = write_clip(folder / "colours.mkv", colour_waves(40), gop=12, options={"crf": "1"})
    path = str(tmp_path / (name if "." in name else f"{name}.mp4"))
    run_ffmpeg(*(["-ss", "0.7"] if name == "edit_list" else []), "-i", source, *options.split(), path)
    assert_like_full_decode(path, rates=(7,), counts=(8,))


ODD_FILES = {
    "packed.avi": "-c:v libxvid -bf 2 -g 15 -q:v 2",  # one packet of two pictures, then one of none
    "palette.avi": "-c:v rawvideo -pix_fmt pal8",  # the palette comes with the first packet alone
    "palette.mov": "-c:v smc -pix_fmt pal8",
    "leading.mp4": "-c:v libvvenc -preset faster -qp 20 -pix_fmt yuv420p10le",
    "leading.ts": "-c:v libx265 -x265-params log-level=none:radl=2:open-gop=0:keyint=30:bframes=3:qp=15",
    "fields.ts": "-c:v mpeg2video -flags +ilme+ildct -bf 2 -g 12 -q:v 3",
    "windows.wmv": "-c:v wmv2 -q:v 2",
    "flash.flv": "-c:v flv -q:v 2",
    "theora.ogv": "-c:v libtheora -q:v 9",
    "mpeg4.mkv": "-c:v mpeg4 -bf 2 -q:v 2",
    "all_keys.mov": "-c:v mjpeg -q:v 3 -pix_fmt yuvj444p",
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_every_frame_of_odd_files_comes_once_and_in_order(name, folder, tmp_path):
    source = write_clip(folder / "numbers.mkv", (numbered_frame(i, 160, 96) for i in range(60)), options={"crf": "1"})
    path = str(tmp_path / name)
    run_ffmpeg("-i", source, *ODD_FILES[name].replace("-pix_fmt pal8", "").split(), *PALETTE.get(name, []), path)
    numbers = list(map(read_number, pictures_of_ffmpeg(path, "0:v:0", 160, 96)))
    assert numbers == sorted(set(numbers)) and len(numbers) >= 58  # encoders drop one or two at the end
    sampled = sample_video(path, num_frames="all")
    assert list(map(read_number, sampled.frames)) == numbers
    singly = [sample_video(path, fps=0.01, start=time + 0.01) for time in sampled.timestamps[::7]]
    assert [read_number(clip.frames[0]) for clip in singly] == numbers[::7]
    assert read_number(sample_video(path, fps=2).frames[2]) in (24, 25)


PALETTE_FILTER = "split[a][b];[a]palettegen[p];[b][p]paletteuse"
PALETTE = {
    "palette.avi": ["-filter_complex", PALETTE_FILTER, "-pix_fmt", "pal8"],
    "palette.mov": ["-filter_complex", PALETTE_FILTER, "-pix_fmt", "pal8"],
}


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


@pytest.mark.parametrize("on_error", ["raise", "partial"])
def test_damage_before_an_open_group_reaches_into_it(on_error, folder, tmp_path):
    options = {"x264-params": "open-gop=1", "bframes": "3", "b-adapt": "0"}
    path = write_clip(folder / "open.mp4", 60, gop=12, bframes=3, options=options)
    with av.open(path) as container:
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    key = next(i for i, (_, is_key) in enumerate(packets) if is_key and i > 20)
    leading = [i for i in range(key + 1, key + 5) if packets[i][0] < packets[key][0]]
    assert leading
    last_reference = max(range(key), key=lambda i: packets[i][0])
    damaged = damage(path, tmp_path / "damaged.mp4", [last_reference])
    whole = sample_video(path, num_frames="all")
    if on_error == "raise":
        with pytest.raises(VideoDecodeError, match="damaged"):
            sample_video(damaged, num_frames="all")
        return
    first = int(packets[last_reference][0] * 25 / 12800)
    for number in range(first, first + len(leading) + 1):
        with pytest.raises(VideoDecodeError, match="1 of the 1 frames wanted are damaged"):
            sample_video(damaged, fps=0.01, start=number / 25 + 0.01)
    sampled = sample_video(damaged, num_frames="all", on_error="partial")
    assert 40 < len(sampled.frames) < 60
    assert torch.equal(sampled.frames, whole.frames[sampled.metadata["frames_indices"]])


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


def colour_waves(count: int) -> list[np.ndarray]:
    y, x = np.mgrid[0:48, 0:80]
    waves = [np.stack([np.sin(x / 9 + t), np.cos(y / 7 - t), np.sin((x + y) / 11 + t)], -1) for t in range(count)]
    return [(127 + 110 * wave).astype(np.uint8) for wave in waves]


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoDecodeError, match="no video stream"):
        sample_video(tmp_path / "sound.mp4")


def test_a_damaged_frame_is_an_error_that_names_the_moment(folder, tmp_path):
    path = write_clip(folder / "to_damage.mp4", 50, gop=10, bframes=0)
    damaged = damage(path, tmp_path / "damaged.mp4", range(20, 25))
    with pytest.raises(VideoDecodeError, match="10 of the 50 frames wanted are damaged, the first one at 0.8 s"):
        sample_video(damaged, fps=25)
    assert sample_video(damaged, fps=25, end=0.8).num_lost == 0


def test_partial_gives_the_good_frames_and_says_how_many_are_lost(folder, tmp_path, caplog):
    path = write_clip(folder / "to_damage.mp4", 50, gop=10, bframes=0)
    damaged = damage(path, tmp_path / "damaged.mp4", range(23, 25))
    with caplog.at_level(logging.WARNING, logger="transformers_valley"):
        sampled = sample_video(damaged, fps=25, on_error="partial")
    assert len(caplog.records) == 1 and "7 of 50 frames are damaged" in caplog.text
    expected = [*range(23), *range(30, 50)]  # what leans on a damaged picture is damaged too, up to the next keyframe
    assert [read_number(frame) for frame in sampled.frames] == sampled.metadata["frames_indices"] == expected
    assert sampled.num_lost == 7 and sampled.timestamps == pytest.approx([number / 25 for number in expected])
    assert torch.equal(sampled.frames, sample_video(path, fps=25).frames[expected])


def test_damage_where_nothing_is_wanted_is_not_looked_at(folder, tmp_path):
    path = write_clip(folder / "to_damage.mp4", 50, gop=10, bframes=0)
    damaged = damage(path, tmp_path / "damaged.mp4", range(26, 30))
    assert torch.equal(sample_video(damaged, fps=1).frames, sample_video(path, fps=1).frames)


@pytest.mark.parametrize("on_error", ["raise", "partial"])
def test_a_clip_without_one_good_frame_is_an_error(on_error, clip, tmp_path):
    with pytest.raises(VideoDecodeError, match="no frame could be decoded|90 of the 90 frames"):
        sample_video(damage(clip, tmp_path / "all_damaged.mp4", range(90)), fps=25, on_error=on_error)


def test_an_encrypted_clip_says_so(clip, tmp_path):
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    remux(clip, tmp_path / "locked.mp4", options=keys)
    with pytest.raises(VideoDecodeError, match="it is encrypted"):
        sample_video(tmp_path / "locked.mp4")


def damage(path, target, numbers):
    """Writes a copy of a clip in which the packets with these numbers hold nothing that makes sense."""
    data = bytearray(Path(path).read_bytes())
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        data[packets[number].pos : packets[number].pos + packets[number].size] = b"\xff" * packets[number].size
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_a_clip_that_is_cut_off(suffix, folder, tmp_path):
    whole = write_clip(folder / f"whole.{suffix}", 90, **({"codec": "mpeg4", "bframes": 0} if suffix == "avi" else {}))
    if suffix == "mp4":  # its index has to come first, or nothing can be read
        whole = remux(whole, folder / "fast.mp4", options={"movflags": "faststart"})
    data = Path(whole).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoDecodeError, match=r"cut off: \d.\d of its 3.6 seconds are there. on_error='partial'"):
        sample_video(path, fps=5)
    sampled = sample_video(path, fps=5, on_error="partial")
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 90, 5))[: len(sampled.frames)]
    assert 3 < len(sampled.frames) < 18
    assert len(sample_video(path, fps=5, end=0.7).frames) == 4  # what is asked for is there


def test_pictures_beyond_the_limit_are_not_decoded(clip, monkeypatch):
    monkeypatch.setattr(video_files, "MAX_PIXELS", 1000)
    with pytest.raises(VideoDecodeError, match="80x48 pixels; the limit is 1000"):
        sample_video(clip)


def test_packets_beyond_the_limit_are_not_read(clip, monkeypatch):
    monkeypatch.setattr(video_files, "MAX_PACKETS", 10)
    with pytest.raises(VideoDecodeError, match="more than 10 packets"):
        sample_video(clip)
