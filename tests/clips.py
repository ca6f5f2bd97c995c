# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Writes short real videos whose frames carry their number as a bar code, so that sampling is asserted exactly."""

import itertools
import os
import struct
import subprocess
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
import torch


FLAGS = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd"  # colours are interpolated, as on a screen
BARS = 10  # binary digits of a frame's number, the highest first: numbers to 1023


def numbered_frame(number: int, width: int = 80, height: int = 48) -> np.ndarray:
    """Gives a uint8 picture (height, width, 3) of white and black bars that spell `number` in binary."""
    digits = [number >> shift & 1 for shift in reversed(range(BARS))]
    columns = np.arange(width) * BARS // width
    row = np.where(np.array(digits)[columns, None], [235, 235, 200], [20, 20, 60]).astype(np.uint8)  # (width, 3)
    return np.repeat(row[None], height, axis=0)


def read_number(frame: torch.Tensor | np.ndarray) -> int:
    """Reads the number back from a frame (3, height, width), whatever it was encoded with and resized to."""
    grey = np.asarray(frame, dtype=np.float32).mean(axis=(0, 1))
    centers = (np.arange(BARS) + 0.5) * len(grey) / BARS
    return sum(1 << shift for shift, x in zip(reversed(range(BARS)), centers, strict=True) if grey[int(x)] > 127)


def write_clip(
    path: str | os.PathLike,
    frames: int | Iterable[np.ndarray],
    fps: float | Fraction = 25,
    codec: str = "libx264",
    gop: int = 12,
    bframes: int = 2,
    pix_fmt: str = "yuv420p",
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
    width: int = 80,
    height: int = 48,
) -> str:
    """Writes a video and returns its path.

    Args:
        path (`str` or `os.PathLike`): the file; its suffix chooses the container.
        frames (`int` or iterable of `np.ndarray`): how many numbered frames, or uint8 pictures (height, width, 3).
        fps (`float`, *optional*, defaults to 25): frames per second.
        codec (`str`, *optional*, defaults to `"libx264"`): FFmpeg's encoder.
        gop (`int`, *optional*, defaults to 12): frames from one keyframe to the next.
        bframes (`int`, *optional*, defaults to 2): frames that lean on later ones, in a row.
        pix_fmt (`str`, *optional*, defaults to `"yuv420p"`): how pixels are stored.
        times (`list[float]`, *optional*): seconds at which frames appear, for a variable rate.
        options (`dict[str, str]`, *optional*): further options of the encoder.
        width, height (`int`, *optional*): size of numbered frames.
    """
    if isinstance(frames, int):
        frames = (numbered_frame(i, width, height) for i in range(frames))
    frames = iter(frames)
    first = next(frames)
    rate = Fraction(fps).limit_denominator(1001)
    defaults = {"crf": "10", "preset": "ultrafast", "sc_threshold": "0"} if codec == "libx264" else {}
    if codec == "libx265":
        defaults = {"crf": "10", "preset": "ultrafast", "x265-params": f"log-level=none:bframes={bframes}:pools=1"}
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=defaults | (options or {}))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = bframes
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(itertools.chain([first], frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is None:
                frame.pts, frame.time_base = number, 1 / rate
            else:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return os.fspath(path)


def run_ffmpeg(*arguments: str) -> bytes:
    """Runs the ffmpeg program; gives what it prints."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    return subprocess.run([program, "-v", "error", "-y", *arguments], capture_output=True, check=True).stdout


def pictures_of_ffmpeg(path: str, stream: str, width: int, height: int, *options: str) -> np.ndarray:
    """Gives every picture of a file in order, (N, 3, height, width), as the ffmpeg program writes them."""
    scale = f"scale={width}:{height}:flags={FLAGS},format=rgb24"
    data = run_ffmpeg(
        *options, "-i", path, "-map", stream, *"-fps_mode passthrough -f rawvideo -vf".split(), scale, "-"
    )
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, height, width, 3).transpose(0, 3, 1, 2)


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


def crop_mov(path: str | os.PathLike, left: int, top: int, right: int, bottom: int) -> str:
    """Writes into an H.264 MOV or MP4, with its header at the end, how many pixels are not to be shown (`clap`)."""
    data = bytearray(open(path, "rb").read())
    at = data.index(b"avcC") - 4
    width, height = struct.unpack_from(">HH", data, data.rindex(b"avc1", 0, at) + 28)
    shown = width - left - right, 1, height - top - bottom, 1
    box = struct.pack(">I4s4I", 40, b"clap", *shown) + struct.pack(">iIiI", left - right, 2, top - bottom, 2)
    data[at:at] = box
    for name in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        begin = data.rindex(name, 0, at) - 4
        data[begin : begin + 4] = struct.pack(">I", struct.unpack_from(">I", data, begin)[0] + len(box))
    with open(path, "wb") as file:
        file.write(data)
    return os.fspath(path)


def call_all_keyframes(path: str | os.PathLike) -> str:
    """Makes a MOV, MP4 or AVI say of each of its pictures that it needs no other."""
    data = bytearray(open(path, "rb").read())
    if b"idx1" in data:
        for at in range(data.rindex(b"idx1") + 8, len(data) - 15, 16):
            data[at + 4] |= 0x10
    else:  # the table of keyframes; without it all are
        at = data.index(b"stss")
        data[at : at + 4] = b"free"
    with open(path, "wb") as file:
        file.write(data)
    return os.fspath(path)
