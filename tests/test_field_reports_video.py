# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Faults that users of other projects reported: each kind as the smallest input and its right value, with neighbours.

The list grows with every report: name the kind, cite the thread as `owner/repo #n`, add cases that it does not name.
"""

import base64
import contextlib
import gc
import io
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
import torch
from clips import (
    call_all_keyframes,
    crop_mov,
    numbered_frame,
    pictures_of_ffmpeg,
    read_number,
    remux,
    run_ffmpeg,
    write_clip,
)
from datasets import Dataset, Features, List, Value
from PIL import Image
from transformers.video_utils import VideoMetadata, load_video

from transformers_valley import ValleyVideoProcessor
from transformers_valley.video_decoding import VideoDecodeError, sample_video


def field_report(*threads: str):
    """Says in which public threads users of other projects reported a kind of fault."""
    assert threads and all(re.fullmatch(r"[\w.-]+/[\w.-]+ #\d+", thread) for thread in threads)

    def keep(test):
        test.threads = threads
        return test

    return keep


def numbers(frames) -> list[int]:
    return list(map(read_number, frames))


# Clocks that are coarser than the question ---------------------------------------------------------------------


@field_report("ietf-wg-cellar/matroska-specification #422", "huggingface/lerobot #2364", "huggingface/lerobot #3423")
@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "bframes"),
    [
        ("webm", "libvpx", 30, 0),
        ("mkv", "libx264", 60, 0),
        ("flv", "libx264", 24, 0),
        ("mkv", "libx264", Fraction(30000, 1001), 2),  # the first frame's time is rounded, too
        ("flv", "libx264", Fraction(60000, 1001), 2),
        ("mkv", "libx264", 120, 0),
        ("avi", "mpeg4", 30, 0),  # counts frames: nothing is rounded
        ("mp4", "libx264", Fraction(24000, 1001), 2),
    ],
)
def test_at_its_own_rate_each_frame_comes_once(suffix, codec, rate, bframes, tmp_path):
    path = write_clip(tmp_path / f"clip.{suffix}", 40, fps=rate, codec=codec, bframes=bframes)
    for every in (1, 2, 3):
        assert numbers(sample_video(path, fps=float(rate / every)).frames) == list(range(0, 40, every))
    for number in range(1, 40, 6):
        start = np.float32(number / rate)  # how tables of robots, and torch, keep seconds
        assert numbers(sample_video(path, fps=0.001, start=start).frames) == [number]
        assert numbers(sample_video(path, num_frames="all", end=start).frames) == list(range(number))


@field_report("huggingface/lerobot #3423")
def test_times_that_were_kept_as_float32_name_their_frames(tmp_path):
    """The library's own times, an hour of the clock on, and times of arrays and animated images."""
    path = write_clip(tmp_path / "clip.mp4", 30, fps=30)
    for number, time in enumerate(sample_video(path, num_frames="all").timestamps):
        assert numbers(sample_video(path, num_frames=1, start=np.float32(time)).frames) == [number]
    late = write_clip(tmp_path / "late.mkv", 3, times=[0.0, 3600.1, 3600.2])
    assert numbers(sample_video(late, num_frames=1, start=np.float32(3600.2)).frames) == [2]
    frames = np.stack([numbered_frame(i) for i in range(30)])
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(tmp_path / "moving.png", save_all=True, append_images=images[1:], duration=1000 / 30)
    for number in range(1, 30):
        start = np.float32(number / 30)
        assert numbers(sample_video(frames, num_frames=1, frame_rate=30, start=start).frames) == [number]
        assert numbers(sample_video(frames, fps=0.001, frame_rate=30, start=start).frames) == [number]


@field_report("ietf-wg-cellar/matroska-specification #422")
def test_a_moment_between_two_frames_shows_the_earlier_one(tmp_path):
    for suffix, codec in (("mkv", "libx264"), ("avi", "mpeg4"), ("mp4", "libx264")):
        path = write_clip(tmp_path / f"clip.{suffix}", 20, fps=25, codec=codec, bframes=0)
        assert numbers(sample_video(path, num_frames=1, start=0.038).frames) == [0]
        assert numbers(sample_video(path, num_frames=1, start=0.041).frames) == [1]


# Pictures called keyframes that need others --------------------------------------------------------------------


