# Copyright 2026 The transformers_valley authors. Apache-2.0 license.

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import numbered_frame, read_number, write_clip
from PIL import Image

from transformers_valley.video_decoding import (
    VideoDecodeError,
    available_threads,
    count_sampled_frames,
    sample_video,
)


def test_default_is_a_frame_every_two_seconds(clip):
    sampled = sample_video(clip)
    assert [read_number(frame) for frame in sampled.frames] == [0, 50]
    assert sampled.timestamps == [0.0, 2.0]
    assert sampled.frames.dtype == torch.uint8 and sampled.frames.shape == (2, 3, 48, 80)
    assert sampled.metadata == {
        "total_num_frames": 90,
        "fps": 25.0,
        "width": 80,
        "height": 48,
        "duration": 3.6,
        "video_backend": "pyav",
        "frames_indices": [0, 50],
    }


def test_max_frames_spreads_over_the_clip_and_keeps_both_ends(clip):
    assert sample_video(clip, fps=25, max_frames=4).metadata["frames_indices"] == [0, 29, 59, 89]
    assert sample_video(clip, fps=25, max_frames=1).metadata["frames_indices"] == [0]
    assert sample_video(clip, fps=0.5, max_frames=2).metadata["frames_indices"] == [0, 50]


def test_num_frames_repeats_frames_of_short_clips(folder):
    path = write_clip(folder / "three.mp4", 3)
    assert [read_number(f) for f in sample_video(path, num_frames=8).frames] == [0, 0, 0, 0, 1, 1, 1, 2]
    assert len(sample_video(path, fps=0.01).frames) == 1


def test_start_and_end_cut_the_clip(clip):
    assert sample_video(clip, fps=2, start=1, end=2.5).metadata["frames_indices"] == [25, 37, 50]
    assert sample_video(clip, fps=1, start=3).timestamps == [3.0]
    assert sample_video(clip, num_frames=3, start=1, end=2).metadata["frames_indices"] == [25, 37, 49]
    assert sample_video(clip, fps=1, end=1000).metadata["frames_indices"] == [0, 25, 50, 75]
    assert sample_video(clip, fps=1, start=3.59, end=3.6).metadata["frames_indices"] == [89]
    with pytest.raises(VideoDecodeError, match="start=3.6 is past its end; it lasts 3.600"):
        sample_video(clip, start=3.6)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"fps": 3.0},
        {"fps": 3.0, "max_frames": 4},
        {"num_frames": 7},
        {"num_frames": "all"},
        {"fps": 2.0, "start": 1.3, "end": 2.9},
        {"num_frames": "all", "start": 1.3},
    ],
)
def test_frames_are_counted_without_decoding(clip, folder, rule, monkeypatch):
    Image.fromarray(numbered_frame(0)).save(folder / "still.png")
    sources = [clip] if "start" in rule else [clip, folder / "still.png", {"path": clip, "start": 2.0, "end": None}]
    expected = [len(sample_video(source, **rule).frames) for source in sources]
    monkeypatch.setattr("transformers_valley.video_decoding.decode", None)
    assert [count_sampled_frames(source, **rule) for source in sources] == expected


def test_a_fixed_number_of_frames_is_counted_without_the_file():
    assert count_sampled_frames("nowhere.mp4", num_frames=8) == 8
    with pytest.raises(VideoDecodeError, match="there is no such file"):
        count_sampled_frames("nowhere.mp4", fps=1)


def test_sampling_twice_gives_the_same(clip):
    first, second = sample_video(clip, fps=7, size=32), sample_video(clip, fps=7, size=32)
    assert torch.equal(first.frames, second.frames)
    assert first.timestamps == second.timestamps and first.metadata == second.metadata


def test_size_is_the_short_side(clip, folder):
    assert sample_video(clip, size=24).frames.shape[1:] == (3, 24, 40)
    assert sample_video(clip, size=96).frames.shape[1:] == (3, 96, 160)
    tall = write_clip(folder / "tall.mp4", 3, width=48, height=100)
    assert sample_video(tall, size=24).frames.shape[1:] == (3, 50, 24)
    assert sample_video(clip, size=24).metadata["width"] == 80


