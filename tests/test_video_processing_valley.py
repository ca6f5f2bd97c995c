# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import io
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import write_clip
from datasets import Dataset
from PIL import Image
from tiny import random_frames
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from transformers_valley import ValleyVideoProcessor, video_processing_valley
from transformers_valley.video_decoding import SampledVideo, VideoDecodeError, VideoSegment, sample_video
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


@pytest.mark.parametrize("stored", [{"num_frames": 5}, {"fps": 0.5}])
@pytest.mark.parametrize("given", [{"num_frames": 3}, {"fps": 2.0}])
def test_how_clips_are_sampled_may_be_said_while_loading(tmp_path, processor, stored, given):
    processor.video_processor = ValleyVideoProcessor(**stored)
    processor.save_pretrained(tmp_path)
    for loaded in (
        ValleyVideoProcessor.from_pretrained(tmp_path, **given),
        AutoProcessor.from_pretrained(tmp_path, **given).video_processor,
    ):
        assert {name: value for name in ("fps", "num_frames") if (value := getattr(loaded, name))} == given
    with pytest.raises(ValueError, match="either fps or num_frames"):
        ValleyVideoProcessor.from_pretrained(tmp_path, fps=2.0, num_frames=3)


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
        ("clip.mp4", {"num_threads": 0}, "num_threads must be at least 1, found 0"),
        ("clip.mp4", {"num_threads": 2.5}, "num_threads must be a whole number"),
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
        "no thread",
        "half a thread",
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


def pillow_way(frames, short_side, resample):
    """uint8 frames (T, 3, H, W) resized and cropped by Pillow to (T, 3, 224, 224), as the code of 2023 did."""
    prepared = []
    for frame in frames:
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        width, height = image.size
        scale = short_side / min(width, height)
        image = image.resize((int(width * scale), int(height * scale)), resample)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        prepared.append(np.asarray(image.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1))
    return np.stack(prepared).astype(float)


