# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Frames out of video files with PyAV: only the groups of pictures that hold a wanted frame are decoded.

In goes an open file and the moments to look at, in ticks of its clock; out come RGB pictures, one per row.
Packets tell their times and keyframes before a picture is decoded, so one forward pass with seeks is enough.
"""

import bisect
import contextlib
import io
import itertools
import logging
import math
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import torch

from .video_sources import MAX_PIXELS, VideoDecodeError, check_picture_size


__all__ = ["Clip", "Rows", "Timeline", "decode"]

logger = logging.getLogger(__name__)

MAX_PACKETS = 5_000_000  # 23 hours at 60 frames a second
MAX_HELD_BYTES = 64 * 1024**2  # packets kept undecoded in the hope that a keyframe makes them unnecessary
MAX_DECODERS_BYTES = 120 * 1024**2  # pictures inside all decoders of one clip, about
BYTES_PER_PIXEL_IN_A_DECODER = 21  # ten YUV pictures for reference and reordering, two of RGB on their way out
MIN_WORTH_SPLITTING = 60e6  # pixels to decode: about a tenth of a second on one core
TICK_TOLERANCE = 1e-3  # of a tick: float seconds must not fall just short of the frame they name
MAX_PIXEL_ASPECT = 10  # width of a pixel over its height, or the reverse; more is a damaged header
EMPTY_PACKET = 8  # bytes at most, of MPEG-4's "not coded" picture
TIMES_KEPT = 64  # packets by time in a decoder; no codec reorders more than 16 pictures
LARGEST_STEP_BACK = 0.25  # seconds; where decode times go back further, two clocks were glued together
MAX_FRAMES_BYTES = 4 * 1024**3  # of all frames taken: a damaged clip of a few kilobytes may claim to last for days
LARGEST_TIME = 2**63 - 1  # FFmpeg's; arithmetic on damaged times goes beyond

# FFmpeg's converter refuses all others, among them "reserved", which cameras write; unspecified is taken as BT.601.
CONVERTED_COLORSPACES = (0, 1, 2, 4, 5, 6, 7, 9)
UNSPECIFIED_COLORSPACE = 2
# Colours between the stored ones are interpolated, as on a screen: FFmpeg's quick way is 1 to 2 grey levels off.
FAITHFUL = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd"

# Containers that hold their own pictures. Playlists (hls, dash, concat) and image patterns open other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,nut,wtv,rm,dv,ivf,"
    "swf,h264,hevc,vvc,av1,obu,m4v,mjpeg,vc1,yuv4mpegpipe,wav,mp3,flac,aac"
)
MOV = "mov,mp4,m4a,3gp,3g2,mj2"  # its index lists every packet
# Their index of keyframes is complete and cheap to seek in.
INDEXED_CONTAINERS = (MOV, "matroska,webm", "avi")


class Clip:
    """The video stream of one open file: its packets in decode order, and what the container knows.

    Args:
        source (`str` or binary file): what to open.
        name (`str`): what to call it in messages.

    Raises:
        `VideoDecodeError`: it is no video, or claims what no memory holds.
    """

    def __init__(self, source: str | BinaryIO, name: str):
        self.source, self.name = source, name
        self.container = None
        self.open()
        self.indexed = self.container.format.name in INDEXED_CONTAINERS
        self.first_key = None  # when the first keyframe appears, where pictures before it are shown
        self.delay = 0  # of the first picture after its time in the index
        self.encrypted = self.disordered = self.leading_shown = False  # as far as read
        self.in_order = False  # all has to be decoded: packets do not tell which pictures come out when

    def is_told_by_decoding_only(self) -> bool:
        """Whether it is known beforehand that packets do not tell which pictures come out when."""
        avi, codec = self.container.format.name == "avi", self.codec.name
        if avi and codec in ("h264", "hevc"):  # its times are wrong for pictures displayed out of order
            return True
        if avi and codec == "mpeg4":  # packets of two pictures, and then one of none
            return any(0 < entry.size <= EMPTY_PACKET for entry in self.stream.index_entries)
        if self.container.format.name == MOV:  # several parts of a film, trimmed and joined by an edit list
            times = [entry.timestamp for entry in self.stream.index_entries]
            if any(after < before for before, after in itertools.pairwise(times)):
                return True
        return self.codec.pix_fmt == "pal8"  # the palette comes with the first packet, or whenever it changes

    def open(self) -> None:
        """Opens the file, or opens it again to read from its beginning."""
        import av
        from av.stream import Discard

        self.close()
        if not isinstance(self.source, str):
            self.source.seek(0)
        file = f"file:{self.source}" if isinstance(self.source, str) else self.source
        limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        limited_codec = {"max_pixels": str(MAX_PIXELS)}
        try:
            self.container = av.open(
                file, options=limited_codec, container_options=limits, metadata_errors="ignore", mode="r"
            )
        except av.FFmpegError as error:
            raise VideoDecodeError(self.name, self._why_not_opened(error)) from error
        self.stream = self._choose_stream()
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1  # few pictures are decoded in a row: threads cost more than they bring
        self.codec.options = limited_codec
        self.rate = self.stream.average_rate or self.stream.guessed_rate

    def another(self) -> "Clip | None":
        """Opens the file a second time, to read at two places at once; a shared file object cannot be."""
        if not isinstance(self.source, str | io.BytesIO):
            return None
        source = self.source if isinstance(self.source, str) else io.BytesIO(self.source.getvalue())
        clip = Clip(source, self.name)
        clip.seek(0)  # Matroska reads its index at the first seek
        clip.indexed, clip.delay = self.indexed, self.delay
        clip.first_key, clip.leading_shown = self.first_key, self.leading_shown
        return clip

    def _size_and_head(self) -> tuple[int, bytes]:
        """Gives the file's size and its first bytes; FFmpeg reads on where it stood."""
        with contextlib.ExitStack() as stack:
            if isinstance(self.source, str):
                file = stack.enter_context(open(self.source, "rb"))
            else:
                file = self.source
                stack.callback(file.seek, file.tell())
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return size, file.read(128)

    def _why_not_opened(self, error: Exception) -> str:
        if self._size_and_head()[0] == 0:
            return "the file is empty."
        return f"not a video, or its header is damaged or missing (FFmpeg: {error.strerror})."

    def _choose_stream(self) -> Any:
        from av.stream import Disposition

        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoDecodeError(self.name, "it has no video stream.")
        best = self.container.streams.best("video")
        stream = next((s for s in streams if s is best), streams[0])
        if stream.codec_context is None:
            raise VideoDecodeError(self.name, "there is no decoder for its codec.")
        if stream.width * stream.height > MAX_PIXELS:
            raise VideoDecodeError(
                self.name, f"it claims {stream.width}x{stream.height} pixels; the limit is {MAX_PIXELS}."
            )
        return stream

    def packets(self) -> Iterator[Any]:
        """Gives the packets from where the file stands to its end, or to where it cannot be read any further."""
        import av

        try:
            for count, packet in enumerate(self.container.demux(self.stream)):
                if count > MAX_PACKETS:
                    raise VideoDecodeError(self.name, f"it has more than {MAX_PACKETS} packets.")
                if packet.size:  # an empty packet would end the decoder's work
                    yield packet
        except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV at the end of a file that gained a stream
            logger.debug("%s: reading ends early: %s", self.name, error)

    def frames(self) -> Iterator[tuple[Any, bool]]:
        """Decodes everything in order; gives each frame, and whether it is damaged."""
        import av

        self.open()
        damaged = False
        for packet in itertools.chain(self.packets(), [None]):
            self.encrypted |= packet is not None and packet.has_sidedata("encryption_info")
            try:
                frames = self.codec.decode(packet)
            except av.FFmpegError:
                damaged = True
                continue
            for frame in frames:
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                yield frame, damaged

    def shows_leading(self, key_pts: int) -> bool:
        """Whether pictures displayed before the first keyframe come out: they may lean on what is not there."""
        for number, (frame, damaged) in enumerate(self.frames()):
            if frame.pts is not None and frame.pts < key_pts and not damaged:
                return True
            if number > TIMES_KEPT or (frame.pts is not None and frame.pts >= key_pts):
                break
        return False

    def seek(self, timestamp: int) -> Iterator[Any]:
        """Gives the packets from the keyframe at or before an index time on."""
        import av

        try:
            self.container.seek(_within_limits(timestamp), stream=self.stream)
        except av.FFmpegError:
            return iter(())
        return self.packets()

    def find_keyframe(self, timestamp: int) -> int:
        """Gives the number, in the index, of the last keyframe at or before an index time; -1 if there is none."""
        return self.stream.index_entries.search_timestamp(_within_limits(timestamp))

    def learn_delay(self, first_pts: int) -> None:
        """Compares the first picture's time with the index, which in some containers holds decode times."""
        entries = self.stream.index_entries
        self.indexed = self.indexed and len(entries) > 0
        self.delay = first_pts - entries[0].timestamp if self.indexed else 0

    def is_hidden(self, packet: Any) -> bool:
        """Whether a packet's picture is never displayed: cut away by an edit list, or a VP8 picture to refer to."""
        return packet.is_discard or (self.codec.name == "vp8" and not memoryview(packet)[0] & 0x10)

    def skips_unreferenced(self) -> bool:
        """Whether the decoder can leave out exactly the pictures that no other picture needs."""
        if self.codec.name == "hevc":  # exact with one temporal layer, which only an hvcC header tells
            header = self.codec.extradata or b""
            return len(header) > 21 and header[0] == 1 and (header[21] >> 3) & 7 == 1
        return self.codec.name in ("h264", "mpeg1video", "mpeg2video")

    def looks_whole(self, packet: Any) -> bool:
        """Whether a packet is made of NAL units, in H.264: where the decoder may skip, it says nothing of others."""
        if self.codec.name != "h264":
            return True
        data, header = memoryview(packet), self.codec.extradata or b""
        if len(header) < 5 or header[0] != 1:  # units begin with a start code, not with their length
            return b"\0\0\1" in bytes(data[:1024])
        digits, position = (header[4] & 3) + 1, 0
        while position + digits < len(data) and not data[position + digits] & 0x80:
            position += digits + int.from_bytes(data[position : position + digits], "big")
        return position == len(data)

    def pixel_aspect(self) -> Fraction:
        """Gives the width of a displayed pixel over its height."""
        aspect = self.stream.sample_aspect_ratio
        return aspect if aspect and 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else Fraction(1)

    def declared_seconds(self) -> float | None:
        """Gives how long the header says it lasts, if it does."""
        seconds = float((self.stream.duration or 0) * self.stream.time_base)
        if self.stream.frames and self.stream.average_rate:  # FFmpeg shortens the duration of an AVI that is cut off
            seconds = max(seconds, float(self.stream.frames / self.stream.average_rate))
        return seconds or (self.container.duration or 0) / 10**6 or None

    def is_cut_off(self) -> bool:
        """Whether the file is shorter than its own index or header says."""
        size, head = self._size_and_head()
        entries = self.stream.index_entries
        if self.container.format.name == MOV:
            return len(entries) > 0 and entries[-1].pos + entries[-1].size > size
        return _declared_bytes(head) > size + 1024  # some writers miscount their last bytes

    def close(self) -> None:
        if self.container is not None:
            self.container.close()


