# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How a container crops its pictures: the clean aperture of MOV and MP4 (`clap`), PixelCrop of Matroska and WebM.

Input: a file with such a header. Output: the pixels to crop. FFmpeg reads them too, but its program alone applies
them, and PyAV does not hand them out.
"""

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO


__all__ = ["Cropping", "read_mov_cropping", "read_matroska_cropping"]

MAX_PARTS = 20_000  # boxes or elements that are looked at; headers of common files have some hundred
MAX_BYTES = 4096  # of a box or element that is read
MAX_STORED = 2**16  # pixels of a side
SEGMENT, TRACKS, TRACK, TRACK_TYPE, VIDEO, CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0, 0x1F43B675
PIXEL_CROP = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # left, top, right, bottom

Cropping = tuple[int, int, int, int]  # pixels to crop: left, top, right, bottom
Part = tuple[bytes | int, int, int]  # name, where its content begins, where it ends
NOTHING: Cropping = (0, 0, 0, 0)


def read_mov_cropping(file: BinaryIO, track_id: int) -> Cropping:
    """
    Read which pixels of a MOV or MP4 are not displayed; none where the file does not say, or says nonsense.

    Args:
        file (binary file object): can seek.
        track_id (`int`): of the video.
    """
    parts = _Parts(file)
    for _, *track in parts.boxes(0, parts.size, b"moov", b"trak"):
        header = next((parts.read(*box) for _, *box in parts.boxes(*track, b"tkhd")), b"").ljust(24, b"\0")
        if struct.unpack_from(">I", header, 20 if header[0] else 12)[0] != track_id:
            continue
        for _, begin, end in parts.boxes(*track, b"mdia", b"minf", b"stbl", b"stsd"):
            for _, entry, stop in parts.boxes(begin + 8, end):  # after the version and the count
                width, height = struct.unpack_from(">HH", parts.read(entry, stop).ljust(78, b"\0"), 24)
                for _, *box in parts.boxes(entry + 78, stop, b"clap"):
                    return _clean_aperture(width, height, parts.read(*box))
    return NOTHING


def _clean_aperture(width: int, height: int, box: bytes) -> Cropping:
    """A width, a height, and how far its centre is from the picture's, each as a fraction."""
    if len(box) < 32:
        return NOTHING
    numbers = struct.unpack_from(">IIIIiIiI", box)
    if 0 in numbers[1::2]:
        return NOTHING
    clean_width, clean_height, right, down = map(Fraction, numbers[::2], numbers[1::2])
    left, top = (width - clean_width) / 2 + right, (height - clean_height) / 2 + down
    sides = left, top, width - clean_width - left, height - clean_height - top
    return NOTHING if min(sides) < 0 else tuple(map(math.floor, sides))


def read_matroska_cropping(file: BinaryIO, number: int) -> Cropping:
    """
    Read which pixels of a Matroska or WebM are not displayed; none where the file does not say.

    Args:
        file (binary file object): can seek.
        number (`int`): of the video, from 0, among those of the file.
    """
    parts = _Parts(file)
    for name, *part in parts.elements(0, parts.size, SEGMENT, None):
        if name == CLUSTER:  # the header ends
            break
        for _, *track in parts.elements(*part, TRACK) if name == TRACKS else ():
            inside = {name: place for name, *place in parts.elements(*track, None)}
            if TRACK_TYPE not in inside or int.from_bytes(parts.read(*inside[TRACK_TYPE]), "big") != 1:
                continue
            if number:
                number -= 1
                continue
            sides = {name: parts.read(*place) for name, *place in parts.elements(*inside.get(VIDEO, (0, 0)), None)}
            found = tuple(int.from_bytes(sides.get(side, b"")[:8], "big") for side in PIXEL_CROP)
            return found if max(found) < MAX_STORED else NOTHING
    return NOTHING


class _Parts:
    """The boxes of MOV, or the elements of Matroska, in a file; no more than `MAX_PARTS` are looked at."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, MAX_PARTS
        self.size = file.seek(0, 2)

    def read(self, begin: int, end: int) -> bytes:
        self.file.seek(begin)
        return self.file.read(min(end - begin, MAX_BYTES))

    def boxes(self, begin: int, end: int, *path: bytes) -> Iterator[Part]:
        """Gives the boxes at a path of names; without one all that are there."""
        return self._descend(self._box, begin, end, path or (None,))

    def elements(self, begin: int, end: int, *path: int | None) -> Iterator[Part]:
        """Gives the elements at a path of names, of which `None` is any."""
        return self._descend(self._element, begin, end, path)

    def _descend(self, parse, begin: int, end: int, path: tuple) -> Iterator[Part]:
        while begin < end and self.left and (part := parse(begin, end)):
            self.left -= 1
            name, content, stop = part
            if path[0] in (None, name):
                yield from self._descend(parse, content, stop, path[1:]) if path[1:] else [part]
            begin = stop

    def _box(self, begin: int, end: int) -> Part | None:
        head = self.read(begin, min(begin + 16, end))
        size, name, long_size = struct.unpack(">I4sQ", head.ljust(16, b"\0"))
        header = 16 if size == 1 else 8
        size = {0: end - begin, 1: long_size}.get(size, size)
        return (name, begin + header, min(begin + size, end)) if size >= header and len(head) >= header else None

    def _element(self, begin: int, end: int) -> Part | None:
        head = self.read(begin, min(begin + 12, end))
        name_bytes = 9 - head[0].bit_length()  # the first bit set tells the length
        digits = head[name_bytes:]
        if name_bytes > 4 or not digits or not digits[0]:
            return None
        size_bytes = 9 - digits[0].bit_length()
        unknown = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(digits[:size_bytes], "big") & unknown
        content = begin + name_bytes + size_bytes
        if content > end:
            return None
        return int.from_bytes(head[:name_bytes], "big"), content, end if size == unknown else min(content + size, end)
