# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Small files that claim or cost much: pictures too large, animations that take hours, clips that nobody waits for.

What users of other projects reported (1bit-MONSTER/1bit-MONSTER #1296, vllm-project/vllm #47010), and its neighbours.
"""

import io
import re
import struct
import time
import zlib

import pytest
from clips import run_ffmpeg, write_clip
from PIL import Image

from transformers_valley import ValleyVideoProcessor
from transformers_valley.video_decoding import VideoDecodeError, count_sampled_frames, sample_video
from transformers_valley.video_interrupts import interrupted_by, time_limit


def write_gif(width: int, count: int) -> bytes:
    """Pictures of one pixel on a large canvas: 23 bytes each."""
    head = struct.pack("<6sHHBBB6s", b"GIF89a", width, width, 0x80, 0, 0, b"\0\0\0\xff\xff\xff")
    pixel = struct.pack("<BHHHHB5s", 0x2C, 0, 0, 1, 1, 0, b"\x02\x02\x44\x01\0")
    return head + (b"\x21\xf9\x04\x04\x0a\0\0\0" + pixel) * count + b";"


def write_webp(width: int, count: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)

    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "WEBP", lossless=True)
    place = bytes(6) + b"\1\0\0\1\0\0\x64\0\0\0"  # at (0, 0), of 2x2 pixels, for 100 milliseconds
    side = (width - 1).to_bytes(3, "little")
    body = chunk(b"VP8X", b"\x02\0\0\0" + side * 2) + chunk(b"ANIM", bytes(6))
    return chunk(b"RIFF", b"WEBP" + body + chunk(b"ANMF", place + file.getvalue()[12:]) * count)


def write_apng(width: int, count: int) -> bytes:
    def chunk(name: bytes, *values, data: bytes = b"") -> bytes:
        body = name + b"".join(value.to_bytes(4, "big") for value in values) + data
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    row = bytes(1 + (width + 7) // 8)
    parts = [chunk(b"IHDR", width, width, data=b"\1\0\0\0\0"), chunk(b"acTL", count, 0)]
    parts += [chunk(b"fcTL", 0, width, width, 0, 0, data=b"\0\1\0\x0a\0\0")]
    parts += [chunk(b"IDAT", data=zlib.compress(row * width))]
    for number in range(1, 2 * count - 2, 2):
        parts += [chunk(b"fcTL", number, 1, 1, 0, 0, data=b"\0\1\0\x0a\0\0")]
        parts += [chunk(b"fdAT", number + 1, data=zlib.compress(b"\0\0"))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND")


def write_tiff(width: int, count: int) -> bytes:
    file, picture = io.BytesIO(), Image.new("1", (width, width))
    picture.save(file, "TIFF", compression="group4", save_all=True, append_images=[picture] * (count - 1))
    return file.getvalue()


ANIMATIONS = {"gif": write_gif, "webp": write_webp, "apng": write_apng, "tiff": write_tiff}


@pytest.mark.parametrize(
    ("kind", "width", "count", "reason"),
    [
        ("gif", 8192, 130, "130 pictures of 8192x8192 pixels are more than the limit"),
        ("webp", 8192, 130, "130 pictures of 8192x8192"),
        ("apng", 8192, 130, "130 pictures of 8192x8192"),
        ("gif", 8193, 2, "limit"),
        ("webp", 8193, 2, "8193x8193 pixels are more than the limit"),
        ("apng", 8193, 2, "8193x8193 pixels are more than the limit"),
        ("webp", 16, 10_001, "more than 10000 pictures"),
        ("apng", 16, 10_001, "more than 10000 pictures"),
        ("gif", 65535, 1, "bomb"),
        ("webp", 16384, 2, "bomb"),
        ("apng", 20_000, 2, "bomb"),
    ],
)
def test_animations_that_take_hours_are_refused_at_once(kind, width, count, reason):
    data, begin = ANIMATIONS[kind](width, count), time.monotonic()
    with pytest.raises(VideoDecodeError, match=reason):
        sample_video(data)
    assert time.monotonic() - begin < 5 and len(data) < 10**6


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_animations_of_the_web_are_read(kind):
    data = ANIMATIONS[kind](64, 120)
    assert len(sample_video(data, num_frames="all").frames) == count_sampled_frames(data, num_frames="all") == 120


@pytest.mark.parametrize(
    ("suffix", "codec", "size"),
    [
        ("avi", "mjpeg", rb"(?<=\xff\xc0\0\x11\x08).{4}"),
        ("mkv", "mjpeg", rb"(?<=\xff\xc0\0\x11\x08).{4}"),
        ("webm", "libvpx", rb"(?<=\x9d\x01\x2a).{4}"),
    ],
)
def test_pictures_larger_than_their_header_says_are_refused(suffix, codec, size, tmp_path):
    path = tmp_path / f"clip.{suffix}"
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    run_ffmpeg(
        *"-f lavfi -i color=red:size=80x48:rate=5:duration=1 -pix_fmt".split(), pixels, "-c:v", codec, str(path)
    )
    data, count = re.subn(size, struct.pack("<HH", 0x3E3E, 0x3E3E), path.read_bytes(), flags=re.DOTALL)
    assert count  # 15934x15934, in either order of bytes
    path.write_bytes(data)
    with pytest.raises(VideoDecodeError):
        sample_video(path)


@pytest.mark.parametrize("kind", ["mp4", "avi", "webp", "gif", "batch", "partial"])
def test_reading_ends_when_it_is_told_to(kind, tmp_path):
    rule = {"on_error": "partial"} if kind == "partial" else {}
    source = ANIMATIONS[kind](64, 20) if kind in ANIMATIONS else None
    # H.264 in AVI is decoded in order.
    source = source or write_clip(tmp_path / f"clip.{kind if kind == 'avi' else 'mp4'}", 30)
    read = sample_video
    if kind == "batch":
        read, source = ValleyVideoProcessor(), [source, source]
    with interrupted_by(time_limit(60)):
        read(source, num_frames=4, **rule)
    with interrupted_by(time_limit(-1)), pytest.raises(VideoDecodeError, match="takes longer than -1 seconds"):
        read(source, num_frames=4, **rule)
    read(source, num_frames=4, **rule)


@pytest.mark.parametrize("kind", ["mp4", "webp"])
@pytest.mark.parametrize("after", [5, 12])
def test_what_is_interrupted_is_not_taken_for_damaged(kind, after, tmp_path):
    """However far it got, `on_error="partial"` takes nothing of it."""
    if kind == "mp4":
        clip = write_clip(tmp_path / "clip.mp4", 10, fps=10)
    else:
        clip = tmp_path / "clip.webp"
        clip.write_bytes(write_webp(64, 10))
    asked = iter(range(after))
    with interrupted_by(lambda: next(asked, None) is None and "enough." or None):
        with pytest.raises(VideoDecodeError, match="enough"):
            sample_video(clip, fps=10, on_error="partial")


def test_an_address_of_commas_is_refused_before_it_is_split():
    with pytest.raises(VideoDecodeError, match="it has 10001 pictures; the limit is 10000"):
        sample_video("data:video/jpeg;base64," + 10_000 * ",")
