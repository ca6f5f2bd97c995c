# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the plugin does before vLLM is asked: versions, frames, parts of clips."""

from pathlib import Path

import numpy as np
import pytest
from clips import read_number

from transformers_valley import ValleyVideoProcessor
from transformers_valley.video_sources import VideoDecodeError
from transformers_valley.vllm_plugin import check_version
from transformers_valley.vllm_plugin.clips import describe, read_clip, split_segment, with_options


@pytest.fixture
def data(clip):
    """90 numbered frames at 25 per second."""
    return Path(clip).read_bytes()


@pytest.fixture
def rule():
    return ValleyVideoProcessor(fps=1, do_resize=False)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.33.0", "1.0", "0.32.1rc1", "0.0.0"])
def test_supported_versions_pass(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.9.2"])
def test_an_older_vllm_is_refused_in_one_sentence(version):
    with pytest.raises(RuntimeError, match=rf"vLLM 0\.32 and newer, found vLLM {version}. Upgrade it"):
        check_version(version)


@pytest.mark.parametrize(
    "options, numbers",
    [
        ({}, [0, 25, 50, 75]),
        ({"num_frames": -1, "fps": None}, [0, 25, 50, 75]),
        ({"fps": 2}, [0, 12, 25, 37, 50, 62, 75, 87]),
        ({"num_frames": 3}, [0, 44, 89]),
        ({"start": 1.0, "end": 3.0}, [25, 50]),
        ({"fps": 25, "max_frames": 2}, [0, 89]),
    ],
)
def test_frames_are_those_of_the_checkpoint_or_the_request(data, rule, options, numbers):
    frames, about = read_clip(data, rule, options)
    assert frames.dtype == np.uint8 and frames.shape[1:] == (48, 80, 3)
    assert [read_number(frame.transpose(2, 0, 1)) for frame in frames] == numbers
    assert about["frames_indices"] == numbers and about["do_sample_frames"] is False


def test_ways_to_sample_one_clip_are_told_apart(data, rule):
    """vLLM's cache knows a clip by its bytes and this description."""
    options = [{}, {"fps": 2}, {"num_frames": 4}, {"start": 0.5}, {"start": 1.0}]
    assert len({str(read_clip(data, rule, option)[1]) for option in options}) == len(options)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"frame_recovery": True}, "Unknown options of clips: frame_recovery"),
        ({"fps": 1, "num_frames": 2}, "either fps or num_frames"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 101}, "num_frames=101 is not a number of up to 100"),
        ({"num_frames": "all"}, "num_frames=all is not a number of up to 100"),
        ({"start": 9.0}, "past its end"),
    ],
)
def test_options_without_sense_are_refused(data, rule, options, reason):
    with pytest.raises(ValueError, match=reason):
        read_clip(data, rule, options, most_frames=100)


@pytest.mark.parametrize("max_frames", [None, 10**9])
def test_no_request_decodes_more_than_a_context_holds(data, max_frames):
    """One more, so that it is refused for the length of its prompt and not answered from other frames."""
    rule = ValleyVideoProcessor(do_resize=False, max_frames=max_frames)
    frames, _ = read_clip(data, rule, {"fps": 25, "max_frames": max_frames}, most_frames=7)
    assert len(frames) == 8


def test_a_damaged_clip_says_what_is_wrong(rule):
    with pytest.raises(VideoDecodeError, match="Cannot read video"):
        read_clip(b"\0\0\0\x20ftypisom", rule, {})


def test_a_server_may_sample_by_number_where_the_checkpoint_samples_by_rate(data, rule):
    changed = with_options(rule, {"num_frames": 2, "patch_size": 14})
    assert len(read_clip(data, changed, {})[0]) == 2
    assert len(read_clip(data, changed, {"fps": 2})[0]) == 8
    assert rule.fps == 1


@pytest.mark.parametrize(
    "url, segment",
    [
        ("clip.mp4", {}),
        ("clip.mp4#t=60,90", {"start": 60.0, "end": 90.0}),
        ("clip.mp4?a=1#t=1.5", {"start": 1.5}),
        ("data:video/mp4;base64,AAAA#t=npt:,20", {"end": 20.0}),
        ("clip.mp4#t=", {}),
        ("clip.mp4#chapter", {}),
    ],
)
def test_an_address_may_name_a_part_of_its_clip(url, segment):
    rest, found = split_segment(url)
    assert found == segment
    assert rest == (url.partition("#")[0] if segment else url)


def test_frames_of_a_caller_are_taken_as_they_are_unless_their_rate_is_known(processor):
    frames = np.zeros((6, 40, 40, 3), np.uint8)
    rule = ValleyVideoProcessor(fps=1)
    for metadata, expected in [
        ({}, 6),
        ({"fps": 2.0, "total_num_frames": 6}, 3),
        ({"fps": 2.0, "total_num_frames": 6, "do_sample_frames": False}, 6),
        ({"fps": 2.0, "total_num_frames": 60, "frames_indices": [0, 1, 2, 3, 4, 5]}, 6),
    ]:
        about = describe(metadata)
        assert rule([frames], video_metadata=about)["video_num_frames"].tolist() == [expected], metadata
