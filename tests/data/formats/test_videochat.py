# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""VideoChat's `QA`."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.export import to_llava


RECORD = {
    "video": "000001_000050/1066682446.mp4",
    "QA": [{"q": "Describe the video in detail.", "a": "A dog runs."}, {"q": "Why?", "a": "It sees a cat. "}],
}


def text(value):
    return {"type": "text", "text": value}


def test_the_clip_comes_before_the_first_question():
    messages = to_row(RECORD)["messages"]
    clip = {"type": "video", "path": "000001_000050/1066682446.mp4"}
    assert messages[0] == {"role": "user", "content": [clip, text("Describe the video in detail.")]}
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[3]["content"] == [text("It sees a cat.")]


def test_an_empty_question_asks_for_the_caption_alone():
    row = to_row(RECORD | {"QA": [{"q": "", "a": "A dog runs."}]})
    assert row["messages"][0]["content"] == [{"type": "video", "path": RECORD["video"]}]


def test_an_instruction_is_the_turn_of_the_system():
    row = to_row(RECORD | {"QA": [{"i": "Be brief.", "q": "What?", "a": "A dog."}]})
    assert row["messages"][0] == {"role": "system", "content": [text("Be brief.")]}


def test_start_and_end_are_those_of_the_clip():
    clip = to_row(RECORD | {"start": 3, "end": 9})["messages"][0]["content"][0]
    assert (clip["start"], clip["end"]) == (3.0, 9.0)


def test_its_sets_of_images_are_read():
    row = to_row({"image": "train2014/COCO_train2014_000000374897.jpg", "QA": [{"q": "What?", "a": "A booth."}]})
    assert row["images"] == ["train2014/COCO_train2014_000000374897.jpg"]


def test_a_record_round_trips():
    row = to_row(RECORD, "media")
    assert to_row(to_llava(row, "media"), "media") == row


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("What?", "`QA` is the text 'What\\?', expected a list"),
        ([{"q": "What?"}], 'an item of `QA` is an object with the fields .*, expected an object with "q" and "a"'),
        ([{"q": "What?", "a": ""}], "an answer of the assistant is empty"),
        ([{"q": "What?", "a": "A.", "t": 3}], "an item of `QA` has the fields `t`"),
        ([{"i": "A", "q": "?", "a": "A."}, {"i": "B", "q": "?", "a": "A."}], "2 instructions"),
        ([{"q": "", "a": "A."}, {"q": "", "a": "B."}], "a turn of the user is empty"),
    ],
)
def test_what_cannot_be_read_is_named(items, message):
    with pytest.raises(ValueError, match=message):
        to_row(RECORD | {"QA": items})
