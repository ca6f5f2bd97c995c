# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from PIL import Image
from tiny import random_frames

from transformers_valley import ValleyVideoProcessor
from transformers_valley.video_decoding import VideoDecodeError, VideoSegment
from transformers_valley.video_processing_valley import flatten_clips


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six seconds at 10 frames a second: three frames at one every two seconds."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 60, fps=10)


@pytest.fixture(scope="module")
def frame_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for index, frame in enumerate(random_frames(11)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"frame{index}.png")
    return folder


def process(videos, **kwargs):
    return ValleyVideoProcessor()(videos, return_tensors="pt", **kwargs)


def test_one_frame_every_two_seconds_by_default(clip):
    inputs = process(clip)
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 224, 224)
    assert inputs["pixel_values_videos"].dtype == torch.float32
    assert inputs["video_num_frames"].tolist() == [3]


def test_num_frames_replaces_fps_and_back(clip):
    assert process(clip, num_frames=8)["video_num_frames"].tolist() == [8]
    processor = ValleyVideoProcessor(num_frames=8)
    assert (processor.fps, processor(clip)["video_num_frames"].tolist()) == (None, [8])
    assert processor(clip, fps=1)["video_num_frames"].tolist() == [6]


def test_num_frames_are_those_of_the_released_code():
    frames = random_frames(30)
    inputs = process(frames, num_frames=8, do_normalize=False)
    expected = process(frames[np.linspace(0, 29, 8).astype(int)], do_normalize=False)
    torch.testing.assert_close(inputs["pixel_values_videos"], expected["pixel_values_videos"])


def test_every_frame_without_sampling(clip):
    assert process(clip, do_sample_frames=False)["video_num_frames"].tolist() == [60]
    part = VideoSegment(clip, start=1.0, end=1.5)
    metadata = process(part, do_sample_frames=False, return_metadata=True)["video_metadata"][0]
    assert metadata.timestamps == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])


def test_max_frames_spreads_over_the_whole_clip(clip):
    inputs = process(clip, fps=5, max_frames=4, return_metadata=True)
    times = inputs["video_metadata"][0].timestamps
    assert len(times) == 4 and times[0] == 0 and times[-1] == pytest.approx(5.8)


def test_metadata_has_the_times_of_the_frames(clip):
    metadata = process(clip, return_metadata=True)["video_metadata"][0]
    assert metadata.timestamps == pytest.approx([0, 2, 4])
    assert metadata.total_num_frames == 60 and metadata.fps == pytest.approx(10)