def _within_limits(timestamp: int) -> int:
    return max(-LARGEST_TIME, min(timestamp, LARGEST_TIME))


def _declared_bytes(head: bytes) -> int:
    """Gives how long an AVI or Matroska file says it is, from its first bytes; 0 where it does not."""
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 0 if size == 0xFFFFFFFF else size + 8
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return 0
    length, body = _matroska_number(head, 4)
    if length is None or head[body + length : body + length + 4] != b"\x18\x53\x80\x67":  # the segment
        return 0
    size, body = _matroska_number(head, body + length + 4)
    return 0 if size is None else body + size


def _matroska_number(data: bytes, position: int) -> tuple[int | None, int]:
    """Reads a number whose first set bit tells its length in bytes; all bits set means unknown."""
    first = data[position] if position < len(data) else 0
    if not first:
        return None, position
    length = 9 - first.bit_length()
    bits = 7 * length
    number = int.from_bytes(data[position : position + length], "big") & ((1 << bits) - 1)
    return (None if number == (1 << bits) - 1 else number), position + length


@dataclass
class Timeline:
    """When a clip begins and ends, in ticks.

    Attributes:
        first, last, stop (`int`): when the first and the last frame appear, and when the last one disappears.
        tick_seconds (`Fraction`): seconds of a tick.
        shown (sequence of `int`, *optional*): when each frame appears, where they were counted.
        assumed (`bool`): `shown` follows from a constant rate and was not read.
    """

    first: int
    last: int
    stop: int
    tick_seconds: Fraction
    shown: np.ndarray | range | None = None
    assumed: bool = False

    @classmethod
    def read(cls, clip: Clip, count: bool, assume: bool = True) -> "Timeline":
        """Looks at the packets, decoding nothing: both ends where the index allows, else all of them.

        Where packets do not tell, everything is decoded. With `count`, `shown` is filled in, and without `assume`
        from what was read.
        """
        timeline = None
        clip.in_order = clip.in_order or clip.is_told_by_decoding_only()
        if clip.indexed and not clip.in_order:
            timeline = cls._read_ends(clip)
            if timeline and count:
                timeline = timeline._with_index(clip) if assume else None
        if timeline is None and not clip.in_order:
            timeline = cls._read_all(clip, count)
        return timeline or cls._decode_all(clip)

    @classmethod
    def _read_ends(cls, clip: Clip) -> "Timeline | None":
        tick = clip.stream.time_base
        length = clip.stream.duration or (clip.container.duration and int(clip.container.duration / 10**6 / tick))
        head = list(_Facts.until_known(clip, clip.packets()))
        if not length or not _Facts.usable(head):
            return None
        key = next(fact for fact in head if fact.key)
        if any(fact.pts < key.pts and not fact.hidden for fact in head):
            return None  # they may be shown or not
        first = _Facts.shown(head)[0].pts
        tail = [_Facts.of(clip, packet) for packet in clip.seek(first + length)]
        if not _Facts.usable(tail) or not tail[0].key:
            return None
        clip.learn_delay(head[0].pts)
        last = _Facts.shown(tail)[-1]
        return cls(first, last.pts, last.end(clip), tick)

    def _with_index(self, clip: Clip) -> "Timeline | None":
        """Counts frames of a constant rate in an index that lists them all, without reading the file."""
        if clip.container.format.name != MOV:
            return None
        times = [entry.timestamp for entry in clip.stream.index_entries if not entry.is_discard]
        step, rest = divmod(self.last - self.first, max(1, len(times) - 1))
        if step <= 0 or rest or any(after - before != step for before, after in itertools.pairwise(times)):
            return None
        self.shown, self.assumed = range(self.first, self.last + 1, step), True
        return self

    @classmethod
    def _read_all(cls, clip: Clip, count: bool) -> "Timeline | None":
        """Reads all packets; gives nothing where they tell no two frames apart, or times go back."""
        clip.open()
        key, last, clock, times = None, None, -math.inf, array("q")
        for packet in clip.packets():
            fact = _Facts.of(clip, packet)
            key = key or (fact if fact.key else None)
            if key is None or fact.hidden:
                continue
            if fact.pts is None or key.pts is None:
                return None
            if fact.dts is not None:
                if (fact.dts - clock) * clip.stream.time_base < -LARGEST_STEP_BACK:
                    return None
                clock = fact.dts
            times.append(fact.pts)
            last = fact if last is None or fact.pts >= last.pts else last
        if last is None:
            return None
        times = np.sort(np.frombuffer(times, dtype=np.int64))
        if times[0] < key.pts:
            clip.first_key, clip.leading_shown = key.pts, clip.shows_leading(key.pts)
        shown = np.unique(times if clip.leading_shown else times[times >= key.pts])
        if not len(shown):
            return None
        if count and len(shown) < np.count_nonzero(times >= shown[0]):
            return None
        clip.learn_delay(key.pts)
        return cls(int(shown[0]), int(shown[-1]), last.end(clip), clip.stream.time_base, shown)

    @classmethod
    def _decode_all(cls, clip: Clip) -> "Timeline":
        """Decodes everything; times are those of the frames that come out, by the rate where they make no sense."""
        clip.in_order = True
        rate = clip.stream.guessed_rate or clip.stream.average_rate or Fraction(25)
        step = max(1, round(1 / (rate * clip.stream.time_base)))
        shown, decoded = _Clock(step), _Clock(step)
        lasts = step
        for frame, _ in clip.frames():
            shown.add(frame.pts)
            decoded.add(frame.dts)
            lasts = frame.duration or step
        if not shown.times:
            reason = "it is encrypted." if clip.encrypted else "no frame could be decoded; it is cut off or damaged."
            raise VideoDecodeError(clip.name, reason)
        # AVI mixes up when pictures are shown that come out of order, and only their decoding has a sensible time.
        times = (decoded if shown.mended and not decoded.mended else shown).times
        array_of_times = np.frombuffer(times, dtype=np.int64)
        return cls(times[0], times[-1], times[-1] + lasts, clip.stream.time_base, array_of_times)

    def tick(self, seconds: float) -> int:
        """Gives the last tick at or before a moment."""
        return self.first + math.floor(seconds / float(self.tick_seconds) + TICK_TOLERANCE)

    def tick_after(self, seconds: float) -> int:
        """Gives the first tick at or after a moment."""
        return self.first + math.ceil(seconds / float(self.tick_seconds) - TICK_TOLERANCE)

    def seconds(self, tick: int) -> float:
        return float((tick - self.first) * self.tick_seconds)


