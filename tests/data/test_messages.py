# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import pytest

from transformers_valley.data import to_row


# The two records printed in the paper's appendix B, answers shortened.
WEBVID = {
    "id": "25116338",
    "video": "037551_037600/25116338.mp4",
    "conversations": [
        {"from": "human", "value": "Describe the following video concisely.\n<video>"},
        {"from": "gpt", "value": "Smiling young girl picking fingers on keyboard"},
    ],
}
JUKIN = {
    "id": "jukin_1285059",
    "v_id": "1285059",
    "video": "jukinmedia_v_1285059.mp4",
    "source": "jukinmedia",
    "conversations": [
        {"from": "human", "value": "<video>\nHow do the performers execute their trick?"},
        {"from": "gpt", "value": "They find an open area."},
        {"from": "human", "value": "And then?"},
        {"from": "gpt", "value": "They jump."},
    ],
}


def text(value):
    return {"type": "text", "text": value}


def test_placeholder_after_the_text():
    assert to_row(WEBVID, "media") == {
        "messages": [
            {
                "role": "user",
                "content": [
                    text("Describe the following video concisely."),
                    {"type": "video", "path": "media/037551_037600/25116338.mp4"},
                ],
            },
            {"role": "assistant", "content": [text("Smiling young girl picking fingers on keyboard")]},
        ],
        "images": [],
    }


def test_placeholder_before_the_text_and_folder_of_the_source():
    row = to_row(JUKIN, "media")
    assert row["messages"][0]["content"] == [
        {"type": "video", "path": "media/jukinmedia/jukinmedia_v_1285059.mp4"},
        text("How do the performers execute their trick?"),
    ]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant"]


def test_images_go_into_their_column():
    record = {"image": ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "<image> or <image> ?"}]}
    record["conversations"].append({"from": "gpt", "value": "The first."})
    row = to_row(record)
    assert row["images"] == ["a.jpg", "b.jpg"]
    assert row["messages"][0]["content"] == [{"type": "image"}, text("or"), {"type": "image"}, text("?")]


def test_image_placeholder_of_a_video_record_is_the_video():
    record = WEBVID | {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]}
    assert to_row(record)["messages"][0]["content"][0] == {"type": "video", "path": WEBVID["video"]}


def test_missing_placeholder_is_put_first():
    record = WEBVID | {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}]}
    assert to_row(record)["messages"][0]["content"] == [{"type": "video", "path": WEBVID["video"]}, text("What?")]


def test_text_only():
    record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    assert to_row(record) == {
        "messages": [
            {"role": "user", "content": [text("Hi")]},
            {"role": "assistant", "content": [text("Hello")]},
        ],
        "images": [],
    }


def test_rows_stay_rows():
    row = to_row(JUKIN, "media")
    assert to_row(row) == row


def test_rows_with_segments_and_other_keys_for_a_path():
    content = [
        {"type": "video", "url": "https://x.org/a.mp4", "start": 1, "end": 2.5},
        {"type": "image", "path": "b.jpg"},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    row = to_row({"messages": messages}, "media")
    assert row["messages"][0]["content"] == [
        {"type": "video", "path": "https://x.org/a.mp4", "start": 1.0, "end": 2.5},
        {"type": "image"},
    ]
    assert row["images"] == ["media/b.jpg"]


def turns(question, answer="Yes."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "7"}, "Record '7' .*expected `messages` or `conversations`"),
        ({"id": "7", "video": "a.mp4", "conversations": turns("<video> and <video>")}, "2 placeholders for 1 paths"),
        ({"id": "7", "conversations": turns("<video> ?")}, "1 placeholders for 0 paths"),
        ({"id": "7", "video": "a.mp4", "image": "b.jpg", "conversations": turns("?")}, "both `video` and `image`"),
        ({"id": "7", "conversations": turns("?")[:1]}, "no turn of the assistant"),
        ({"id": "7", "conversations": [{"from": "bot", "value": "?"}]}, "the role 'bot' is unknown"),
        ({"id": "7", "conversations": turns("?", "")}, "a turn is empty"),
        ({"id": "7", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "'audio' is unknown"),
        ({"id": "7", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a field 'text' is missing"),
        ({"id": "7", "messages": [{"role": "user", "content": "a <vi_start> b"}]}, r"no turn of the assistant"),
        ({"id": "7", "conversations": turns("?", "It says <vi_start>.")}, r"spells .*\['<vi_start>'\]"),
        ({"id": "7", "video": "a.mp4", "conversations": turns("?")[1:]}, "has no turn of the user"),
        ({"id": "7", "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "needs the path of its clip"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": []},
            "1 of its image blocks have no image",
        ),
        (
            {"messages": [{"role": "user", "content": "?"}], "images": ["a.jpg"]},
            "1 of its 1 `images` stand in no image block",
        ),
    ],
)
def test_broken_records_are_named(record, message):
    with pytest.raises(ValueError, match=message):
        to_row(record)