def test_settings_survive_saving(tmp_path, clip):
    ValleyVideoProcessor(
        num_frames=5, size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(tmp_path)
    reloaded = ValleyVideoProcessor.from_pretrained(tmp_path)
    assert (reloaded.num_frames, reloaded.fps) == (5, None)
    assert reloaded(clip)["pixel_values_videos"].shape == (1, 5, 3, 28, 28)


def test_frames_are_prepared_as_clip_prepares_images(processor):
    frame = random_frames(1, size=60)
    picture = Image.fromarray(frame[0].permute(1, 2, 0).numpy())
    expected = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
    result = processor.video_processor(frame)["pixel_values_videos"][0, 0]
    torch.testing.assert_close(result, expected)


FORMS = {
    "str": str,
    "Path": Path,
    "bytes": lambda path: Path(path).read_bytes(),
    "file": lambda path: open(path, "rb"),
    "BytesIO": lambda path: io.BytesIO(Path(path).read_bytes()),
    "datasets path": lambda path: {"path": str(path), "bytes": None},
    "datasets bytes": lambda path: {"path": None, "bytes": Path(path).read_bytes()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_frames(clip, form):
    expected = process(str(clip))
    result = process(FORMS[form](clip))
    torch.testing.assert_close(result["pixel_values_videos"], expected["pixel_values_videos"])


def test_every_form_of_frames_gives_the_same(frame_folder):
    frames = random_frames(11)
    expected = process(frames)["pixel_values_videos"]
    assert expected.shape[1] == 11  # no rate is known: they are taken as sampled
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    paths = [str(frame_folder / f"frame{index}.png") for index in range(11)]
    forms = [
        frames.permute(0, 2, 3, 1),
        frames.numpy(),
        pictures,
        list(frames),
        frame_folder,
        str(frame_folder),
        paths,
    ]
    for form in forms:
        torch.testing.assert_close(process(form)["pixel_values_videos"], expected)


def test_known_rate_of_frames_is_used():
    frames = random_frames(60)
    metadata = {"total_num_frames": 60, "fps": 10.0}
    inputs = process(frames, video_metadata=metadata, do_normalize=False)
    expected = process(frames[[0, 20, 40]], do_normalize=False)
    torch.testing.assert_close(inputs["pixel_values_videos"], expected["pixel_values_videos"])


def test_mixed_batch_is_padded_at_the_end_of_time(clip):
    inputs = process([[clip, random_frames(1)], [random_frames(5)]])
    assert inputs["video_num_frames"].tolist() == [3, 1, 5]
    assert inputs["pixel_values_videos"].shape[:2] == (3, 5)
    assert not inputs["pixel_values_videos"][0, 3:].any() and not inputs["pixel_values_videos"][1, 1:].any()


@pytest.mark.parametrize(
    ("videos", "count"),
    [
        ("a.mp4", 1),
        (["a.mp4", Path("b.mp4")], 2),
        ([["a.mp4", "b.mp4"], ["c.mp4"]], 3),
        ([["a.mp4"], [], [b"x"]], 2),
        (["1.png", "2.png"], 1),
        ([["1.png", "2.png"], "a.mp4"], 2),
        (random_frames(4), 1),
        (random_frames(4)[None].repeat(3, 1, 1, 1, 1), 3),
        (list(random_frames(4)), 1),
        ([random_frames(4), random_frames(2)], 2),
    ],
    ids=["path", "paths", "per sample", "bytes", "images", "images and path", "4-D", "5-D", "3-D list", "4-D list"],
)
def test_nested_lists_are_flattened_to_clips(videos, count):
    assert len(flatten_clips(videos)) == count


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_any_mode_are_frames(mode):
    frames = random_frames(3).permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(frame).convert(mode) for frame in frames]
    expected = process([picture.convert("RGB") for picture in pictures])
    torch.testing.assert_close(process(pictures)["pixel_values_videos"], expected["pixel_values_videos"])


def test_an_animated_picture_is_a_clip(tmp_path):
    frames = [Image.new("RGB", (40, 40), (40 * index, 0, 0)) for index in range(5)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=1000)
    for form in (str(tmp_path / "a.webp"), [str(tmp_path / "a.webp")]):
        assert process(form, fps=1)["video_num_frames"].tolist() == [5]


def test_a_clip_that_cannot_be_decoded_names_file_and_reason(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_text("no video at all " * 50)
    with pytest.raises(VideoDecodeError, match="broken.mp4") as error:
        process([random_frames(2), path])
    assert error.value.reason


@pytest.mark.parametrize(
    ("videos", "kwargs", "message"),
    [
        (random_frames(4), {"fps": 1, "num_frames": 2}, "either fps or num_frames"),
        (random_frames(4)[:0], {}, "T >= 1"),
        (random_frames(4)[0, 0], {}, r"\(40, 40\)"),
        (random_frames(4), {"num_frames": 0}, "num_frames"),
        (random_frames(4) / 255, {}, "torch.float32, expected uint8"),
        ([np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], {}, "must have one size"),
        ("clip.mp4", {"fps": float("nan")}, "fps"),
        ("clip.mp4", {"fps": -1.0}, "fps"),
        ([], {}, "at least one"),
        (3.5, {}, "float"),
    ],
    ids=[
        "two rules",
        "no frame",
        "rank 2",
        "num_frames 0",
        "floats",
        "two sizes",
        "fps nan",
        "fps -1",
        "nothing",
        "a number",
    ],
)
def test_values_that_make_no_sense(videos, kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        process(videos, **kwargs)


def test_nan_size_is_refused():
    with pytest.raises(Exception, match="'size'.*nan"):
        process(random_frames(2), size={"shortest_edge": float("nan")})


def test_clips_that_cannot_be_stacked_say_why():
    with pytest.raises(ValueError, match="must end up in one size.*do_center_crop=True"):
        ValleyVideoProcessor(do_center_crop=False)(
            [random_frames(2, size=40), torch.zeros(2, 3, 40, 80, dtype=torch.uint8)]
        )