@field_report("video-dev/hls.js #2378", "clsid2/mpc-hc #1823", "FFMS/ffms2 #84")
@pytest.mark.parametrize(
    ("name", "codec", "bframes"),
    [
        ("clip.mov", "mpeg4", 2),
        ("clip.mp4", "libx265", 2),
        ("clip.mov", "mpeg2video", 2),
        ("clip.avi", "msmpeg4", 0),
        ("clip.avi", "wmv1", 0),
        ("clip.avi", "flv", 0),
        ("clip.3gp", "h263", 0),
        ("clip.mp4", "libvpx-vp9", 0),
        ("clip.mp4", "libx264", 2),
    ],
)
def test_keyframes_that_are_none_do_not_change_pictures(name, codec, bframes, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_valley.video_files.MIN_WORTH_SPLITTING", 1)  # threads for tiny pictures
    size = {"width": 176, "height": 144} if codec == "h263" else {}
    path = call_all_keyframes(write_clip(tmp_path / name, 60, codec=codec, gop=30, bframes=bframes, **size))
    with av.open(path) as container:  # from the beginning to the end, as a player does
        expected = numbers(frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in container.decode(video=0))
    for threads in (1, 2):
        assert numbers(sample_video(path, num_frames="all", num_threads=threads).frames) == expected
        sampled = sample_video(path, fps=2, start=0.2, num_threads=threads)
        assert numbers(sampled.frames) == [expected[round(time * 25)] for time in sampled.timestamps]


# Frames that were sampled before -------------------------------------------------------------------------------


@field_report("ByteDance-Seed/VeOmni #1165", "QwenLM/Qwen3-VL #2117", "modelscope/ms-swift #10168")
@pytest.mark.parametrize("form", ["metadata", "dict", "array of indices", "total alone"])
def test_frames_with_the_metadata_of_their_source_are_kept(form, clip):
    frames, about = load_video(clip, num_frames=8, backend="pyav")
    about = {"total_num_frames": 90, "fps": 25.0, "frames_indices": list(map(int, about.frames_indices))}
    indices = about["frames_indices"]
    if form == "array of indices":
        about["frames_indices"] = np.array(indices)
    elif form == "total alone":
        del about["frames_indices"]
    given = dict(about) if form == "dict" else VideoMetadata(**about)
    for options in ({}, {"do_sample_frames": False}):
        found = ValleyVideoProcessor()([frames], video_metadata=[given], return_metadata=True, **options)
        assert found["video_num_frames"].tolist() == [8]
        if form != "total alone":
            assert found["video_metadata"][0].timestamps == pytest.approx([index / 25 for index in indices])
    assert (given if form == "dict" else vars(given)).get("frames_indices") is about.get("frames_indices")


# Pictures in any form ------------------------------------------------------------------------------------------


def forms(path: Path) -> dict:
    data = path.read_bytes()
    unnamed = path.with_name(f"{path.stem}_without_suffix")
    unnamed.write_bytes(data)
    encoded = base64.b64encode(data).decode()
    return {
        "path": path,
        "no suffix": unnamed,
        "bytes": data,
        "memory": memoryview(bytearray(data)),
        "file": io.BytesIO(data),
        "dict": {"path": None, "bytes": data},
        "URL": path.as_uri(),
        "data": f"data:application/octet-stream;base64,{encoded}",
        "PIL": Image.open(path),
    }


@field_report("EttienneS/AnimatedTokenMaker #11", "deepbeepmeep/Wan2GP #1789", "aws-samples/dify-aws-tool #133")
@pytest.mark.parametrize(
    ("name", "kind"), [("a.webp", "WEBP"), ("a.gif", "WEBP"), ("a.apng", "PNG"), ("a.mp4", "GIF"), ("a.jpg", "PNG")]
)
def test_the_content_of_a_picture_tells_what_it_is(name, kind, tmp_path):
    images = [Image.fromarray(numbered_frame(8 * i)) for i in range(4)]
    images[0].save(tmp_path / name, kind, save_all=True, append_images=images[1:], duration=500)
    for form, source in forms(tmp_path / name).items():
        assert numbers(sample_video(source, num_frames="all").frames) == [0, 8, 16, 24], form
        assert ValleyVideoProcessor()(source, num_frames=2)["video_num_frames"].tolist() == [2], form


@field_report("sgl-project/sglang-omni #2113", "ollama/ollama #18418", "element-hq/synapse #20024")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "gain map", "motion photo"])
def test_a_phones_photo_is_one_upright_picture(kind, tmp_path, clip):
    photo, exif = Image.fromarray(numbered_frame(5)).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees to the right
    behind = {"MPO": [photo], "gain map": [photo.resize((24, 40))]}.get(kind)
    more = {"save_all": True, "append_images": behind} if behind else {}
    format = "JPEG" if kind == "motion photo" else "MPO" if behind else kind
    path = tmp_path / "photo.jpg"
    photo.save(path, format, exif=exif, **more)
    if kind == "motion photo":  # a video behind the picture
        path.write_bytes(path.read_bytes() + Path(clip).read_bytes())
    for form, source in forms(path).items():
        for given in (source, [source]):
            frames = sample_video(given, num_frames="all").frames
            assert tuple(frames.shape) == (1, 3, 48, 80) and numbers(frames) == [5], form


