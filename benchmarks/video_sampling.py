# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""File to `pixel_values_videos`: Valley's sampling against its peers, in one run on clips made here.

    pip install "transformers-valley[dev]" decord torchcodec opencv-python-headless   # what lacks is left out
    python benchmarks/video_sampling.py [--rounds 3] [--only NAME ...] [--clip PATH ...] [--keep FOLDER]

Each measurement is a process of its own that has imported everything and sampled a tiny clip before. Candidates take
turns, so that a drifting machine hits all of them; what takes more than 20 seconds runs once. Prints, per clip, the
median wall and CPU seconds and the peak memory above the interpreter, and the ratios over Valley, all with one
decoding thread but for the line that says otherwise. torchcodec needs FFmpeg's shared libraries from the system.
"""

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import av  # noqa: F401 (imported before the clock starts)
import imageio_ffmpeg
import numpy as np
import torch
from transformers import LlavaNextVideoVideoProcessor
from transformers.video_utils import load_video

from transformers_valley import ValleyVideoProcessor
from transformers_valley.video_decoding import sample_video, uniform_indices


MINUTE = 60
SLOW = 20.0  # seconds; what takes longer runs once
# These read every frame of a film: minutes for each run of the longest clips.
READ_EVERYTHING = ("transformers, pyav", "transformers, opencv")
X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -bf 3 -sc_threshold 0"
# name: (seconds, size, encoder, how often the minute is repeated, sampling rule)
CLIPS = {
    "60 s 720p H.264, GOP 250": ("1280x720", f"{X264} -g 250", 1, {"fps": 0.5}),
    "60 s 720p H.264, GOP 48": ("1280x720", f"{X264} -g 48", 1, {"fps": 0.5}),
    "60 s 720p H.264 as phones write it": (  # a keyframe a second, no B-frames, a high rate
        "1280x720",
        "-c:v libx264 -preset veryfast -pix_fmt yuv420p -bf 0 -sc_threshold 0 -g 30 -b:v 14M",
        1,
        {"fps": 0.5},
    ),
    "60 s 720p H.264, noise at 24 Mbit/s": (
        "1280x720",
        f"-vf noise=alls=40:allf=t {X264} -g 250 -b:v 24M",
        1,
        {"fps": 0.5},
    ),
    "60 s 1080p H.264, GOP 250": ("1920x1080", f"{X264} -g 250", 1, {"fps": 0.5}),
    "60 s 720p HEVC": ("1280x720", "-c:v libx265 -preset ultrafast -x265-params log-level=none", 1, {"fps": 0.5}),
    "60 s 720p VP9": (
        "1280x720",
        "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 3M -row-mt 1 -f webm",
        1,
        {"fps": 0.5},
    ),
    "60 s 720p AV1": ("1280x720", "-c:v libsvtav1 -preset 12", 1, {"fps": 0.5}),
    "8 of 60 s 720p, GOP 250": ("1280x720", f"{X264} -g 250", 1, {"num_frames": 8}),
    "32 of 10 min 720p, GOP 250": ("1280x720", f"{X264} -g 250", 10, {"num_frames": 32}),
    "32 of 60 min 720p, GOP 250": ("1280x720", f"{X264} -g 250", 60, {"num_frames": 32}),
    "32 of 60 min 720p, GOP 48": ("1280x720", f"{X264} -g 48", 60, {"num_frames": 32}),
    "10 s 2160p HEVC": (
        "3840x2160",
        "-t 10 -c:v libx265 -preset ultrafast -x265-params log-level=none",
        1,
        {"fps": 1},
    ),
}


def make_clip(folder: Path, size: str, encoder: str, minutes: int) -> str:
    """Encodes a minute of moving patterns with a little noise, and repeats it without encoding again."""
    name = f"{size}_{zlib.crc32(encoder.encode())}"
    suffix = "webm" if "webm" in encoder else "mp4"
    minute, whole = folder / f"{name}.{suffix}", folder / f"{name}_{minutes}.{suffix}"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    if not minute.exists():
        source = f"testsrc2=size={size}:rate=30:duration={MINUTE},noise=alls=6:allf=t"
        subprocess.run(
            [*ffmpeg, "-f", "lavfi", "-i", source, *encoder.split(), minute], check=True, stderr=subprocess.DEVNULL
        )
    if minutes == 1:
        return str(minute)
    if not whole.exists():
        subprocess.run([*ffmpeg, "-stream_loop", str(minutes - 1), "-i", minute, "-c", "copy", whole], check=True)
    return str(whole)


def valley(path, rule, num_threads=1):
    return ValleyVideoProcessor(num_threads=num_threads)(path, return_tensors="pt", **rule)["pixel_values_videos"][0]


def valley_two_threads(path, rule):
    return valley(path, rule, num_threads=2)


def prepare(frames):
    """Frames (T, 3, H, W) through the video processor of transformers, whose settings are Valley's."""
    return LlavaNextVideoVideoProcessor()(frames, return_tensors="pt")["pixel_values_videos"][0]


def with_load_video(backend):
    def run(path, rule):
        frames, _ = load_video(path, backend=backend, **rule)
        frames = frames if isinstance(frames, torch.Tensor) else torch.from_numpy(frames).permute(0, 3, 1, 2)
        return prepare(frames)

    return run


def decord_as_in_2023(path, rule):
    """As Valley's first code reads: all wanted frames at full size, then resized."""
    import decord

    reader = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
    indices = wanted_indices(len(reader), reader.get_avg_fps(), rule)
    return prepare(torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2))


