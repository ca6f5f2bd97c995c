# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The visuals of a row, as batches, lengths and checks read them."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.decode import messages_of, visuals_of


CONTENT = [
    {"type": "video", "path": "v_12.mp4", "end": 2, "num_frames": 4},
    {"type": "image", "path": "a.jpg"},
    {"type": "text", "text": "</s>?"},
]


@pytest.fixture
def row():
    return to_row({"messages": [{"role": "user", "content": CONTENT}, {"role": "assistant", "content": "Yes."}]})


def test_a_clip_keeps_its_settings_and_an_image_its_path(row):
    clip, image = visuals_of(row)
    assert clip.source == {"video": "v_12.mp4", "end": 2.0, "num_frames": 4} and image.source == "a.jpg"


def test_every_visual_stands_in_its_block(row):
    content = messages_of(row)[0]["content"]
    assert content[0]["video"]["num_frames"] == 4 and content[1] == {"type": "image", "image": "a.jpg"}
    assert content[2] == {"type": "text", "text": "</s>?"}


def test_the_other_name_of_a_file_is_looked_for_when_it_is_read(tmp_path, row):
    """Not when the file of rows is: what is there changes, and rows stay in a cache."""
    row["messages"][0]["content"][0]["path"] = str(tmp_path / "v_12.mp4")
    assert next(visuals_of(row)).source["video"] == str(tmp_path / "v_12.mp4")
    (tmp_path / "jukinmedia_v_12.mp4").touch()
    assert next(visuals_of(row)).source["video"] == str(tmp_path / "jukinmedia_v_12.mp4")