@field_report("opencv/opencv #27074", "python-pillow/Pillow #1138")
def test_pictures_outside_an_animation_are_not_shown(tmp_path):
    images = [Image.fromarray(numbered_frame(i)) for i in range(4)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], default_image=True, duration=500)
    images[0].save(tmp_path / "b.tiff", save_all=True, append_images=[images[1].resize((20, 12))])  # a thumbnail
    images[0].save(tmp_path / "c.tiff", save_all=True, append_images=images[1:])  # pages, which have no times
    for name, expected in (("a.png", [1, 2, 3]), ("b.tiff", [0]), ("c.tiff", [0, 1, 2, 3])):
        for form, source in forms(tmp_path / name).items():
            sampled = sample_video(source, num_frames="all")
            assert numbers(sampled.frames) == expected, form
    assert sample_video(tmp_path / "a.png", num_frames="all").timestamps == [0, 0.5, 1]


@field_report("python-pillow/Pillow #2574", "python-pillow/Pillow #1108")
@pytest.mark.parametrize("kind", ["png", "tiff", "pgm", "big-endian tiff", "int32 tiff"])
def test_deep_greys_keep_their_levels(kind, tmp_path):
    levels = np.arange(0, 256, 5).astype(np.uint16) * 257
    path, pixels = tmp_path / f"deep.{kind.split()[-1]}", np.tile(levels, (8, 1))
    if kind == "big-endian tiff":
        Image.frombytes("I;16B", pixels.shape[::-1], pixels.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(pixels.astype(np.int32) if kind == "int32 tiff" else pixels).save(path)
    for form, source in forms(path).items():
        for given in (source, [source]):
            frame = sample_video(given, num_frames="all").frames[0]
            assert (frame[:, 0].int() - torch.from_numpy(levels // 257).int()).abs().max() <= 1, form


@field_report("python-pillow/Pillow #2574")
@pytest.mark.parametrize("value", [0.5, -1.0, 70000])
def test_greys_without_a_known_range_are_refused(value, tmp_path):
    pixels = np.full((8, 8), value, np.float32 if isinstance(value, float) else np.int32)
    Image.fromarray(pixels).save(tmp_path / "depth.tiff")
    for source in (tmp_path / "depth.tiff", [tmp_path / "depth.tiff"], Image.fromarray(pixels)):
        with pytest.raises(VideoDecodeError, match="range of its grey levels is unknown"):
            sample_video(source)


@field_report("huggingface/transformers #49003", "QwenLM/Qwen3-VL #661")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0)).convert(mode)
    image.save(tmp_path / "clear.png", **({"transparency": image.getpixel((0, 0))} if mode == "P" else {}))
    for form, source in forms(tmp_path / "clear.png").items():
        for given in (source, [source]):
            assert sample_video(given, num_frames="all").frames.min() == 255, form


@field_report("nagadomi/nunif #256")
@pytest.mark.parametrize("form", ["picture", "list", "array", "video", "size"])
def test_thin_pictures_do_not_take_gigabytes(form, tmp_path):
    pixels = np.zeros((2, 2000, 3), np.uint8)
    path = tmp_path / "thin.png"
    Image.fromarray(pixels).save(path)
    source = {"list": [path], "array": pixels[None]}.get(form, path)
    if form == "video":
        source = write_clip(tmp_path / "thin.mkv", [pixels] * 3, codec="ffv1", pix_fmt="bgr0")
    with pytest.raises(VideoDecodeError, match="2000x2"):
        sample_video(source, size=224) if form == "size" else ValleyVideoProcessor()(source)
    plain = sample_video([pixels]).frames  # without scaling there is nothing to refuse
    assert tuple(plain.shape) == (1, 3, 2, 2000)


# Containers that crop ------------------------------------------------------------------------------------------


@field_report("mpv-player/mpv #16278", "MediaArea/MediaInfoLib #1771")
@pytest.mark.parametrize("sides", [(20, 16, 20, 16), (3, 5, 8, 2), (0, 0, 0, 6)], ids=str)
@pytest.mark.parametrize("suffix", ["mov", "mp4", "mkv"])
def test_what_a_container_crops_is_not_shown(suffix, sides, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(noise).resize((160, 96)))
    path = crop_mov(write_clip(tmp_path / "stored.mp4", [picture] * 3, bframes=0), *sides)
    if suffix != "mp4":
        path = remux(path, tmp_path / f"clip.{suffix}")
    for source in (path, io.BytesIO(Path(path).read_bytes())):
        sampled = sample_video(source, num_frames=1)
        width, height = sampled.metadata["width"], sampled.metadata["height"]
        assert (width, height) == ((160 - sides[0] - sides[2]) // 2 * 2, (96 - sides[1] - sides[3]) // 2 * 2)
        expected = pictures_of_ffmpeg(path, "0:v", width, height)[:1]
        assert np.array_equal(sampled.frames, expected)


@field_report("mpv-player/mpv #16278")
@pytest.mark.parametrize("kind", ["turned", "no square pixels", "more than there is", "a zero below", "another track"])
def test_cropping_goes_with_all_else_that_a_header_says(kind, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 3, width=160, height=96, bframes=0)
    if kind == "no square pixels":  # twice as wide as high
        wide = tmp_path / "wide.mp4"
        run_ffmpeg("-i", path, "-c", "copy", "-bsf:v", "h264_metadata=sample_aspect_ratio=2/1", str(wide))
        path = str(wide)
    crop_mov(path, 20, 16, 20, 16)
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"clap")
    if kind == "turned":
        matrix = data.index(b"tkhd") + 44
        data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    elif kind == "more than there is":
        data[at + 4 : at + 8] = struct.pack(">I", 400)
    elif kind == "a zero below":
        data[at + 8 : at + 12] = bytes(4)
    elif kind == "another track":
        identity = data.index(b"tkhd") + 16
        data[identity : identity + 4] = struct.pack(">I", 7)
    Path(path).write_bytes(data)
    shown = {"turned": (120, 64), "no square pixels": (64, 240), "another track": (64, 120)}.get(kind, (96, 160))
    assert tuple(sample_video(path, num_frames=1).frames.shape[2:]) == shown


# Values of datasets and numpy ----------------------------------------------------------------------------------


@field_report("huggingface/course #1181", "EuroEval/EuroEval #1090", "huggingface/datasets #7230")
def test_values_of_datasets_are_clips(clip, tmp_path):
    images = []
    for number in range(3):
        images.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(numbered_frame(number)).save(images[-1])
    kinds = {
        "frames": List(datasets.Image(decode=False)),
        "videos": datasets.Video(decode=False),
        "paths": Value("string"),
    }
    rows = {"frames": [images] * 2, "videos": [clip] * 2, "paths": [clip] * 2}
    rows = Dataset.from_dict(rows, features=Features(kinds))
    count = partial(ValleyVideoProcessor(), return_tensors="pt")
    with_bytes = [{"path": None, "bytes": Path(path).read_bytes()} for path in images]
    for value, frames in (
        ([rows[0]["frames"]], [3]),
        ([with_bytes], [3]),
        (rows["frames"], [3, 3]),
        (rows.cast_column("frames", List(datasets.Image()))["frames"], [3, 3]),
        (rows[0]["videos"], [2]),
        (rows["videos"], [2, 2]),
        (rows["paths"], [2, 2]),
        (rows.with_format("numpy")["paths"][:], [2, 2]),
        (rows.to_pandas()["paths"], [2, 2]),
        (tuple(rows[:]["videos"]), [2, 2]),
    ):
        assert count(value)["video_num_frames"].tolist() == frames, str(value)[:80]


@field_report("meta-pytorch/torchcodec #528", "huggingface/datasets #7230")
def test_clips_inside_archives_are_read(clip, tmp_path):
    archive = tmp_path / "clips.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(clip, "folder/a.mp4")
    with tarfile.open(tmp_path / "clips.tar", "w") as file:
        file.add(clip, "a.mp4")
    expected = numbers(sample_video(clip, fps=2).frames)
    with zipfile.ZipFile(archive).open("folder/a.mp4") as member:
        for source in (
            f"zip://folder/a.mp4::{archive}",
            {"path": f"zip://folder/a.mp4::{archive}", "bytes": None},
            f"tar://a.mp4::{tmp_path / 'clips.tar'}",
            member,
        ):
            assert numbers(sample_video(source, fps=2).frames) == expected


@field_report("huggingface/course #1181")
@pytest.mark.parametrize(
    "rule", [{"num_frames": np.int64(8)}, {"num_frames": np.uint8(8)}, {"fps": np.float32(2.5)}, {"fps": np.int32(3)}]
)
def test_numbers_of_numpy_are_numbers(rule, clip):
    plain = {name: value.item() for name, value in rule.items()}
    assert numbers(sample_video(clip, **rule).frames) == numbers(sample_video(clip, **plain).frames)
    counts = [ValleyVideoProcessor(**given)(clip)["video_num_frames"].tolist() for given in (rule, plain)]
    assert counts[0] == counts[1]


@field_report("1adrianb/face-alignment #259", "scanner-research/scanner #172")
@pytest.mark.parametrize("view", ["channels", "backwards", "mirrored", "Fortran order", "read-only", "every other"])
def test_arrays_in_any_memory_order_are_read(view):
    frames = np.stack([numbered_frame(i) for i in range(6)])
    given = {
        "channels": frames[..., ::-1],
        "backwards": frames[::-1],
        "mirrored": frames[:, :, ::-1],
        "Fortran order": np.asfortranarray(frames),
        "read-only": np.broadcast_to(frames, frames.shape),
        "every other": frames[::2],
    }[view]
    for source, plain in ((given, given.copy()), (list(given), list(given.copy()))):
        assert torch.equal(sample_video(source).frames, sample_video(plain).frames)
        found, expected = (ValleyVideoProcessor()([clip])["pixel_values_videos"] for clip in (source, plain))
        assert torch.equal(found, expected)


# Folders -------------------------------------------------------------------------------------------------------


@field_report("SanjaySoniLV/ProjectKestrel #58", "mxmlnkn/mfusepy #27")
@pytest.mark.parametrize(
    "names",
    [
        ["0.5.png", "1.25.png", "1.5.png", "10.75.png"],
        ["1.png", "2.gif", "3.jfif", "4.AVIF", "5.WebP"],
        ["frame2.png", "frame10.png", "Frame11.png"],
        ["shot1_9.png", "shot1_10.png", "shot2_1.png"],
    ],
    ids=str,
)
def test_a_folder_has_the_frames_in_the_order_people_mean(names, tmp_path):
    for number, name in enumerate(names):
        Image.fromarray(numbered_frame(number)).save(tmp_path / name, "JPEG" if name.endswith("jfif") else None)
    (tmp_path / f"._{names[0]}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for other in (".DS_Store", "Thumbs.db", "times.txt", ".hidden.png"):
        (tmp_path / other).write_bytes(b"no picture")
    assert numbers(sample_video(tmp_path).frames) == list(range(len(names)))


# Addresses -----------------------------------------------------------------------------------------------------


@field_report("servo/servo #24865", "eclecticiq/python-data-uri #7", "vllm-project/vllm #48973")
@pytest.mark.parametrize("form", ["wrapped", "url-safe", "unpadded", "DATA", "space", "percent", "parameters"])
def test_base64_in_every_spelling_is_read(form, clip):
    data = Path(clip).read_bytes()
    encoded, header = base64.b64encode(data).decode(), "data:video/mp4;base64,"
    url = header + {
        "wrapped": base64.encodebytes(data).decode(),
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "unpadded": encoded.rstrip("="),
        "space": " " + encoded,
        "percent": encoded.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    }.get(form, encoded)
    url = {"DATA": url.replace("data:", "DATA:", 1), "parameters": url.replace(";", ";codecs=avc1;", 1)}.get(form, url)
    assert numbers(sample_video(url, fps=1).frames) == [0, 25, 50, 75]


@field_report("QwenLM/Qwen3-VL #1762", "vllm-project/vllm #11492")
def test_frames_in_one_data_url_are_a_clip(tmp_path):
    encoded = []
    for number in range(3):
        Image.fromarray(numbered_frame(number)).save(tmp_path / "frame.jpg", quality=95)
        encoded.append(base64.b64encode((tmp_path / "frame.jpg").read_bytes()).decode())
    assert numbers(sample_video("data:video/jpeg;base64," + ",".join(encoded)).frames) == [0, 1, 2]
    for broken in ("AAAA,AAAA", f"{encoded[0]},", "!"):
        with pytest.raises(VideoDecodeError) as caught:
            sample_video(f"data:video/jpeg;base64,{broken}")
        assert len(str(caught.value)) < 200 and " object at " not in str(caught.value)


@field_report("nextcloud/photos #1560", "oaubert/advene #32")
@pytest.mark.parametrize("name", ["Clip #1.mp4", "a%20b.mp4", "what?.mp4", "%03d.mp4", "a&b=c;d.mp4", "50%.mp4"])
def test_names_with_signs_of_addresses_are_files(name, clip, tmp_path):
    path = tmp_path / name
    path.write_bytes(Path(clip).read_bytes())
    for source in (path, str(path), path.as_uri(), f"file://{path}", f"file://localhost{path}"):
        assert numbers(sample_video(source, fps=1).frames) == [0, 25, 50, 75]


# Settings beside a clip ----------------------------------------------------------------------------------------


@field_report("QwenLM/Qwen3-VL #1381", "open-compass/VLMEvalKit #927")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fps": 5}, 18),
        ({"num_frames": 8}, 8),
        ({"fps": 5, "max_frames": 6}, 6),
        ({"start": 2.0}, 1),
        ({"nframes": 8}, "'nframes' is called 'num_frames'"),
        ({"video_start": 1}, "'video_start' is called 'start'"),
        ({"frame_rate": 8}, "unknown keys"),
        ({"resized_height": 8}, "unknown keys"),
    ],
    ids=str,
)
def test_settings_beside_a_clip_are_used_or_refused(settings, expected, processor, clip):
    content = [{"type": "video", "video": clip, **settings}, {"type": "text", "text": "What?"}]
    ask = partial(processor.apply_chat_template, [{"role": "user", "content": content}], tokenize=True)
    if isinstance(expected, int):
        assert ask(return_dict=True, return_tensors="pt")["video_num_frames"].tolist() == [expected]
    else:
        with pytest.raises(ValueError, match=expected):
            ask()


