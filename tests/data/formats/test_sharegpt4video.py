# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""ShareGPT4Video's captions."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.export import to_llava


RECORD = {
    "video_id": "1fb",
    "video_path": "pexels/1fb.mp4",
    "zip_folder": "pexels_videos_1.zip",
    "timestamp": [0, 2],
    "captions": [{"idx": "0", "content": "A door."}, {"idx": "-1", "content": "A door opens."}],
}


def test_the_caption_of_the_whole_clip_is_the_answer():
    user, assistant = to_row(RECORD, "media")["messages"]
    assert user["content"][0] == {"type": "video", "path": "media/pexels/1fb.mp4"}
    assert assistant["content"] == [{"type": "text", "text": "A door opens."}]


def test_a_record_round_trips():
    row = to_row(RECORD, "media")
    assert to_row(to_llava(row, "media"), "media") == row


@pytest.mark.parametrize("captions", [[{"idx": "0", "content": "A door."}], [{"idx": -1, "content": "a"}] * 2])
def test_a_record_without_one_caption_of_the_whole_clip_is_refused(captions):
    with pytest.raises(ValueError, match='of its captions have the "idx" "-1" of the whole clip, expected one'):
        to_row(RECORD | {"captions": captions})
