# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""When each frame of a video file is shown: the container, its clock and its packets, and no pixels.

Input: an open file. Output: a `Clip`, whose packets can be read and sought, and a `Timeline`.
Packets tell their times and keyframes before a picture is decoded; where they do not, pictures are decoded for their
times alone.
"""

import contextlib
import io
import itertools
import logging
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from .video_cropping import Cropping, read_matroska_cropping, read_mov_cropping
from .video_interrupts import CHECK
from .video_sources import MAX_PIXELS, ReadInterrupted, SharedFile, VideoDecodeError, check_animation


__all__ = ["FLOAT32_ERROR", "LARGEST_STEP_BACK", "TIMES_KEPT", "Clip", "Timeline"]

logger = logging.getLogger(__name__)

MAX_PACKETS = 5_000_000  # 23 hours at 60 frames a second
FLOAT32_ERROR = 2**-23  # of a number of seconds that was kept as float32: it may fall just short of its frame
MAX_PIXEL_ASPECT = 10  # width of a pixel over its height, or the reverse; more is a damaged header
EMPTY_PACKET = 8  # bytes at most, of MPEG-4's "not coded" picture
MAX_REORDERED = 16  # pictures that a codec may hold back to show another first
TIMES_KEPT = 64  # packets by time in a decoder
LARGEST_STEP_BACK = 0.25  # seconds; where decode times go back further, two clocks were glued together
LARGEST_TIME = 2**63 - 1  # FFmpeg's; arithmetic on damaged times goes beyond

# Containers that hold their own pictures. Playlists (hls, dash, concat) and image patterns open other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,nut,wtv,rm,dv,ivf,"
    "swf,h264,hevc,vvc,av1,obu,m4v,mjpeg,vc1,yuv4mpegpipe,wav,mp3,flac,aac"
)
MOV = "mov,mp4,m4a,3gp,3g2,mj2"  # its index lists every packet
# Their index of keyframes is complete and cheap to seek in.
INDEXED_CONTAINERS = (MOV, "matroska,webm", "avi")
HEIF_BRANDS = ("heic", "heix", "heim", "heis", "mif1", "avif")  # of photos


class Clip:
    """The video stream of one open file: its packets in decode order, and what the container knows.

    Args:
        source (`str` or `SharedFile`): what to open.
        name (`str`): what to call it in messages.

    Raises:
        `VideoDecodeError`: it is not a video, or claims what no memory holds.
    """

    def __init__(self, source: str | SharedFile, name: str):
        self.source, self.name = source, name
        self.why_stop = CHECK.get()
        self.container = self.file = None
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        self.indexed = self.container.format.name in INDEXED_CONTAINERS
        self.first_key = None  # when the first keyframe appears, where pictures before it are shown
        self.delay = 0  # of the first picture after its time in the index
        self.encrypted = self.disordered = self.leading_shown = False  # as far as read
        self.in_order = False  # all has to be decoded: packets do not tell which pictures come out when
        self.false_keyframes = False  # packets are called keyframes that need others: only the first is taken for one

    def needs_decoding_for_times(self) -> bool:
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
        self.file = f"file:{self.source}" if isinstance(self.source, str) else _FileForFFmpeg(self.source)
        limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        limited_codec = {"max_pixels": str(MAX_PIXELS)}
        try:
            self.container = av.open(
                self.file, options=limited_codec, container_options=limits, metadata_errors="ignore", mode="r"
            )
        except av.FFmpegError as error:
            self._raise_read_error()
            raise VideoDecodeError(self.name, self._why_not_opened(error)) from error
        self.stream = self._choose_stream()
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1  # few pictures are decoded in a row: threads cost more than they bring
        self.codec.options = limited_codec
        self.rate = self.stream.average_rate or self.stream.guessed_rate

    def can_open_again(self) -> bool:
        """Whether it costs nothing to read at two places at once: other file objects may fetch from far away."""
        return isinstance(self.source, str) or isinstance(self.source.file, io.BytesIO)

    def another(self) -> "Clip | None":
        """Opens the file a second time, to read at two places at once."""
        if not self.can_open_again():
            return None
        clip = Clip(self.source, self.name)
        clip.why_stop = self.why_stop  # this may be another thread
        clip.seek(0)  # Matroska reads its index at the first seek
        clip.indexed, clip.delay = self.indexed, self.delay
        clip.first_key, clip.leading_shown = self.first_key, self.leading_shown
        return clip

    def _reader(self) -> BinaryIO:
        return open(self.source, "rb") if isinstance(self.source, str) else SharedFile(self.source.file)

    def _size_and_head(self) -> tuple[int, bytes]:
        """Gives the file's size and its first bytes."""
        with self._reader() as file:
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
        brand = self.container.metadata.get("major_brand", "")
        if brand in HEIF_BRANDS and any(s.disposition & Disposition.dependent for s in streams):
            reason = "it is a photo stored in tiles (HEIC), which FFmpeg gives one by one. Convert it to JPEG or PNG."
            raise VideoDecodeError(self.name, reason)
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
        """Gives the packets from where the file stands to its end, or to where it is corrupt.

        Raises:
            Exception: what the source's own `read` or `seek` raised.
        """
        import av

        try:
            for count, packet in enumerate(self.container.demux(self.stream)):
                if count > MAX_PACKETS:
                    raise VideoDecodeError(self.name, f"it has more than {MAX_PACKETS} packets.")
                self.stop_if_told()
                if packet.size:  # an empty packet would end the decoder's work
                    yield packet
        except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV at the end of a file that gained a stream
            logger.debug("%s: reading ends early: %s", self.name, error)
        self._raise_read_error()

    def stop_if_told(self) -> None:
        """Ends the work on the clip where somebody gives a reason, see [`interrupted_by`].

        Raises:
            ReadInterrupted: says it.
        """
        if reason := self.why_stop():
            raise ReadInterrupted(self.name, reason)

    def _raise_read_error(self) -> None:
        if isinstance(self.file, _FileForFFmpeg) and self.file.error is not None:
            raise self.file.error

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
            self._raise_read_error()
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

    def cropping(self) -> Cropping:
        """Gives the pixels that the container cuts off its pictures."""
        if self.container.format.name not in (MOV, "matroska,webm"):
            return (0, 0, 0, 0)
        with self._reader() as file:
            if self.container.format.name == MOV:
                return read_mov_cropping(file, self.stream.id)
            return read_matroska_cropping(file, self.container.streams.video.index(self.stream))

    def declared_seconds(self) -> float | None:
        """Gives how long the header says it lasts, if it does."""
        seconds = float((self.stream.duration or 0) * self.stream.time_base)
        if self.stream.frames and self.stream.average_rate:  # FFmpeg shortens the duration of a truncated AVI
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


