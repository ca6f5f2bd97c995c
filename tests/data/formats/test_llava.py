# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Records of LLaVA as published sets have them."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.export import to_llava


# Printed in the paper's appendix B, answer shortened.
WEBVID = {
    "id": "25116338",
    "video": "037551_037600/25116338.mp4",
    "conversations": [
        {"from": "human", "value": "Describe the following video concisely.\n<video>"},
        {"from": "gpt", "value": "Smiling young girl picking fingers on keyboard"},
    ],
}
# LLaVA-CC3M-Pretrain-595K, LLaVA-Instruct-150K and LLaVA-Video-178K, as quoted in their cards and loaders.
CC3M = {
    "id": "GCC_train_002582585",
    "image": "GCC_train_002582585.jpg",
    "conversations": [
        {"from": "human", "value": "Provide a brief description of the given image.\n<image>"},
        {"from": "gpt", "value": "olive oil is a healthy ingredient used liberally ."},
    ],
}
COCO = {
    "id": "000000033471",
    "image": "000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "What are the colors of the bus in the image?\n<image>"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."},
    ],
}
LLAVA_VIDEO = {
    "id": "RW587",
    "data_source": "0_30_s_academic_v0_1",
    "video": "academic_source/Charades/RW587.mp4",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat does she open?\nA. A door\nB. A box"},
        {"from": "gpt", "value": "A. A door"},
    ],
}


def text(value):
    return {"type": "text", "text": value}


def turns(question, answer="Yes."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def question(record, root=None):
    return to_row(record, root)["messages"][0]["content"]


def test_the_placeholder_may_stand_behind_the_text():
    clip = {"type": "video", "path": "media/037551_037600/25116338.mp4"}
    assert question(WEBVID, "media") == [text("Describe the following video concisely."), clip]


def test_the_placeholder_may_stand_before_the_text():
    assert question(WEBVID | {"conversations": turns("<video>\nWhat?")})[1] == text("What?")


def test_images_go_into_their_column():
    row = to_row({"image": ["a.jpg", "b.jpg"], "conversations": turns("<image> or <image> ?")})
    assert row["images"] == ["a.jpg", "b.jpg"]
    assert row["messages"][0]["content"] == [{"type": "image"}, text("or"), {"type": "image"}, text("?")]


def test_an_image_placeholder_of_a_record_with_a_clip_is_the_clip():
    assert question(LLAVA_VIDEO)[0] == {"type": "video", "path": LLAVA_VIDEO["video"]}


def test_a_missing_placeholder_is_put_first():
    assert question(WEBVID | {"conversations": turns("What?")}) == [
        {"type": "video", "path": WEBVID["video"]},
        text("What?"),
    ]


def test_clips_and_images_of_one_record_are_told_apart_by_their_placeholders():
    record = {"video": "a.mp4", "image": "b.jpg", "conversations": turns("<image>\nIs it in this?\n<video>")}
    row = to_row(record)
    assert [block["type"] for block in row["messages"][0]["content"]] == ["image", "text", "video"]
    assert row["images"] == ["b.jpg"]


def test_a_source_is_the_folder_of_its_clips():
    record = {"video": "a.mp4", "source": "jukinmedia", "conversations": turns("?")}
    assert question(record, "media")[0]["path"] == "media/jukinmedia/a.mp4"


def test_settings_beside_one_clip_are_its_own():
    record = {"video": "a.mp4", "start": 1, "end": 2.5, "fps": 2, "max_frames": 9, "conversations": turns("?")}
    expected = {"type": "video", "path": "a.mp4", "start": 1.0, "end": 2.5, "fps": 2.0, "max_frames": 9}
    assert question(record)[0] == expected


def test_settings_beside_several_clips_are_lists():
    record = {"video": ["a.mp4", "b.mp4"], "start": [None, 3], "conversations": turns("<video><video>")}
    assert question(record) == [
        {"type": "video", "path": "a.mp4"},
        {"type": "video", "path": "b.mp4", "start": 3.0},
    ]


def test_the_lists_of_llama_factory_are_read():
    record = {"videos": ["a.mp4"], "system": "Be brief.", "conversations": turns("<video>What?")}
    row = to_row(record)
    assert row["messages"][0] == {"role": "system", "content": [text("Be brief.")]}
    assert row["messages"][1]["content"] == [{"type": "video", "path": "a.mp4"}, text("What?")]


def test_what_an_answer_spells_is_text():
    record = {"video": "a.mp4", "conversations": turns("<video>\nWhich tag?", "The <video> tag, not <vi_start>.")}
    assert to_row(record)["messages"][1]["content"] == [text("The <video> tag, not <vi_start>.")]


@pytest.mark.parametrize("record", [WEBVID, CC3M, COCO, LLAVA_VIDEO], ids=lambda record: record["id"])
def test_published_records_round_trip(record):
    row = to_row(record, "media")
    assert to_row(to_llava(row, "media"), "media") == row


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"video": "a.mp4", "conversations": turns("<video> and <video>")}, "2 places for videos, and names 1"),
        ({"conversations": turns("<video> ?")}, "1 places for videos, and names 0"),
        (
            {"video": "a.mp4", "image": "b.jpg", "conversations": turns("?")},
            "nothing says where the images and clips belong",
        ),
        ({"video": "a.mp4", "conversations": turns("?", "<video> shows")}, "placeholder stands in a turn of 'gpt'"),
        ({"video": "a.mp4", "conversations": turns("?")[1:]}, "no turn of the user to show them in"),
        ({"video": "a.mp4", "videos": ["a.mp4"], "conversations": turns("?")}, "both `video` and `videos`"),
        ({"video": ["a.mp4", "b.mp4"], "start": 1, "conversations": turns("?")}, "1 of `start` for 2 clips"),
        ({"start": 1, "conversations": turns("?")}, "1 of `start` for 0 clips"),
        ({"video": "a.mp4", "start": 1, "duration": 2, "conversations": turns("?")}, "write `end`"),
        ({"video": [["a.jpg", "b.jpg"]], "conversations": turns("?")}, "put its frames into a folder"),
        ({"conversations": turns("?")[:1]}, "no turn of the assistant"),
        ({"conversations": [{"from": "bot", "value": "?"}]}, "the role 'bot' is unknown"),
        ({"conversations": "What?"}, "`conversations` is the text 'What\\?', expected a list"),
        ({"conversations": ["What?"]}, "a turn is the text 'What\\?', expected an object"),
        ({"conversations": [{"from": "human", "value": None}]}, "a turn of 'human' is null, expected text"),
        ({"conversations": turns("?", 3)}, "a turn of 'gpt' is the number 3, expected text"),
        ({"conversations": [turns("?")[0], turns("?")[1] | {"weight": 0}]}, "a turn has the fields `weight`"),
    ],
)
def test_what_cannot_be_read_is_named(fields, message):
    with pytest.raises(ValueError, match=f"Record '7' is not a training row: .*{message}"):
        to_row({"id": "7"} | fields)
