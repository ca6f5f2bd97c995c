# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sampling is compared with the ffmpeg program: every picture of the file in order, then chosen by its time."""

import functools
import logging
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from clips import numbered_frame, pictures_of_ffmpeg, read_number, run_ffmpeg, write_clip

from transformers_valley import video_files, video_packets
from transformers_valley.video_decoding import (
    VideoDecodeError,
    sample_video,
    uniform_indices,
)


CLIPS = Path(__file__).parents[2] / "shared" / "videos"
UNREADABLE = ("audio_only.mp4", "garbage.mp4", "moov_missing.mp4", "text.mp4", "zero.mp4")
DAMAGED = ("corrupt_middle.mp4", "truncated_60pct.mp4", "truncated_60pct.mkv")
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


def on_screen(times: np.ndarray, seconds: np.ndarray, rounded_by: float = 1e-5) -> list[int]:
    return (np.searchsorted(times, seconds + rounded_by, side="right") - 1).tolist()


def assert_same_frames(sampled, pictures, indices):
    assert len(sampled.frames) == len(indices)
    for frame, index in zip(sampled.frames, indices, strict=True):
        assert np.array_equal(frame.numpy(), pictures[index]), f"frame {index} differs"


def assert_like_full_decode(path, rates, counts, rounded_by=1e-5):
    pictures, times, length = decode_all(str(path))
    for fps in rates:
        sampled = sample_video(path, fps=fps)
        indices = on_screen(times, np.arange(max(1, np.ceil(length * fps - 1e-6))) / fps, rounded_by)
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


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder with clips of other encoders is not here")
@pytest.mark.parametrize("name", sorted(p.name for p in CLIPS.glob("*.*")) if CLIPS.is_dir() else [])
def test_found_clips_give_the_frames_of_a_full_decode(name, monkeypatch):
    if name != "h264_raw.h264":
        monkeypatch.setattr(video_files, "_decode_in_order", lambda *args: pytest.fail("decodes everything"))
    if name in (*UNREADABLE, *DAMAGED, *PILLOW, "README.md"):
        pytest.skip("no full decode to compare with")
    # Its clock has milliseconds, and begins at 7: both ends of a time are rounded by up to half of one.
    rounded_by = 1e-3 if name == "vp9_opus.webm" else 1e-5
    assert_like_full_decode(CLIPS / name, (1, 3.7), (8,), rounded_by)
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
    another = video_packets.Clip.another
    monkeypatch.setattr(video_packets.Clip, "another", lambda self: opened.append(self) or another(self))
    for source in (path, Path(path).read_bytes()):
        sampled = sample_video(source, fps=5, num_threads=num_threads)
        assert torch.equal(sampled.frames, expected.frames) and sampled.timestamps == expected.timestamps
    assert 2 * 2 <= len(opened) <= 2 * min(num_threads, 10)  # ten groups of pictures
    assert sample_video(path, num_frames=2, num_threads=num_threads).metadata["frames_indices"] == [0, 199]


def test_large_pictures_are_not_decoded_side_by_side(folder, monkeypatch):
    path = write_clip(folder / "parts.mp4", 60, gop=20)
    monkeypatch.setattr(video_files, "MIN_WORTH_SPLITTING", 0)
    monkeypatch.setattr(video_files, "MAX_DECODERS_BYTES", 30 * 80 * 48)
    monkeypatch.setattr(video_packets.Clip, "another", lambda self: pytest.fail("opens the file again"))
    assert len(sample_video(path, fps=5, num_threads=8).frames) == 12


def test_frames_beyond_the_limit_are_not_held(clip, monkeypatch):
    monkeypatch.setattr(video_files, "MAX_FRAMES_BYTES", 80 * 48 * 3 * 10)
    assert len(sample_video(clip, num_frames=10).frames) == 10
    with pytest.raises(VideoDecodeError, match="more than 115200 bytes; lower fps or size"):
        sample_video(clip, num_frames=11)


def test_unknown_colour_spaces_are_read(folder):
    path = write_clip(folder / "ycgco.mp4", 3, options={"x264-params": "colormatrix=YCgCo"})
    assert sample_video(path, num_frames=3).metadata["frames_indices"] == [0, 1, 2]


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


def colour_waves(count: int) -> list[np.ndarray]:
    y, x = np.mgrid[0:48, 0:80]
    waves = [np.stack([np.sin(x / 9 + t), np.cos(y / 7 - t), np.sin((x + y) / 11 + t)], -1) for t in range(count)]
    return [(127 + 110 * wave).astype(np.uint8) for wave in waves]


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


def damage(path, target, numbers):
    """Writes a copy of a clip in which the packets with these numbers hold nothing that makes sense."""
    data = bytearray(Path(path).read_bytes())
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        data[packets[number].pos : packets[number].pos + packets[number].size] = b"\xff" * packets[number].size
    target.write_bytes(data)
    return target