class _FileForFFmpeg:
    """A view of a shared file that keeps the first error and then seems to end.

    FFmpeg reads on after an error, and PyAV prints each that it did not raise, with its traceback.
    """

    def __init__(self, source: SharedFile):
        self.file = SharedFile(source.file)
        self.tell = self.file.tell

    @property
    def error(self) -> BaseException | None:
        return self.file.error

    def read(self, size: int) -> bytes:
        if self.error is None:
            with contextlib.suppress(BaseException):  # Ctrl-C among them, which would be lost inside FFmpeg
                return self.file.read(size)
        return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with contextlib.suppress(BaseException):
            return self.file.seek(offset, whence)
        return 0


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
        tolerance (`float`): how many ticks after a moment a frame may begin that is meant by it. Containers round
            times to ticks, which may be as long as milliseconds, so half a tick; and half of one for the first frame,
            from which seconds are counted.
    """

    first: int
    last: int
    stop: int
    tick_seconds: Fraction
    shown: np.ndarray | range | None = None
    assumed: bool = False
    tolerance: float = 0.0

    @classmethod
    def read(cls, clip: Clip, count: bool, assume: bool = True) -> "Timeline":
        """Looks at the packets, decoding nothing: both ends where the index allows, else all of them.

        Where packets do not tell, everything is decoded. With `count`, `shown` is filled in, and without `assume`
        from what was read.
        """
        timeline = None
        clip.in_order = clip.in_order or clip.needs_decoding_for_times()
        if clip.indexed and not clip.in_order:
            timeline = cls._read_ends(clip)
            if timeline and count:
                timeline = timeline._with_index(clip) if assume else None
        if timeline is None and not clip.in_order:
            timeline = cls._read_all(clip, count)
        timeline = timeline or cls._decode_all(clip)
        counts_frames = clip.rate and clip.rate * clip.stream.time_base > 0.5  # then nothing is rounded
        timeline.tolerance = 1e-3 if counts_frames else 1.0 if timeline.first else 0.5
        return timeline

    @classmethod
    def _read_ends(cls, clip: Clip) -> "Timeline | None":
        tick = clip.stream.time_base
        length = clip.stream.duration or (clip.container.duration and int(clip.container.duration / 10**6 / tick))
        head = list(PacketInfo.until_known(clip, clip.packets()))
        if not length or not PacketInfo.usable(head):
            return None
        key = next(info for info in head if info.key)
        if any(info.pts < key.pts and not info.hidden for info in head):
            return None  # they may be shown or not
        first = PacketInfo.shown(head)[0].pts
        tail = [PacketInfo.of(clip, packet) for packet in clip.seek(first + length)]
        if tail and all(info.key and info.pts is not None for info in tail):  # false ones may hide the last frame
            earlier = tail[0].pts - MAX_REORDERED * tail[0].length(clip)
            tail = [PacketInfo.of(clip, packet) for packet in clip.seek(max(first, earlier))]
        if not PacketInfo.usable(tail) or not tail[0].key:
            return None
        clip.learn_delay(head[0].pts)
        last = PacketInfo.shown(tail)[-1]
        return cls(first, last.pts, last.pts + last.length(clip), tick)

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
            info = PacketInfo.of(clip, packet)
            key = key or (info if info.key else None)
            if key is None or info.hidden:
                continue
            if info.pts is None or key.pts is None:
                return None
            if info.dts is not None:
                if (info.dts - clock) * clip.stream.time_base < -LARGEST_STEP_BACK:
                    return None
                clock = info.dts
            times.append(info.pts)
            last = info if last is None or info.pts >= last.pts else last
        if last is None:
            return None
        if clip.container.format.name == "gif":  # each of its pictures builds on the one before
            check_animation(len(times), clip.stream.width, clip.stream.height, clip.name)
        times = np.sort(np.frombuffer(times, dtype=np.int64))
        if times[0] < key.pts:
            clip.first_key, clip.leading_shown = key.pts, clip.shows_leading(key.pts)
        shown = np.unique(times if clip.leading_shown else times[times >= key.pts])
        if not len(shown):
            return None
        if count and len(shown) < np.count_nonzero(times >= shown[0]):
            return None
        clip.learn_delay(key.pts)
        return cls(int(shown[0]), int(shown[-1]), last.pts + last.length(clip), clip.stream.time_base, shown)

    @classmethod
    def _decode_all(cls, clip: Clip) -> "Timeline":
        """Decodes everything; times are those of the frames that come out, by the rate where they make no sense."""
        clip.in_order = True
        rate = clip.stream.guessed_rate or clip.stream.average_rate or Fraction(25)
        step = max(1, round(1 / (rate * clip.stream.time_base)))
        shown, decoded = _RisingTimes(step), _RisingTimes(step)
        lasts = step
        for frame, _ in clip.frames():
            shown.add(frame.pts)
            decoded.add(frame.dts)
            lasts = frame.duration or step
        if not shown.times:
            reason = "it is encrypted." if clip.encrypted else "no frame could be decoded; it is truncated or damaged."
            raise VideoDecodeError(clip.name, reason)
        # AVI mixes up when pictures are shown that come out of order, and only their decoding has a sensible time.
        times = (decoded if shown.mended and not decoded.mended else shown).times
        array_of_times = np.frombuffer(times, dtype=np.int64)
        return cls(times[0], times[-1], times[-1] + lasts, clip.stream.time_base, array_of_times)

    def tick(self, seconds: float) -> int:
        """Gives the last tick at or before a moment, within the tolerance."""
        return self.first + math.floor(seconds * (1 + FLOAT32_ERROR) / float(self.tick_seconds) + self.tolerance)

    def tick_after(self, seconds: float) -> int:
        """Gives the first tick at or after a moment, within the tolerance."""
        return self.first + math.ceil(seconds * (1 - FLOAT32_ERROR) / float(self.tick_seconds) - self.tolerance)

    def seconds(self, tick: int) -> float:
        return float((tick - self.first) * self.tick_seconds)


class _RisingTimes:
    """Times of frames as they come out, made to rise by `step` where they do not."""

    def __init__(self, step: int):
        self.step, self.times, self.mended = step, array("q"), 0

    def add(self, time: int | None) -> None:
        if self.times and (time is None or time <= self.times[-1]):
            self.mended += time is not None
            time = self.times[-1] + self.step
        self.times.append(_within_limits(time or 0))


@dataclass(slots=True)
class PacketInfo:
    """What a packet says about its frame, before anything is decoded."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    hidden: bool

    @classmethod
    def of(cls, clip: Clip, packet: Any) -> "PacketInfo":
        return cls(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, clip.is_hidden(packet))

    @classmethod
    def until_known(cls, clip: Clip, packets: Iterator[Any]) -> Iterator["PacketInfo"]:
        """Gives the first packets, until none that follows can be shown before them."""
        earliest = math.inf
        for packet in packets:
            info = cls.of(clip, packet)
            yield info
            if info.pts is None or (info.dts is not None and info.dts >= earliest):
                return
            if not info.hidden:
                earliest = min(earliest, info.pts)

    @staticmethod
    def usable(packets: list["PacketInfo"]) -> bool:
        return all(info.pts is not None for info in packets) and bool(PacketInfo.shown(packets))

    @staticmethod
    def shown(packets: list["PacketInfo"]) -> list["PacketInfo"]:
        """Gives what is displayed, in that order: nothing that leans on a picture before the first keyframe."""
        start = next((i for i, info in enumerate(packets) if info.key), len(packets))
        displayed = [info for info in packets[start:] if not info.hidden and info.pts >= packets[start].pts]
        return sorted(displayed, key=lambda info: info.pts)

    def length(self, clip: Clip) -> int:
        rate = clip.stream.guessed_rate or clip.rate
        return self.duration or (rate and round(1 / (rate * clip.stream.time_base))) or 1