class _Clock:
    """Times of frames as they come out, made to rise by `step` where they do not."""

    def __init__(self, step: int):
        self.step, self.times, self.mended = step, array("q"), 0

    def add(self, time: int | None) -> None:
        if self.times and (time is None or time <= self.times[-1]):
            self.mended += time is not None
            time = self.times[-1] + self.step
        self.times.append(_within_limits(time or 0))


@dataclass(slots=True)
class _Facts:
    """What a packet says about its picture."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    hidden: bool

    @classmethod
    def of(cls, clip: Clip, packet: Any) -> "_Facts":
        return cls(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, clip.is_hidden(packet))

    @classmethod
    def until_known(cls, clip: Clip, packets: Iterator[Any]) -> Iterator["_Facts"]:
        """Gives the first packets, until none that follows can be shown before them."""
        earliest = math.inf
        for packet in packets:
            fact = cls.of(clip, packet)
            yield fact
            if fact.pts is None or (fact.dts is not None and fact.dts >= earliest):
                return
            if not fact.hidden:
                earliest = min(earliest, fact.pts)

    @staticmethod
    def usable(facts: list["_Facts"]) -> bool:
        return all(fact.pts is not None for fact in facts) and bool(_Facts.shown(facts))

    @staticmethod
    def shown(facts: list["_Facts"]) -> list["_Facts"]:
        """Gives what is displayed, in that order: nothing that leans on a picture before the first keyframe."""
        start = next((i for i, fact in enumerate(facts) if fact.key), len(facts))
        displayed = [fact for fact in facts[start:] if not fact.hidden and fact.pts >= facts[start].pts]
        return sorted(displayed, key=lambda fact: fact.pts)

    def end(self, clip: Clip) -> int:
        rate = clip.stream.guessed_rate or clip.rate
        return self.pts + (self.duration or (rate and round(1 / (rate * clip.stream.time_base))) or 1)


class Rows:
    """The frames that leave, each put into its row as it comes; several threads may put.

    Args:
        count (`int`): how many rows.
        transform (callable, *optional*): what to do with each picture, uint8 (3, H, W) to uint8 (3, h, w).
        name (`str`): what to call the clip in messages.
    """

    def __init__(self, count: int, transform: Callable[[torch.Tensor], torch.Tensor] | None, name: str):
        self.count, self.transform, self.name = count, transform, name
        self.frames = None
        self.geometry = self.shown_size = None
        self.lock = threading.Lock()

    def see(self, clip: Clip, frame: Any) -> "_Geometry":
        """Gives what all pictures of the clip become: what the first one is."""
        with self.lock:
            self.geometry = self.geometry or _Geometry.of(clip, frame)
            self.shown_size = self.geometry.shown_size
        return self.geometry

    def put(self, row: int, picture: torch.Tensor) -> None:
        if self.transform is not None:
            check_picture_size(picture.shape[2], picture.shape[1], self.name)
            picture = self.transform(picture)
        with self.lock:
            if self.frames is None:
                shape = (self.count, *picture.shape)
                if math.prod(shape) > MAX_FRAMES_BYTES:
                    reason = f"frames {shape} are more than {MAX_FRAMES_BYTES} bytes; lower fps or size."
                    raise VideoDecodeError(self.name, reason)
                try:
                    self.frames = torch.empty(shape, dtype=torch.uint8)
                except RuntimeError as error:
                    reason = f"frames {shape} do not fit into memory; lower fps or size."
                    raise VideoDecodeError(self.name, reason) from error
        if picture.shape != self.frames.shape[1:]:
            found, expected = tuple(picture.shape), tuple(self.frames.shape[1:])
            raise ValueError(
                f"transform gave a frame of shape {found} after one of {expected}; all must have one shape."
            )
        self.frames[row] = picture

    def finish(self, shown: list[int | None]) -> torch.Tensor:
        """Gives the frames that could be had, those that are wanted several times repeated."""
        kept = [row for row, pts in enumerate(shown) if pts is not None]
        if self.frames is None or not kept:
            raise VideoDecodeError(self.name, "no frame could be decoded.")
        for row in range(1, self.count):
            if shown[row] == shown[row - 1]:
                self.frames[row] = self.frames[row - 1]
        return self.frames if len(kept) == self.count else self.frames[kept]


@dataclass(frozen=True)
class _Geometry:
    """How stored pictures are displayed: (width, height) with square pixels, then transposed, then mirrored."""

    size: tuple[int, int]
    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @classmethod
    def of(cls, clip: Clip, frame: Any) -> "_Geometry":
        from av.sidedata.sidedata import Type

        width, height = max(1, round(frame.width * clip.pixel_aspect())), frame.height
        if width * height > MAX_PIXELS:
            raise VideoDecodeError(clip.name, f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}.")
        side_data = frame.side_data.get(Type.DISPLAYMATRIX)
        if side_data is None:
            return cls((width, height))
        # Rows of the matrix say where a step to the right and a step down in the stored picture lead on the screen.
        (right_x, right_y, _), (down_x, down_y, _), _ = np.frombuffer(side_data, dtype=np.int32)[:9].reshape(3, 3)
        if abs(int(right_x)) >= abs(int(right_y)):
            return cls((width, height), False, bool(right_x < 0), bool(down_y < 0))
        return cls((width, height), True, bool(down_x < 0), bool(right_y < 0))

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) on the screen."""
        return self.size[::-1] if self.transposed else self.size

    def place(self, picture: np.ndarray) -> torch.Tensor:
        """Turns a stored picture (H, W, 3) into a displayed one (3, H', W')."""
        if self.transposed:
            picture = picture.transpose(1, 0, 2)
        picture = picture[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]
        return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)


