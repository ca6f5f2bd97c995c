# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which frames vLLM's connector takes of what a request shows, and what it refuses. `make test-vllm` runs these."""

import base64
import io

import numpy as np
import pytest
from clips import numbered_frame, read_number
from PIL import Image

from transformers_valley import ValleyVideoProcessor


pytestmark = pytest.mark.vllm
MOST = 16  # frames that fit into the context


@pytest.fixture
def fetch(monkeypatch):
    """Frames and description of a clip, as a server with a checkpoint reads them."""
    from transformers_valley.vllm_plugin.media import ValleyMediaConnector, ValleyVideoLoader, register_loader

    register_loader()
    monkeypatch.setattr(ValleyVideoLoader, "processor", ValleyVideoProcessor(fps=1, do_resize=False))
    monkeypatch.setattr(ValleyVideoLoader, "most_frames", MOST)

    def fetch(url, **options):
        connector = ValleyMediaConnector({"video": options} if options else None)
        return connector.fetch_video(url, video_processor="ValleyVideoProcessor")

    return fetch


def jpegs(pictures, header="data:video/jpeg;base64"):
    """Pictures as one address, with commas between them."""
    encoded = []
    for picture in pictures:
        picture.save(file := io.BytesIO(), "JPEG", quality=95)
        encoded.append(base64.b64encode(file.getvalue()).decode())
    return f"{header},{','.join(encoded)}"


def numbered(count):
    return [Image.fromarray(numbered_frame(number)) for number in range(count)]


@pytest.mark.parametrize("header", ["data:video/jpeg;base64", "DATA:Video/JPEG;base64", "data:video/jpeg;a=b;base64"])
@pytest.mark.parametrize(
    "options, numbers",
    [({}, list(range(9))), ({"num_frames": 3}, [0, 4, 8]), ({"max_frames": 2}, [0, 8]), ({"num_frames": -1}, None)],
)
def test_jpegs_in_one_address_are_sampled_as_the_library_does(fetch, header, options, numbers):
    frames, about = fetch(url := jpegs(numbered(9), header), **options)
    assert [read_number(frame.transpose(2, 0, 1)) for frame in frames] == (numbers or list(range(9)))
    assert about["frames_indices"] == (numbers or list(range(9))) and about["do_sample_frames"] is False
    options = {name: value for name, value in options.items() if value != -1}
    own = ValleyVideoProcessor(fps=1, do_resize=False).sample(url, **options).frames
    assert np.array_equal(frames, own.permute(0, 2, 3, 1).numpy())


def test_no_more_jpegs_are_decoded_than_a_context_holds(fetch):
    """The last ones are not even pictures. One more than fits is, so that the prompt is refused for its length."""
    url = jpegs([Image.new("RGB", (8, 8))]) + 9 * MOST * ",AAAA"
    frames, _ = fetch(url, on_error="partial")
    assert len(frames) == 1
    assert len(fetch(jpegs(numbered(3 * MOST)))[0]) == MOST + 1


def test_commas_alone_are_counted_before_they_are_taken_apart(fetch):
    with pytest.raises(ValueError, match="it has 1000000 pictures; the limit is"):
        fetch("data:video/jpeg;base64" + 10**6 * ",")


def test_large_jpegs_are_kept_in_the_size_of_the_model(fetch, monkeypatch):
    from transformers_valley.vllm_plugin.media import ValleyVideoLoader

    monkeypatch.setattr(ValleyVideoLoader, "processor", ValleyVideoProcessor(size={"shortest_edge": 32}))
    frames, _ = fetch(jpegs([Image.new("RGB", (2048, 1024))] * 2))
    assert frames.shape == (2, 32, 64, 3)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"frames_indices": [0, 1, 2]}, "Unknown options of clips: frames_indices"),
        ({"num_frames": MOST + 1}, f"is not a number of up to {MOST}"),
        ({"num_frames": 0}, "num_frames"),
        ({"start": 1.0}, "it has no times"),
    ],
)
def test_options_that_have_no_effect_on_jpegs_are_refused(fetch, options, reason):
    with pytest.raises(ValueError, match=reason):
        fetch(jpegs(numbered(3)), **options)


@pytest.mark.parametrize("frames", ["", "AAAA", "!", "AAAA,AAAA"])
def test_damaged_jpegs_say_what_is_wrong(fetch, frames):
    with pytest.raises(ValueError, match="Cannot read video") as caught:
        fetch(f"data:video/jpeg;base64,{frames}")
    assert len(str(caught.value)) < 300