@pytest.mark.parametrize("size", [(320, 240), (240, 426), (200, 120), (640, 360)])
@pytest.mark.parametrize(
    "short_side, resample", [(224, Image.Resampling.BICUBIC), (256, Image.Resampling.BILINEAR)], ids=["clip", "2023"]
)
def test_pixels_from_a_file_are_those_of_pillow(short_side, resample, size, tmp_path):
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    wave = np.stack([np.sin(x / 5), np.cos(y / 4), np.sin((x + y) / 7)], -1)
    noise = np.random.default_rng(0).integers(-60, 60, (size[1] // 8, size[0] // 8, 3)).repeat(8, 0).repeat(8, 1)
    picture = (127 + 90 * wave).clip(0, 255).astype(np.uint8)
    picture[: noise.shape[0], : noise.shape[1]] = (127 + noise).astype(np.uint8)
    path = write_clip(tmp_path / "clip.mp4", [picture] * 3, fps=1, options={"crf": "1"})
    processor = ValleyVideoProcessor(size={"shortest_edge": short_side}, resample=resample, do_normalize=False)
    ours = processor(path, fps=1, return_tensors="pt")["pixel_values_videos"][0].numpy() * 255
    difference = np.abs(ours - pillow_way(sample_video(path, fps=1).frames, short_side, resample))
    assert difference.max() <= 1 + 1e-3 or (difference > 1 + 1e-3).mean() < 1e-4  # torch rounds twice
    assert difference.mean() < 0.02


def test_large_frames_never_pile_up(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "wide.mp4", 20, fps=1, width=640, height=360)
    sampled = []
    monkeypatch.setattr(
        video_processing_valley,
        "sample_video",
        lambda *args, **kwargs: sampled.append(sample_video(*args, **kwargs)) or sampled[-1],
    )
    for settings in ({}, {"size": {"shortest_edge": 256}, "resample": 2}, {"size": {"height": 224, "width": 224}}):
        process(path, fps=1, **settings)
        assert min(sampled[-1].frames.shape[2:]) in (224, 256)


@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_a_batch_is_the_same_with_any_number_of_threads(num_threads, clip, frame_folder):
    clips = [clip, VideoSegment(clip, 1.0, 4.0), frame_folder, random_frames(3), clip]
    inputs = process(clips, num_threads=num_threads)
    assert inputs["video_num_frames"].tolist() == [3, 2, 11, 3, 3]
    for row, one in enumerate(clips):
        expected = process([one], num_threads=1)["pixel_values_videos"][0]
        assert torch.equal(inputs["pixel_values_videos"][row, : len(expected)], expected)


def test_clips_are_decoded_side_by_side(clip, monkeypatch):
    together = threading.Barrier(3, timeout=20)

    def wait_for_the_others(*args, **kwargs):
        together.wait()
        return sample_video(*args, **kwargs)

    monkeypatch.setattr(video_processing_valley, "sample_video", wait_for_the_others)
    assert process([clip] * 3, num_threads=3)["video_num_frames"].tolist() == [3, 3, 3]


def test_the_first_bad_clip_of_a_batch_is_named(clip, tmp_path):
    with pytest.raises(VideoDecodeError, match="first.mp4"):
        process([clip, tmp_path / "first.mp4", clip, tmp_path / "second.mp4"], num_threads=2)


def test_partial_gives_the_good_frames_of_a_damaged_clip(clip, tmp_path):
    data = bytearray(Path(clip).read_bytes())
    with av.open(clip) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[16:24]:  # up to a keyframe
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    (tmp_path / "damaged.mp4").write_bytes(data)
    with pytest.raises(VideoDecodeError, match="1 of the 3 frames wanted are damaged, the first one at 2.0 s"):
        process(tmp_path / "damaged.mp4")
    inputs = process(tmp_path / "damaged.mp4", on_error="partial", return_metadata=True)
    assert inputs["video_num_frames"].tolist() == [2]
    assert inputs["video_metadata"][0].timestamps == [0, 4]
    assert torch.equal(inputs["pixel_values_videos"][0], process(clip)["pixel_values_videos"][0, [0, 2]])


def test_a_sampled_video_keeps_its_frames_and_times(clip):
    sampled = sample_video(clip, fps=2, size=224)
    inputs = process([sampled, sampled], return_metadata=True)
    assert inputs["video_num_frames"].tolist() == [12, 12]
    assert inputs["video_metadata"][1].timestamps == sampled.timestamps
    torch.testing.assert_close(inputs["pixel_values_videos"][0], process(clip, fps=2)["pixel_values_videos"][0])


@pytest.mark.parametrize("rule", [{}, {"fps": 2.0}, {"num_frames": 5}, {"do_sample_frames": False}])
def test_frames_are_counted_as_they_are_sampled(clip, rule):
    processor = ValleyVideoProcessor(**rule)
    sampled = processor.sample(clip)
    assert processor.count_frames(clip) == processor.count_frames(sampled) == len(sampled.frames)
    assert processor.count_frames(clip, num_frames=3) == (60 if "do_sample_frames" in rule else 3)


# --- frames that are decoded already ---


@pytest.mark.parametrize("settings", [{"fps": 0.5, "max_frames": 8}, {"num_frames": 5}, {"fps": 3}], ids=str)
@pytest.mark.parametrize("start", [None, 3.0])
def test_an_array_is_sampled_as_the_file_it_came_from(settings, start):
    numbers = np.arange(1000)
    frames = np.zeros((1000, 8, 8, 3), np.uint8)
    frames[:, 0, 0, 1], frames[:, 0, 0, 2] = numbers % 256, numbers // 256
    plain = ValleyVideoProcessor(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
    metadata = VideoMetadata(total_num_frames=1000, fps=25.0)
    pixels = plain({"video": frames, "start": start}, video_metadata=metadata, return_tensors="pt", **settings)
    found = pixels["pixel_values_videos"][0, :, 1:, 0, 0].int()
    expected = sample_video(frames, frame_rate=25.0, start=start, **settings).frames[:, 1:, 0, 0].int()
    assert torch.equal(found, expected) and len(found) > 4
    assert metadata.frames_indices is None


def test_frames_that_were_sampled_before_are_kept_with_their_times():
    frames, metadata = (
        random_frames(8),
        VideoMetadata(total_num_frames=250, fps=25.0, frames_indices=[31 * i for i in range(8)]),
    )
    for given, times in (({}, range(8)), ({"num_frames": 3}, (0, 3, 7)), ({"do_sample_frames": False}, range(8))):
        inputs = process([frames], video_metadata=[metadata], return_metadata=True, **given)
        assert inputs["video_num_frames"].tolist() == [len(times)]
        assert inputs["video_metadata"][0].timestamps == pytest.approx([31 * i / 25 for i in times])
    assert metadata.frames_indices == [31 * i for i in range(8)]  # the caller's own stays as it is
    with pytest.raises(ValueError, match="8 frames_indices for 7 frames"):
        process([frames[:7]], video_metadata=[metadata])


def test_arrays_after_opencv_and_columns_of_datasets_are_read(tmp_path):
    frames = random_frames(4).permute(0, 2, 3, 1).numpy()
    for view in (frames[..., ::-1], frames[::-1], frames[:, :, ::-1]):
        assert torch.equal(process(view)["pixel_values_videos"], process(view.copy())["pixel_values_videos"])
    clips = [str(write_clip(tmp_path / f"{name}.mp4", 20, fps=10)) for name in "ab"]
    column = Dataset.from_dict({"video": clips})["video"]
    for paths in (column, np.array(clips), np.array(clips, dtype=object)):
        assert process(paths)["video_num_frames"].tolist() == [1, 1]


def test_a_list_of_picture_values_is_one_clip(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        Image.new("RGB", (30, 30), (index * 90, 0, 0)).save(path)
    by_path = [{"path": path, "bytes": None} for path in paths]
    by_bytes = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    for clip in (by_path, by_bytes, paths, [Image.open(path) for path in paths]):
        assert torch.equal(process([clip])["pixel_values_videos"], process([paths])["pixel_values_videos"])
        assert process([clip, clip])["video_num_frames"].tolist() == [3, 3]


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3)])
def test_numbers_of_numpy_are_numbers(value):
    name = "num_frames" if isinstance(value, np.integer) else "fps"
    metadata = VideoMetadata(total_num_frames=4, fps=4.0)
    assert process(random_frames(4), video_metadata=metadata, **{name: value})["video_num_frames"].tolist() == [3]


def test_frames_alone_are_a_sampled_clip():
    assert process(SampledVideo(random_frames(3), None))["video_num_frames"].tolist() == [3]
    with pytest.raises(ValueError, match="A SampledVideo has its frames already"):
        process({"video": SampledVideo(random_frames(3), None), "fps": 1})


def test_metadata_of_a_file_is_refused(clip):
    with pytest.raises(ValueError, match="video_metadata describes frames"):
        process(clip, video_metadata=VideoMetadata(total_num_frames=5, fps=1.0))