# Shared file objects -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_clip(folder):
    """Several reads long, so that two readers of one file object meet."""
    noise = np.random.default_rng(0).integers(0, 40, (100, 96, 160, 3), dtype=np.uint8)
    return write_clip(folder / "large.mp4", [numbered_frame(i, 160, 96) // 2 + noise[i] for i in range(100)])


@field_report("Comfy-Org/ComfyUI #11456", "ai-dynamo/dynamo #1443", "huggingface/lerobot #4526")
@pytest.mark.parametrize("form", ["bytes in memory", "open file", "unbuffered file", "animated image", "decoder"])
def test_one_object_is_many_clips(form, large_clip, folder):
    """One object in a batch, in threads, and after another reader has moved it."""
    if form == "bytes in memory":
        source = io.BytesIO(Path(large_clip).read_bytes())
    elif form == "animated image":
        first, *others = [Image.fromarray(numbered_frame(i)) for i in range(100)]
        first.save(folder / "animated.png", save_all=True, append_images=others, duration=40)
        source = Image.open(folder / "animated.png")
    elif form == "decoder":
        source = OneReaderDecoder()
    else:
        source = open(large_clip, "rb", buffering=0 if form == "unbuffered file" else -1)
    with ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(lambda start: sample_video(source, fps=5, start=start, end=start + 1), [0, 1, 2, 3] * 5))
    assert [numbers(clip.frames) for clip in clips] == [list(range(s, s + 25, 5)) for s in (0, 25, 50, 75)] * 5
    if hasattr(source, "read"):
        source.seek(7)
        batch = [{"video": source, "start": start, "end": start + 1} for start in (0, 2)]
        assert ValleyVideoProcessor(num_threads=2)(batch, fps=5)["video_num_frames"].tolist() == [5, 5]


class OneReaderDecoder:
    """Stands in for torchcodec's decoder, which knows no threads: 100 frames at 25 per second."""

    class metadata:
        begin_stream_seconds, end_stream_seconds, num_frames, average_fps, width, height = 0.0, 4.0, 100, 25.0, 80, 48

    def get_frames_at(self, indices):
        assert not vars(self).setdefault("busy", False)
        self.busy = True
        frames = torch.stack([torch.from_numpy(numbered_frame(index)).permute(2, 0, 1) for index in indices])
        self.busy = False
        return type("Batch", (), {"data": frames, "pts_seconds": [index / 25 for index in indices]})

    def get_frames_played_at(self, seconds):
        return self.get_frames_at([int(second * 25 + 1e-3) for second in seconds])


@field_report("yaak-ai/rbyte #64")
@pytest.mark.parametrize("method", ["read", "seek"])
@pytest.mark.parametrize("error", [OSError("gone"), TimeoutError("slow"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("calls", [0, 1, 3, 9])
def test_an_error_of_a_file_object_is_raised_and_not_printed(calls, error, method, large_clip, capfd):
    left = iter(range(calls))

    class Failing(io.BytesIO):
        pass

    def call(self, *arguments):
        if next(left, None) is None:
            raise error
        return getattr(io.BytesIO, method)(self, *arguments)

    setattr(Failing, method, call)
    file = Failing(Path(large_clip).read_bytes())
    with pytest.raises(type(error)) as caught:
        for start in range(4):
            sample_video(file, fps=1, start=start)
    assert caught.value is error
    assert capfd.readouterr().err == ""


# Files that stay open ------------------------------------------------------------------------------------------


@field_report("PyAV-Org/PyAV #286")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list open files")
@pytest.mark.parametrize("kind", ["sound alone", "too many pixels", "start past the end", "corrupt", "playlist"])
def test_refused_files_are_closed(kind, clip, tmp_path, monkeypatch):
    path, rule = tmp_path / "refused.mp4", {}
    path.write_bytes(Path(clip).read_bytes())
    if kind == "sound alone":
        write_sound(path)
    elif kind == "too many pixels":
        monkeypatch.setattr("transformers_valley.video_packets.MAX_PIXELS", 10)
    elif kind == "start past the end":
        rule = {"start": 1000.0}
    elif kind == "corrupt":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_text("#EXTM3U\n#EXTINF:1,\nclip.mp4\n")
    gc.disable()  # as training loops do
    try:
        before, errors = os.listdir("/proc/self/fd"), []
        for _ in range(5):
            with pytest.raises(VideoDecodeError) as caught:
                sample_video(path, **rule)
            errors.append(caught.value)  # with the frames of its traceback
        assert len(os.listdir("/proc/self/fd")) == len(before)
    finally:
        gc.enable()


def write_sound(path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# Forks ---------------------------------------------------------------------------------------------------------

FORKS = """
import multiprocessing, sys
import torch
from datasets import Dataset
from PIL import Image
from transformers_valley import ValleyVideoProcessor

torch.set_num_threads(2)
pixels = torch.randint(0, 256, (8, 3, 480, 640), dtype=torch.uint8)
images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in pixels]
clips = {"clip": sys.argv[1], "array": pixels, "images": [images]}
processor = ValleyVideoProcessor()

def count(row):
    return {"frames": int(processor(clips[row["name"]])["video_num_frames"][0])}

rows = [{"name": name} for name in clips]
expected = list(map(count, rows))  # torch's threads start
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(count, rows) == expected
counted = Dataset.from_list(rows).map(count, num_proc=2)
assert counted["frames"][:] == [row["frames"] for row in expected] and torch.get_num_threads() == 2
"""


@field_report("huggingface/datasets #5094", "huggingface/datasets #5786", "huggingface/lerobot #2488")
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="this system does not fork")
def test_processes_forked_after_the_first_clip_do_not_hang(clip):
    """Clips, arrays and images, by `datasets` and by a plain pool."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen([sys.executable, "-c", FORKS, clip], env=environment, start_new_session=True)
    try:
        assert process.wait(timeout=120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