class _Converter:
    """Turns decoded frames into RGB as a player shows them; one per thread."""

    def __init__(self, clip: Clip, rows: Rows):
        self.clip, self.rows = clip, rows
        self.graph, self.kind = None, None

    def __call__(self, frame: Any) -> torch.Tensor:
        import av

        geometry = self.rows.see(self.clip, frame)
        if frame.colorspace not in CONVERTED_COLORSPACES:
            frame.colorspace = UNSPECIFIED_COLORSPACE
        kind = frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range
        try:
            if kind != self.kind:
                self.graph, self.kind = self._build(frame, *geometry.size), kind
            self.graph.push(frame)
            picture = self.graph.pull().to_ndarray()
        except av.FFmpegError as error:
            reason = f"{frame.format.name} pictures cannot be turned into RGB (FFmpeg: {error.strerror})."
            raise VideoDecodeError(self.clip.name, reason) from error
        return geometry.place(picture)

    def _build(self, frame: Any, width: int, height: int) -> Any:
        """Builds FFmpeg's own chain of filters: unlike PyAV's converter it knows where colours are sampled."""
        from av.filter import Graph

        graph = Graph()
        graph.threads = 1
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self.clip.stream.time_base
        )
        scale = f"{width}:{height}:flags={FAITHFUL}"
        # By way of planes, where the pictures are YUV: the same numbers in half the time.
        planes = [("scale", scale), ("format", "gbrp")] if frame.format.name.startswith("yuv") else []
        for name, arguments in [*planes, ("scale", scale), ("format", "rgb24"), ("buffersink", None)]:
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        graph.configure()
        return graph


