# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Damaged files end in frames or in a `VideoDecodeError`, and in nothing else.

A damaged file is told by (clip, kind, seed). A child process samples one after the other, so that a crash or an
endless loop ends the child and not the tests, and is reported with the file that led to it.
"""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import pkgutil
import random
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest


SHARED = Path(__file__).parents[2] / "shared" / "videos"
LARGEST_SHARED = 64 * 1024  # bytes; a large clip takes long and finds nothing that a small one does not
SECONDS = 30.0  # for one file that takes a few hundredths: more counts as an endless loop
MEGABYTES = 1000  # that a child may grow after its imports; FFmpeg takes 900 for an index that claims 100,000 frames
CEILING = 4096  # megabytes of address space beyond that, so that a defect does not take the machine down
KINDS = "few bytes,many bytes,zeros,ones,noise,cut end,cut beginning,remove,duplicate,swap,fields,splice".split(",")
# Where headers, sizes and times are: boxes of MP4, elements of Matroska (info, track, cluster, block), chunks of AVI,
# start codes of MPEG, blocks of GIF, JPEG, PNG and WebP.
MARKS = re.compile(
    rb"mvhd|tkhd|mdhd|elst|hdlr|stsd|avc1|hev1|avcC|hvcC|stts|ctts|stss|stsz|stsc|stco|trex|tfhd|tfdt|trun"
    rb"|\x15\x49\xa9\x66|\x2a\xd7\xb1|\x44\x89|\x16\x54\xae\x6b|\xe0[\x80-\x9f]\xb0|\x1f\x43\xb6\x75|\xa3..?\x81"
    rb"|avih|strh|strf|idx1|00dc|\0\0\x01[\x20\xb3\xb5\xb6\xba\xe0]"
    rb"|GIF89a|\x21\xf9\x04|\x2c\0\0\0\0|\xff\xc0|IHDR|acTL|fcTL|VP8X|ANIM|ANMF",
    re.DOTALL,
)
EXTREMES = (0, 1, 100_000, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SAMPLE_VIDEO = "transformers_valley.video_decoding:sample_video"


def damage(data: bytes, kind: str, rng: random.Random, other: bytes) -> bytes:
    """Gives a damaged copy of a file; `other` is one to take a piece from."""
    data = bytearray(data)
    begin, stop = sorted(rng.sample(range(len(data) + 1), 2))
    stop = min(stop, begin + rng.choice((16, 256, len(data))))
    match kind:
        case "few bytes" | "many bytes":
            for _ in range(rng.randint(1, 8) if kind == "few bytes" else 1 + len(data) // 50):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case "zeros" | "ones":
            data[begin:stop] = (b"\0" if kind == "zeros" else b"\xff") * (stop - begin)
        case "noise":
            data[begin:stop] = rng.randbytes(stop - begin)
        case "cut end":
            del data[begin:]
        case "cut beginning":
            del data[:begin]
        case "remove":
            del data[begin:stop]
        case "duplicate":
            data[stop:stop] = data[begin:stop]
        case "swap":
            a, b, c, d = sorted(rng.choices(range(len(data) + 1), k=4))
            data[a:d] = data[c:d] + data[b:c] + data[a:b]
        case "fields":
            marks = [match.end() for match in MARKS.finditer(data)]
            for _ in range(rng.randint(1, 3)):
                # The first numbers after a mark are counts, sizes and times; long tables follow in some.
                at = rng.choice(marks) + rng.randrange(rng.choice((4, 16, 100))) if marks else rng.randrange(4096)
                number = rng.choice((*EXTREMES, rng.getrandbits(16)))
                number = number.to_bytes(4, rng.choice(("big", "big", "little"))) * rng.choice((1, 1, 2))
                at = max(0, min(at, len(data) - len(number)))
                data[at : at + len(number)] = number
        case "splice":
            data[begin:] = other[rng.randrange(len(other)) :]
    return bytes(data)


def arguments(rng: random.Random, still: bool) -> dict:
    """Gives arguments for `sample_video`; a still image has no seconds to cut."""
    uniform = ({"num_frames": 8}, {"num_frames": "all"})
    rule = rng.choice(({}, {"fps": 10, "max_frames": 100}, {"fps": 25, "max_frames": 8}, *uniform))
    segment = rng.choice(({}, {}, {"start": 0.4}, {"start": 0.4, "end": 0.8}))
    return {
        "on_error": rng.choice(("raise", "partial", "partial")),
        "num_threads": rng.choice((1, 2)),
        **rule,
        **rng.choice(({}, {}, {"size": 32})),
        **({} if still else segment),
    }


@dataclass(frozen=True)
class Job:
    clip: str
    kind: str
    seed: int

    def prepare(self, clips: dict[str, bytes], folder: str) -> tuple[str, bool, dict]:
        """Writes the damaged file and gives its path, whether to sample it from memory, and the arguments for it."""
        rng = random.Random(str(self))
        data = damage(clips[self.clip], self.kind, rng, clips[rng.choice(sorted(clips))])
        path = os.path.join(folder, f"{self.kind.replace(' ', '_')}_{self.seed}_{self.clip}")
        Path(path).write_bytes(data)
        return path, rng.random() < 0.2, arguments(rng, self.clip.endswith(".jpg"))


def jobs(clips: dict[str, bytes], seeds: range) -> list[Job]:
    """Gives one job for each seed; all clips and kinds take turns."""
    turns = ((seed, *divmod(seed, len(clips))) for seed in seeds)
    return [Job(sorted(clips)[clip], KINDS[(turn + clip) % len(KINDS)], seed) for seed, turn, clip in turns]


def _megabytes(entry: str) -> int:
    """Reads a number about this process; `getrusage` would begin with the peak of the parent."""
    if sys.platform != "linux":
        return 0
    return int(re.search(rf"{entry}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def _work(pipe, target: str, log: str) -> None:
    """Samples files until told to stop. Runs in the child."""
    faulthandler.enable(open(log, "w"))
    logging.disable()
    warnings.simplefilter("ignore")  # Pillow's, about what is damaged
    sample = pkgutil.resolve_name(target)
    if target == SAMPLE_VIDEO:
        from transformers_valley import video_files

        video_files.MIN_WORTH_SPLITTING = 1  # several threads even for tiny pictures
    start = _megabytes("VmHWM")
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, ((_megabytes("VmSize") + CEILING) * 1024**2,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while work := pipe.recv():
        pipe.send((*_try(sample, *work), _megabytes("VmHWM") - start))


def _try(sample, path: str, in_memory: bool, given: dict) -> tuple[str, str]:
    """Gives "frames", "refused" or "failure", and in the last case what is wrong."""
    source = Path(path).read_bytes() if in_memory else path
    try:
        video = sample(source, **given)
    except Exception as error:
        name = f"<{len(source)} bytes>" if in_memory else path
        known = type(error).__name__ == "VideoDecodeError" and error.path == name
        return ("refused", "") if known else ("failure", traceback.format_exc())
    frames, times = video.frames, video.timestamps
    if str(frames.dtype) != "torch.uint8" or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        return "failure", f"frames are {frames.dtype} of shape {tuple(frames.shape)}"
    if times is not None and not (len(times) == len(frames) and times == sorted(times) and np.isfinite(times).all()):
        return "failure", f"{len(frames)} frames with timestamps {times}"
    if len(video.metadata["frames_indices"]) != len(frames) or (video.num_lost and given["on_error"] == "raise"):
        return "failure", f"{len(frames)} frames, num_lost={video.num_lost} and metadata {video.metadata}"
    return "frames", ""


class _Child:
    def __init__(self, target: str, log: str):
        self.log = log
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and memory
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, target, log), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the child is the end of the pipe
        assert self.pipe.recv() == "ready"

    def run(self, work: tuple, seconds: float) -> tuple[str, str, int]:
        self.pipe.send(work)
        if self.pipe.poll(seconds):
            with contextlib.suppress(EOFError, ConnectionResetError):
                return self.pipe.recv()
            self.process.join(seconds)
            return "failure", f"the process died ({self.process.exitcode}): {Path(self.log).read_text()}", 0
        os.kill(self.process.pid, signal.SIGABRT)  # its last words say where it hung
        self.process.join(5)
        return "failure", f"no end after {seconds} seconds: {Path(self.log).read_text()}", 0

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass
class Report:
    counts: Counter = field(default_factory=Counter)  # (kind, outcome) -> how many
    failures: list[str] = field(default_factory=list)
    costs: list[tuple] = field(default_factory=list)  # (seconds, peak in megabytes, job)

    def __str__(self) -> str:
        lines = [f"{'':16}  frames refused failure"]
        for kind in sorted({kind for kind, _ in self.counts}):
            row = [self.counts[kind, outcome] for outcome in ("frames", "refused", "failure")]
            lines.append(f"{kind:16}" + "".join(f"{count:8}" for count in row))
        slowest = sorted(self.costs, key=lambda cost: -cost[0])[:5]
        lines += [f"{seconds:.2f} s, peak so far +{megabytes} MB: {job}" for seconds, megabytes, job in slowest]
        return "\n".join([*lines, f"largest peak +{max(cost[1] for cost in self.costs)} MB", *self.failures])


def fuzz(
    clips: dict[str, bytes], jobs: list[Job], folder, target=SAMPLE_VIDEO, seconds=SECONDS, limit=MEGABYTES
) -> Report:
    """Samples the damaged files one by one; those that fail stay in `folder`."""
    report, child = Report(), None
    try:
        for job in jobs:
            child = child or _Child(target, os.path.join(folder, "child.log"))
            work = job.prepare(clips, folder)
            began = time.monotonic()
            outcome, why, megabytes = child.run(work, seconds)
            report.costs.append((time.monotonic() - began, megabytes, job))
            if outcome != "failure" and megabytes > limit:
                outcome, why = "failure", f"memory grew by {megabytes} MB"
            if outcome == "failure":
                path, in_memory, given = work
                source = f"open({path!r}, 'rb').read()" if in_memory else repr(path)
                report.failures.append(f"{job}\nsample_video({source}, **{given})\n{why}")
                child = child.stop()  # dead, busy or swollen
            else:
                os.remove(work[0])
            report.counts.update([(job.kind, outcome), ("all", outcome)])
    finally:
        if child:
            child.stop()
    print(report)
    return report


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    """Small clips of many containers and codecs, and what is small in the shared folder."""
    import av  # here, because a child imports this module too and starts sooner without them
    from clips import call_all_keyframes, crop_mov, numbered_frame, remux, write_clip
    from PIL import Image

    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 40, (30, 48, 64, 3), dtype=np.uint8)  # flat pictures leave little data to damage
    frames = [numbered_frame(i, 64, 48) // 2 + noise[i] for i in range(30)]
    for name in ("bframes.mp4", "h264.mkv", "h264.avi", "h264.ts", "raw.h264"):
        write_clip(folder / name, frames, bframes=3)
    write_clip(folder / "mpeg4.avi", frames, codec="mpeg4")
    write_clip(folder / "mpeg2.mpg", frames, codec="mpeg2video")
    write_clip(folder / "vp9.webm", frames, codec="libvpx-vp9", bframes=0, options={"deadline": "realtime"})
    write_clip(folder / "hevc.mp4", frames, codec="libx265")
    write_clip(folder / "h264.flv", frames)
    call_all_keyframes(write_clip(folder / "keyframes.avi", frames, codec="wmv2", bframes=0, gop=10))
    call_all_keyframes(write_clip(folder / "keyframes.mov", frames, codec="mpeg4", gop=10))
    crop_mov(write_clip(folder / "cropped.mov", frames), 4, 4, 8, 6)
    remux(folder / "cropped.mov", folder / "cropped.mkv")
    with av.open(folder / "bframes.mp4") as whole:
        with av.open(folder / "fragments.mp4", "w", options={"movflags": "frag_keyframe+empty_moov"}) as pieces:
            stream = pieces.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    pieces.mux(packet)
    first, *others = map(Image.fromarray, frames)
    first.save(folder / "still.jpg")
    for name in ("animated.gif", "animated.webp", "animated.png"):
        first.save(folder / name, save_all=True, append_images=others, duration=40)
    shared = SHARED.iterdir() if SHARED.is_dir() else ()
    paths = [*folder.iterdir(), *(path for path in shared if 1000 < path.stat().st_size < LARGEST_SHARED)]
    return {path.name: path.read_bytes() for path in paths}


def test_damaged_files_give_frames_or_a_video_decode_error(clips, tmp_path):
    report = fuzz(clips, jobs(clips, range(100)), tmp_path)
    assert not report.failures, "\n\n".join(report.failures)
    assert report.counts["all", "frames"] > 10 and report.counts["all", "refused"] > 10  # both ends are seen


@pytest.mark.slow
def test_many_damaged_files_give_frames_or_a_video_decode_error(clips, tmp_path):
    report = fuzz(clips, jobs(clips, range(100, 2100)), tmp_path)
    assert not report.failures, "\n\n".join(report.failures)


def misbehave(source: str | bytes, **given) -> None:
    """Stands in for `sample_video` and does what the file says."""
    content = source.decode() if isinstance(source, bytes) else Path(source).read_text()
    if content == "raise":
        raise TypeError("a stand-in's error")
    if content == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if content == "swell":
        bytes(range(256)) * (4096 * 200)
    while content == "loop":
        pass
    name = f"<{len(source)} bytes>" if isinstance(source, bytes) else source
    raise type("VideoDecodeError", (ValueError,), {"path": name})


def test_what_must_not_happen_is_reported(tmp_path):
    faults = ("raise", "loop", "swell", "die")
    clips = {name: name.encode() for name in (*faults, "refuse")}
    undamaged = [Job(name, "none", 0) for name in ("refuse", *faults, "refuse")]
    report = fuzz(clips, undamaged, tmp_path, f"{__name__}:misbehave", seconds=4.0, limit=100)
    assert report.counts["all", "refused"] == 2
    assert [re.search("clip='(.*?)'", failure)[1] for failure in report.failures] == list(faults)
    signs = ("TypeError: a stand-in's error", "no end after 4.0 seconds", "memory grew by", "the process died")
    for failure, sign in zip(report.failures, signs, strict=True):
        assert sign in failure
    assert all("in misbehave" in report.failures[i] for i in (0, 1, 3))  # where it happened