def torchcodec_alone(path, rule):
    """The fastest way with torchcodec alone that was found: the index from the header, resizing in the decoder."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms import v2

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate", transforms=[v2.Resize((224, 398))])
    indices = wanted_indices(decoder.metadata.num_frames, decoder.metadata.average_fps, rule)
    return prepare(decoder.get_frames_at(indices).data)


def ffmpeg_program(path, rule):
    """One pass where a rate is wanted, one seek for each frame where a number is."""
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1"]
    output = "scale=-2:224:flags=bicubic,crop=224:224"
    tail = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    if "fps" in rule:
        output = f"fps={rule['fps']}:round=up,{output}"
        data = subprocess.run([*program, "-i", path, "-vf", output, *tail], capture_output=True, check=True).stdout
    else:
        length = sample_video(path, num_frames=1, size=224, num_threads=1).metadata["duration"]
        data = b"".join(
            subprocess.run(
                [*program, "-ss", f"{time:.3f}", "-i", path, "-frames:v", "1", "-vf", output, *tail],
                capture_output=True,
                check=True,
            ).stdout
            for time in np.linspace(0, length - 0.1, rule["num_frames"])
        )
    frames = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 224, 224, 3).permute(0, 3, 1, 2)
    return prepare(frames)


def wanted_indices(count: int, rate: float, rule: dict) -> list[int]:
    if "num_frames" in rule:
        return uniform_indices(count, rule["num_frames"]).tolist()
    return [min(int(time * rate), count - 1) for time in np.arange(0, count / rate - 1e-6, 1 / rule["fps"])]


CANDIDATES = {
    "valley": valley,
    "valley, 2 threads": valley_two_threads,
    "transformers, torchcodec": with_load_video("torchcodec"),
    "transformers, pyav": with_load_video("pyav"),
    "transformers, opencv": with_load_video("opencv"),
    "transformers, decord": with_load_video("decord"),
    "torchcodec": torchcodec_alone,
    "decord as in 2023": decord_as_in_2023,
    "ffmpeg program": ffmpeg_program,
}


def measure(candidate: str, path: str, rule: dict, tiny: str) -> dict:
    """Runs a candidate in a fork of this process; gives wall and CPU seconds, megabytes and frames."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        return json.loads(answer) if answer else {"error": "the process died"}
    try:
        run = CANDIDATES[candidate]
        run(tiny, {"num_frames": 2})  # what is loaded or built at the first call
        Path("/proc/self/clear_refs").write_text("5")
        memory, wall, cpu = kilobytes("VmRSS"), time.perf_counter(), cpu_seconds()
        frames = len(run(path, rule))
        result = {
            "wall": time.perf_counter() - wall,
            "cpu": cpu_seconds() - cpu,
            "MB": (kilobytes("VmHWM") - memory + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024,
            "frames": frames,
        }
    except Exception as error:  # a peer that cannot: the table says why
        result = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"}
    with os.fdopen(writing, "w") as pipe:
        json.dump(result, pipe)
    os._exit(0)


def kilobytes(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def compare(name: str, path: str, minutes: int, rule: dict, rounds: int, tiny: str) -> None:
    results = {candidate: [] for candidate in CANDIDATES}
    for _ in range(rounds):
        for candidate, found in results.items():
            if minutes > 1 and candidate in READ_EVERYTHING:
                found.append({"error": "reads every frame; not run on long films"})
            elif not any("error" in result or result["wall"] > SLOW for result in found):
                found.append(measure(candidate, path, rule, tiny))
    ours = {key: statistics.median(result[key] for result in results["valley"]) for key in ("wall", "cpu", "MB")}
    print(f"\n{name}: {results['valley'][0]['frames']} frames, {os.path.getsize(path) / 1e6:.0f} MB file")
    print(f"  {'':<26} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}   over valley: wall    CPU   memory  frames")
    for candidate, found in results.items():
        if "error" in found[-1]:
            print(f"  {candidate:<26} {found[-1]['error']}")
            continue
        median = {key: statistics.median(result[key] for result in found) for key in ours}
        ratio = {key: median[key] / max(ours[key], 1e-9) for key in ours}
        numbers = f"{median['wall']:>8.3f} {median['cpu']:>8.3f} {median['MB']:>8.0f}"
        ratios = f"{ratio['wall']:>8.2f} {ratio['cpu']:>6.2f} {ratio['MB']:>8.1f}"
        print(f"  {candidate:<26} {numbers}   {'':>11} {ratios} {found[0]['frames']:>7}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="clips whose name contains one of these")
    parser.add_argument(
        "--clip", nargs="*", default=[], help="recordings to measure as well, at a frame in two seconds"
    )
    parser.add_argument("--keep", type=Path, help="folder for the clips; by default a temporary one")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, {platform_line()}, median of {arguments.rounds}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tiny = make_clip(folder, "64x64", f"-t 1 {X264}", 1)
        for name, (size, encoder, minutes, rule) in CLIPS.items():
            if not arguments.only or any(part in name for part in arguments.only):
                path = make_clip(folder, size, encoder, minutes)
                compare(name, path, minutes, rule, arguments.rounds, tiny)
        for path in arguments.clip:
            compare(os.path.basename(path), path, 1, {"fps": 0.5}, arguments.rounds, tiny)


def platform_line() -> str:
    import importlib.metadata

    found = []
    for package in ("torch", "transformers", "av", "torchcodec", "decord", "opencv-python-headless"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
