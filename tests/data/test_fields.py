# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which unknown fields only describe a record, and which would have to be read."""

import pytest

from transformers_valley.data.fields import check_closed, check_fields, given


KNOWN = {"conversations", "video", "image", "start", "end", "fps", "num_frames", "system"}


@pytest.mark.parametrize(
    "name",
    ["v_id", "data_source", "task", "category", "difficulty", "language", "metadata", "video_id", "image_width"]
    + ["clip_length", "url", "video_url", "duration", "start_date", "questionType", "model", "license", "split"],
)
def test_what_describes_a_record_may_stay(name):
    check_fields([name], KNOWN, shows_visual=True)


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("video_path", "a clip or an image"),
        ("audios", "a clip or an image"),
        ("vidFile", "a clip or an image"),
        ("frames", "a clip or an image"),
        ("timestamps", "a time"),
        ("start_time", "a time"),
        ("segment", "a time"),
        ("weight", "how much it counts"),
        ("loss_mask", "how much it counts"),
        ("rejected", "how much it counts"),
        ("role", "a role or a system prompt"),
        ("systemPrompt", "a role or a system prompt"),
        ("instruction", "a role or a system prompt"),
        ("tools", "tools"),
        ("history", "turns"),
        ("Conversations", "turns"),
    ],
)
def test_what_tells_of_the_training_is_refused(name, about):
    with pytest.raises(ValueError, match=f"it has the field `{name}`, which tells of {about} and would not be read"):
        check_fields([name], KNOWN, shows_visual=True)


@pytest.mark.parametrize("name", ["video_id", "image_url", "url", "clip_id"])
def test_what_describes_a_clip_is_refused_where_none_is_shown(name):
    """Then it is the only thing that names one."""
    with pytest.raises(ValueError, match="would not be read"):
        check_fields([name], KNOWN, shows_visual=False)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("video_path", "call it `video`"),
        ("video_start", "call it `start`"),
        ("nframes", "call it `num_frames`"),
        ("system_prompt", "call it `system`"),
        ("tools", "this format reads `conversations`"),
    ],
)
def test_the_error_says_what_to_do(name, cure):
    with pytest.raises(ValueError, match=cure):
        check_fields([name], KNOWN, shows_visual=True)


def test_a_setting_beside_messages_belongs_into_a_block():
    with pytest.raises(ValueError, match="write `start` into the block of the clip"):
        check_fields(["start"], {"messages"}, shows_visual=True)


def test_fields_without_content_are_not_there():
    assert given({"a": None, "b": "", "c": [], "d": {}, "e": 0, "f": False, "g": " "}) == {
        "e": 0,
        "f": False,
        "g": " ",
    }


@pytest.mark.parametrize("name", ["weight", "loss", "tool_calls", "reasoning_content", "name", "anything"])
def test_a_turn_has_no_other_fields(name):
    with pytest.raises(ValueError, match=f"a turn has the fields `{name}`, which would not be read"):
        check_closed({"from": "gpt", name: 1}, {"from", "value"}, "a turn")
    check_closed({"from": "gpt", name: None}, {"from", "value"}, "a turn")