def test_resizing_is_close_to_pillow(folder):
    y, x = np.mgrid[0:240, 0:320]
    picture = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 11), 127 + 90 * np.sin((x + y) / 15)], -1)
    path = write_clip(folder / "waves.mp4", [picture.astype(np.uint8)], options={"crf": "1"})
    stored = Image.fromarray(sample_video(path).frames[0].permute(1, 2, 0).numpy())
    expected = np.array(stored.resize((112, 84), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(sample_video(path, size=84).frames[0].permute(1, 2, 0).numpy() - expected).mean() < 0.6


def test_frames_that_are_already_decoded(folder):
    pictures = np.stack([numbered_frame(i) for i in range(12)])
    images = folder / "frames"
    images.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(images / f"frame{i}.png")
    paths = [images / f"frame{i}.png" for i in range(12)]
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    pil = [Image.fromarray(picture) for picture in pictures]
    for source in (images, paths, pil, list(pictures), pictures, tensor, tensor[:, :1], pictures[..., :1]):
        assert sample_video(source).metadata["frames_indices"] == list(range(12))  # no rate: already sampled
        sampled = sample_video(source, num_frames=4)
        assert [read_number(frame) for frame in sampled.frames] == [0, 3, 7, 11]
        assert sampled.timestamps is None and sampled.metadata["duration"] is None
        assert sample_video(source, max_frames=3, size=24).frames.shape == (3, 3, 24, 40)
        timed = sample_video(source, fps=1, frame_rate=4, start=1)
        assert timed.metadata["frames_indices"] == [4, 8] and timed.timestamps == [1.0, 2.0]
        assert sample_video(source, num_frames=2, frame_rate=4, start=1, end=2).metadata["frames_indices"] == [4, 7]
    assert sample_video(pil[5]).frames.shape == (1, 3, 48, 80)
    assert read_number(sample_video(paths[5]).frames[0]) == 5


def test_animated_images_have_times(folder):
    frames = [Image.fromarray(numbered_frame(i)) for i in range(6)]
    for suffix in ("webp", "gif", "png"):
        path = folder / f"animated.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
        assert [read_number(frame) for frame in sample_video(path, fps=1).frames] == [0, 2, 4], suffix


class FakeTorchcodec:
    """Behaves like torchcodec's VideoDecoder for 100 frames at 10 per second."""

    metadata = SimpleNamespace(
        begin_stream_seconds=0.5, end_stream_seconds=10.5, num_frames=100, average_fps=10.0, width=80, height=48
    )

    def get_frames_at(self, indices):
        frames = torch.stack([torch.from_numpy(numbered_frame(i)).permute(2, 0, 1) for i in indices])
        return SimpleNamespace(data=frames, pts_seconds=torch.tensor([0.5 + i / 10 for i in indices]).double())

    def get_frames_played_at(self, seconds):
        return self.get_frames_at([int((second - 0.5) * 10 + 1e-6) for second in seconds])


def test_torchcodec_decoders():
    sampled = sample_video(FakeTorchcodec(), fps=1, size=24)
    assert sampled.metadata["frames_indices"] == list(range(0, 100, 10))
    assert [read_number(frame) for frame in sampled.frames] == list(range(0, 100, 10))
    assert sampled.frames.shape == (10, 3, 24, 40) and sampled.timestamps[1] == pytest.approx(1.0)
    assert sample_video(FakeTorchcodec(), num_frames=3, start=5).metadata["frames_indices"] == [50, 74, 99]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"fps": 1, "num_frames": 8}, ValueError, "not both"),
        ({"fps": 0}, ValueError, "fps must be finite and above 0, found 0"),
        ({"fps": float("nan")}, ValueError, "fps"),
        ({"fps": "1"}, TypeError, "fps must be a number"),
        ({"fps": True}, TypeError, "fps"),
        ({"fps": 1e9}, VideoDecodeError, "set max_frames"),
        ({"num_frames": 0}, ValueError, "num_frames must be at least 1, found 0"),
        ({"num_frames": 2.0}, TypeError, "num_frames must be a whole number"),
        ({"max_frames": 0}, ValueError, "max_frames"),
        ({"max_frames": True}, TypeError, "max_frames"),
        ({"size": -224}, ValueError, "size"),
        ({"size": True}, TypeError, "size"),
        ({"size": float("nan")}, TypeError, "size"),
        ({"size": 100_000}, VideoDecodeError, "pixels"),
        ({"start": -1}, ValueError, "start"),
        ({"start": float("inf")}, ValueError, "start"),
        ({"start": 2, "end": 1}, ValueError, "start=2.0 and end=1.0"),
        ({"end": 0}, ValueError, "end"),
        ({"frame_rate": 5}, ValueError, "its own times"),
        ({"on_error": "skip"}, ValueError, "on_error must be one of 'raise', 'partial', found 'skip'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, message, clip):
    with pytest.raises(error, match=message):
        sample_video(clip, **arguments)


@pytest.mark.parametrize(
    "source, error, message",
    [
        (None, TypeError, "NoneType"),
        (42, TypeError, "found int"),
        ({}, ValueError, "needs one of 'bytes'"),
        ([], ValueError, "zero frames"),
        ([1], TypeError, "found int"),
        (np.zeros((0, 3, 8, 8), np.uint8), ValueError, "zero frames"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"found \(3, 8, 8\)"),
        (np.zeros((2, 4, 8, 8), np.uint8), ValueError, r"found \(4, 8, 8\)"),
        (np.zeros((2, 3, 0, 8), np.uint8), ValueError, r"found \(3, 0, 8\)"),
        (np.zeros((2, 3, 8, 8), np.float32), ValueError, "float32.*255"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], ValueError, "frame 1 is 9x8, the first 8x8"),
        (io.StringIO("words"), TypeError, "mode 'rb'"),
    ],
)
def test_sources_that_make_no_sense(source, error, message):
    with pytest.raises(error, match=message):
        sample_video(source)


