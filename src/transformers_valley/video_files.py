# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The wanted frames of a video file as RGB, with PyAV: only groups of pictures that hold a wanted frame are decoded.

Input: a `Clip` and the moments to look at, in ticks of its clock. Output: RGB pictures, one per slot.
One forward pass with seeks is enough, because packets tell beforehand which pictures are needed.
"""

import bisect
import contextlib
import itertools
import logging
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .video_cropping import Cropping
from .video_packets import LARGEST_STEP_BACK, TIMES_KEPT, Clip, Timeline
from .video_sources import MAX_PIXELS, VideoDecodeError, check_picture_size


__all__ = ["FrameBuffer", "decode"]

logger = logging.getLogger(__name__)

MAX_HELD_BYTES = 64 * 1024**2  # packets kept undecoded in the hope that a keyframe makes them unnecessary
MAX_DECODERS_BYTES = 120 * 1024**2  # pictures inside all decoders of one clip, about
BYTES_PER_PIXEL_IN_A_DECODER = 21  # ten YUV pictures for reference and reordering, two of RGB on their way out
MIN_WORTH_SPLITTING = 60e6  # pixels to decode: about a tenth of a second on one core
MAX_FRAMES_BYTES = 4 * 1024**3  # of all frames taken: a damaged clip of a few kilobytes may claim to last for days

# FFmpeg's converter refuses all others, among them "reserved", which cameras write; unspecified is taken as BT.601.
CONVERTED_COLORSPACES = (0, 1, 2, 4, 5, 6, 7, 9)
UNSPECIFIED_COLORSPACE = 2
# Colours between the stored ones are interpolated, as on a screen: FFmpeg's quick way is 1 to 2 grey levels off.
FAITHFUL = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd"


class FrameBuffer:
    """The frames that leave, each put into its slot as it comes; several threads may put.

    Args:
        count (`int`): how many slots.
        transform (callable, *optional*): what to do with each picture, uint8 (3, H, W) to uint8 (3, h, w).
        name (`str`): what to call the clip in messages.
    """

    def __init__(self, count: int, transform: Callable[[torch.Tensor], torch.Tensor] | None, name: str):
        self.count, self.transform, self.name = count, transform, name
        self.frames = None
        self.geometry = self.shown_size = None
        self.lock = threading.Lock()

    def fix_geometry(self, clip: Clip, frame: Any) -> "_Geometry":
        """Gives what all pictures of the clip become: what the first one is."""
        with self.lock:
            self.geometry = self.geometry or _Geometry.of(clip, frame)
            self.shown_size = self.geometry.shown_size
        return self.geometry

    def put(self, slot: int, picture: torch.Tensor) -> None:
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
        self.frames[slot] = picture

    def finish(self, shown: list[int | None]) -> torch.Tensor:
        """Gives the frames that could be had, those that are wanted several times repeated."""
        kept = [slot for slot, pts in enumerate(shown) if pts is not None]
        if self.frames is None or not kept:
            raise VideoDecodeError(self.name, "no frame could be decoded.")
        for slot in range(1, self.count):
            if shown[slot] == shown[slot - 1]:
                self.frames[slot] = self.frames[slot - 1]
        return self.frames if len(kept) == self.count else self.frames[kept]


@dataclass(frozen=True)
class _Geometry:
    """How stored pictures are displayed: cropped, (width, height) with square pixels, transposed, then mirrored."""

    size: tuple[int, int]
    cropping: Cropping
    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @classmethod
    def of(cls, clip: Clip, frame: Any) -> "_Geometry":
        from av.sidedata.sidedata import Type

        width, height = frame.width, frame.height
        left, top, right, bottom = cropping = clip.cropping()
        if any(cropping):
            # Where pixels share their colour, FFmpeg cuts no such group in two.
            across, down = 4 // frame.format.chroma_width(4), 4 // frame.format.chroma_height(4)
            width, height = (width - left - right) // across * across, (height - top - bottom) // down * down
            if min(width, height) <= 0:
                width, height, cropping = frame.width, frame.height, (0, 0, 0, 0)
        width = max(1, round(width * clip.pixel_aspect()))
        if width * height > MAX_PIXELS:
            raise VideoDecodeError(clip.name, f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}.")
        side_data = frame.side_data.get(Type.DISPLAYMATRIX)
        if side_data is None:
            return cls((width, height), cropping)
        # Rows of the matrix say where a step to the right and a step down in the stored picture lead on the screen.
        (right_x, right_y, _), (down_x, down_y, _), _ = np.frombuffer(side_data, dtype=np.int32)[:9].reshape(3, 3)
        if abs(int(right_x)) >= abs(int(right_y)):
            return cls((width, height), cropping, False, bool(right_x < 0), bool(down_y < 0))
        return cls((width, height), cropping, True, bool(down_x < 0), bool(right_y < 0))

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

    def __init__(self, clip: Clip, buffer: FrameBuffer):
        self.clip, self.buffer = clip, buffer
        self.graph, self.kind = None, None

    def __call__(self, frame: Any) -> torch.Tensor:
        import av

        geometry = self.buffer.fix_geometry(self.clip, frame)
        if frame.colorspace not in CONVERTED_COLORSPACES:
            frame.colorspace = UNSPECIFIED_COLORSPACE
        kind = frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range
        try:
            if kind != self.kind:
                self.graph, self.kind = self._build(frame, geometry), kind
            self.graph.push(frame)
            picture = self.graph.pull().to_ndarray()
        except av.FFmpegError as error:
            reason = f"{frame.format.name} pictures cannot be turned into RGB (FFmpeg: {error.strerror})."
            raise VideoDecodeError(self.clip.name, reason) from error
        return geometry.place(picture)

    def _build(self, frame: Any, geometry: _Geometry) -> Any:
        """Builds FFmpeg's own chain of filters: unlike PyAV's converter it knows where colours are sampled."""
        from av.filter import Graph

        graph = Graph()
        graph.threads = 1
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self.clip.stream.time_base
        )
        left, top, right, bottom = geometry.cropping
        width, height = frame.width - left - right, frame.height - top - bottom
        crop = any(geometry.cropping) and min(width, height) > 0  # not those of another size in the same stream
        crop = [("crop", f"{width}:{height}:{left}:{top}")] if crop else []
        scale = f"{geometry.size[0]}:{geometry.size[1]}:flags={FAITHFUL}"
        # By way of planes, where the pictures are YUV: the same numbers in half the time.
        planes = [("scale", scale), ("format", "gbrp")] if frame.format.name.startswith("yuv") else []
        for name, arguments in [*crop, *planes, ("scale", scale), ("format", "rgb24"), ("buffersink", None)]:
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        graph.configure()
        return graph


class _Decoder:
    """Feeds packets and puts the wanted pictures into their slots, in display order.

    What is damaged is found by what FFmpeg reports: a packet that cannot be decoded or was cut short, a picture that
    had to be patched. From there to the next keyframe every picture may lean on the damage, and counts as damaged.
    """

    def __init__(self, clip: Clip, buffer: FrameBuffer, skip: bool = True):
        self.clip, self.buffer = clip, buffer
        self.convert = _Converter(clip, buffer)
        self.can_skip = skip and clip.skips_unreferenced()
        self.wanted = deque()  # (time, slot) still to come out
        self.frames = deque()  # the last one at or before the next wanted time, and those after it
        self.disordered = False  # frames came out in another order than that of their times
        self.keyframe = None  # time of the keyframe fed after the last flush, until a frame comes out
        self.false_keyframes = self.lost_keyframes = False  # keyframes came out as other frames, or not at all
        self.group = self.order = 0  # keyframes and packets fed so far
        self.key_times = {}  # group -> time of its keyframe
        self.fed = OrderedDict()  # time of a packet fed lately -> (group, order)
        self.damage = {}  # group -> order of the first damaged packet in it
        self.taken = []  # (slot, time wanted, (group, order) of that picture, time of the frame put into the slot)

    def feed(self, packet: Any, skippable: bool = False) -> None:
        import av

        place = self._locate(packet)
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
            self._check_keyframe(frame)
            if frame.is_corrupt:
                self._note_damage(self.fed.get(frame.pts, place))
            if frame.pts is not None:
                self.disordered |= bool(self.frames) and frame.pts <= self.frames[-1].pts
                self.frames.append(frame)
        self._take_frames()

    def _locate(self, packet: Any) -> tuple[int, int] | None:
        if packet is None:
            return None
        if packet.is_keyframe and not (self.group and self.clip.false_keyframes):
            self.group += 1
            self.key_times[self.group] = packet.pts
        self.order += 1
        self.fed[packet.pts] = (self.group, self.order)
        if len(self.fed) > TIMES_KEPT:
            self.fed.popitem(last=False)
        return (self.group, self.order)

    def expect_keyframe(self, packet: Any) -> None:
        """Checks that the packet fed next, the first after a flush, comes out as a keyframe."""
        certain = self.clip.false_keyframes or self.clip.codec.codec.intra_only or self.clip.is_hidden(packet)
        self.keyframe = None if certain else packet.pts

    def _check_keyframe(self, frame: Any) -> None:
        if self.keyframe is not None and frame.pts is not None and frame.pts >= self.keyframe:
            self.false_keyframes |= frame.pts == self.keyframe and not frame.key_frame
            self.lost_keyframes |= frame.pts > self.keyframe
            self.keyframe = None
        if self.clip.false_keyframes and frame.key_frame and frame.pts in self.fed:
            self._start_group(frame.pts)

    def _start_group(self, pts: int) -> None:
        """Begins a group with a packet that has been fed, and only now is known to be a keyframe."""
        group, first = self.fed[pts]
        self.group += 1
        self.key_times[self.group] = pts
        self.fed.update({time: (self.group, order) for time, (_, order) in self.fed.items() if order >= first})
        if self.damage.get(group, -1) >= first:
            self.damage[self.group] = self.damage.pop(group)

    def _note_damage(self, place: tuple[int, int] | None) -> None:
        if place is not None:
            group, order = place
            self.damage[group] = min(order, self.damage.get(group, order))

    def drain(self) -> None:
        """Takes what the decoder still holds and makes it ready for a keyframe."""
        if self.clip.codec.is_open:
            self.feed(None)
            self.clip.codec.flush_buffers()
            self._take_frames(last=True)
            self.frames.clear()
        self.lost_keyframes |= self.keyframe is not None
        self.keyframe = None

    def forget_before(self, pts: float) -> None:
        while len(self.frames) > 1 and self.frames[1].pts <= pts:
            self.frames.popleft()

    def want(self, pts: int, slot: int) -> None:
        self.wanted.append((pts, slot))
        self._take_frames()

    def _take_frames(self, last: bool = False) -> None:
        while self.wanted and self.frames:
            pts, slot = self.wanted[0]
            self.forget_before(pts)
            found = self.frames[0].pts == pts
            if not (found or last or self.frames[-1].pts > pts):
                return
            self.buffer.put(slot, self.convert(self.frames[0]))
            self.taken.append((slot, pts, self.fed.get(pts), self.frames[0].pts))
            self.wanted.popleft()

    def damaged(self) -> set[int]:
        """Gives the slots whose picture is damaged, or never came and has none before it to stand in."""
        found = {
            slot for slot, pts, place, put in self.taken if put > pts or (place and self._is_damaged(pts, *place))
        }
        return found | {slot for _, slot in self.wanted}

    def _is_damaged(self, pts: int, group: int, order: int) -> bool:
        leads = self.key_times.get(group) is not None and pts < self.key_times[group]
        return order >= self.damage.get(group, math.inf) or (leads and group - 1 in self.damage)

    def absent(self) -> set[int]:
        """Gives the slots whose own picture did not come out."""
        return {slot for slot, pts, _, put in self.taken if put != pts} | {slot for _, slot in self.wanted}


def decode(
    clip: Clip, ticks: list[int], buffer: FrameBuffer, timeline: Timeline, num_threads: int = 1
) -> list[int | None]:
    """Decodes what is on screen at `ticks` into the slots, and little else.

    Where it sets `clip.in_order` or `clip.false_keyframes`, the packets were wrong about the frames: the slots are not
    to be used, and a new timeline is needed.

    Returns:
        `list[int | None]`: when the picture of each slot appeared, in ticks; `None` where it is damaged.
    """
    if clip.in_order:
        return _decode_in_order(clip, ticks, buffer, timeline)
    shown = [None] * len(ticks)
    sequential = clip.false_keyframes
    parts = _split(clip, ticks, num_threads)
    if len(parts) == 1:
        doubtful = _decode_part(clip, ticks, buffer, timeline, parts[0], shown)
    else:
        _decode_part(clip, ticks[:1], buffer, timeline, [0], [None])  # its size is that of all the others
        with ThreadPoolExecutor(len(parts)) as pool:
            work = [pool.submit(_decode_part_apart, clip, ticks, buffer, timeline, part, shown) for part in parts]
            results = [done.result() for done in work]
        doubtful = set().union(*(result[0] for result in results))
        clip.disordered |= any(result[1] for result in results)
        clip.false_keyframes |= any(result[2] for result in results)
        clip.encrypted |= any(result[3] for result in results)
    found = [pts for pts in shown if pts is not None]
    clip.disordered |= found != sorted(found)
    if clip.false_keyframes and not sequential:
        clip.indexed = clip.disordered = False
    elif clip.disordered:
        clip.in_order = True
    elif doubtful:
        # A keyframe that does not stand alone, or damage: begin a keyframe earlier and leave nothing out.
        again = [slot for slot in range(len(ticks)) if slot in doubtful]
        logger.debug("%s: a second look at %d frames.", clip.name, len(again))
        _decode_part(clip, ticks, buffer, timeline, again, shown, second_look=True)
        clip.in_order = clip.disordered
    return shown


def _decode_part_apart(clip: Clip, *arguments: Any) -> tuple[set[int], bool, bool, bool]:
    with contextlib.closing(clip.another()) as another:
        doubtful = _decode_part(another, *arguments)
        return doubtful, another.disordered, another.false_keyframes, another.encrypted


def _decode_part(
    clip: Clip,
    ticks: list[int],
    buffer: FrameBuffer,
    timeline: Timeline,
    part: list[int],
    shown: list[int | None],
    second_look: bool = False,
) -> set[int]:
    """Decodes some of the slots and fills in `shown`; returns the slots that may be wrong.

    After a second look a slot is either right, or damaged and `None`. A picture that does not come out without any
    sign of damage (a second field, a "not coded" picture) is one that a player does not show either: the one before
    it stays on screen.
    """
    decoder = _Decoder(clip, buffer, skip=not second_look)
    reader = _SparseReader(clip, decoder, timeline.last, runup=int(second_look))
    first_slot = {}
    for slot in part:
        pts = shown[slot] = reader.find(ticks[slot])
        if pts is not None and pts not in first_slot:
            first_slot[pts] = slot
            reader.fetch(pts, slot)
    decoder.drain()
    clip.disordered |= decoder.disordered
    # A corrupt keyframe is lost, too, but there the packet after it is not called one.
    clip.false_keyframes |= decoder.false_keyframes or (decoder.lost_keyframes and reader.adjacent_keyframes)
    clip.false_keyframes |= reader.false_keyframes
    wrong = decoder.damaged() if second_look else decoder.damaged() | decoder.absent()
    wrong_times = {shown[slot] for slot in wrong}
    doubtful = {slot for slot in part if shown[slot] is None or shown[slot] in wrong_times}
    if second_look:
        for slot in doubtful:
            shown[slot] = None
    return doubtful


def _split(clip: Clip, ticks: list[int], num_threads: int) -> list[list[int]]:
    """Cuts the slots into parts that share no group of pictures and cost about the same, where threads pay."""
    everything = [list(range(len(ticks)))]
    pixels = max(1, clip.stream.width * clip.stream.height)
    fitting = MAX_DECODERS_BYTES // (BYTES_PER_PIXEL_IN_A_DECODER * pixels)
    if min(num_threads, fitting) < 2 or not clip.indexed or not clip.can_open_again():
        return everything
    entries = clip.stream.index_entries
    groups = {}  # keyframe -> slots
    for slot, tick in enumerate(ticks):
        groups.setdefault(clip.find_keyframe(tick - clip.delay), []).append(slot)
    if -1 in groups:
        return everything
    costs = [ticks[slots[-1]] - entries[key].timestamp - clip.delay for key, slots in groups.items()]
    seconds = float(sum(costs) * clip.stream.time_base)
    if seconds * float(clip.rate or 25) * pixels < MIN_WORTH_SPLITTING:
        return everything
    count = min(num_threads, fitting, len(groups))
    ends = list(itertools.accumulate(costs))
    cuts = [bisect.bisect_left(ends, ends[-1] * part / count) for part in range(1, count)]
    parts = []
    for begin, stop in itertools.pairwise([0, *sorted({cut + 1 for cut in cuts if cut + 1 < len(ends)}), len(ends)]):
        parts.append([slot for slots in list(groups.values())[begin:stop] for slot in slots])
    return parts


def _decode_in_order(clip: Clip, ticks: list[int], buffer: FrameBuffer, timeline: Timeline) -> list[int | None]:
    """Decodes from the beginning until the last wanted frame; frames are identified by their index."""
    numbers = [max(0, bisect.bisect_right(timeline.shown, tick) - 1) for tick in ticks]
    first_slot = {number: slot for slot, number in reversed(list(enumerate(numbers)))}
    good, convert = set(), _Converter(clip, buffer)
    for number, (frame, damaged) in enumerate(clip.frames()):
        if number in first_slot and not damaged:
            buffer.put(first_slot[number], convert(frame))
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
        self.adjacent_keyframes = self.false_keyframes = False  # as far as read
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
        self.previous = None  # packet
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
                    return None  # the file continues, but cannot be read
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

    def fetch(self, pts: int, slot: int) -> None:
        """Decodes up to the picture at `pts`, unless another one has needed it already."""
        waits = any(packet.pts == pts for packet in self.group)
        if waits:
            self._start_group()
        self.decoder.want(pts, slot)
        while waits and self._feed_next(pts) != pts:
            pass

    def _start_group(self) -> None:
        """Empties the decoder where the group does not follow what it had; what is wanted comes out here or never."""
        if self.fresh:
            self.decoder.drain()
            self.decoder.expect_keyframe(self.group[0])
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
        if packet.is_keyframe and self.previous is not None and self.previous.is_keyframe:
            self.adjacent_keyframes = True
            if None not in (packet.pts, self.previous.pts):  # what needs no other frame is not stored out of order
                self.false_keyframes |= packet.pts < self.previous.pts
        self.previous = packet
        if packet.is_keyframe and packet.pts is not None:
            self.newest_key = packet.pts
        if packet.pts is not None and not self.clip.is_hidden(packet):
            self.known.append(packet.pts)
        self.group.append(packet)
        self.group_bytes += packet.size

    def _forget_before_keyframe(self, tick: int) -> None:
        """Drops, undecoded, what lies before the last keyframe shown at or before `tick`, less the run-up."""
        if self.clip.false_keyframes:
            return
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
        self._start_group()
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