class _Decoder:
    """Feeds packets and puts the wanted pictures into their rows, in display order.

    What is damaged is found by what FFmpeg reports: a packet that cannot be decoded or was cut short, a picture that
    had to be patched. From there to the next keyframe every picture may lean on the damage, and counts as damaged.
    """

    def __init__(self, clip: Clip, rows: Rows, skip: bool = True):
        self.clip, self.rows = clip, rows
        self.convert = _Converter(clip, rows)
        self.can_skip = skip and clip.skips_unreferenced()
        self.wanted = deque()  # (time, row) still to come out
        self.frames = deque()  # the last one at or before the next wanted time, and those after it
        self.disordered = False  # frames came out in another order than that of their times
        self.group = self.order = 0  # keyframes and packets fed so far
        self.key_times = {}  # group -> time of its keyframe
        self.fed = OrderedDict()  # time of a packet fed lately -> (group, order)
        self.damage = {}  # group -> order of the first damaged packet in it
        self.taken = []  # (row, time wanted, (group, order) of that picture, time of the frame put into the row)

    def feed(self, packet: Any, skippable: bool = False) -> None:
        import av

        place = self._place(packet)
        self.clip.encrypted |= packet is not None and packet.has_sidedata("encryption_info")
        self.clip.codec.skip_frame = "NONREF" if skippable and self.can_skip else "DEFAULT"
        try:
            frames = self.clip.codec.decode(packet)
        except av.FFmpegError:
            self._note_damage(place)
            return
        if packet is not None and packet.is_corrupt and self.clip.container.format.name != "mpegts":
            self._note_damage(place)  # in a transport stream it may mean no more than that recordings were joined
        for frame in frames:
            if frame.is_corrupt:
                self._note_damage(self.fed.get(frame.pts, place))
            if frame.pts is not None:
                self.disordered |= bool(self.frames) and frame.pts <= self.frames[-1].pts
                self.frames.append(frame)
        self._settle()

    def _place(self, packet: Any) -> tuple[int, int] | None:
        if packet is None:
            return None
        if packet.is_keyframe:
            self.group += 1
            self.key_times[self.group] = packet.pts
        self.order += 1
        self.fed[packet.pts] = (self.group, self.order)
        if len(self.fed) > TIMES_KEPT:
            self.fed.popitem(last=False)
        return (self.group, self.order)

    def _note_damage(self, place: tuple[int, int] | None) -> None:
        if place is not None:
            group, order = place
            self.damage[group] = min(order, self.damage.get(group, order))

    def drain(self) -> None:
        """Takes what the decoder still holds and makes it ready for a keyframe."""
        if self.clip.codec.is_open:
            self.feed(None)
            self.clip.codec.flush_buffers()
            self._settle(last=True)
            self.frames.clear()

    def forget_before(self, pts: float) -> None:
        while len(self.frames) > 1 and self.frames[1].pts <= pts:
            self.frames.popleft()

    def want(self, pts: int, row: int) -> None:
        self.wanted.append((pts, row))
        self._settle()

    def _settle(self, last: bool = False) -> None:
        while self.wanted and self.frames:
            pts, row = self.wanted[0]
            self.forget_before(pts)
            found = self.frames[0].pts == pts
            if not (found or last or self.frames[-1].pts > pts):
                return
            self.rows.put(row, self.convert(self.frames[0]))
            self.taken.append((row, pts, self.fed.get(pts), self.frames[0].pts))
            self.wanted.popleft()

    def damaged(self) -> set[int]:
        """Gives the rows whose picture is damaged, or never came and has none before it to stand in."""
        hurt = {row for row, pts, place, put in self.taken if put > pts or (place and self._is_hurt(pts, *place))}
        return hurt | {row for _, row in self.wanted}

    def _is_hurt(self, pts: int, group: int, order: int) -> bool:
        leads = self.key_times.get(group) is not None and pts < self.key_times[group]
        return order >= self.damage.get(group, math.inf) or (leads and group - 1 in self.damage)

    def absent(self) -> set[int]:
        """Gives the rows whose own picture did not come out."""
        return {row for row, pts, _, put in self.taken if put != pts} | {row for _, row in self.wanted}


