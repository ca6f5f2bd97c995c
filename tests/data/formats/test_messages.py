# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Messages: this library's rows, and the `videos` and `images` of other tools beside them."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.export import to_llava


# hiyouga/LLaMA-Factory, data/mllm_video_demo.json (Apache-2.0).
LLAMA_FACTORY = [
    {
        "messages": [
            {"content": "<video>Why is this video funny?", "role": "user"},
            {"content": "Because a baby is reading, and he is so cute!", "role": "assistant"},
        ],
        "videos": ["mllm_demo_data/1.mp4"],
    },
    {
        "messages": [
            {"content": "<video>What is she doing?", "role": "user"},
            {"content": "She is cooking.", "role": "assistant"},
        ],
        "videos": ["mllm_demo_data/2.avi"],
    },
    {
        "messages": [
            {"content": "<video>What's in the video?", "role": "user"},
            {"content": "A baby is playing in the living room.", "role": "assistant"},
        ],
        "videos": ["mllm_demo_data/3.mp4"],
    },
]


def text(value):
    return {"type": "text", "text": value}


def chat(content, answer="Yes.", **fields):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **fields}


def question(record, root=None):
    return to_row(record, root)["messages"][0]["content"]


def test_a_row_stays_a_row():
    row = to_row(chat([{"type": "video", "path": "a.mp4", "start": 1}, {"type": "image", "path": "b.jpg"}]), "media")
    assert to_row(row) == row


def test_a_source_may_have_any_of_its_names():
    content = [
        {"type": "video", "url": "https://x.org/a.mp4"},
        {"type": "video", "video": "a.mp4"},
        {"type": "video_url", "video_url": {"url": "a.mp4"}},
        {"type": "image", "path": "b.jpg"},
        {"type": "image_url", "image_url": {"url": "c.jpg"}},
    ]
    row = to_row(chat(content), "media")
    assert [block.get("path") for block in row["messages"][0]["content"]] == [
        "https://x.org/a.mp4",
        "media/a.mp4",
        "media/a.mp4",
        None,
        None,
    ]
    assert row["images"] == ["media/b.jpg", "media/c.jpg"]


def test_settings_of_a_clip_are_kept():
    settings = {"start": 1, "end": 2.5, "num_frames": 8}
    (clip,) = question(chat([{"type": "video", "path": "a.mp4", **settings}]))
    assert clip == {"type": "video", "path": "a.mp4", "start": 1.0, "end": 2.5, "num_frames": 8}


def test_empty_keys_are_as_if_they_were_not_there():
    """pandas and Arrow give every block every key."""
    block = {"type": "video", "path": "a.mp4", "text": None, "image": None}
    assert question(chat([block, text("What?") | {"path": None}])) == [
        {"type": "video", "path": "a.mp4"},
        text("What?"),
    ]


@pytest.mark.parametrize("record", LLAMA_FACTORY, ids=lambda record: record["videos"][0])
def test_the_videos_of_llama_factory_go_where_its_text_says(record):
    clip, words = question(record)
    assert clip == {"type": "video", "path": record["videos"][0]}
    assert f"<video>{words['text']}" == record["messages"][0]["content"]
    row = to_row(record, "media")
    assert to_row(to_llava(row, "media"), "media") == row


def test_videos_without_a_place_come_first():
    """As ms-swift does."""
    assert question(chat("What?", videos=["a.mp4"])) == [{"type": "video", "path": "a.mp4"}, text("What?")]


def test_images_and_videos_are_told_apart_by_their_placeholders():
    row = to_row(chat("<image>Is it in <video>?", images=["b.jpg"], videos=["a.mp4"]))
    assert [block["type"] for block in row["messages"][0]["content"]] == ["image", "text", "video", "text"]


def test_blocks_without_a_source_are_filled_from_the_lists():
    record = chat([{"type": "video"}, {"type": "image"}, text("?")], images=["b.jpg"], videos=["a.mp4"])
    assert question(record)[:2] == [{"type": "video", "path": "a.mp4"}, {"type": "image"}]


def test_a_system_prompt_at_the_top_is_the_first_turn():
    assert to_row(chat("Hi", system="Be brief."))["messages"][0] == {"role": "system", "content": [text("Be brief.")]}


@pytest.mark.parametrize("spelt", ["What does <video> mean?", "<vi_start>", "</s>"])
def test_what_a_text_spells_is_text(spelt):
    assert question(chat(spelt)) == [text(spelt)]
    assert question(chat([text(spelt)], videos=["a.mp4"]))[1] == text(spelt)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (chat([{"type": "audio"}]), "content of type 'audio' is unknown"),
        (chat([{"type": "text"}]), "a text is null, expected text"),
        (chat([{"type": "text", "text": "What?", "video": "a.mp4"}]), "a block of text has the fields `video`"),
        (chat([{"text": "What?"}]), 'expected an object with a "type"'),
        (chat(["What?"]), "a block is the text 'What\\?'"),
        (chat([{"type": "video"}]), "1 places for videos, and names 0"),
        (chat([{"type": "image"}], images=[]), "1 places for images, and names 0"),
        (chat([{"type": "image", "path": "a.jpg"}], images=["a.jpg"]), "nothing says where the images and clips"),
        (chat([{"type": "video", "path": "a.mp4", "nframes": 8}]), "'nframes' is called 'num_frames'"),
        (chat([{"type": "video", "path": "a.mp4", "start": "00:01"}]), "`start` of a clip is the text '00:01'"),
        (chat([{"type": "video", "path": "a.mp4", "start": True}]), "`start` of a clip is true"),
        (chat([{"type": "video", "path": "a.mp4", "num_frames": 2.5}]), "expected a whole number"),
        (chat([{"type": "video", "path": "a.mp4", "fps": 1, "num_frames": 2}]), "both `fps` and `num_frames`"),
        (chat([{"type": "video", "video": {"path": "a.mp4"}}]), "the path of a clip is an object with the fields"),
        (chat([{"type": "video", "video": ["a.jpg", "b.jpg"]}]), "the path of a clip is a list of 2"),
        (chat("What?", videos=[["a.jpg", "b.jpg"]]), "put its frames into a folder"),
        (chat("<video>", videos=["a.mp4", "b.mp4"]), "1 places for videos, and names 2"),
        (chat("What?", None), "the content of a message is null, expected text"),
        (chat("What?", 3), "the content of a message is the number 3"),
        (chat("What?", tools=[{"name": "x"}]), "`tools`, which tells of tools"),
        ({"messages": "[]"}, "`messages` is the text '\\[\\]', expected a list"),
        ({"messages": [{"role": "user"}]}, 'expected an object with "role" and "content"'),
        (chat("Hi", system="A") | {"messages": [{"role": "system", "content": "B"}]}, "both a `system` and a first"),
    ],
)
def test_what_cannot_be_read_is_named(record, message):
    with pytest.raises(ValueError, match=message):
        to_row(record)


def test_the_sound_of_llama_factory_is_refused():
    record = chat("<video><audio>What does this girl say?", videos=["4.mp4"], audios=["4.mp3"])
    with pytest.raises(ValueError, match="it has the field `audios`, which tells of a clip or an image"):
        to_row(record)
