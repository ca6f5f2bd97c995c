# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Faults that users of other projects reported: each kind as the smallest input and its right value, with neighbours.

The list grows with every report: name the kind, cite the thread as `owner/repo #n`, add cases that it does not name.
"""

import contextlib
import gc
import io
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import numbered_frame, read_number, write_clip
from PIL import Image

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