def decode(clip: Clip, ticks: list[int], rows: Rows, timeline: Timeline, num_threads: int = 1) -> list[int | None]:
    """Decodes what is on screen at `ticks` into the rows, and little else.

    Where `clip.disordered` is set afterwards, times go back and forth in the file and the rows are not to be used.

    Returns:
        `list[int | None]`: when the picture of each row appeared, in ticks; `None` where it is damaged.
    """
    if clip.in_order:
        return _decode_in_order(clip, ticks, rows, timeline)
    shown = [None] * len(ticks)
    parts = _split(clip, ticks, num_threads)
    if len(parts) == 1:
        doubtful = _decode_part(clip, ticks, rows, timeline, parts[0], shown)
    else:
        _decode_part(clip, ticks[:1], rows, timeline, [0], [None])  # its size is that of all the others
        with ThreadPoolExecutor(len(parts)) as pool:
            work = [pool.submit(_decode_part_apart, clip, ticks, rows, timeline, part, shown) for part in parts]
            results = [done.result() for done in work]
        doubtful = set().union(*(result[0] for result in results))
        clip.disordered |= any(result[1] for result in results)
        clip.encrypted |= any(result[2] for result in results)
    found = [pts for pts in shown if pts is not None]
    clip.disordered |= found != sorted(found)
    if doubtful and not clip.disordered:
        # A keyframe that does not stand alone, or damage: begin a keyframe earlier and leave nothing out.
        again = [row for row in range(len(ticks)) if row in doubtful]
        logger.debug("%s: a second look at %d frames.", clip.name, len(again))
        _decode_part(clip, ticks, rows, timeline, again, shown, second_look=True)
    return shown