def test_frames_without_times_cannot_be_cut_in_seconds():
    with pytest.raises(ValueError, match="give frame_rate"):
        sample_video(np.zeros((4, 3, 8, 8), np.uint8), start=1)


def test_a_transform_sees_every_frame_as_it_leaves(clip):
    shapes = []

    def shrink(frame):
        shapes.append((frame.shape, frame.dtype))
        return frame[:, ::2, ::2]

    sampled = sample_video(clip, fps=5, transform=shrink)
    assert shapes == [((3, 48, 80), torch.uint8)] * 18 and sampled.frames.shape == (18, 3, 24, 40)
    assert sample_video(list(sampled.frames), transform=shrink).frames.shape == (18, 3, 12, 20)
    with pytest.raises(ValueError, match="shape .3, 3, 80. after one of .3, 2, 80."):
        heights = iter([2, 3, 4])
        sample_video(clip, num_frames=3, transform=lambda frame: frame[:, : next(heights)])
    with pytest.raises(ValueError, match="Both size=24 and a transform"):
        sample_video(clip, size=24, transform=shrink)


def test_partial_leaves_out_images_that_cannot_be_read(tmp_path, caplog):
    for i in range(5):
        Image.fromarray(numbered_frame(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(VideoDecodeError, match="2.png"):
        sample_video(tmp_path)
    sampled = sample_video(tmp_path, frame_rate=1, fps=1, on_error="partial")
    assert sampled.metadata["frames_indices"] == [0, 1, 3, 4] and sampled.timestamps == [0, 1, 3, 4]
    assert [read_number(frame) for frame in sampled.frames] == [0, 1, 3, 4] and sampled.num_lost == 1
    assert "1 of 5 frames are damaged" in caplog.text


def test_workers_of_a_dataloader_decode_with_one_thread():
    loader = torch.utils.data.DataLoader(
        [0, 1], num_workers=1, collate_fn=lambda rows: available_threads(), multiprocessing_context="fork"
    )
    assert list(loader) == [1, 1]
    assert 1 <= available_threads() <= torch.get_num_threads()
