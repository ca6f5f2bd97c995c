# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Photos as phones keep them, in HEIC: read right or refused, and never in part."""

import struct
from pathlib import Path

import av
import pytest
from clips import read_number, write_clip

from transformers_valley.video_decoding import VideoDecodeError, sample_video
from transformers_valley.video_sources import load_image


def write_heic(tiles: int, folder: Path) -> bytes:
    """A HEIF of one HEVC picture, or of several side by side in a grid, as phones write them."""

    def box(name: bytes, *parts: bytes) -> bytes:
        return struct.pack(">I4s", 8 + sum(map(len, parts)), name) + b"".join(parts)

    def full(name: bytes, version: int, *parts: bytes) -> bytes:
        return box(name, struct.pack(">I", version << 24), *parts)

    path = write_clip(folder / "tile.mp4", 8, codec="libx265", width=64, height=64)
    with av.open(path) as container:
        header = bytes(container.streams.video[0].codec_context.extradata)
        data = [bytes(next(container.demux(video=0)))] * tiles
    kinds = [b"hvc1"] * tiles
    references = b""
    if tiles > 1:
        kinds.append(b"grid")
        data.append(struct.pack(">4B2H", 0, 0, 0, tiles - 1, 64 * tiles, 64))
        numbers_of_tiles = struct.pack(f">{tiles}H", *range(1, tiles + 1))
        references = full(b"iref", 0, box(b"dimg", struct.pack(">HH", tiles + 1, tiles), numbers_of_tiles))
    count = struct.pack(">H", len(kinds))
    items = [full(b"infe", 2, struct.pack(">HH4sx", i, 0, kind)) for i, kind in enumerate(kinds, 1)]
    sizes = [full(b"ispe", 0, struct.pack(">II", width, 64)) for width in (64, 64 * tiles)]
    properties = b"".join(
        struct.pack(">HB2B", i, 2, 0x81, 2) if kind == b"hvc1" else struct.pack(">HBB", i, 1, 3)
        for i, kind in enumerate(kinds, 1)
    )
    properties = full(b"ipma", 0, struct.pack(">I", len(kinds)), properties)
    properties = box(b"iprp", box(b"ipco", box(b"hvcC", header), *sizes), properties)

    def meta(begin: int) -> bytes:
        places = []
        for i, item in enumerate(data, 1):
            places.append(struct.pack(">HHHII", i, 0, 1, begin, len(item)))
            begin += len(item)
        return full(
            b"meta",
            0,
            full(b"hdlr", 0, struct.pack(">I4s13x", 0, b"pict")),
            full(b"pitm", 0, struct.pack(">H", len(kinds))),
            full(b"iinf", 0, count, *items),
            references,
            properties,
            full(b"iloc", 0, struct.pack(">BB", 0x44, 0), count, *places),
        )

    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *data)


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_a_photo_in_tiles_is_not_taken_for_one_of_them(tiles, tmp_path):
    """FFmpeg gives the tiles of phones' HEIC files as streams of their own."""
    photo = write_heic(tiles, tmp_path)
    with pytest.raises(VideoDecodeError, match="not a readable image"):
        load_image(photo)
    if tiles == 1:
        assert list(map(read_number, sample_video(photo).frames)) == [0]
    else:
        with pytest.raises(VideoDecodeError, match="stored in tiles.*Convert it"):
            sample_video(photo)