def _decode_part_apart(clip: Clip, *arguments: Any) -> tuple[set[int], bool, bool]:
    with contextlib.closing(clip.another()) as another:
        return _decode_part(another, *arguments), another.disordered, another.encrypted


def _decode_part(
    clip: Clip,
    ticks: list[int],
    rows: Rows,
    timeline: Timeline,
    part: list[int],
    shown: list[int | None],
    second_look: bool = False,
) -> set[int]:
    """Decodes some of the rows and fills in `shown`; returns the rows that may be wrong.

    After a second look a row is either right, or damaged and `None`. A picture that does not come out without any
    sign of damage (a second field, a "not coded" picture) is one that a player does not show either: the one before
    it stays on screen.
    """
    decoder = _Decoder(clip, rows, skip=not second_look)
    reader = _SparseReader(clip, decoder, timeline.last, runup=int(second_look))
    first_row = {}
    for row in part:
        pts = shown[row] = reader.find(ticks[row])
        if pts is not None and pts not in first_row:
            first_row[pts] = row
            reader.fetch(pts, row)
    decoder.drain()
    clip.disordered |= decoder.disordered
    wrong = decoder.damaged() if second_look else decoder.damaged() | decoder.absent()
    wrong_times = {shown[row] for row in wrong}
    doubtful = {row for row in part if shown[row] is None or shown[row] in wrong_times}
    if second_look:
        for row in doubtful:
            shown[row] = None
    return doubtful


def _split(clip: Clip, ticks: list[int], num_threads: int) -> list[list[int]]:
    """Cuts the rows into parts that share no group of pictures and cost about the same, where threads pay."""
    everything = [list(range(len(ticks)))]
    pixels = max(1, clip.stream.width * clip.stream.height)
    fitting = MAX_DECODERS_BYTES // (BYTES_PER_PIXEL_IN_A_DECODER * pixels)
    if min(num_threads, fitting) < 2 or not clip.indexed or not isinstance(clip.source, str | io.BytesIO):
        return everything
    entries = clip.stream.index_entries
    groups = {}  # keyframe -> rows
    for row, tick in enumerate(ticks):
        groups.setdefault(clip.find_keyframe(tick - clip.delay), []).append(row)
    if -1 in groups:
        return everything
    costs = [ticks[rows[-1]] - entries[key].timestamp - clip.delay for key, rows in groups.items()]
    seconds = float(sum(costs) * clip.stream.time_base)
    if seconds * float(clip.rate or 25) * pixels < MIN_WORTH_SPLITTING:
        return everything
    count = min(num_threads, fitting, len(groups))
    ends = list(itertools.accumulate(costs))
    cuts = [bisect.bisect_left(ends, ends[-1] * part / count) for part in range(1, count)]
    parts = []
    for begin, stop in itertools.pairwise([0, *sorted({cut + 1 for cut in cuts if cut + 1 < len(ends)}), len(ends)]):
        parts.append([row for rows in list(groups.values())[begin:stop] for row in rows])
    return parts


def _decode_in_order(clip: Clip, ticks: list[int], rows: Rows, timeline: Timeline) -> list[int | None]:
    """Decodes from the beginning until the last picture wanted; pictures are told by counting."""
    numbers = [max(0, bisect.bisect_right(timeline.shown, tick) - 1) for tick in ticks]
    first_row = {number: row for row, number in reversed(list(enumerate(numbers)))}
    good, convert = set(), _Converter(clip, rows)
    for number, (frame, damaged) in enumerate(clip.frames()):
        if number in first_row and not damaged:
            rows.put(first_row[number], convert(frame))
            good.add(number)
        if number >= numbers[-1]:
            break
    return [int(timeline.shown[number]) if number in good else None for number in numbers]


class _SparseReader:
    """Finds the packet on screen at a time by reading on, or seeking, and decodes from its keyframe up to it.

    `last` is when the last frame appears; `runup` is how many keyframes earlier to begin.
    """

    def __init__(self, clip: Clip, decoder: _Decoder, last: int, runup: int = 0):
        self.clip, self.decoder, self.last, self.runup = clip, decoder, last, runup
        self.slack = int(LARGEST_STEP_BACK / clip.stream.time_base)
        self._begin(iter(()) if clip.indexed else None)  # with an index, the first search seeks

    def _begin(self, packets: Iterator[Any] | None = None) -> None:
        """Starts again from the beginning of the file, or with the packets after a seek."""
        if packets is None:
            self.decoder.drain()
            self.clip.open()
            packets = self.clip.packets()
        self.packets = packets
        self.group = deque()  # packets from the last useful keyframe on, not yet decoded
        self.group_bytes = 0
        self.fresh = True  # the decoder must not connect the group to what it had before
        self.group_begin = -math.inf  # pictures shown before the group's keyframe lean on what is not there
        self.known = []  # times of the pictures read that may be on screen from now on
        self.newest_key = None
        self.decoded_to = -math.inf  # decode time of the last packet read

    def find(self, tick: int) -> int | None:
        """Gives the time of the picture on screen at `tick`, the largest one not after it; `None` if unreadable."""
        self._seek_towards(tick)
        self._forget_before_keyframe(tick)
        # A picture shown at or before `tick` is decoded before it, or little later where decode times are careless.
        while self.decoded_to <= tick + self.slack:
            packet = next(self.packets, None)
            if packet is None:
                if not self.known or max(self.known) < self.last:
                    return None  # the file goes on, but cannot be read
                break
            self._append(packet)
            if packet.is_keyframe:
                self._forget_before_keyframe(tick)
            if self.group_bytes > MAX_HELD_BYTES:
                self._decode_passed(tick)
        if not self.known:
            return None
        on_screen = max((pts for pts in self.known if pts <= tick), default=min(self.known))
        self.known = [pts for pts in self.known if pts >= on_screen]
        return on_screen

    def fetch(self, pts: int, row: int) -> None:
        """Decodes up to the picture at `pts`, unless another one has needed it already."""
        waits = any(packet.pts == pts for packet in self.group)
        if waits:
            self._part_from_the_past()
        self.decoder.want(pts, row)
        while waits and self._feed_next(pts) != pts:
            pass

    def _part_from_the_past(self) -> None:
        """Empties the decoder where the group does not follow what it had; what is wanted comes out here or never."""
        if self.fresh:
            self.decoder.drain()
            self.fresh = False
            key = self.group[0].pts
            first = key is None or (self.clip.leading_shown and key <= self.clip.first_key)
            self.group_begin = -math.inf if first else key

    def _feed_next(self, pts: int) -> int | None:
        packet = self.group.popleft()
        self.group_bytes -= packet.size
        if packet.pts is None or packet.pts >= self.group_begin:
            passed = packet.pts is not None and packet.pts < pts
            self.decoder.feed(packet, skippable=passed and self.clip.looks_whole(packet))
        return packet.pts

    def _append(self, packet: Any) -> None:
        if self.newest_key is None and not packet.is_keyframe:
            return  # nothing can be decoded before the first keyframe
        if packet.dts is not None and not packet.is_discard:
            self.clip.disordered |= packet.dts < self.decoded_to - self.slack
            self.decoded_to = max(self.decoded_to, packet.dts)
        if packet.is_keyframe and packet.pts is not None:
            self.newest_key = packet.pts
        if packet.pts is not None and not self.clip.is_hidden(packet):
            self.known.append(packet.pts)
        self.group.append(packet)
        self.group_bytes += packet.size

    def _forget_before_keyframe(self, tick: int) -> None:
        """Drops, undecoded, what lies before the last keyframe shown at or before `tick`, less the run-up."""
        keys = [i for i, p in enumerate(self.group) if p.is_keyframe and p.pts is not None and p.pts <= tick]
        if len(keys) <= self.runup:
            return
        begin = keys[-1 - self.runup]
        for _ in range(begin):
            self.group_bytes -= self.group.popleft().size
        self.fresh = True
        key = self.group[0]
        if not key.is_discard:
            self.known = [pts for pts in self.known if pts >= key.pts]

    def _decode_passed(self, tick: int) -> None:
        """Bounds the memory of a very long group of pictures: decodes the part that is certainly over at `tick`."""
        on_screen = max((pts for pts in self.known if pts <= tick), default=-math.inf)
        self._part_from_the_past()
        while self.group_bytes > MAX_HELD_BYTES and self.group[0].pts is not None and self.group[0].pts < on_screen:
            self._feed_next(on_screen)
            self.decoder.forget_before(on_screen)

    def _seek_towards(self, tick: int) -> None:
        """Goes to the last keyframe shown at or before `tick`, where the index knows one that has not been read."""
        if not self.clip.indexed:
            return
        entries = self.clip.stream.index_entries
        index = self.clip.find_keyframe(tick - self.clip.delay)
        if self.newest_key is not None and (index < 0 or entries[index].timestamp <= self.newest_key):
            return
        self.decoder.drain()
        for _ in range(self.runup):
            index = self.clip.find_keyframe(entries[index].timestamp - 1) if index > 0 else index
        for _ in range(2):  # where the landing is shown after `tick`, the keyframe before it
            packets = self.clip.seek(entries[index].timestamp) if index >= 0 else iter(())
            landing = next(packets, None)
            if landing is not None and landing.is_keyframe and landing.pts is not None and landing.pts <= tick:
                return self._begin(itertools.chain([landing], packets))
            index = self.clip.find_keyframe(entries[index].timestamp - 1) if index >= 0 else -1
        self.clip.indexed = False  # its index is wrong: read everything
        self._begin()
